"""The denoiser: cut a recording into segments, have each estimated, join the results."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import as_channels
from .estimator import Settings
from .fit import WIDTHS, shipped_start
from .mask import LearntMask, WeightsError, shipped_mask
from .noise_recording import RecordingNoise
from .noise_sample import NoiseSample
from .segment import (
    METHODS,
    Cleaned,
    Found,
    Progress,
    Segment,
    SegmentMap,
    clean_in_turn,
    segment_bounds,
)

__all__ = ["Block", "Denoised", "Denoiser", "Progress", "Stream", "Summary"]

_QUALITIES = ("fast", "default", "best")
_LAYERS = ("harmonic", "plain")
_STARTS = ("learnt", "random")
_MOST_BINS = 600_000  # of a segment's spectrogram: what bounds the memory at high rates
_STRETCH_S = 4.0  # in which the noise of the whole recording is looked for
_MOST_STRETCHES = 16  # of them, spread over a long recording
_PERIODIC = 0.6  # a sample of the noise beyond is hardly noise
_LITTLE_DB = 6.0  # of attenuation is little
_NOISY_DB = 30.0  # signal-to-noise ratio of recordings that have noise to remove
_RANGE_DB = 120.0  # of what a summary tells


class Block(NamedTuple):
    """The next samples of a stream, each of shape (C, n): they add up to the input."""

    clean: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Summary:
    """What was found and done; None where it is not known.

    Attributes
    ----------
    noise_dbfs : float or None
        Level of the estimated noise, the mean over time and channels; 0 dBFS is a mean square of 1.
    snr_db : float or None
        Estimated signal-to-noise ratio of the recording.
    steady : bool or None
        Whether the level of the noise never changes. Where it does, some of it may remain.
    removed_db : float or None
        By how much the estimated noise was attenuated.
    clicks : int
        How many clicks, clipped peaks and missing stretches were interpolated, in all channels;
        where two segments overlap, once for each.
    warning : str
        A sentence to show to the user, or empty.
    """

    noise_dbfs: float | None = None
    snr_db: float | None = None
    steady: bool | None = None
    removed_db: float | None = None
    clicks: int = 0
    warning: str = ""


@dataclass(frozen=True)
class Denoised:
    """The result: `waveform` and `noise` add up to the input; computing it took `seconds`."""

    waveform: Tensor
    noise: Tensor
    sample_rate: int
    seconds: float
    summary: Summary = Summary()


class Stream(Iterator[Block]):
    """The blocks of a recording; `summary` tells about those that came so far."""

    def __init__(self, blocks: Iterator[Block], account: _Account) -> None:
        self._blocks = blocks
        self._account = account

    def __next__(self) -> Block:
        return next(self._blocks)

    @property
    def summary(self) -> Summary:
        """What was found and done."""
        return self._account.summary()

    @property
    def untouched(self) -> int:
        """How many segments were left as they were, because `progress` asked to stop."""
        return self._account.untouched


@dataclass(frozen=True)
class Denoiser:
    r"""Remove noise from one recording.

    Clicks are repaired and mains hum is subtracted first. Then a network of harmonic convolutions,
    the prior, is fitted to the recording's power spectrum by maximum likelihood. The network
    predicts masked bins from their context; pitched sound is predictable, noise is not. A second
    network, the mask, has learnt how noise swells; it tells the prior what noise it misses, is
    fitted to the recording as well, and has its share in the answer. Both start from weights that
    were learnt from synthetic sounds alone. Finally rumble is cut. No download, no sample of the
    noise. With ``start="random"`` there is no mask and nothing but this recording is used, as in
    the literature on deep priors.

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
        Presets of `steps` and of the number of fits that are averaged; "fast" is the learnt mask
        alone, as it was learnt, or 25 steps of the prior (50 from a random start) where there is
        none.
    steps : int >= 1, optional
        Most steps of the optimiser for each segment (and fit). Those of a preset are for ten
        seconds; shorter segments take their share, so that a second costs the same.
    early_stop : bool
        Whether to end sooner, when the likelihood of masked bins no longer grows (``"prior"``).
    time_limit : float > 0, seconds, optional
        For the whole recording. The result then depends on the machine's speed.
    seed : int in [0, 2**63)
        The same seed gives the same bits on the same machine.
    start : "learnt" or "random"
        Whether what was learnt from synthetic sounds is used (``"prior"``): the mask, and the
        weights that the prior starts from, where `layer` and `widths` are the default ones. The
        mask has no say beside a sample of the noise, or where the recording is shorter than its
        window of 64 ms. A random start takes three times as many steps.
    device : str
        Where to compute, for example "cpu" or "cuda".
    strength : float in [0, 1]
        Share of the estimated noise that is removed.
    atten_lim : float > 0 or None
        Attenuate by at most this many dB; a little noise left over hides artefacts.
    declick : bool
        Whether to interpolate clicks of up to 6 ms, missing stretches of up to 20 ms and clipped
        peaks (``"prior"``); other samples do not change by it.
    hum : bool
        Whether to subtract mains hum and steady whistles (``"prior"``).
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
    start: str = "learnt"
    device: str = "cpu"
    strength: float = 1.0
    atten_lim: float | None = None
    declick: bool = True
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
            ("method", tuple(METHODS)),
            ("quality", _QUALITIES),
            ("layer", _LAYERS),
            ("start", _STARTS),
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
        *,
        noise: Tensor | None = None,
        noise_rate: int | None = None,
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
        noise : Tensor [shape=(L,) or (C, L)], optional
            A sample of the noise alone, 0.1 s or longer (``"prior"``). Its mean spectrum replaces
            the estimate: everything as loud as that is removed, all the time. With one channel it
            holds for all channels.
        noise_rate : int >= 1, Hz, optional
            Rate of `noise`, at least the recording's; by default the same.

        Returns
        -------
        Denoised
            Its tensors have the shape and dtype of `waveform`.

        Warns
        -----
        UserWarning
            If `noise` seems to be a voice or music, which would be removed.
        """
        began = time.monotonic()
        channels = as_channels(waveform)
        stream = self.stream(
            lambda start, stop: channels[:, start:stop],
            channels.shape[1],
            sample_rate,
            progress,
            noise=noise,
            noise_rate=noise_rate,
        )
        parts = zip(*stream, strict=True)
        clean, removed = (torch.cat(part, 1).reshape(waveform.shape) for part in parts)
        return Denoised(clean, removed, sample_rate, time.monotonic() - began, stream.summary)

    def stream(
        self,
        read: Callable[[int, int], Tensor],
        length: int,
        sample_rate: int,
        progress: Callable[[Progress], object] | None = None,
        *,
        noise: Tensor | None = None,
        noise_rate: int | None = None,
        each: SegmentMap = clean_in_turn,
    ) -> Stream:
        """Denoise a recording of any length in bounded memory.

        Parameters
        ----------
        read : callable
            ``read(start, stop)`` returns samples start..stop, a Tensor [shape=(C, stop − start)].
        length : int
            Samples of the recording.
        sample_rate, progress, noise, noise_rate
            As for a call.
        each : SegmentMap
            How the segments are cleaned; by default one after the other. With another one, each
            segment has the same share of `time_limit`.

        Returns
        -------
        Stream
            An iterator over `Block`, the next n clean samples and what was removed from them, each
            a Tensor [shape=(C, n)]; all blocks together hold `length` samples. Its `summary` is
            complete after the last one.
        """
        if sample_rate < 1:
            raise ValueError(f"sample_rate must be a positive number of Hz, got {sample_rate}")
        sample = None if noise is None else self._sample(noise, noise_rate, sample_rate)
        long_enough = length >= LearntMask.transform(sample_rate).n_fft
        settings = self._settings(mask=sample is None and long_enough)
        window = settings.transforms(sample_rate)[0]
        if length < window.n_fft:
            raise ValueError(
                f"the recording has {length} samples, shorter than one window of "
                f"{window.n_fft} ({1000 * window.n_fft / sample_rate:.0f} ms)"
            )
        account = _Account()
        overlap = max(window.n_fft, round(self.overlap_s * sample_rate))
        longest = min(
            round(self.segment_s * sample_rate), _MOST_BINS // window.bins * window.hop_length
        )
        bounds = segment_bounds(length, max(2 * overlap, longest), overlap)
        settings = settings.for_segment((bounds[0][1] - bounds[0][0]) / sample_rate)
        in_turn = each is clean_in_turn
        segments = self._segments(read, bounds, sample_rate, settings, sample, in_turn)
        return Stream(_joined(each(segments, progress), overlap, account), account)

    def _sample(self, noise: Tensor, noise_rate: int | None, sample_rate: int) -> NoiseSample:
        if noise_rate is not None and noise_rate < 1:
            raise ValueError(f"noise_rate must be a positive number of Hz, got {noise_rate}")
        channels = noise[None] if noise.ndim == 1 else noise
        sample = NoiseSample(channels, noise_rate or sample_rate, sample_rate)
        if sample.periodicity() > _PERIODIC:
            warnings.warn(
                "the sample of the noise seems to be a voice or music; whatever resembles it is "
                "removed",
                stacklevel=3,
            )
        return sample

    def _segments(
        self,
        read: Callable[[int, int], Tensor],
        bounds: Sequence[tuple[int, int]],
        sample_rate: int,
        settings: Settings,
        sample: NoiseSample | None,
        in_turn: bool,
    ) -> Iterator[Segment]:
        """Read one segment after the other, when it is wanted."""
        count, limit = len(bounds), self.time_limit
        ends = None if limit is None else time.monotonic() + limit
        kept = 1 - self.strength
        if self.atten_lim is not None:
            kept = max(kept, 10 ** (-self.atten_lim / 20))
        noise: NoiseSample | RecordingNoise | None = sample
        if sample is None and count > 1:
            noise = METHODS[self.method].listen(
                _stretches(read, bounds, sample_rate), sample_rate, settings
            )
        for index, (start, stop) in enumerate(bounds):
            noisy = _finite(read, start, stop, sample_rate)
            if isinstance(noise, RecordingNoise):
                noise = noise.at((start + stop) / 2 / sample_rate)
            share = None if limit is None else limit / count
            if ends is not None and in_turn:  # what others did not need is for the rest
                share = max(0.0, ends - time.monotonic()) / (count - index)
            yield Segment(
                noisy, sample_rate, self.method, settings, kept, noise, share, index + 1, count
            )

    def _settings(self, mask: bool) -> Settings:
        """Return the method's settings, with what was set here; `mask`: if one is of use."""
        learnt = self.method == "prior" and self.start == "learnt" and _weights_are_there()
        widths = self.widths or WIDTHS
        start = "learnt" if learnt and shipped_start(widths, self.layer) else "random"
        own = METHODS[self.method].settings(self.quality, start)
        mask_alone = learnt and mask and self.quality == "fast"
        return Settings(
            steps=self.steps or (0 if mask_alone else own.steps),
            starts=own.starts,
            widths=self.widths or own.widths,
            learning_rate=self.learning_rate or own.learning_rate,
            windows_s=own.windows_s if self.window_s is None else (self.window_s,),
            overlap=own.overlap,
            early_stop=self.early_stop,
            seed=self.seed,
            device=self.device,
            declick=self.declick,
            hum=self.hum,
            rumble=self.rumble,
            layer=self.layer,
            fewest_steps=own.fewest_steps if self.steps is None else None,
            start=start,
            mask=learnt and mask,
            mask_steps=own.mask_steps if self.steps is None else min(self.steps, own.mask_steps),
        )


def _finite(read: Callable[[int, int], Tensor], start: int, stop: int, sample_rate: int) -> Tensor:
    """Read samples that must be finite numbers."""
    noisy = read(start, stop)
    if not noisy.isfinite().all():
        bad = start + int((~noisy.isfinite()).any(0).nonzero()[0])
        raise ValueError(
            f"sample {bad} (at {bad / sample_rate:.3f} s) is not a finite number; cut or repair "
            "that place first"
        )
    return noisy


def _stretches(
    read: Callable[[int, int], Tensor], bounds: Sequence[tuple[int, int]], sample_rate: int
) -> Iterator[tuple[float, Tensor]]:
    """Read short stretches spread over a recording, each with the time of its middle."""
    size = min(round(_STRETCH_S * sample_rate), *(stop - start for start, stop in bounds))
    last = bounds[-1][1] - size
    count = min(_MOST_STRETCHES, 1 + math.ceil(last / size))
    for index in range(count):
        start = round(index * last / (count - 1))
        samples = _finite(read, start, start + size, sample_rate)
        yield (start + size / 2) / sample_rate, samples


def _weights_are_there() -> bool:
    """Read what was learnt; where that fails, say so and do without."""
    try:
        shipped_mask()
        shipped_start(WIDTHS, "harmonic")
    except (WeightsError, ImportError) as error:
        warnings.warn(f"{error}; going on with the prior from a random start", stacklevel=5)
        return False
    return True


def _joined(
    results: Iterator[tuple[Segment, Cleaned]], overlap: int, account: _Account
) -> Iterator[Block]:
    """Fade each segment into the next one over the `overlap` samples that they share."""
    fade = (torch.arange(overlap) + 0.5) / overlap
    tail: Tensor | None = None
    for segment, cleaned in results:
        account.add(cleaned)
        noisy, clean = segment.noisy, cleaned.clean
        if tail is not None:
            clean[:, :overlap] = torch.lerp(tail, clean[:, :overlap], fade.to(clean))
        last = segment.index == segment.count
        tail = None if last else clean[:, -overlap:]
        done = clean if last else clean[:, :-overlap]
        before = noisy[:, : done.shape[1]]
        yield Block(done, before - done)


class _Account:
    """The sums that a summary is made of, weighted by the length of each segment."""

    def __init__(self) -> None:
        self.untouched = 0
        self._found: list[Found] = []

    def add(self, cleaned: Cleaned) -> None:
        """Add a segment."""
        self.untouched += cleaned.untouched
        if cleaned.found is not None:
            self._found.append(cleaned.found)

    def summary(self) -> Summary:
        """Return the levels, and a warning where the noise could not be found well."""
        samples, sound, noise, left, clicks = (
            sum(getattr(found, name) for found in self._found)
            for name in ("samples", "sound", "noise", "left", "clicks")
        )
        if noise == 0:
            return Summary(clicks=clicks)
        snr_db = _decibels(sound - noise, noise)
        removed_db = _decibels(noise, left)
        known = [found.steady for found in self._found if found.steady is not None]
        steady = all(known) if known else None
        warning = ""
        if steady is False and snr_db < _NOISY_DB and removed_db < _LITTLE_DB:
            warning = (
                "little of the noise may have been removed: its level changes, and its quiet "
                "moments may have been taken for all of it; a sample of the noise would help"
            )
        noise_dbfs = _decibels(noise, samples)
        return Summary(noise_dbfs, snr_db, steady, removed_db, clicks, warning)


def _decibels(power: float, reference: float) -> float:
    """Return a ratio of powers in dB, within what can be told."""
    tiny = 10 ** (-_RANGE_DB / 10)
    ratio = max(power, 0.0) / reference if reference > 0 else math.inf
    return 10 * math.log10(min(max(ratio, tiny), 1 / tiny))
