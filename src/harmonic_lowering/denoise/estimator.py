"""What a denoising method is: settings of its own, and an estimate of the clean sound."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
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


_FULL_S = 10.0  # of sound, for which presets name a number of steps
_LOSSES_WAIT = 20  # steps: an accelerator is not waited for more often


def losses_wait(device: str) -> int:
    """Return after how many steps losses are read: reading one waits for the device to finish."""
    return 1 if torch.device(device).type == "cpu" else _LOSSES_WAIT


@dataclass(frozen=True)
class Settings:
    """Everything an estimator needs to know besides the sound; the fields are `Denoiser`'s.

    `starts` fits of at most `steps` steps each are averaged, from a learnt or a random `start`;
    with 0 steps the learnt mask is all there is. `mask` says whether it has a say; it is itself
    fitted in `mask_steps`. Of `windows_s`, in order of preference, a recording must hold the
    first; `overlap` windows cover each sample. With `fewest_steps` the steps are those for ten
    seconds, of which a shorter segment takes its share.
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
    declick: bool = True
    hum: bool = True
    rumble: bool = True
    layer: str = "harmonic"
    fewest_steps: int | None = None
    start: str = "random"
    mask: bool = False
    mask_steps: int = 0

    @property
    def most_steps(self) -> int:
        """The most steps of all fits of the prior; the mask alone counts as one."""
        return max(1, self.starts * self.steps)

    def for_segment(self, seconds: float) -> Settings:
        """Return the settings with the steps for a segment of so many seconds."""
        if self.fewest_steps is None:
            return self
        share = max(self.fewest_steps, round(self.steps * seconds / _FULL_S))
        return replace(self, steps=min(self.steps, share))

    def transforms(self, sample_rate: int) -> list[Stft]:
        """Return the transform of each window."""
        return [Stft.for_rate(sample_rate, window, self.overlap) for window in self.windows_s]


@dataclass(frozen=True)
class Estimate:
    """The clean sound (C, L), and what is known of its noise.

    `noise_power` is its mean square over the channels that are not silent, `left` the share of it
    that the filter lets pass, `steady` whether its level never changes, `clicks` how many clicks
    and gaps were interpolated before.
    """

    clean: Tensor
    noise_power: float | None = None
    left: float = 0.0
    steady: bool | None = None
    clicks: int = 0


class Estimator(Protocol):
    """A denoising method."""

    def settings(self, quality: str, start: str) -> Settings:
        """Return the method's own settings for "fast", "default" or "best", from that start."""

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
