"""Calls of the native core: plain tensors in, plain tensors out, no autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _torch
from ..fallback import compute_dtypes
from ..geometry import Geometry
from ..lowering import memory_format
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
    key = (geometry, input.dtype, input.shape, input.stride(), weight.shape, weight.stride())
    prepared = _prepared.get(key)
    if prepared is None:
        prepared = _prepare(input, weight, geometry)
        if len(_prepared) >= _MOST_PREPARED:
            _prepared.clear()
        _prepared[key] = prepared
    shape, form, template, _ = prepared
    result = empty(shape, input, form)
    call = library.Call.from_buffer_copy(template)
    call.src, call.weight, call.dst = input.data_ptr(), weight.data_ptr(), result.data_ptr()
    if bias is not None:
        bias = bias.resolve_neg().contiguous()
        call.bias = bias.data_ptr()
    library.run("tap_conv_apply", call)
    return result


# All of a call but the addresses, which is most of what a small one takes.
Prepared = tuple[tuple[int, ...], torch.memory_format, library.Call, Matrices]
_prepared: dict[tuple[object, ...], Prepared] = {}
_MOST_PREPARED = 4096


def _prepare(input: Tensor, weight: Tensor, geometry: Geometry) -> Prepared:
    shape, form = geometry.output_shape(input, weight), memory_format(input, weight)
    plan = matrices(geometry.taps, input.shape[2], geometry.stride[0])
    call = _call(input, weight, empty(shape, input, form), plan, geometry)
    out, into, row, frame = weight.stride()
    call.weight_stride[:] = (weight.shape[0] // geometry.groups * out, out, into, row, frame)
    return shape, form, call, plan  # the plan, because the call has addresses in it


def input_grad(grad: Tensor, weight: Tensor, geometry: Geometry, result: Tensor) -> None:
    """Convolve the output's gradient with the flipped kernel, rows through P_jᵀ.

    A stride in time becomes zeros between the frames of the gradient.
    """
    grad, weight = grad.resolve_neg(), weight.resolve_neg()
    plan = matrices(geometry.taps, result.shape[2], geometry.stride[0])
    call = _call(grad, weight, result, plan.adjoint(), geometry)
    kernel_frames = weight.shape[3]
    call.set_time(
        stride=1,
        input_dilation=geometry.stride[1],
        dilation=geometry.dilation,
        padding=geometry.dilation * (kernel_frames - 1) - geometry.padding[0],
    )
    call.in_channels, call.out_channels = call.out_channels, call.in_channels
    out, into, row, frame = weight.stride()
    call.weight = weight.data_ptr() + (kernel_frames - 1) * frame * weight.element_size()
    call.weight_stride[:] = (weight.shape[0] // geometry.groups * out, into, out, row, -frame)
    library.run("tap_conv_apply", call)


def weight_grad(
    input: Tensor, grad: Tensor, geometry: Geometry, result: Tensor, bias: Tensor | None
) -> None:
    """Compute the weight's gradient, and the bias's if there is a tensor for it."""
    input, grad = input.resolve_neg(), grad.resolve_neg()
    plan = matrices(geometry.taps, input.shape[2], geometry.stride[0])
    call = _call(input, result, grad, plan, geometry)
    out, into, row, frame = result.stride()
    call.weight = result.data_ptr()
    call.weight_stride[:] = (result.shape[0] // geometry.groups * out, out, into, row, frame)
    call.bias = None if bias is None else bias.data_ptr()
    library.run("tap_conv_grad_weight", call)


def _call(
    source: Tensor, weight: Tensor, target: Tensor, plan: Matrices, geometry: Geometry
) -> library.Call:
    """Fill in what the three computations have in common, as the forward pass has it."""
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
        padding=geometry.padding[0],
    )
    call.src, call.src_stride[:] = source.data_ptr(), source.stride()
    call.dst, call.dst_stride[:] = target.data_ptr(), target.stride()
    call.matrix, call.transposed = plan.matrix.rows(), plan.transposed.rows()
    call.blend_first = plan.blend_first.data_ptr()
    return call
