"""The denoising method of this package: predict each bin's signal-to-noise ratio, then filter."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from ..spectral import Stft
from .clicks import repair_clicks
from .estimator import Estimate, Report, Settings
from .fit import WIDTHS, fit_weights
from .hum import subtract_hum
from .joined import Learnt, RaisedNoise
from .likelihood import posterior_gain, shrinkage_risk
from .mask import shipped_mask
from .noise_model import NoiseModel
from .noise_recording import RecordingNoise
from .noise_sample import NoiseSample
from .rumble import cut_rumble

__all__ = ["PriorEstimator"]

# For ten seconds, and however short the segment is: from a learnt start a third is as good.
_STEPS = {
    "random": {"fast": 50, "default": 200, "best": 500},
    "learnt": {"fast": 25, "default": 60, "best": 200},
}
_FEWEST_STEPS = {
    "random": {"fast": 50, "default": 50, "best": 100},
    "learnt": {"fast": 15, "default": 25, "best": 50},
}
_MASK_STEPS = {"fast": 0, "default": 8, "best": 16}
_MASK_SHARE = 0.25  # of a time limit, at most, to fit the mask
_STARTS = {"fast": 1, "default": 1, "best": 3}
LARGEST_RATIO = 1e6  # |X|²/N above 60 dB tells no more about the gain and only disturbs the fit

# Of each channel, None if it is silent.
_Models: TypeAlias = Sequence[NoiseModel | NoiseSample | RaisedNoise | None]


class PriorEstimator:
    """Repair clicks, subtract hum, filter with the gain that a fitted network finds, cut rumble."""

    def settings(self, quality: str, start: str) -> Settings:
        """Return the method's own settings for "fast", "default" or "best", from that start."""
        return Settings(
            steps=_STEPS[start][quality],
            starts=_STARTS[quality],
            widths=WIDTHS,
            learning_rate=5e-2,
            windows_s=(0.064, 0.032, 0.128),
            overlap=4,
            fewest_steps=_FEWEST_STEPS[start][quality],
            start=start,
            mask_steps=_MASK_STEPS[quality],
        )

    def __call__(
        self,
        noisy: Tensor,
        sample_rate: int,
        settings: Settings,
        report: Report,
        time_limit: float | None,
        noise: NoiseSample | RecordingNoise | None,
    ) -> Estimate:
        """Estimate the clean sound of a segment (C, L)."""
        declicked, clicks = repair_clicks(noisy, sample_rate) if settings.declick else (noisy, 0)
        dehummed = subtract_hum(declicked, sample_rate) if settings.hum else declicked
        if isinstance(noise, NoiseSample) and len(noise.waveform) not in (1, len(noisy)):
            raise ValueError(
                f"the sample of the noise has {len(noise.waveform)} channels and the recording "
                f"{len(noisy)}; it must have one or as many"
            )
        learnt = None
        if settings.mask:
            learnt = Learnt.of(shipped_mask(), dehummed, sample_rate)
        if learnt is not None and settings.steps == 0:
            report(1, math.nan, "mask")
            estimate = learnt.alone()
        else:
            own = _models(dehummed, sample_rate, settings, noise)
            models: _Models = own
            joined = None
            if learnt is not None:
                began = time.monotonic()
                joined = learnt.joined(own).fitted(
                    steps=settings.mask_steps,
                    seed=settings.seed,
                    time_limit=None if time_limit is None else _MASK_SHARE * time_limit,
                )
                if time_limit is not None:
                    time_limit = max(0.0, time_limit - (time.monotonic() - began))
                models = joined.raised
            estimate = _fitted(dehummed, sample_rate, settings, models, report, time_limit)
            if joined is not None:
                estimate = replace(estimate, clean=joined.mixed(estimate.clean))
        if settings.rumble:
            estimate = replace(estimate, clean=cut_rumble(estimate.clean, dehummed, sample_rate))
        return replace(estimate, clicks=clicks)

    def listen(
        self, stretches: Iterable[tuple[float, Tensor]], sample_rate: int, settings: Settings
    ) -> RecordingNoise | None:
        """Estimate the noise of the whole recording, without clicks and hum as in its segments."""
        if settings.mask and settings.steps == 0:  # the mask has its own
            return None

        def prepare(samples: Tensor) -> Tensor:
            if settings.declick:
                samples = repair_clicks(samples, sample_rate).waveform
            return subtract_hum(samples, sample_rate) if settings.hum else samples

        return RecordingNoise.of(stretches, sample_rate, settings.windows_s, prepare)


def _models(
    sound: Tensor, sample_rate: int, settings: Settings, noise: NoiseSample | RecordingNoise | None
) -> list[NoiseModel | NoiseSample | None]:
    """Return what is known of each channel's noise."""
    models: list[NoiseModel | NoiseSample | None] = []
    for index, channel in enumerate(sound):
        if not bool(channel.any()):
            models.append(None)
        elif isinstance(noise, NoiseSample):
            models.append(noise.channel(index))
        else:
            known = [] if noise is None else noise.states(index)
            models.append(NoiseModel.of(channel, sample_rate, settings.windows_s, known))
    return models


def _fitted(
    sound: Tensor,
    sample_rate: int,
    settings: Settings,
    models: _Models,
    report: Report,
    time_limit: float | None,
) -> Estimate:
    """Filter a segment (C, L) with the network that was fitted to it."""
    analysis = _choose_stft(sound, settings.transforms(sample_rate), models)
    spectrum = _filter(analysis, sample_rate, settings, report, time_limit)
    clean = analysis.transform.inverse(spectrum, sound.shape[1])
    found = [model for model in models if isinstance(model, NoiseModel | RaisedNoise)]
    steady = all(model.steady for model in found) if found else None
    return Estimate(clean, *analysis.noise_powers(spectrum), steady)


@dataclass(frozen=True)
class _Analysis:
    """A segment in one transform: |X|² and N of each channel that is not silent."""

    transform: Stft
    spectrum: Tensor
    powers: list[Tensor]
    noises: list[Tensor]

    @classmethod
    def of(cls, sound: Tensor, transform: Stft, models: _Models) -> _Analysis:
        spectrum = transform(sound)
        pairs = [
            (power, model.power(transform, power.shape[1]))
            for power, model in zip(spectrum.abs().square(), models, strict=True)
            if model is not None
        ]
        return cls(
            transform, spectrum, [power for power, _ in pairs], [noise for _, noise in pairs]
        )

    @property
    def risk(self) -> float:
        """How badly this transform suits the segment."""
        return sum(map(shrinkage_risk, self.powers, self.noises))

    def noise_powers(self, filtered: Tensor) -> tuple[float | None, float]:
        """Return the mean square of the noise and the share of it that a filter lets pass."""
        if not self.noises:
            return None, 0.0
        gain = filtered.abs().square().sum(0) / torch.stack(self.powers).sum(0)
        noise = torch.stack(self.noises)
        left = (noise * gain.nan_to_num()).sum() / noise.sum()
        return float(noise.mean()) / self.transform.window_energy, float(left)

    def ratio(self) -> Tensor:
        """Return |X|²/N, the mean over the channels, so that they share one gain."""
        pairs = zip(self.powers, self.noises, strict=True)
        ratios = [power / noise for power, noise in pairs]
        return torch.stack(ratios).mean(0).clamp_max(LARGEST_RATIO)


def _choose_stft(dehummed: Tensor, transforms: Sequence[Stft], models: _Models) -> _Analysis:
    """Return the segment in the transform of least risk, of those no longer than the segment."""
    fitting = (transform for transform in transforms if transform.n_fft <= dehummed.shape[1])
    analyses = (_Analysis.of(dehummed, transform, models) for transform in fitting)
    return min(analyses, key=lambda analysis: analysis.risk)


def _filter(
    analysis: _Analysis,
    sample_rate: int,
    settings: Settings,
    report: Report,
    time_limit: float | None,
) -> Tensor:
    """Filter the spectrum once for each random start, and average the results."""
    if not analysis.powers:
        return analysis.spectrum
    ratio = analysis.ratio()
    start, stopped = 0, False

    def report_start(step: int, loss: float, ended: str) -> bool:
        nonlocal stopped
        last = ended if start == settings.starts - 1 else ""
        stopped = report(start * settings.steps + step, loss, last)
        return stopped

    results = []
    for start in range(settings.starts):
        began = time.monotonic()
        weights = fit_weights(
            ratio.float(),
            analysis.transform,
            sample_rate,
            replace(settings, seed=settings.seed + start),
            report_start,
            None if time_limit is None else time_limit / (settings.starts - start),
        )
        results.append(analysis.spectrum * posterior_gain(weights.to(ratio), ratio))
        if stopped:
            break
        if time_limit is not None:
            time_limit = max(0.0, time_limit - (time.monotonic() - began))
    return torch.stack(results).mean(0)
