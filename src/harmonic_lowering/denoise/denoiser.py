"""The denoiser: fit the prior to a recording, filter the recording, join the pieces."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..spectral import Stft
from .dap import fit_spectrum
from .fit import fit_weights
from .hum import subtract_hum
from .objective import estimate_noise, posterior_gain, shrinkage_risk
from .rumble import cut_rumble

__all__ = ["Denoised", "Denoiser", "Progress", "segment_bounds"]

_LARGEST_RATIO = 1e6  # |X|²/N above 60 dB says no more about the gain, only upsets the fit
_MOST_BINS = 600_000  # of a segment's spectrogram: what bounds the memory at high rates
_STEPS = {
    ("prior", "fast"): 50,
    ("prior", "default"): 300,
    ("prior", "best"): 600,
    ("dap", "fast"): 1000,
    ("dap", "default"): 5000,
    ("dap", "best"): 10000,
}
_STARTS = {"fast": 1, "default": 1, "best": 3}
_WIDTHS = {"prior": (8, 16, 24, 32), "dap": (35, 70, 70)}
_LEARNING_RATE = {"prior": 5e-2, "dap": 1e-3}
_WINDOWS_S = {"prior": (0.064, 0.032, 0.128), "dap": (0.064,)}  # a tie goes to the first
_OVERLAP = {"prior": 4, "dap": 16}  # windows over each sample
_CROP_S = 1.33  # of the recording, that a step looks at


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `step` of at most `steps` in `segment` of `segments`, counted from 1.

    `ended` is empty until a segment's last step, then says why it is the last: "level" (the
    likelihood of hidden bins stopped growing), "steps" or "time".
    """

    segment: int
    segments: int
    step: int
    steps: int
    loss: float
    ended: str = ""


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

    Mains hum is subtracted first. Then a network of harmonic convolutions is fitted to the
    recording's power spectrum by maximum likelihood, each bin foretold from its surroundings and
    harmonics while the bin itself is hidden. Pitched sound can be foretold so, noise cannot. At
    last rumble is cut. No training data, no download, no sample of the noise.

    .. math:: \max_θ \sum_{f,t} \log \sum_k w_k(θ) \, p(X \mid ξ_k),
        \qquad p(X \mid ξ) = \frac{1}{1+ξ} \exp\frac{−|X|²/N}{1+ξ},
        \qquad \hat S = X \sum_k p(ξ_k \mid X) \frac{ξ_k}{1+ξ_k}

    with the noise power N(f) estimated from the same recording, and w the network's weights of
    signal-to-noise ratios ξ from −15 to 45 dB.

    Parameters
    ----------
    method : "prior" or "dap"
        As above, or the deep audio prior as published: the network is fitted to the complex STFT
        itself, and what it has learnt when it stops is the result. To compare with; it is slower
        and worse.
    quality : "fast", "default" or "best"
        Presets of `steps` and of the number of random starts that are averaged.
    steps : int >= 1, optional
        The most steps of the optimiser for each segment (and start).
    early_stop : bool
        Whether to end sooner, when the likelihood of hidden bins no longer grows (``"prior"``).
    time_limit : float > 0, seconds, optional
        For the whole recording. The result then depends on the machine's speed.
    seed : int in [0, 2**63)
        The same seed gives the same bits on the same machine.
    device : str
        Where to compute, as "cpu" or "cuda".
    strength : float in [0, 1]
        Share of what was found to be noise that is taken away.
    atten_lim : float > 0 or None
        Attenuate by this many dB at most; a little noise left over hides artefacts.
    hum : bool
        Whether to subtract steady tones at the multiples of 50 or 60 Hz (``"prior"``).
    rumble : bool
        Whether to cut what lies below the lowest pitch, 80 Hz at the most (``"prior"``).
    layer : "harmonic" or "plain"
        Layers of the network: `HarmonicConv2d`, or `Conv2d` to compare with.
    widths : tuple of int >= 1, optional
        Channels of the network at each scale.
    learning_rate : float > 0, optional
        Adam's largest; for ``"prior"`` it rises over the first steps and falls to zero with a
        cosine, so that the end of a run is calm whatever its number of steps.
    window_s : float in [0.001, 1], seconds, optional
        Window of the STFT. By default 32, 64 or 128 ms, whichever makes the recording sparsest (for
        ``"dap"`` 64 ms): words change fast, notes last.
    segment_s, overlap_s : float, 0 < overlap_s <= segment_s / 2
        Longer recordings are cut into segments of about this length (shorter at high rates),
        cross-faded; a segment bounds the memory.

    Raises
    ------
    ValueError
        If an argument is out of range, the device is not there, or the recording is too short,
        not finite or of a wrong shape.

    Notes
    -----
    Channels share one gain, so a stereo image stays where it is. Silence is returned as it came.
    Not for noise that is itself speech or music: babble counts as signal.

    References
    ----------
    Ulyanov et al., "Deep Image Prior", arXiv:1711.10925; Zhang et al., "Deep Audio Priors Emerge
    From Harmonic Convolutional Networks", ICLR 2020; Krull et al., "Noise2Void", CVPR 2019;
    Févotte et al. on the Itakura-Saito divergence as the likelihood of power spectra, DOI
    10.1162/neco.2008.04-08-771; Laine et al., "High-Quality Self-Supervised Deep Image Denoising",
    NeurIPS 2019, on what a hidden pixel itself still tells.

    Examples
    --------
    >>> noisy = 0.1 * torch.randn(8000)
    >>> result = Denoiser(steps=2)(noisy, 16000)
    >>> result.waveform.shape, torch.allclose(result.waveform + result.noise, noisy, atol=1e-6)
    (torch.Size([8000]), True)
    """

    method: str = "prior"
    quality: str = "default"
    steps: int | None = None
    early_stop: bool = True
    time_limit: float | None = None
    seed: int = 0
    device: str = "cpu"
    strength: float = 1.0
    atten_lim: float | None = None
    hum: bool = True
    rumble: bool = True
    layer: str = "harmonic"
    widths: tuple[int, ...] | None = None
    learning_rate: float | None = None
    window_s: float | None = None
    segment_s: float = 10.0
    overlap_s: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in (
            ("method", ("prior", "dap")),
            ("quality", ("fast", "default", "best")),
            ("layer", ("harmonic", "plain")),
        ):
            if getattr(self, name) not in choices:
                known = " or ".join(f'"{choice}"' for choice in choices)
                raise ValueError(f"{name} must be {known}, got {getattr(self, name)!r}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(f"time_limit is a positive number of seconds, got {self.time_limit}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie in 0 … 2**63 - 1, got {self.seed}")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength must lie in [0, 1], got {self.strength}")
        if self.atten_lim is not None and not self.atten_lim > 0:
            raise ValueError(f"atten_lim is a positive number of dB, got {self.atten_lim}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.window_s is not None and not 0.001 <= self.window_s <= 1:
            raise ValueError(
                f"window_s is a number of seconds in 0.001 … 1, as 0.064, got {self.window_s}"
            )
        if not 0 < self.overlap_s <= self.segment_s / 2:
            raise ValueError(
                f"overlap_s must lie between 0 and half of segment_s ({self.segment_s / 2}), "
                f"got {self.overlap_s}"
            )
        if self.widths is not None and (not self.widths or min(self.widths) < 1):
            raise ValueError(f"widths must be one or more positive integers, got {self.widths}")
        try:
            torch.zeros(1, device=self.device).item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(
                f'device {self.device!r} cannot be used here, "cpu" always can'
            ) from error

    def __call__(
        self,
        waveform: Tensor,
        sample_rate: int,
        progress: Callable[[Progress], object] | None = None,
    ) -> Denoised:
        """Denoise a recording that is in memory.

        Parameters
        ----------
        waveform : Tensor [shape=(L,) or (C, L)], float32 or float64
            At least one window long, `window_s` or 64 ms.
        sample_rate : int >= 1, Hz
        progress : callable, optional
            Called after each step. When it returns true, the segment is filtered with what was
            learnt so far, and the rest of the recording stays as it is.

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
        progress: Callable[[Progress], object] | None = None,
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
        window, *_ = self._windows(sample_rate)
        if length < window.n_fft:
            raise ValueError(
                f"the recording has {length} samples, shorter than one window of "
                f"{window.n_fft} ({1000 * window.n_fft / sample_rate:.0f} ms)"
            )
        overlap = max(window.n_fft, round(self.overlap_s * sample_rate))
        longest = min(
            round(self.segment_s * sample_rate), _MOST_BINS // window.bins * window.hop_length
        )
        bounds = segment_bounds(length, max(2 * overlap, longest), overlap)
        fade = (torch.arange(overlap) + 0.5) / overlap
        ends = None if self.time_limit is None else time.monotonic() + self.time_limit
        stopped = False
        tail: Tensor | None = None
        for index, (start, stop) in enumerate(bounds):
            noisy = read(start, stop)
            if not noisy.isfinite().all():
                raise ValueError("the recording holds samples that are not finite numbers")
            clean = noisy.clone()
            if not stopped:
                left = len(bounds) - index
                share = None if ends is None else max(0.0, ends - time.monotonic()) / left
                place = (index + 1, len(bounds))
                clean, stopped = self._clean(noisy, sample_rate, share, place, progress)
            if tail is not None:
                clean[:, :overlap] = torch.lerp(tail, clean[:, :overlap], fade.to(clean))
            last = index == len(bounds) - 1
            tail = None if last else clean[:, -overlap:]
            yield clean if last else clean[:, :-overlap]

    def _clean(
        self,
        noisy: Tensor,
        sample_rate: int,
        time_limit: float | None,
        place: tuple[int, int],
        progress: Callable[[Progress], object] | None,
    ) -> tuple[Tensor, bool]:
        """Fit one segment (C, L) and filter it; say, too, whether `progress` asked to stop."""
        loudest = float(noisy.abs().max())
        if loudest == 0:
            return noisy.clone(), False
        # Squares of very loud or very quiet samples would leave the range of float32. A power of
        # two changes no digit.
        scale = 2.0 ** math.frexp(loudest)[1]
        scaled = noisy / scale
        prior = self.method == "prior"
        heard = subtract_hum(scaled, sample_rate) if prior and self.hum else scaled
        transform, spectrum = self._sparsest(heard, sample_rate)
        crop = round(_CROP_S * sample_rate / transform.hop_length)
        asked = False
        steps = self.steps or _STEPS[self.method, self.quality]
        starts = _STARTS[self.quality] if self.method == "prior" else 1

        def report(step: int, loss: float, ended: str) -> bool:
            nonlocal asked
            if progress is not None:
                done = start * steps + step
                last = ended if start == starts - 1 else ""
                asked = bool(progress(Progress(*place, done, starts * steps, loss, last)))
            return asked

        common: dict[str, Any] = {
            "steps": steps,
            "device": self.device,
            "layer": self.layer,
            "widths": self.widths or _WIDTHS[self.method],
            "learning_rate": self.learning_rate or _LEARNING_RATE[self.method],
        }
        results = []
        for start in range(starts):
            begun = time.monotonic()
            settings = {
                **common,
                "seed": self.seed + start,
                "time_limit": None if time_limit is None else time_limit / (starts - start),
            }
            results.append(
                fit_spectrum(spectrum, report, **settings)
                if self.method == "dap"
                else spectrum * self._gain(spectrum, crop, report, settings)
            )
            if asked:
                break
            if time_limit is not None:
                time_limit = max(0.0, time_limit - (time.monotonic() - begun))
        clean = transform.inverse(torch.stack(results).mean(0), noisy.shape[1])
        if prior and self.rumble:
            clean = cut_rumble(clean, heard, sample_rate)
        kept = 1 - self.strength
        if self.atten_lim is not None:
            kept = max(kept, 10 ** (-self.atten_lim / 20))
        clean[noisy.abs().amax(1) == 0] = 0
        return torch.lerp(clean, scaled, kept) * scale, asked

    def _gain(
        self,
        spectrum: Tensor,
        crop: int,
        report: Callable[[int, float, str], bool],
        settings: dict[str, Any],
    ) -> Tensor:
        """One gain for all channels, from the mean of their signal-to-noise ratios."""
        alive = _powers(spectrum)
        if not alive:
            return torch.ones_like(spectrum[0].real)
        ratio = torch.stack([power / estimate_noise(power)[:, None] for power in alive])
        observed = ratio.mean(0).clamp_max(_LARGEST_RATIO)
        weights = fit_weights(
            observed.float(), report, crop=crop, early_stop=self.early_stop, **settings
        )
        return posterior_gain(weights.to(observed), observed)

    def _windows(self, sample_rate: int) -> list[Stft]:
        """Transforms to choose from; the recording and each segment hold at least the first."""
        lengths = _WINDOWS_S[self.method] if self.window_s is None else (self.window_s,)
        return [Stft.for_rate(sample_rate, length, _OVERLAP[self.method]) for length in lengths]

    def _sparsest(self, heard: Tensor, sample_rate: int) -> tuple[Stft, Tensor]:
        """Choose the transform that suits the segment, and give its spectrum, too."""
        windows = [w for w in self._windows(sample_rate) if w.n_fft <= heard.shape[1]]
        return min(((w, w(heard)) for w in windows), key=lambda pair: _risk(pair[1]))


def _powers(spectrum: Tensor) -> list[Tensor]:
    """|X|² of the channels that are not silent."""
    return [power for power in spectrum.abs().square() if bool(power.max() > 0)]


def _risk(spectrum: Tensor) -> float:
    """How badly this transform suits the recording: the channels' sum of `shrinkage_risk`."""
    return sum(shrinkage_risk(power, estimate_noise(power)) for power in _powers(spectrum))


def segment_bounds(length: int, segment: int, overlap: int) -> list[tuple[int, int]]:
    """Cut 0..length into equal stretches of at most `segment`, neighbours sharing `overlap`."""
    if length <= segment:
        return [(0, length)]
    count = math.ceil((length - overlap) / (segment - overlap))
    edges = [round(i * (length - overlap) / count) for i in range(count + 1)]
    return [(start, stop + overlap) for start, stop in itertools.pairwise(edges)]
