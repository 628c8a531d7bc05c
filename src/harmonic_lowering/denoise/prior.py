"""The denoising method of this package: predict each bin's signal-to-noise ratio, then filter."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..spectral import Stft
from .estimator import Report, Settings
from .fit import fit_weights
from .hum import subtract_hum
from .likelihood import posterior_gain, shrinkage_risk
from .noise_estimate import estimate_noise
from .rumble import cut_rumble

__all__ = ["PriorEstimator"]

_STEPS = {"fast": 50, "default": 300, "best": 600}
_STARTS = {"fast": 1, "default": 1, "best": 3}
_CROP_S = 1.33  # of the recording, which one step sees
_LARGEST_RATIO = 1e6  # |X|²/N above 60 dB tells no more about the gain and only disturbs the fit


class PriorEstimator:
    """Subtract hum, filter with the gain that a network fitted to the segment finds, cut rumble."""

    def settings(self, quality: str) -> Settings:
        """Return the method's own settings for "fast", "default" or "best"."""
        return Settings(
            steps=_STEPS[quality],
            starts=_STARTS[quality],
            widths=(8, 16, 24, 32),
            learning_rate=5e-2,
            windows_s=(0.064, 0.032, 0.128),
            overlap=4,
        )

    def __call__(
        self,
        noisy: Tensor,
        sample_rate: int,
        settings: Settings,
        report: Report,
        time_limit: float | None,
    ) -> Tensor:
        """Estimate the clean sound of a segment (C, L)."""
        dehummed = subtract_hum(noisy, sample_rate) if settings.hum else noisy
        analysis = _choose_stft(dehummed, settings.transforms(sample_rate))
        crop = round(_CROP_S * sample_rate / analysis.transform.hop_length)
        spectrum = _filter(analysis, crop, settings, report, time_limit)
        clean = analysis.transform.inverse(spectrum, noisy.shape[1])
        return cut_rumble(clean, dehummed, sample_rate) if settings.rumble else clean


@dataclass(frozen=True)
class _Analysis:
    """A segment in one transform: |X|² and N of each channel that is not silent."""

    transform: Stft
    spectrum: Tensor
    powers: list[Tensor]
    noises: list[Tensor]

    @classmethod
    def of(cls, sound: Tensor, transform: Stft) -> _Analysis:
        spectrum = transform(sound)
        powers = [power for power in spectrum.abs().square() if bool(power.max() > 0)]
        return cls(transform, spectrum, powers, [estimate_noise(power) for power in powers])

    @property
    def risk(self) -> float:
        """How badly this transform suits the segment."""
        return sum(map(shrinkage_risk, self.powers, self.noises))

    def ratio(self) -> Tensor:
        """Return |X|²/N, the mean over the channels, so that they share one gain."""
        pairs = zip(self.powers, self.noises, strict=True)
        ratios = [power / noise[:, None] for power, noise in pairs]
        return torch.stack(ratios).mean(0).clamp_max(_LARGEST_RATIO)


def _choose_stft(dehummed: Tensor, transforms: Sequence[Stft]) -> _Analysis:
    """Return the segment in the transform of least risk, of those no longer than the segment."""
    fitting = (transform for transform in transforms if transform.n_fft <= dehummed.shape[1])
    return min((_Analysis.of(dehummed, each) for each in fitting), key=lambda each: each.risk)


def _filter(
    analysis: _Analysis, crop: int, settings: Settings, report: Report, time_limit: float | None
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
            replace(settings, seed=settings.seed + start),
            report_start,
            crop=crop,
            time_limit=None if time_limit is None else time_limit / (settings.starts - start),
        )
        results.append(analysis.spectrum * posterior_gain(weights.to(ratio), ratio))
        if stopped:
            break
        if time_limit is not None:
            time_limit = max(0.0, time_limit - (time.monotonic() - began))
    return torch.stack(results).mean(0)
