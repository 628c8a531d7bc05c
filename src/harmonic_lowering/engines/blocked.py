"""The paper's method without its tensor: a few batch items at a time, live rows only, recomputed.

Stock operations, on any device. Against `lowering` it

- leaves out dead rows: a tap with a > 1 reads nothing above bin (F − 1)/a. Bands of output rows
  with the same living taps are ordinary convolutions with fewer channels;
- convolves first and interpolates afterwards where that takes fewer rows (a < 1), which gives the
  same result, because the kernel acts on channels and time and the interpolation on frequency;
- works channels last, where convolutions are fastest, in slabs that stay in the cache;
- keeps nothing for the backward pass but its arguments, and computes each slab again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _torch
from ..taps import FrequencyTaps, TapRows
from . import lowering
from .fallback import autocast, compute_dtypes, double_backward, is_plain_call
from .geometry import Geometry
from .lowering import conv_over_time, memory_format
from .plans import cached_on_device

__all__ = ["convolve", "gradients", "unsupported_reason"]

# What the slabs of one step may take. A CPU's cache holds a few MB. On an accelerator a step is
# dozens of launches, which cost more than memory: a slab is several times its cache, at most
# 256 MB (other sizes were not tried).
SLAB_BYTES = {"cpu": 8 << 20}
CACHES_A_SLAB = 8
LARGEST_SLAB_BYTES = 256 << 20
# A band of its own for less than this share of the rows costs more calls than it saves work.
SMALLEST_BAND = 1 / 24


def unsupported_reason(*tensors: Tensor) -> str | None:
    """Return what keeps this engine from running a call with these tensors itself, or None."""
    if tensors and not is_plain_call(*tensors):
        return "it is opaque to compilers, transforms and tensor subclasses"
    if len(compute_dtypes(*tensors)) > 1:
        return f"the dtypes differ: {[str(tensor.dtype) for tensor in tensors]}"
    return None


def convolve(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve slab by slab; the formula is `engines.reference.convolve`'s.

    Calls that it does not support fall back to `lowering`, and so do second derivatives.
    """
    input, weight, bias = autocast(input, weight, bias)
    if unsupported_reason(*(t for t in (input, weight, bias) if t is not None)):
        return lowering.convolve(input, weight, bias, geometry)
    return _Convolution.apply(input, weight, bias, geometry)  # type: ignore[no-any-return, no-untyped-call]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        ctx.save_for_backward(input, weight, bias)
        ctx.geometry = geometry
        output = torch.empty(
            geometry.output_shape(input, weight),
            dtype=input.dtype,
            device=input.device,
            memory_format=memory_format(input, weight),
        )
        for items in _steps(input, weight):
            output[items] = _slab(input[items], weight, bias, geometry)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias = ctx.saved_tensors
        geometry, needs = ctx.geometry, ctx.needs_input_grad
        if torch.is_grad_enabled() or not is_plain_call(grad):
            return *double_backward(geometry, needs, input, weight, bias, grad), None
        return *gradients(geometry, needs, input, weight, bias, grad), None


def gradients(
    geometry: Geometry,
    needs: Sequence[bool],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients that are needed; each slab is computed again."""
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    grad_input = torch.empty_like(input) if needs[0] else None
    sums = [
        torch.zeros_like(tensor, dtype=wide) if need and tensor is not None else None
        for tensor, need in ((weight, needs[1]), (bias, needs[2]))
    ]
    weight = weight.detach().requires_grad_(needs[1])
    bias = bias if bias is None else bias.detach().requires_grad_(needs[2])
    for items in _steps(input, weight):
        x = input[items].detach().requires_grad_(needs[0])
        given = zip((x, weight, bias), needs, strict=False)
        wanted = [tensor for tensor, need in given if need and tensor is not None]
        with torch.enable_grad():
            output = _slab(x, weight, bias, geometry)
        found = iter(torch.autograd.grad(output, wanted, grad[items]))
        if grad_input is not None:
            grad_input[items] = next(found)
        for total in sums:
            if total is not None:
                total += next(found)
    narrow = [None if total is None else total.to(input.dtype) for total in sums]
    return grad_input, *narrow  # type: ignore[return-value]


def _steps(input: Tensor, weight: Tensor) -> Iterator[slice]:
    """Divide the batch so that what all taps read of one part fits the cache, if it can."""
    allowed = SLAB_BYTES.get(input.device.type) or _slab_bytes(input.device)
    one = input[0].numel() * input.element_size() * weight.shape[2]
    items = max(1, allowed // one)
    for start in range(0, input.shape[0], items):
        yield slice(start, min(start + items, input.shape[0]))


@lru_cache
def _slab_bytes(device: torch.device) -> int:
    """Return what the slabs of one step may take on an accelerator."""
    cache = _torch.device_property(device, "L2_cache_size")
    return min(CACHES_A_SLAB * cache, LARGEST_SLAB_BYTES) or LARGEST_SLAB_BYTES


def _slab(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve some batch items, in differentiable stock operations."""
    taps, frequency_stride, groups = geometry.taps, geometry.stride[0], geometry.groups
    n_bins, device = input.shape[2], input.device
    plan = layout(taps, n_bins, frequency_stride)
    # (B, F + 1, T, C): channels last whatever the input is, and a row of zeros for what is dead
    rows = F.pad(input.permute(0, 2, 3, 1), (0, 0, 0, 0, 0, 1))

    def convolve(slab: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        # With one output channel torch's backward refuses a kernel that is not in one piece.
        return conv_over_time(slab.permute(0, 3, 1, 2), kernel.contiguous(), bias, geometry)

    bands = []
    for band in plan.bands:
        parts = []
        for tap in band.taps:
            lower, upper, blend = read_plan(
                taps, device, n_bins, frequency_stride, tap, band.start, band.stop
            )
            parts.append(_read(rows, 1, lower, upper, blend))
        if not parts:  # rows that nothing is read for still get the bias
            parts = [rows[:, n_bins:].expand(-1, band.stop - band.start, -1, -1)]
        kernel = weight[:, :, list(band.taps or (0,))]
        # group after group, and in each of them the channels of one tap after another's
        slab = torch.stack([part.reshape(*part.shape[:3], groups, -1) for part in parts], -2)
        slab = slab.flatten(-3)
        bands.append(convolve(slab, kernel.transpose(1, 2).flatten(1, 2).unsqueeze(2), bias))
    output = bands[0] if len(bands) == 1 else torch.cat(bands, 2)

    for tap, start, stop in plan.convolved_first:
        live, sources = taps.rows(n_bins, frequency_stride)[tap], slice(start, stop)
        # a row of zeros again, for what has no upper row
        done = F.pad(convolve(rows[:, sources], weight[:, :, tap].unsqueeze(2), None), (0, 0, 0, 1))
        lower, upper, blend = read_plan(
            taps, device, n_bins, frequency_stride, tap, live.start, live.stop
        )
        above = None if upper is None else (upper - start).clamp(max=stop - start)
        read = _read(done, 2, lower - start, above, blend[..., 0])
        output[:, :, live.start : live.stop] += read
    return output


def _read(rows: Tensor, dim: int, lower: Tensor, upper: Tensor | None, blend: Tensor) -> Tensor:
    """Read rows along `dim`, blended with those above."""
    read = rows.index_select(dim, lower)
    if upper is None:
        return read
    blend = blend.to(rows.dtype if rows.dtype == torch.float64 else torch.float32)
    above = rows.index_select(dim, upper).to(blend.dtype)
    # not lerp, which is below + w·(above − below): NaN where one of them is infinite
    return read.to(blend.dtype).mul_(1 - blend).addcmul_(above, blend).to(rows.dtype)


# -------------------------------------------------------------------- the plan


class Band(NamedTuple):
    """Output rows `start` … `stop` − 1, and the taps that are blended before they are convolved."""

    start: int
    stop: int
    taps: tuple[int, ...]


class Layout(NamedTuple):
    """The bands, and (tap, first source row, end of the source rows) of the other taps."""

    bands: tuple[Band, ...]
    convolved_first: tuple[tuple[int, int, int], ...]


@lru_cache(maxsize=256)
def layout(taps: FrequencyTaps, n_bins: int, stride: int) -> Layout:
    """Divide the work of a geometry into bands and taps that are convolved first."""
    n_rows = -(-n_bins // stride)
    plan = taps.rows(n_bins, stride)
    convolved_first = []
    for tap, rows in enumerate(plan):
        start, stop = _sources(rows)
        if stop - start < rows.stop - rows.start:
            convolved_first.append((tap, start, stop))
    first = {tap for tap, _, _ in convolved_first}
    others = [(tap, rows) for tap, rows in enumerate(plan) if tap not in first]
    edges = sorted({0, n_rows, *(e for _, rows in others for e in (rows.start, rows.stop))})
    kept = [0]
    for edge in edges:
        if edge - kept[-1] >= max(1, n_rows * SMALLEST_BAND) and edge < n_rows:
            kept.append(edge)
    bands = []
    for start, stop in zip(kept, [*kept[1:], n_rows], strict=True):
        living = tuple(tap for tap, rows in others if rows.start < stop and rows.stop > start)
        bands.append(Band(start, stop, living))
    return Layout(tuple(bands), tuple(convolved_first))


def _sources(rows: TapRows) -> tuple[int, int]:
    if not rows.lower:
        return 0, 0
    return rows.lower[0], rows.lower[-1] + (2 if rows.weight[-1] else 1)


@cached_on_device
def read_plan(
    taps: FrequencyTaps, n_bins: int, stride: int, tap: int, start: int, stop: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the lower and upper source row and the upper's weight for some output rows.

    What is not read points at row `n_bins`, which holds zeros.
    """
    rows = taps.rows(n_bins, stride)[tap]
    lower, upper, weight = [], [], []
    for row in range(start, stop):
        lives = rows.start <= row < rows.stop
        source = rows.lower[row - rows.start] if lives else n_bins
        blend = rows.weight[row - rows.start] if lives else 0.0
        lower.append(source)
        upper.append(source + 1 if blend else n_bins)
        weight.append(blend)
    return (
        torch.tensor(lower),
        torch.tensor(upper) if any(weight) else None,
        torch.tensor(weight, dtype=torch.float64)[:, None, None],
    )
