"""What a denoising method is: settings of its own, and an estimate of the clean sound."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from ..spectral import Stft
from .noise_recording import RecordingNoise
from .noise_sample import NoiseSample

__all__ = ["Estimate", "Estimator", "Report", "Settings", "losses_wait"]

# report(step, loss, ended) is called after each step, `ended` being why it is the last, or empty.
# The fit ends at once when it returns true.
Report: TypeAlias = Callable[[int, float, str], bool]


_LOSSES_WAIT = 20  # steps: an accelerator is not waited for more often


def losses_wait(device: str) -> int:
    """Return after how many steps losses are read: reading one waits for the device to finish."""
    return 1 if torch.device(device).type == "cpu" else _LOSSES_WAIT


@dataclass(frozen=True)
class Settings:
    """Everything an estimator needs to know besides the sound; the fields are `Denoiser`'s.

    `starts` random initialisations of at most `steps` steps each are averaged; with 0 steps the
    learnt mask is all there is. Of `windows_s`, in
    order of preference, a recording must hold the first; `overlap` windows cover each sample.
    """

    steps: int
    starts: int
    widths: tuple[int, ...]
    learning_rate: float
    windows_s: tuple[float, ...]
    overlap: int
    early_stop: bool = True
    seed: int = 0
    device: str = "cpu"
    hum: bool = True
    rumble: bool = True
    layer: str = "harmonic"
    start: str = "random"

    @property
    def most_steps(self) -> int:
        """The most steps of all initialisations; the mask alone counts as one."""
        return max(1, self.starts * self.steps)

    def transforms(self, sample_rate: int) -> list[Stft]:
        """Return the transform of each window."""
        return [Stft.for_rate(sample_rate, window, self.overlap) for window in self.windows_s]


@dataclass(frozen=True)
class Estimate:
    """The clean sound (C, L), and what is known of its noise.

    `noise_power` is its mean square over the channels that are not silent, `left` the share of it
    that the filter lets pass, `steady` whether its level never changes.
    """

    clean: Tensor
    noise_power: float | None = None
    left: float = 0.0
    steady: bool | None = None


class Estimator(Protocol):
    """A denoising method."""

    def settings(self, quality: str) -> Settings:
        """Return the method's own settings for "fast", "default" or "best"."""

    def __call__(
        self,
        noisy: Tensor,
        sample_rate: int,
        settings: Settings,
        report: Report,
        time_limit: float | None,
        noise: NoiseSample | RecordingNoise | None,
    ) -> Estimate:
        """Estimate the clean sound of a segment (C, L) with peaks between 0.5 and 1."""

    def listen(
        self, stretches: Iterable[tuple[float, Tensor]], sample_rate: int, settings: Settings
    ) -> RecordingNoise | None:
        """Return what is to be known of a recording before its segments are estimated.

        The stretches are samples (C, L) at a time in seconds.
        """
