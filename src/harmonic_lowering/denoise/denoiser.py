"""The denoiser: fit the prior to a recording, filter the recording, join the pieces."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..spectral import Stft
from .fit import fit_gain
from .objective import estimate_noise

__all__ = ["Denoised", "Denoiser", "Progress", "segment_bounds"]

_LARGEST_RATIO = 1e6  # |X|²/N above 60 dB says no more about the gain, only upsets the fit


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `step` of `steps` in `segment` of `segments`, counted from 1."""

    segment: int
    segments: int
    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class Denoised:
    """What came out: `waveform` and `noise` add up to the input; `seconds` it took."""

    waveform: Tensor
    noise: Tensor
    sample_rate: int
    seconds: float


@dataclass(frozen=True)
class Denoiser:
    r"""Remove noise from one recording, with a network fitted to that recording alone.

    A network of harmonic convolutions is fitted to the recording's power spectrum by maximum
    likelihood. It learns what repeats along harmonics and in time sooner than what does not, so
    that, stopped early, it has learnt the sound and not the noise. No training data, no download,
    no sample of the noise.

    .. math:: \min_θ \sum_{f,t} \frac{|X|²}{N (1+ξ_θ)} + \log(1+ξ_θ),
        \qquad \hat S = \frac{ξ}{1+ξ} X

    with the noise power N(f) estimated from the same recording.

    Parameters
    ----------
    steps : int >= 1
        Steps of the optimiser for each segment.
    seed : int
        The same seed gives the same bits on the same machine.
    device : str
        Where to compute, as "cpu" or "cuda".
    atten_lim : float > 0 or None
        Attenuate by this many dB at most; a little noise left over hides artefacts.
    layer : "harmonic" or "plain"
        Layers of the network: `HarmonicConv2d`, or `Conv2d` to compare with.
    widths : tuple of int >= 1
        Channels of the network at each scale.
    learning_rate : float > 0
        Adam's largest; it rises over the first steps and falls to zero with a cosine, so that the
        end of a run is calm whatever its number of steps.
    smoothing : float in [0, 1)
        Share of the past in the moving average of the gains over the steps.
    segment_s, overlap_s : float, 0 < overlap_s <= segment_s / 2
        Longer recordings are cut into segments of about this length, cross-faded; a segment
        bounds the memory.

    Raises
    ------
    ValueError
        If an argument is out of range, the device is not there, or the recording is too short,
        not finite or of a wrong shape.

    Notes
    -----
    Channels share one gain, so a stereo image stays where it is. Silence is returned as it came.
    Not for noise that is itself harmonic or speech-like: hum, babble and music count as signal.

    References
    ----------
    Ulyanov et al., "Deep Image Prior", arXiv:1711.10925; Zhang et al., "Deep Audio Priors Emerge
    From Harmonic Convolutional Networks", ICLR 2020; Févotte et al. on the Itakura-Saito
    divergence as the likelihood of power spectra, DOI 10.1162/neco.2008.04-08-771.

    Examples
    --------
    >>> noisy = 0.1 * torch.randn(8000)
    >>> result = Denoiser(steps=2)(noisy, 16000)
    >>> result.waveform.shape, torch.allclose(result.waveform + result.noise, noisy, atol=1e-6)
    (torch.Size([8000]), True)
    """

    steps: int = 150
    seed: int = 0
    device: str = "cpu"
    atten_lim: float | None = None
    layer: str = "harmonic"
    widths: tuple[int, ...] = (16, 16, 16)
    learning_rate: float = 2e-2
    smoothing: float = 0.9
    segment_s: float = 10.0
    overlap_s: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.atten_lim is not None and not self.atten_lim > 0:
            raise ValueError(f"atten_lim is a positive number of dB, got {self.atten_lim}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must lie in [0, 1), got {self.smoothing}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 < self.overlap_s <= self.segment_s / 2:
            raise ValueError(
                f"overlap_s must lie between 0 and half of segment_s ({self.segment_s / 2}), "
                f"got {self.overlap_s}"
            )
        if self.layer not in ("harmonic", "plain"):
            raise ValueError(f'layer must be "harmonic" or "plain", got {self.layer!r}')
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be one or more positive integers, got {self.widths}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(
                f'device {self.device!r} cannot be used here, "cpu" always can'
            ) from error

    def __call__(
        self,
        waveform: Tensor,
        sample_rate: int,
        progress: Callable[[Progress], None] | None = None,
    ) -> Denoised:
        """Denoise a recording that is in memory.

        Parameters
        ----------
        waveform : Tensor [shape=(L,) or (C, L)], float32 or float64
            At least one window (64 ms) long.
        sample_rate : int >= 1, Hz
        progress : callable, optional
            Called after each step.

        Returns
        -------
        Denoised
            Its tensors have the shape and dtype of `waveform`.
        """
        if waveform.ndim not in (1, 2):
            raise ValueError(
                f"waveform must have shape (L,) or (C, L), got {tuple(waveform.shape)}"
            )
        began = time.monotonic()
        channels = waveform if waveform.ndim == 2 else waveform[None]
        blocks = self.stream(
            lambda start, stop: channels[:, start:stop], channels.shape[1], sample_rate, progress
        )
        clean = torch.cat(list(blocks), 1).reshape(waveform.shape)
        return Denoised(clean, waveform - clean, sample_rate, time.monotonic() - began)

    def stream(
        self,
        read: Callable[[int, int], Tensor],
        length: int,
        sample_rate: int,
        progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[Tensor]:
        """Denoise a recording of any length in bounded memory.

        Parameters
        ----------
        read : callable
            ``read(start, stop)`` gives samples start..stop as a Tensor [shape=(C, stop − start)].
        length : int
            Samples of the recording.
        sample_rate, progress
            As for a call.

        Yields
        ------
        Tensor [shape=(C, n)]
            The next n clean samples; all blocks together hold `length`.
        """
        if sample_rate < 1:
            raise ValueError(f"sample_rate must be a positive number of Hz, got {sample_rate}")
        transform = Stft.for_rate(sample_rate)
        if length < transform.n_fft:
            raise ValueError(
                f"the recording has {length} samples, shorter than one window of "
                f"{transform.n_fft} ({1000 * transform.n_fft / sample_rate:.0f} ms)"
            )
        overlap = max(transform.n_fft, round(self.overlap_s * sample_rate))
        bounds = segment_bounds(
            length, max(2 * overlap, round(self.segment_s * sample_rate)), overlap
        )
        fade = (torch.arange(overlap) + 0.5) / overlap
        tail: Tensor | None = None
        for index, (start, stop) in enumerate(bounds):
            noisy = read(start, stop)
            if not noisy.isfinite().all():
                raise ValueError("the recording holds samples that are not finite numbers")
            report = _reporter(progress, index + 1, len(bounds), self.steps)
            clean = self._clean(noisy, transform, report)
            if tail is not None:
                clean[:, :overlap] = torch.lerp(tail, clean[:, :overlap], fade.to(clean))
            last = index == len(bounds) - 1
            tail = None if last else clean[:, -overlap:]
            yield clean if last else clean[:, :-overlap]

    def _clean(
        self, noisy: Tensor, transform: Stft, report: Callable[[int, float], None]
    ) -> Tensor:
        """Fit one segment (C, L) and filter it."""
        spectrum = transform(noisy)
        power = spectrum.abs().square()
        alive = [channel for channel in power if bool(channel.max() > 0)]
        if not alive:
            return noisy.clone()
        # One gain for all channels, from the mean of their signal-to-noise ratios.
        ratio = torch.stack([channel / estimate_noise(channel)[:, None] for channel in alive])
        gain = fit_gain(
            ratio.mean(0).clamp_max(_LARGEST_RATIO).float(),
            report,
            steps=self.steps,
            seed=self.seed,
            device=self.device,
            layer=self.layer,
            widths=self.widths,
            learning_rate=self.learning_rate,
            smoothing=self.smoothing,
        )
        if self.atten_lim is not None:
            least = 10 ** (-self.atten_lim / 20)
            gain = least + (1 - least) * gain
        return transform.inverse(spectrum * gain.to(power), noisy.shape[1])


def segment_bounds(length: int, segment: int, overlap: int) -> list[tuple[int, int]]:
    """Cut 0..length into equal stretches of at most `segment`, neighbours sharing `overlap`."""
    if length <= segment:
        return [(0, length)]
    count = math.ceil((length - overlap) / (segment - overlap))
    edges = [round(i * (length - overlap) / count) for i in range(count + 1)]
    return [(start, stop + overlap) for start, stop in itertools.pairwise(edges)]


def _reporter(
    progress: Callable[[Progress], None] | None, segment: int, segments: int, steps: int
) -> Callable[[int, float], None]:
    def report(step: int, loss: float) -> None:
        if progress is not None:
            progress(Progress(segment, segments, step, steps, loss))

    return report
