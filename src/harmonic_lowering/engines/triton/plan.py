"""What the kernels are given of a geometry: tables of rows, and the sizes of tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import NamedTuple

import torch
from torch import Tensor

from ..._torch import making_constants
from ...taps import FrequencyTaps
from ..plans import byte_bounded_cache

__all__ = [
    "GradTiles", "Pairs", "Tiles", "grad_tiles", "pairs", "pairs_by_tap", "pairs_of_adjoint",
    "tiles",
]  # fmt: skip


# -------------------------------------------------------------------- rows


class Pairs(NamedTuple):
    """Which source rows are blended, for which tap and target row.

    Pairs ``pointer[i] … pointer[i + 1] − 1`` belong to i: a target row, or (`pairs_by_tap`) a tap;
    `other` is the tap then, or the target row. Pair p reads
    ``share[2p]·X[row[2p]] + share[2p + 1]·X[row[2p + 1]]``; a row of −1 is not read.
    """

    pointer: Tensor
    other: Tensor
    row: Tensor
    share: Tensor
    blends: bool  # whether a pair is more than one row as it is


def _on_device(
    build: Callable[[FrequencyTaps, int, int], Pairs],
) -> Callable[[FrequencyTaps, torch.device, int, int], Pairs]:
    """Let `build(taps, …)` be called as `(taps, device, …)`, and cache what it makes.

    Unlike `plans.cached_on_device` for no tracer: kernels are launched with plain tensors only.
    """

    @byte_bounded_cache
    def cached(taps: FrequencyTaps, device: torch.device, n_bins: int, stride: int) -> Pairs:
        with making_constants():
            entries = build(taps, n_bins, stride)
            return Pairs._make(e.to(device) if isinstance(e, Tensor) else e for e in entries)

    return wraps(build)(cached)


Pair = tuple[int, int, tuple[int, float], tuple[int, float]]  # target row, tap, and two reads
_NOTHING = (-1, 0.0)


@_on_device
def pairs(taps: FrequencyTaps, n_bins: int, stride: int) -> Pairs:
    """Return what each output row reads of the input."""
    return _table(_forward(taps, n_bins, stride), -(-n_bins // stride))


@_on_device
def pairs_of_adjoint(taps: FrequencyTaps, n_bins: int, stride: int) -> Pairs:
    """Return what each input row reads of the output's gradient."""
    readers: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for target, tap, *read in _forward(taps, n_bins, stride):
        for row, share in read:
            if row >= 0:
                readers.setdefault((row, tap), []).append((target, share))
    found: list[Pair] = []
    for (row, tap), reads in readers.items():
        if all(share == 1 for _, share in reads):
            found += [(row, tap, read, _NOTHING) for read in reads]
            continue
        for first, second in zip(reads[::2], [*reads[1::2], _NOTHING], strict=False):
            found.append((row, tap, first, second))
    return _table(found, n_bins)


@_on_device
def pairs_by_tap(taps: FrequencyTaps, n_bins: int, stride: int) -> Pairs:
    """Return the pairs of `pairs`, tap after tap."""
    found = _forward(taps, n_bins, stride)
    return _table(((tap, row, first, second) for row, tap, first, second in found), len(taps))


def _forward(taps: FrequencyTaps, n_bins: int, stride: int) -> list[Pair]:
    return [
        (row, tap, (lower, 1 - share), (lower + 1, share) if share else _NOTHING)
        for tap, rows in enumerate(taps.rows(n_bins, stride))
        for row, lower, share in zip(
            range(rows.start, rows.stop), rows.lower, rows.weight, strict=True
        )
    ]


def _table(found: Iterable[Pair], n: int) -> Pairs:
    ordered = sorted(found)
    counts = torch.zeros(n + 1, dtype=torch.int64)
    if ordered:
        counts[1:] = torch.bincount(torch.tensor([pair[0] for pair in ordered]), minlength=n)
    reads = [read for pair in ordered for read in pair[2:]]
    return Pairs(
        counts.cumsum(0).to(torch.int32),
        torch.tensor([pair[1] for pair in ordered], dtype=torch.int32),
        torch.tensor([row for row, _ in reads], dtype=torch.int32),
        torch.tensor([share for _, share in reads], dtype=torch.float32),
        any(row >= 0 for row, _ in reads[1::2]) or any(share != 1 for _, share in reads[::2]),
    )


# -------------------------------------------------------------------- tiles
# Those of Settings 1 and 3 were the fastest of some thirty on an H100, or within a quarter of it
# (docs/gpu-tiles.csv). All compile without spilled registers for capabilities 8.0 to 10.0
# (tests/test_triton.py).


class Tiles(NamedTuple):
    """How `kernels.apply` divides its work, and what Triton is told with it."""

    frames: int
    channels: int  # of the output
    depth: int  # of one step of the sum, over input channels (or over taps and columns as well)
    num_warps: int
    num_stages: int


class GradTiles(NamedTuple):
    """The same for `kernels.weight_grad`."""

    depth: int  # rows of the result, over kernel columns and input channels
    channels: int
    frames: int  # of one step of the sum
    num_warps: int
    num_stages: int


def tiles(precision: str, channels: int, out_channels: int, n_frames: int) -> Tiles:
    """Return the tiles for `channels` to `out_channels` of each group, at n output frames."""
    out = min(64, power_of_two(out_channels))
    exact = precision == "tf32x3"  # three products, which take more registers
    depth = 16 if exact or channels < 32 else 32
    frames = min(128 if out <= 32 and not exact else 64, power_of_two(n_frames))
    return Tiles(frames, out, depth, 4, 2)


def grad_tiles(
    precision: str, channels: int, out_channels: int, kernel_frames: int, n_frames: int
) -> GradTiles:
    """Return the tiles for a weight of `channels` to `out_channels` of each group."""
    out = min(64, power_of_two(out_channels))
    depth = min(64, power_of_two(channels * kernel_frames))
    frames = min(32 if precision == "tf32x3" else 64, power_of_two(n_frames))
    return GradTiles(depth, out, frames, 4, 2)


def power_of_two(value: int) -> int:
    """Return the least power of two that a matrix product of the card can have as a side."""
    return max(16, 1 << (value - 1).bit_length())
