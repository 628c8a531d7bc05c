"""What the kernels are given of a geometry: tables of rows, and the sizes of tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import NamedTuple

import torch
from torch import Tensor

from ..._torch import making_constants
from ...taps import FrequencyTaps
from ..plans import byte_bounded_cache

__all__ = [
    "NUMBERS_OF_A_TOTAL", "GradTiles", "Reads", "Tiles", "grad_tiles", "power_of_two", "reads",
    "reads_by_tap", "reads_of_adjoint", "tiles",
]  # fmt: skip


# -------------------------------------------------------------------- rows


class Reads(NamedTuple):
    """Which source rows are read, for which tap and target row, and with which share.

    Reads ``pointer[i] … pointer[i + 1] − 1`` belong to i: a target row, or (`reads_by_tap`) a tap;
    `other` is the tap then, or the target row. A tap between two rows is two reads.
    """

    pointer: Tensor
    other: Tensor
    row: Tensor
    share: Tensor
    blends: bool  # whether a share is not one


def _on_device(
    build: Callable[[FrequencyTaps, int, int], Reads],
) -> Callable[[FrequencyTaps, torch.device, int, int], Reads]:
    """Let `build(taps, …)` be called as `(taps, device, …)`, and cache what it makes.

    Unlike `plans.cached_on_device` for no tracer: kernels are launched with plain tensors only.
    """

    def made(taps: FrequencyTaps, device: torch.device, n_bins: int, stride: int) -> Reads:
        with making_constants():
            entries = build(taps, n_bins, stride)
            return Reads._make(e.to(device) if isinstance(e, Tensor) else e for e in entries)

    @byte_bounded_cache
    def cached(taps: FrequencyTaps, device: torch.device, n_bins: int, stride: int) -> Reads:
        if device.type != "cuda":
            return made(taps, device, n_bins, stride)
        # In a thread of its own, whose memory no pool of torch.compile's CUDA graphs claims.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(made, taps, device, n_bins, stride).result()

    return wraps(build)(cached)


Read = tuple[int, int, int, float]  # target row, tap, source row, share


@_on_device
def reads(taps: FrequencyTaps, n_bins: int, stride: int) -> Reads:
    """Return what each output row reads of the input."""
    return _table(_forward(taps, n_bins, stride), -(-n_bins // stride))


@_on_device
def reads_of_adjoint(taps: FrequencyTaps, n_bins: int, stride: int) -> Reads:
    """Return what each input row reads of the output's gradient."""
    found = _forward(taps, n_bins, stride)
    return _table(((row, tap, target, share) for target, tap, row, share in found), n_bins)


@_on_device
def reads_by_tap(taps: FrequencyTaps, n_bins: int, stride: int) -> Reads:
    """Return the reads of `reads`, tap after tap."""
    found = _forward(taps, n_bins, stride)
    return _table(((tap, target, row, share) for target, tap, row, share in found), len(taps))


def _forward(taps: FrequencyTaps, n_bins: int, stride: int) -> Iterator[Read]:
    for tap, rows in enumerate(taps.rows(n_bins, stride)):
        targets = range(rows.start, rows.stop)
        for target, lower, share in zip(targets, rows.lower, rows.weight, strict=True):
            yield target, tap, lower, 1 - share
            if share:
                yield target, tap, lower + 1, share


def _table(found: Iterable[Read], n: int) -> Reads:
    ordered = sorted(found)
    counts = torch.zeros(n + 1, dtype=torch.int64)
    if ordered:
        counts[1:] = torch.bincount(torch.tensor([read[0] for read in ordered]), minlength=n)
    return Reads(
        counts.cumsum(0).to(torch.int32),
        torch.tensor([read[1] for read in ordered], dtype=torch.int32),
        torch.tensor([read[2] for read in ordered], dtype=torch.int32),
        torch.tensor([read[3] for read in ordered], dtype=torch.float32),
        any(read[3] != 1 for read in ordered),
    )


# -------------------------------------------------------------------- tiles
# Chosen by what an H100 took for two thousand of them (docs/gpu-tiles.csv). All compile
# without spilled registers for capabilities 8.0 to 10.0 (tests/test_triton.py).


class Tiles(NamedTuple):
    """How `kernels.apply` divides its work, and what Triton is told with it."""

    frames: int
    channels: int  # of the output
    depth: int  # of one step of the sum, over kernel columns and input channels
    phases: int  # of frames, which are further columns of the product
    num_warps: int
    num_stages: int


class GradTiles(NamedTuple):
    """The same for `kernels.weight_grad`."""

    depth: int  # rows of the result, over kernel columns and input channels
    channels: int
    frames: int  # of one step of the sum
    num_warps: int
    num_stages: int


def tiles(
    precision: str, channels: int, out_channels: int, kernel_frames: int, n_frames: int,
    *, blends: bool, regular: bool,
) -> Tiles:  # fmt: skip
    """Return the tiles for `channels` to `out_channels` of each group, at n output frames.

    `regular` is a convolution whose stride and dilation are one.
    """
    out = min(64, power_of_two(out_channels))
    # Two frames a row read a source row for fewer columns, but multiply more: worth it where much
    # is read for each number that is written.
    much_read = blends or out == 16 or kernel_frames >= 5
    can_be = regular and out <= 32 and channels >= 16 and n_frames >= 128
    phases = 2 if can_be and much_read else 1
    depth = 32 if phases == 2 or channels >= 32 else 16
    frames, stages = 128, 2
    if precision == "tf32x3":  # three products, which take more registers
        frames, depth = 64, 16
    elif precision == "ieee" and phases == 2:
        depth, stages = 64, 1
    return Tiles(min(frames, power_of_two(-(-n_frames // phases))), out, depth, phases, 4, stages)


def grad_tiles(
    precision: str, channels: int, out_channels: int, kernel_frames: int, n_frames: int
) -> GradTiles:
    """Return the tiles for a weight of `channels` to `out_channels` of each group."""
    out = min(64, power_of_two(out_channels))
    depth = min(128, power_of_two(channels * kernel_frames))
    frames, stages = 64, 2
    if precision == "tf32x3":
        depth, frames = min(64, depth), 32
    elif precision == "tf32" and out <= 32:
        depth, stages = min(64, depth), 1
    elif out == 64:
        depth, frames = min(64, depth), 64 if precision == "ieee" else 32
    return GradTiles(depth, out, min(frames, power_of_two(n_frames)), 4, stages)


NUMBERS_OF_A_TOTAL = 64  # of the weight's gradient, which a program of `kernels.total` adds


def power_of_two(value: int, least: int = 16) -> int:
    """Return the next power of two, and at least what a matrix product can have as a side."""
    return max(least, 1 << (value - 1).bit_length())
