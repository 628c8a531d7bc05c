"""A segment of a recording, with everything that its result depends on: it can be cleaned anywhere.

The segments of a recording are independent of each other; `Denoiser.stream` cuts and joins them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..spectral import binary_scale
from .dap import DapEstimator
from .estimator import Estimate, Estimator, Settings
from .noise_recording import RecordingNoise
from .noise_sample import NoiseSample
from .prior import PriorEstimator

__all__ = [
    "METHODS", "Cleaned", "Found", "Progress", "Segment", "SegmentMap", "clean_in_turn",
    "segment_bounds",
]  # fmt: skip

METHODS: dict[str, Estimator] = {"prior": PriorEstimator(), "dap": DapEstimator()}


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `step` of at most `steps` in `segment` of `segments`, counted from 1.

    `ended` is empty until a segment's last step, then says why it is the last: "plateau" (the
    likelihood of masked bins stopped growing), "steps", "time", or "mask" where the learnt mask is
    all there is.
    """

    segment: int
    segments: int
    step: int
    steps: int
    loss: float
    ended: str = ""


class Found(NamedTuple):
    """What a segment adds to the summary: sums over its audible samples, in the input's units."""

    samples: int
    sound: float  # energy of everything
    noise: float  # energy of the noise
    left: float  # energy of the noise in the result
    steady: bool | None  # whether the level of the noise never changes
    clicks: int = 0  # that were interpolated


class Cleaned(NamedTuple):
    """The result of a segment: a Tensor of its shape, and what was found if anything was."""

    clean: Tensor
    found: Found | None = None
    untouched: bool = False  # left as it was, because the run was stopped before


class SegmentMap(Protocol):
    """How the segments of a recording are cleaned: one after the other, or elsewhere.

    Like the built-in `map` it gives the results in the order of the segments, each with its
    segment. It may take segments ahead of the results, calls `progress` for each step that was
    made, and once that returns true, gives the rest as it is.
    """

    def __call__(
        self,
        segments: Iterator[Segment],
        progress: Callable[[Progress], object] | None,
        /,
    ) -> Iterator[tuple[Segment, Cleaned]]:
        """Clean the segments."""


@dataclass(frozen=True)
class Segment:
    """Noisy samples (C, L) and how to clean them; number `index` of `count`, counted from 1.

    `kept` is the share of the noise that is mixed back. `time_limit` is in seconds.
    """

    noisy: Tensor
    sample_rate: int
    method: str
    settings: Settings
    kept: float
    noise: NoiseSample | RecordingNoise | None
    time_limit: float | None
    index: int
    count: int

    def clean(self, progress: Callable[[Progress], object] | None = None) -> tuple[Cleaned, bool]:
        """Clean it; also return whether `progress` asked to stop."""
        noisy = self.noisy
        loudest = float(noisy.abs().max())
        if loudest == 0:
            return Cleaned(noisy.clone()), False
        scale = binary_scale(loudest)
        scaled = noisy / scale
        most = self.settings.most_steps
        stopped = False

        def report(step: int, loss: float, ended: str) -> bool:
            nonlocal stopped
            if progress is not None:
                stopped = bool(progress(Progress(self.index, self.count, step, most, loss, ended)))
            return stopped

        estimate = METHODS[self.method](
            scaled,
            self.sample_rate,
            self.settings,
            report,
            self.time_limit,
            None if self.noise is None else self.noise.scaled(1 / scale),
        )
        clean = estimate.clean
        found = _found(estimate, scaled, scale, self.kept)
        clean[noisy.abs().amax(1) == 0] = 0
        return Cleaned(torch.lerp(clean, scaled, self.kept) * scale, found), stopped


def _found(estimate: Estimate, noisy: Tensor, scale: float, kept: float) -> Found | None:
    if estimate.noise_power is None:
        return None
    audible = noisy[noisy.abs().amax(1) > 0]
    sound = float(audible.double().square().sum()) * scale**2
    noise = estimate.noise_power * scale**2 * audible.numel()
    left = noise * (kept + (1 - kept) * math.sqrt(estimate.left)) ** 2
    return Found(audible.numel(), sound, noise, left, estimate.steady, estimate.clicks)


def clean_in_turn(
    segments: Iterator[Segment], progress: Callable[[Progress], object] | None
) -> Iterator[tuple[Segment, Cleaned]]:
    """Clean one segment after the other, here: the `SegmentMap` of a single machine."""
    stopped = False
    for segment in segments:
        if stopped:
            yield segment, Cleaned(segment.noisy.clone(), untouched=True)
        else:
            cleaned, stopped = segment.clean(progress)
            yield segment, cleaned


def segment_bounds(length: int, segment: int, overlap: int) -> list[tuple[int, int]]:
    """Cut 0..length into equal stretches of at most `segment`, neighbours sharing `overlap`."""
    if length <= segment:
        return [(0, length)]
    count = math.ceil((length - overlap) / (segment - overlap))
    edges = [round(i * (length - overlap) / count) for i in range(count + 1)]
    return [(start, stop + overlap) for start, stop in itertools.pairwise(edges)]
