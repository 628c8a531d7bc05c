"""Calls of the native core: plain tensors in, plain tensors out, no autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _torch
from ..fallback import compute_dtypes
from ..geometry import Geometry
from ..lowering import Shape, output_layout, stride_by_group
from ..plans import byte_bounded_cache
from . import library
from .plan import Matrices, matrices

__all__ = ["empty", "input_grad", "output", "unsupported_reason", "weight_grad"]

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def unsupported_reason(*tensors: Tensor) -> str | None:
    """Return what keeps the core from computing with these tensors on this machine, or None."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"the native core runs on the CPU, and a tensor is on {tensor.device}"
    dtypes = compute_dtypes(*tensors)
    if len(dtypes) > 1 or not dtypes <= DTYPES.keys():
        return f"the native core takes one of {[str(d) for d in DTYPES]}, the same for all"
    return _core_is_missing(*dtypes)


@_torch.compile_time_constant
def _core_is_missing(*dtypes: torch.dtype) -> str | None:
    reason = library.unsupported_reason(*dtypes)
    return f"the native core is missing ({reason})" if reason and not library.load() else reason


def empty(shape: Sequence[int], like: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return a tensor of the dtype of another, whatever the default device is."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def output(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve."""
    input, weight = input.resolve_neg(), weight.resolve_neg()
    known = _output_call(
        geometry, input.dtype, input.shape, input.stride(), weight.shape, weight.stride()
    )
    result = torch.empty_strided(known.shape, known.stride, dtype=input.dtype, device=input.device)
    call = library.Call.from_buffer_copy(known.call)
    call.src, call.weight, call.dst = input.data_ptr(), weight.data_ptr(), result.data_ptr()
    if bias is not None:
        bias = bias.resolve_neg().contiguous()
        call.bias = bias.data_ptr()
    library.run("tap_conv_apply", call)
    return result


def input_grad(grad: Tensor, weight: Tensor, geometry: Geometry, result: Tensor) -> None:
    """Convolve the output's gradient with the flipped kernel, rows through P_jᵀ.

    A stride in time becomes zeros between the frames of the gradient.
    """
    grad, weight = grad.resolve_neg(), weight.resolve_neg()
    known = _input_grad_call(
        geometry, grad.dtype, grad.shape, grad.stride(), weight.shape, weight.stride(),
        result.shape, result.stride(),
    )  # fmt: skip
    call = library.Call.from_buffer_copy(known.call)
    last_column = (weight.shape[3] - 1) * weight.stride(3) * weight.element_size()
    call.weight = weight.data_ptr() + last_column
    call.src, call.dst = grad.data_ptr(), result.data_ptr()
    library.run("tap_conv_apply", call)


def weight_grad(
    input: Tensor, grad: Tensor, geometry: Geometry, result: Tensor, bias: Tensor | None
) -> None:
    """Compute the weight's gradient, and the bias's if there is a tensor for it."""
    input, grad = input.resolve_neg(), grad.resolve_neg()
    known = _weight_grad_call(
        geometry, input.dtype, input.shape, input.stride(), result.shape, result.stride(),
        grad.shape, grad.stride(),
    )  # fmt: skip
    call = library.Call.from_buffer_copy(known.call)
    call.src, call.dst, call.weight = input.data_ptr(), grad.data_ptr(), result.data_ptr()
    call.bias = None if bias is None else bias.data_ptr()
    library.run("tap_conv_grad_weight", call)


# -------------------------------------------------------------------- what is kept of calls


class _Prepared(NamedTuple):
    """All of a call but the addresses of tensors, which is most of what a small one takes."""

    call: library.Call
    plan: Matrices  # of which the call has addresses
    shape: Shape = ()  # of an output; gradients are given what they fill
    stride: Shape = ()


@byte_bounded_cache
def _output_call(
    geometry: Geometry, dtype: torch.dtype, input: Shape, input_stride: Shape, weight: Shape,
    weight_stride: Shape,
) -> _Prepared:  # fmt: skip
    target = output_layout(geometry, input, input_stride, weight, weight_stride)
    plan = matrices(geometry.taps, input[2], geometry.stride[0])
    call = _call(dtype, (input, input_stride), weight, target, plan, geometry)
    call.weight_stride[:] = stride_by_group(weight_stride, weight[0], geometry.groups)
    return _Prepared(call, plan, *target)


@byte_bounded_cache
def _input_grad_call(
    geometry: Geometry, dtype: torch.dtype, grad: Shape, grad_stride: Shape, weight: Shape,
    weight_stride: Shape, result: Shape, result_stride: Shape,
) -> _Prepared:  # fmt: skip
    plan = matrices(geometry.taps, result[2], geometry.stride[0]).adjoint()
    call = _call(dtype, (grad, grad_stride), weight, (result, result_stride), plan, geometry)
    call.set_time(
        stride=1,
        input_dilation=geometry.stride[1],
        dilation=geometry.dilation,
        padding=geometry.dilation * (weight[3] - 1) - geometry.padding[0],
    )
    call.in_channels, call.out_channels = call.out_channels, call.in_channels
    group, out, into, row, frame = stride_by_group(weight_stride, weight[0], geometry.groups)
    call.weight_stride[:] = group, into, out, row, -frame
    return _Prepared(call, plan)


@byte_bounded_cache
def _weight_grad_call(
    geometry: Geometry, dtype: torch.dtype, input: Shape, input_stride: Shape, result: Shape,
    result_stride: Shape, grad: Shape, grad_stride: Shape,
) -> _Prepared:  # fmt: skip
    plan = matrices(geometry.taps, input[2], geometry.stride[0])
    call = _call(dtype, (input, input_stride), result, (grad, grad_stride), plan, geometry)
    call.weight_stride[:] = stride_by_group(result_stride, result[0], geometry.groups)
    return _Prepared(call, plan)


def _call(
    dtype: torch.dtype, source: tuple[Shape, Shape], weight: Shape, target: tuple[Shape, Shape],
    plan: Matrices, geometry: Geometry,
) -> library.Call:  # fmt: skip
    """Fill in what the three computations have in common, as the forward pass has it."""
    call = library.Call()
    call.dtype = DTYPES[dtype]
    call.batch, call.groups = source[0][0], geometry.groups
    call.in_channels, call.out_channels = weight[1], weight[0] // geometry.groups
    call.taps, call.kernel_time = weight[2:]
    call.src_rows, call.src_len = source[0][2:]
    call.dst_rows, call.dst_len = target[0][2:]
    call.set_time(
        stride=geometry.stride[1],
        input_dilation=1,
        dilation=geometry.dilation,
        padding=geometry.padding[0],
    )
    call.src_stride[:], call.dst_stride[:] = source[1], target[1]
    call.matrix, call.transposed = plan.matrix.rows(), plan.transposed.rows()
    call.blend_first = plan.blend_first.data_ptr()
    return call
