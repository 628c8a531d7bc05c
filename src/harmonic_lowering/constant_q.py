r"""Constant-Q and variable-Q transforms: the input that `LogHarmonicConv2d` expects.

Each bin is a band-pass filter followed by decimation to one value every `hop_length` samples. Both
are done on the spectrum of the whole recording: a filter is a multiplication by its response, whose
closed form is known and which is negligible outside a narrow band; keeping every H-th sample folds
what remains of the spectrum onto a spectrum of one H-th of the length. So a bin costs about its
bandwidth, however long its window, and everything is exact up to where the responses are cut off.
(Filtering constant-Q bins on the spectrum of the whole recording is known from G. Velasco et al.,
"Constructing an invertible constant-Q transform with non-stationary Gabor frames", DAFx 2011.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._torch import compile_time_constant, is_plain, making_constants
from .checks import as_count, as_fraction, as_positive

__all__ = ["CQT", "VQT"]

_HANN_NOISE_BANDWIDTH = 1.5  # bins
_CUT_OFF = 16  # bins from a filter's centre, where a Hann window's response is 1e-4 of its peak
_MOST_SAMPLES = 2**18  # transformed at once; longer recordings are cut into overlapping segments
_C1_HZ = 440 * 2 ** (-45 / 12)


class VQT(nn.Module):
    r"""Variable-Q transform, as `librosa.vqt` computes it; differentiable, on any device.

    Bin k has the frequency f_k = fmin·2^{k/b} and the bandwidth B_k = α·f_k + γ, with b bins per
    octave and α = (2^{2/b} − 1) / (2^{2/b} + 1). Frame t is centred on sample t·H:

    .. math::
        V[k, t] = \frac{2}{\sqrt{N_k}} \sum_{|j| < N_k/2} h(j / N_k) \, x[t·H + j] \,
            e^{−2πi f_k j / sr}, \quad
            N_k = s \frac{sr}{B_k}, \quad h(u) = \tfrac12 + \tfrac12 \cos 2πu

    Samples before the start and after the end are zero. A harmonic is the same number of bins above
    its fundamental everywhere, so the magnitude is the input for `LogHarmonicConv2d`.

    Parameters
    ----------
    sr : float > 0
        Sample rate in Hz.
    hop_length : int >= 1
        H, samples between frames. Any number; librosa is fast for multiples of 2^octaves only.
    fmin : float > 0, optional
        Frequency of the lowest bin in Hz; C1 (32.7 Hz) by default.
    n_bins : int >= 1
        Number of bins.
    gamma : float >= 0, optional
        γ in Hz. 0 gives a constant-Q transform; by default γ = 24.7·α / 0.108, which makes the
        bandwidths proportional to those of the ear and the windows of low bins much shorter.
    bins_per_octave : int >= 1
        b, as for `LogHarmonicConv2d`.
    filter_scale : float > 0
        s. Less than 1 gives shorter windows: better resolution in time, worse in frequency.
    scale : bool
        Without it, the factor is 2 instead of 2 / √N_k: a partial of constant amplitude a then
        gives about a·N_k / 2, where with it it gives a·√N_k / 2.

    Attributes
    ----------
    frequencies : tuple of float
        f_k in Hz.
    lengths : tuple of float
        N_k in samples.

    Raises
    ------
    ValueError
        If an argument does not fit, or the highest bin reaches beyond sr / 2.
    TypeError
        At the call, if the waveform is neither float32 nor float64.

    Notes
    -----
    Input (..., L), real; output (..., n_bins, 1 + floor(L / H)), complex. Responses are cut off 16
    bins (of sr / N_k each) from their centres: V is within 5·10⁻⁴ of the sum above, relative to the
    largest magnitude of each bin.

    librosa rounds window lengths to whole samples. Where it computes all bins at the full rate (odd
    hops; ``sparsity=0``), magnitudes agree within 0.5 % of the largest one. By default it rounds
    after decimation, where windows have few samples, and drops 1 % of each response: it then
    differs from the sum, and from this module, by 1 to 2 % in a constant-Q transform and by up to
    5 % in the lowest bins of a variable-Q transform.

    Differentiable to any order. Recordings of more than 262,144 samples are transformed in
    segments, so memory beyond that of the output stays bounded. No parameters, no buffers.

    References
    ----------
    C. Schörkhuber, A. Klapuri, N. Holighaus, M. Dörfler, "A Matlab toolbox for efficient perfect
    reconstruction time-frequency transforms with log-frequency resolution", AES 2014.

    Examples
    --------
    >>> from harmonic_lowering import VQT, LogHarmonicConv2d
    >>> transform = VQT(sr=16000, n_bins=216, bins_per_octave=36)
    >>> layer = LogHarmonicConv2d(1, 16, 5, harmonics=(1/2, 1, 2, 3, 4), bins_per_octave=36,
    ...                           padding="same")
    >>> sound = torch.randn(8, 1, 16000)  # batch, channel, samples
    >>> layer(transform(sound).abs()).shape
    torch.Size([8, 16, 216, 32])
    """

    def __init__(
        self,
        *,
        sr: float = 22050,
        hop_length: int = 512,
        fmin: float | None = None,
        n_bins: int = 84,
        gamma: float | None = None,
        bins_per_octave: int = 12,
        filter_scale: float = 1,
        scale: bool = True,
    ) -> None:
        super().__init__()
        self.sr = as_positive("sr", sr)
        self.hop_length = as_count("hop_length", hop_length)
        self.fmin = _C1_HZ if fmin is None else as_positive("fmin", fmin)
        self.n_bins = as_count("n_bins", n_bins)
        self.bins_per_octave = as_count("bins_per_octave", bins_per_octave)
        self.filter_scale = as_positive("filter_scale", filter_scale)
        self.scale = bool(scale)
        ratio = 2 ** (2 / self.bins_per_octave)
        alpha = (ratio - 1) / (ratio + 1)
        if gamma is not None and as_fraction("gamma", gamma) < 0:
            raise ValueError(f"gamma must be >= 0, got {gamma!r}")
        self.gamma = 24.7 * alpha / 0.108 if gamma is None else float(gamma)
        frequencies = [self.fmin * 2 ** (k / self.bins_per_octave) for k in range(self.n_bins)]
        lengths = [self.filter_scale * self.sr / (alpha * f + self.gamma) for f in frequencies]
        self._bank = _FilterBank(
            self.sr, self.hop_length, tuple(frequencies), tuple(lengths), self.scale
        )
        highest = self.frequencies[-1]
        relative = 1 + _HANN_NOISE_BANDWIDTH / 2 * alpha / self.filter_scale
        reach = highest * relative + self.gamma / 2
        if reach > self.sr / 2:
            raise ValueError(
                f"the highest of {self.n_bins} bins, at {highest:.0f} Hz, reaches up to "
                f"{reach:.0f} Hz, beyond half the sample rate, {self.sr / 2:.0f} Hz: lower n_bins "
                "or fmin, or raise sr"
            )

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Centre frequencies f_k in Hz."""
        return self._bank.frequencies

    @property
    def lengths(self) -> tuple[float, ...]:
        """Window lengths N_k in samples."""
        return self._bank.lengths

    def forward(self, waveform: Tensor) -> Tensor:
        """Transform a sound (..., L) to (..., n_bins, 1 + floor(L / hop_length)), complex."""
        if waveform.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"waveform must be float32 or float64, got {waveform.dtype}")
        if waveform.dim() == 0 or waveform.shape[-1] == 0:
            raise ValueError(
                f"waveform must be (..., samples) with one sample or more, got shape "
                f"{tuple(waveform.shape)}"
            )
        length = waveform.shape[-1]
        frames = 1 + length // self.hop_length
        halo = self._bank.halo_frames
        step = max(_MOST_SAMPLES // self.hop_length - 2 * halo, 2 * halo)
        if not waveform.numel():  # an empty batch, which FFTs refuse
            complex_dtype = torch.complex64 if waveform.dtype == torch.float32 else torch.complex128
            shape = (*waveform.shape[:-1], self.n_bins, frames)
            return waveform.new_zeros(shape, dtype=complex_dtype)
        if frames <= step:
            return self._bank.transform(waveform, frames)
        parts = []
        for first in range(0, frames, step):
            here = min(step, frames - first)
            start = (first - halo) * self.hop_length
            stop = (first + here + halo) * self.hop_length
            segment = waveform[..., max(0, start) : stop]
            segment = F.pad(segment, (max(0, -start), 0))
            parts.append(self._bank.transform(segment, halo + here)[..., halo:])
        return torch.cat(parts, -1)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return (
            f"sr={self.sr:g}, hop_length={self.hop_length}, fmin={self.fmin:g}, "
            f"n_bins={self.n_bins}, gamma={self.gamma:g}, bins_per_octave={self.bins_per_octave}, "
            f"filter_scale={self.filter_scale:g}, scale={self.scale}"
        )


class CQT(VQT):
    """Constant-Q transform, as `librosa.cqt` computes it: a `VQT` with ``gamma=0``.

    Every window spans the same number of periods, so windows of low bins are long: 36 bins per
    octave at 32.7 Hz take 1.6 seconds.

    Parameters
    ----------
    sr, hop_length, fmin, n_bins, bins_per_octave, filter_scale, scale
        As in `VQT`.

    Raises
    ------
    ValueError, TypeError
        As in `VQT`.

    Examples
    --------
    >>> transform = CQT(sr=22050, n_bins=84)
    >>> transform(torch.randn(2, 22050)).shape
    torch.Size([2, 84, 44])
    """

    def __init__(
        self,
        *,
        sr: float = 22050,
        hop_length: int = 512,
        fmin: float | None = None,
        n_bins: int = 84,
        bins_per_octave: int = 12,
        filter_scale: float = 1,
        scale: bool = True,
    ) -> None:
        super().__init__(
            sr=sr,
            hop_length=hop_length,
            fmin=fmin,
            n_bins=n_bins,
            gamma=0,
            bins_per_octave=bins_per_octave,
            filter_scale=filter_scale,
            scale=scale,
        )


@dataclass(frozen=True)
class _FilterBank:
    sr: float
    hop_length: int
    frequencies: tuple[float, ...]
    lengths: tuple[float, ...]
    scale: bool

    @property
    def halo_frames(self) -> int:
        """Frames whose hops cover half of the longest window."""
        return math.ceil(max(self.lengths) / 2 / self.hop_length)

    def transform(self, waveform: Tensor, frames: int) -> Tensor:
        """Return the first frames of a sound that is short enough to be transformed whole."""
        # The spectrum is periodic in time: zeros keep the last windows from reaching the start.
        reached = -(-waveform.shape[-1] // self.hop_length) + self.halo_frames
        period = _fast_size(max(frames, reached))
        spectrum = torch.fft.rfft(waveform, n=period * self.hop_length)
        folded = []
        for index, response in _responses(self, period, waveform.dtype, waveform.device):
            read = spectrum.index_select(-1, index).reshape(
                *spectrum.shape[:-1], *response.shape[:-1]
            )
            folded.append((torch.view_as_real(read) * response).sum(-3))
        whole: Tensor = torch.fft.ifft(torch.view_as_complex(torch.cat(folded, -3)))
        return whole[..., :frames]


@compile_time_constant
def _responses(
    bank: _FilterBank, period: int, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return where the filters read the spectrum and with which weights, lowest bins first.

    Neighbouring filters, whose bands are about equally wide, form a group of G. Each reads M blocks
    of `period` bins, which decimation adds up.

    Returns
    -------
    tuple of (index [shape=(G·M·period,)], response [shape=(G, M, period, 1 or 2)])
        The response is given for real and for imaginary parts, where they differ.
    """
    with making_constants():
        is_ordinary = is_plain(torch.empty(0))
    return (_kept_responses if is_ordinary else _make_responses)(bank, period, dtype, device)


def _make_responses(
    bank: _FilterBank, period: int, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Tensor, Tensor], ...]:
    samples = period * bank.hop_length
    # In bins of the spectrum: centres, first and last of each band, then the blocks that hold them.
    centres = [frequency * samples / bank.sr for frequency in bank.frequencies]
    reaches = [_CUT_OFF * samples / length for length in bank.lengths]
    bands = [
        (math.ceil(centre - reach), math.floor(centre + reach))
        for centre, reach in zip(centres, reaches, strict=True)
    ]
    blocks = [high // period - low // period + 1 for low, high in bands]
    groups = []
    start = 0
    while start < len(bands):
        most = max(1.25 * blocks[start], blocks[start] + 1)
        stop = next((k for k in range(start, len(bands)) if blocks[k] > most), len(bands))
        group = slice(start, stop)
        with making_constants():
            low, high = torch.tensor(bands[group]).T[..., None]
            bins = torch.arange(max(blocks[group]) * period)
            bins = bins + torch.tensor([low // period * period for low, _ in bands[group]])[:, None]
            centre = torch.tensor(centres[group], dtype=torch.float64)[:, None]
            length = torch.tensor(bank.lengths[group], dtype=torch.float64)[:, None]
            response = _hann_response((bins - centre) / samples, length) / bank.hop_length
            response = response.masked_fill((bins < low) | (bins > high), 0)
            if bank.scale:
                response /= length.sqrt()
            # A sound is real: its spectrum at −f, and beyond half the sample rate, is conjugate.
            bins = bins.remainder(samples)
            is_conjugate = bins > samples // 2
            index = torch.where(is_conjugate, samples - bins, bins)
            if bands[start][0] < 0 or bands[stop - 1][1] > samples // 2:
                response = torch.stack((response, response.where(~is_conjugate, -response)), -1)
            index = index.flatten().to(device)
            response = response.reshape(stop - start, -1, period, response.numel() // bins.numel())
            groups.append((index, response.to(device, dtype)))
        start = stop
    return tuple(groups)


_kept_responses = lru_cache(maxsize=4)(_make_responses)


def _hann_response(frequency: Tensor, length: Tensor) -> Tensor:
    """Return the Fourier transform of the Hann window, whose samples sum to `length`.

    Parameters
    ----------
    frequency : Tensor
        In cycles per sample.
    length : Tensor
        N in samples, not necessarily whole: samples at |j| < N/2 are not zero.
    """
    radius = (length / 2).ceil() - 1

    def rectangle(cycles: Tensor) -> Tensor:
        # sin((2M + 1)·ω/2) / sin(ω/2), whose limit at ω = 0 is 2M + 1.
        half = math.pi * (cycles - cycles.round())
        tiny = half.abs() < 1e-9
        half = half.masked_fill(tiny, 1)
        return torch.where(tiny, 2 * radius + 1, ((2 * radius + 1) * half).sin() / half.sin())

    def window(cycles: Tensor) -> Tensor:
        beside = rectangle(cycles - 1 / length) + rectangle(cycles + 1 / length)
        return rectangle(cycles) / 2 + beside / 4

    return window(frequency) * (length / window(torch.zeros_like(length)))


def _fast_size(least: int) -> int:
    """Return the smallest 2^a·3^b·5^c that is at least `least`."""
    sizes: list[int] = []
    for odd in (3**b * 5**c for b in range(13) for c in range(9)):
        doublings = (-(-least // odd) - 1).bit_length()
        sizes.append(odd << doublings)
    return min(sizes)
