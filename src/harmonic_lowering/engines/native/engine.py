"""The native core as an engine: no lowered tensor, only live rows, and a backward that recomputes.

``csrc/tap_conv.cpp`` says how it computes. Here is what it is given: each tap as a sparse matrix
from source rows to output rows, and for each tap whether its rows are blended before they are
convolved or after, whichever convolves fewer. The input gradient is the same computation with the
transposed matrices and the kernel turned round.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...taps import FrequencyTaps
from ..handover import (
    Geometry,
    autocast,
    compute_dtypes,
    differentiable_again,
    hands_over,
    memory_format,
)
from ..plans import remembered
from . import library

__all__ = ["cannot", "convolve", "convolve_unchecked"]

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def cannot(*tensors: Tensor) -> str | None:
    """Return what keeps the native core from running this call itself, or None."""
    for tensor in tensors:
        if not tensor.is_cpu:
            return f"the native core runs on the CPU, and a tensor is on {tensor.device}"
    dtypes = compute_dtypes(*tensors)
    if len(dtypes) > 1 or not dtypes <= DTYPES.keys():
        return f"the native core takes one of {[str(d) for d in DTYPES]}, the same for all"
    return library.unsupported_reason(*dtypes)


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    taps: FrequencyTaps,
    stride: tuple[int, int] = (1, 1),
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve with the native core; the formula is `engines.reference.convolve`'s.

    What it cannot do (a second derivative, a transform, tracing) it hands over to `lowering`.

    Raises
    ------
    RuntimeError
        If the native core is not built, or does not take these tensors.
    """
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if hands_over(*tensors):
        input, weight, bias = autocast(input, weight, bias)
        return Geometry(taps, stride, padding, dilation, groups).lowering(input, weight, bias)
    if reason := cannot(*tensors):
        raise RuntimeError(f"engine 'native' cannot run: {reason}; or use engine='auto'")
    return convolve_unchecked(input, weight, bias, taps, stride, padding, dilation, groups)


def convolve_unchecked(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    taps: FrequencyTaps,
    stride: tuple[int, int],
    padding: int,
    dilation: int,
    groups: int,
) -> Tensor:
    """Convolve what nothing stands in the way of: neither `hands_over` nor `cannot`."""
    geometry = Geometry(taps, stride, padding, dilation, groups)
    input, weight, bias = autocast(input, weight, bias)
    if not torch.is_grad_enabled():  # what autograd's function costs is a third of a small call
        return _forward(input, weight, bias, geometry)
    return _Convolution.apply(input, weight, bias, geometry)  # type: ignore[no-any-return, no-untyped-call]


def _forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    input, weight = input.resolve_neg(), weight.resolve_neg()
    shape = geometry.output_shape(input, weight)
    output = torch.empty(shape, dtype=input.dtype, memory_format=memory_format(input, weight))
    plan = matrices(geometry.taps, input.shape[2], geometry.stride[0])
    call = _call(input, weight, output, plan, geometry)
    out, into, row, frame = weight.stride()
    call.weight_stride[:] = (weight.shape[0] // geometry.groups * out, out, into, row, frame)
    call.weight = weight.data_ptr()
    if bias is not None:
        bias = bias.resolve_neg().contiguous()
        call.bias = bias.data_ptr()
    library.run("tap_conv_apply", call)
    return output


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        ctx.save_for_backward(input, weight, bias)
        ctx.geometry = geometry
        return _forward(input, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias = ctx.saved_tensors
        geometry, needs = ctx.geometry, ctx.needs_input_grad
        if torch.is_grad_enabled():
            return *differentiable_again(geometry, needs, input, weight, bias, grad), None
        input, weight, grad = input.resolve_neg(), weight.resolve_neg(), grad.resolve_neg()
        of_input = _grad_input(input, weight, grad, geometry) if needs[0] else None
        if not needs[1]:
            return of_input, None, grad.sum((0, 2, 3)) if needs[2] else None, None
        return of_input, *_grad_weight(input, weight, grad, geometry, bias=needs[2]), None


def _grad_input(input: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    """Convolve the output's gradient with the kernel turned round, rows through P_jᵀ.

    A stride in time becomes zeros between the frames of the gradient.
    """
    result = torch.empty(input.shape, dtype=input.dtype, memory_format=memory_format(input))
    plan = matrices(geometry.taps, input.shape[2], geometry.stride[0])
    call = _call(grad, weight, result, plan.turned(), geometry)
    kernel_time = weight.shape[3]
    call.set_time(
        stride=1,
        input_dilation=geometry.stride[1],
        dilation=geometry.dilation,
        padding=geometry.dilation * (kernel_time - 1) - geometry.padding,
    )
    call.in_channels, call.out_channels = call.out_channels, call.in_channels
    out, into, row, frame = weight.stride()
    call.weight = weight.data_ptr() + (kernel_time - 1) * frame * weight.element_size()
    call.weight_stride[:] = (weight.shape[0] // geometry.groups * out, into, out, row, -frame)
    library.run("tap_conv_apply", call)
    return result


def _grad_weight(
    input: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry, *, bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Give the weight's gradient, and the bias's with it if it is wanted."""
    result = torch.empty_like(weight)
    of_bias = weight.new_empty(weight.shape[0]) if bias else None
    plan = matrices(geometry.taps, input.shape[2], geometry.stride[0])
    call = _call(input, weight, grad, plan, geometry)
    out, into, row, frame = result.stride()
    call.weight = result.data_ptr()
    call.weight_stride[:] = (weight.shape[0] // geometry.groups * out, out, into, row, frame)
    call.bias = of_bias.data_ptr() if of_bias is not None else None
    library.run("tap_conv_grad_weight", call)
    return result, of_bias


def _call(
    source: Tensor, weight: Tensor, target: Tensor, plan: Matrices, geometry: Geometry
) -> library.Call:
    """Fill in what the three computations have in common, the forward's way round."""
    call = library.Call()
    call.dtype = DTYPES[source.dtype]
    call.batch, call.groups = source.shape[0], geometry.groups
    call.in_channels, call.out_channels = weight.shape[1], weight.shape[0] // geometry.groups
    call.taps, call.kernel_time = weight.shape[2:]
    call.src_rows, call.src_len = source.shape[2:]
    call.dst_rows, call.dst_len = target.shape[2:]
    call.set_time(
        stride=geometry.stride[1],
        input_dilation=1,
        dilation=geometry.dilation,
        padding=geometry.padding,
    )
    call.src, call.src_stride[:] = source.data_ptr(), source.stride()
    call.dst, call.dst_stride[:] = target.data_ptr(), target.stride()
    call.matrix, call.transposed = plan.matrix.rows(), plan.transposed.rows()
    call.blend_first = plan.blend_first.data_ptr()
    return call


# -------------------------------------------------------------------- the plan


class Sparse(NamedTuple):
    """Matrices of all taps in compressed rows, see ``struct Rows``."""

    pointer: Tensor
    column: Tensor
    value: Tensor
    n_rows: int

    def rows(self) -> library.Rows:
        return library.Rows(
            self.pointer.data_ptr(), self.column.data_ptr(), self.value.data_ptr(), self.n_rows
        )


class Matrices(NamedTuple):
    """The matrices P_j (output rows × source rows), transposed too, and the order for each tap."""

    matrix: Sparse
    transposed: Sparse
    blend_first: Tensor
    blend_first_transposed: Tensor

    def turned(self) -> Matrices:
        """Return the plan of the adjoint."""
        return Matrices(self.transposed, self.matrix, self.blend_first_transposed, self.blend_first)


Entries = list[list[tuple[int, float]]]


@remembered
def matrices(taps: FrequencyTaps, n_bins: int, stride: int) -> Matrices:
    """Return the plan of a geometry."""
    n_rows = -(-n_bins // stride)
    read: list[Entries] = []
    for rows in taps.rows(n_bins, stride):
        entries: Entries = [[] for _ in range(n_rows)]
        for row, lower, upper in zip(
            range(rows.start, rows.stop), rows.lower, rows.weight, strict=True
        ):
            entries[row].append((lower, 1 - upper))
            if upper:
                entries[row].append((lower + 1, upper))
        read.append(entries)
    given = [_transpose(entries, n_bins) for entries in read]
    # As many rows are convolved as the side of the blending on which the convolution is has.
    counts = [(_count(a), _count(b)) for a, b in zip(read, given, strict=True)]
    return Matrices(
        _compress(read, n_rows),
        _compress(given, n_bins),
        torch.tensor([int(live <= used) for live, used in counts]),
        torch.tensor([int(used <= live) for live, used in counts]),
    )


def _transpose(entries: Entries, n_columns: int) -> Entries:
    result: Entries = [[] for _ in range(n_columns)]
    for row, columns in enumerate(entries):
        for column, value in columns:
            result[column].append((row, value))
    return result


def _count(entries: Entries) -> int:
    return sum(bool(columns) for columns in entries)


def _compress(taps: list[Entries], n_rows: int) -> Sparse:
    start = [0]
    flat: list[tuple[int, float]] = []
    pointers: list[int] = []
    for entries in taps:
        start = [len(flat)]
        for columns in entries:
            flat += columns
            start.append(len(flat))
        pointers += start
    assert all(a <= b for a, b in pairwise(pointers))
    return Sparse(
        torch.tensor(pointers),
        torch.tensor([column for column, _ in flat], dtype=torch.int64),
        torch.tensor([value for _, value in flat], dtype=torch.float64),
        n_rows,
    )
