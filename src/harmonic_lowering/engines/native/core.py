"""Calls of the native core: plain tensors in, plain tensors out, no autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
    known = _outputs.get(key) or _keep(_outputs, key, _prepare_output(input, weight, geometry))
    result = empty(known.shape, input, known.form)
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
    key = _key(geometry, grad, weight, result)
    known = _input_grads.get(key) or _keep(
        _input_grads, key, _prepare_input_grad(grad, weight, geometry, result)
    )
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
    key = _key(geometry, input, grad, result)
    known = _weight_grads.get(key) or _keep(
        _weight_grads, key, _prepare_weight_grad(input, grad, geometry, result)
    )
    call = library.Call.from_buffer_copy(known.call)
    call.src, call.dst, call.weight = input.data_ptr(), grad.data_ptr(), result.data_ptr()
    call.bias = None if bias is None else bias.data_ptr()
    library.run("tap_conv_grad_weight", call)


# -------------------------------------------------------------------- what is kept of calls


class _Prepared(NamedTuple):
    """All of a call but the addresses of tensors, which is most of what a small one takes."""

    call: library.Call
    plan: Matrices  # of which the call has addresses
    shape: tuple[int, ...]  # of the result
    form: torch.memory_format


_Calls = dict[tuple[object, ...], _Prepared]
_outputs: _Calls = {}
_input_grads: _Calls = {}
_weight_grads: _Calls = {}
_MOST_PREPARED = 4096  # of each


def _key(geometry: Geometry, *tensors: Tensor) -> tuple[object, ...]:
    a, b, c = tensors
    return (
        geometry, a.dtype, a.shape, a.stride(), b.shape, b.stride(), c.shape, c.stride(),
    )  # fmt: skip


def _keep(calls: _Calls, key: tuple[object, ...], prepared: _Prepared) -> _Prepared:
    if len(calls) >= _MOST_PREPARED:
        calls.clear()
    calls[key] = prepared
    return prepared


def _prepare_output(input: Tensor, weight: Tensor, geometry: Geometry) -> _Prepared:
    shape, form = geometry.output_shape(input, weight), memory_format(input, weight)
    plan = matrices(geometry.taps, input.shape[2], geometry.stride[0])
    call = _call(input, weight, empty(shape, input, form), plan, geometry)
    out, into, row, frame = weight.stride()
    call.weight_stride[:] = (weight.shape[0] // geometry.groups * out, out, into, row, frame)
    return _Prepared(call, plan, shape, form)


def _prepare_input_grad(
    grad: Tensor, weight: Tensor, geometry: Geometry, result: Tensor
) -> _Prepared:
    plan = matrices(geometry.taps, result.shape[2], geometry.stride[0])
    adjoint = plan.adjoint()
    call = _call(grad, weight, result, adjoint, geometry)
    call.set_time(
        stride=1,
        input_dilation=geometry.stride[1],
        dilation=geometry.dilation,
        padding=geometry.dilation * (weight.shape[3] - 1) - geometry.padding[0],
    )
    call.in_channels, call.out_channels = call.out_channels, call.in_channels
    out, into, row, frame = weight.stride()
    call.weight_stride[:] = (weight.shape[0] // geometry.groups * out, into, out, row, -frame)
    return _Prepared(call, adjoint, result.shape, memory_format(result))


def _prepare_weight_grad(
    input: Tensor, grad: Tensor, geometry: Geometry, result: Tensor
) -> _Prepared:
    plan = matrices(geometry.taps, input.shape[2], geometry.stride[0])
    call = _call(input, result, grad, plan, geometry)
    out, into, row, frame = result.stride()
    call.weight_stride[:] = (result.shape[0] // geometry.groups * out, out, into, row, frame)
    return _Prepared(call, plan, result.shape, memory_format(result))


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
