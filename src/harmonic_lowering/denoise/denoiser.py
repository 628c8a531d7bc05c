"""The denoiser: cut a recording into segments, have each estimated, join the results."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .dap import DapEstimator
from .estimator import Estimator, Settings
from .prior import PriorEstimator

__all__ = ["Block", "Denoised", "Denoiser", "Progress", "segment_bounds"]

_METHODS: dict[str, Estimator] = {"prior": PriorEstimator(), "dap": DapEstimator()}
_QUALITIES = ("fast", "default", "best")
_LAYERS = ("harmonic", "plain")
_MOST_BINS = 600_000  # of a segment's spectrogram: what bounds the memory at high rates


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `step` of at most `steps` in `segment` of `segments`, counted from 1.

    `ended` is empty until a segment's last step, then says why it is the last: "plateau" (the
    likelihood of masked bins stopped growing), "steps" or "time".
    """

    segment: int
    segments: int
    step: int
    steps: int
    loss: float
    ended: str = ""


class Block(NamedTuple):
    """The next samples of a stream, each of shape (C, n): they add up to the input."""

    clean: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Denoised:
    """The result: `waveform` and `noise` add up to the input; computing it took `seconds`."""

    waveform: Tensor
    noise: Tensor
    sample_rate: int
    seconds: float


@dataclass(frozen=True)
class Denoiser:
    r"""Remove noise from one recording, with a network fitted to that recording alone.

    Mains hum is subtracted first. Then a network of harmonic convolutions is fitted to the
    recording's power spectrum by maximum likelihood. The network predicts masked bins from their
    context; pitched sound is predictable, noise is not. Finally rumble is cut. No training data, no
    download, no sample of the noise.

    .. math:: \max_θ \sum_{f,t} \log \sum_k w_k(θ) \, p(X \mid ξ_k),
        \qquad p(X \mid ξ) = \frac{1}{1+ξ} \exp\frac{−|X|²/N}{1+ξ},
        \qquad \hat S = X \sum_k p(ξ_k \mid X) \frac{ξ_k}{1+ξ_k}

    where N(f) is the noise power, estimated from the same recording, and w are the weights that the
    network gives to signal-to-noise ratios ξ from −15 to 45 dB.

    Parameters
    ----------
    method : "prior" or "dap"
        As above, or the deep audio prior as published: the network is fitted to the complex STFT
        itself, and its last output is the result. It is slower and worse; for comparison.
    quality : "fast", "default" or "best"
        Presets of `steps` and of the number of random initialisations that are averaged.
    steps : int >= 1, optional
        Most steps of the optimiser for each segment (and initialisation).
    early_stop : bool
        Whether to end sooner, when the likelihood of masked bins no longer grows (``"prior"``).
    time_limit : float > 0, seconds, optional
        For the whole recording. The result then depends on the machine's speed.
    seed : int in [0, 2**63)
        The same seed gives the same bits on the same machine.
    device : str
        Where to compute, for example "cpu" or "cuda".
    strength : float in [0, 1]
        Share of the estimated noise that is removed.
    atten_lim : float > 0 or None
        Attenuate by at most this many dB; a little noise left over hides artefacts.
    hum : bool
        Whether to subtract steady tones at the multiples of 50 or 60 Hz (``"prior"``).
    rumble : bool
        Whether to cut everything below the lowest pitch, at most 80 Hz (``"prior"``).
    layer : "harmonic" or "plain"
        Layers of the network: `HarmonicConv2d`, or `Conv2d` to compare with.
    widths : tuple of int >= 1, optional
        Channels of the network at each scale.
    learning_rate : float > 0, optional
        Largest rate of Adam; for ``"prior"`` it rises over the first steps and falls to zero with a
        cosine, so that the end of a run is calm whatever its number of steps.
    window_s : float in [0.001, 1], seconds, optional
        Window of the STFT. By default 32, 64 or 128 ms, chosen per segment by Stein's unbiased risk
        estimate (for ``"dap"`` 64 ms): words change fast, notes last.
    segment_s, overlap_s : float, 0 < overlap_s <= segment_s / 2
        Longer recordings are cut into segments of about this length (shorter at high rates), which
        are cross-faded; a segment bounds the memory.

    Raises
    ------
    ValueError
        If an argument is out of range, the device is not available, or the recording is too short,
        not finite or of a wrong shape.

    Notes
    -----
    Channels share one gain, so a stereo image stays where it is. Silence is returned unchanged.
    Not for noise that is itself speech or music: babble counts as signal.

    References
    ----------
    Ulyanov et al., "Deep Image Prior", arXiv:1711.10925; Zhang et al., "Deep Audio Priors Emerge
    From Harmonic Convolutional Networks", ICLR 2020; Krull et al., "Noise2Void", CVPR 2019;
    Févotte et al. on the Itakura-Saito divergence as the likelihood of power spectra, DOI
    10.1162/neco.2008.04-08-771; Laine et al., "High-Quality Self-Supervised Deep Image Denoising",
    NeurIPS 2019, on what a masked pixel itself still tells.

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
            ("method", tuple(_METHODS)),
            ("quality", _QUALITIES),
            ("layer", _LAYERS),
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
        parts = zip(*blocks, strict=True)
        clean, noise = (torch.cat(part, 1).reshape(waveform.shape) for part in parts)
        return Denoised(clean, noise, sample_rate, time.monotonic() - began)

    def stream(
        self,
        read: Callable[[int, int], Tensor],
        length: int,
        sample_rate: int,
        progress: Callable[[Progress], object] | None = None,
    ) -> Iterator[Block]:
        """Denoise a recording of any length in bounded memory.

        Parameters
        ----------
        read : callable
            ``read(start, stop)`` returns samples start..stop, a Tensor [shape=(C, stop − start)].
        length : int
            Samples of the recording.
        sample_rate, progress
            As for a call.

        Yields
        ------
        Block
            The next n clean samples and what was removed from them, each a Tensor [shape=(C, n)];
            all blocks together hold `length` samples.
        """
        if sample_rate < 1:
            raise ValueError(f"sample_rate must be a positive number of Hz, got {sample_rate}")
        settings = self._settings()
        window = settings.transforms(sample_rate)[0]
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
                bad = start + int((~noisy.isfinite()).any(0).nonzero()[0])
                raise ValueError(
                    f"sample {bad} (at {bad / sample_rate:.3f} s) is not a finite number; cut or "
                    "repair that place first"
                )
            clean = noisy.clone()
            if not stopped:
                left = len(bounds) - index
                share = None if ends is None else max(0.0, ends - time.monotonic()) / left
                place = (index + 1, len(bounds))
                clean, stopped = self._clean(noisy, sample_rate, settings, share, place, progress)
            if tail is not None:
                clean[:, :overlap] = torch.lerp(tail, clean[:, :overlap], fade.to(clean))
            last = index == len(bounds) - 1
            tail = None if last else clean[:, -overlap:]
            done = clean if last else clean[:, :-overlap]
            yield Block(done, noisy[:, : done.shape[1]] - done)

    def _settings(self) -> Settings:
        """Return the method's settings, with what was set here."""
        own = _METHODS[self.method].settings(self.quality)
        return Settings(
            steps=self.steps or own.steps,
            starts=own.starts,
            widths=self.widths or own.widths,
            learning_rate=self.learning_rate or own.learning_rate,
            windows_s=own.windows_s if self.window_s is None else (self.window_s,),
            overlap=own.overlap,
            early_stop=self.early_stop,
            seed=self.seed,
            device=self.device,
            hum=self.hum,
            rumble=self.rumble,
            layer=self.layer,
        )

    def _clean(
        self,
        noisy: Tensor,
        sample_rate: int,
        settings: Settings,
        time_limit: float | None,
        place: tuple[int, int],
        progress: Callable[[Progress], object] | None,
    ) -> tuple[Tensor, bool]:
        """Clean one segment (C, L); also return whether `progress` asked to stop."""
        loudest = float(noisy.abs().max())
        if loudest == 0:
            return noisy.clone(), False
        # Squares of very loud or very quiet samples would leave the range of float32. A power of
        # two changes no digit.
        scale = 2.0 ** math.frexp(loudest)[1]
        scaled = noisy / scale
        most = settings.starts * settings.steps
        stopped = False

        def report(step: int, loss: float, ended: str) -> bool:
            nonlocal stopped
            if progress is not None:
                stopped = bool(progress(Progress(*place, step, most, loss, ended)))
            return stopped

        clean = _METHODS[self.method](scaled, sample_rate, settings, report, time_limit)
        left = 1 - self.strength
        if self.atten_lim is not None:
            left = max(left, 10 ** (-self.atten_lim / 20))
        clean[noisy.abs().amax(1) == 0] = 0
        return torch.lerp(clean, scaled, left) * scale, stopped


def segment_bounds(length: int, segment: int, overlap: int) -> list[tuple[int, int]]:
    """Cut 0..length into equal stretches of at most `segment`, neighbours sharing `overlap`."""
    if length <= segment:
        return [(0, length)]
    count = math.ceil((length - overlap) / (segment - overlap))
    edges = [round(i * (length - overlap) / count) for i in range(count + 1)]
    return [(start, stop + overlap) for start, stop in itertools.pairwise(edges)]
