"""The core as operators of torch, for whatever needs to see operators.

torch.compile, torch.export, function transforms and derivatives of derivatives take these:

    tap_conv2d(input, weight, bias)        Y, the formula of `engines.reference.convolve`
    tap_conv2d_input_grad(grad, weight)    its adjoint in the input
    tap_conv2d_weight_grad(input, grad)    its adjoint in the weight, and in the bias

Each is linear in either of its tensors, and the derivatives of each are calls of the other two,
which closes derivatives of every order. Taps are carried as text, so that a graph depends neither
on an object of Python nor on the number of bins.

torch's caches of compiled graphs outlive a version of this package. So an operator whose arguments
or derivatives change gets another name.

The kernels are the native core's on the CPU and Triton's on NVIDIA cards. Where neither can run (an
exported program on another machine), an operator computes the same with stock operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, register_fake, register_vmap

from ..._torch import register_autograd, register_flop_formula
from ...taps import FrequencyTaps
from .. import lowering
from ..geometry import Geometry
from ..lowering import memory_format
from ..triton import core as triton_core
from . import core

__all__ = ["gradients", "gradients_by", "tap_conv2d"]

_NAMESPACE = "harmonic_lowering"
_GEOMETRY = "str taps, int[] stride, int[] padding, int dilation, SymInt groups"
_library: Any = Library(_NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
for _schema in (
    f"tap_conv2d(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor",
    f"tap_conv2d_input_grad(Tensor grad, Tensor weight, {_GEOMETRY}, SymInt n_bins, "
    "SymInt n_frames) -> Tensor",
    f"tap_conv2d_weight_grad(Tensor input, Tensor grad, {_GEOMETRY}, SymInt kernel_frames, "
    "bool bias) -> (Tensor, Tensor)",
):
    _library.define(_schema, tags=(torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag))
_operators = getattr(torch.ops, _NAMESPACE)


def tap_conv2d(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve by the operator; it is `engines.reference.convolve`'s formula."""
    return _operators.tap_conv2d(input, weight, bias, *geometry.operator_arguments)  # type: ignore[no-any-return]


def gradients(
    geometry: Geometry, needs: Sequence[bool], input: Tensor, weight: Tensor, grad: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of the input, weight and bias that are needed, by the operators."""
    arguments = geometry.operator_arguments
    of_input = of_weight = of_bias = None
    if needs[1]:
        of_weight, of_bias = _operators.tap_conv2d_weight_grad(
            input, grad, *arguments, weight.shape[3], needs[2]
        )
    elif needs[2]:
        of_bias = grad.sum((0, 2, 3))
    if needs[0]:
        of_input = _operators.tap_conv2d_input_grad(grad, weight, *arguments, *input.shape[2:])
    return of_input, of_weight, of_bias if needs[2] else None


def gradients_by(
    kernels: Any,
    geometry: Geometry,
    needs: Sequence[bool],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients that are needed, by the kernels of an engine's `core`, once.

    The weight's comes first: what it takes while it is computed is free again when the larger
    gradient of the input is allocated.
    """
    of_input = of_weight = of_bias = None
    if needs[1]:
        of_weight = torch.empty_like(weight)
        of_bias = torch.empty_like(bias) if needs[2] and bias is not None else None
        kernels.weight_grad(input, grad, geometry, of_weight, of_bias)
    elif needs[2]:
        of_bias = grad.sum((0, 2, 3))
    if needs[0]:
        of_input = core.empty(input.shape, input, memory_format(input))
        kernels.input_grad(grad, weight, geometry, of_input)
    return of_input, of_weight, of_bias


_geometry = Geometry.from_operator_arguments


# -------------------------------------------------------------------- results


def _output(input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    geometry = _geometry(*arguments)
    tensors = (input, weight) if bias is None else (input, weight, bias)
    for kernels in _kernels_for(*tensors):
        with suppress(triton_core.CannotRunError):
            return kernels.output(input, weight, bias, geometry)  # type: ignore[no-any-return]
    return lowering.convolve(input, weight, bias, geometry)


def _input_grad(grad: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    *given, n_bins, n_frames = arguments
    geometry = _geometry(*given)
    shape = _input_shape(grad, weight, geometry, n_bins, n_frames)
    for kernels in _kernels_for(grad, weight):
        result = core.empty(shape, grad, memory_format(grad, weight))
        with suppress(triton_core.CannotRunError):
            kernels.input_grad(grad, weight, geometry, result)
            return result
    result = lowering.input_grad(grad, weight, geometry, shape)
    return result.contiguous(memory_format=memory_format(grad, weight))


def _weight_grad(input: Tensor, grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *given, _, bias = arguments
    geometry = _geometry(*given)
    of_weight, of_bias = _fake_weight_grad(input, grad, *arguments)
    for kernels in _kernels_for(input, grad):
        with suppress(triton_core.CannotRunError):
            kernels.weight_grad(input, grad, geometry, of_weight, of_bias if bias else None)
            return of_weight, of_bias
    of_weight.copy_(lowering.weight_grad(input, grad, geometry, tuple(of_weight.shape)))
    if bias:
        of_bias.copy_(grad.sum((0, 2, 3)))
    return of_weight, of_bias


def _kernels_for(*tensors: Tensor) -> Iterator[Any]:
    """Yield what can compute with these tensors: the native core, Triton's kernels, or nothing."""
    if all(tensor.numel() > 0 for tensor in tensors):
        for kernels in (core, triton_core):
            if not kernels.unsupported_reason(*tensors):
                yield kernels


def _input_shape(
    grad: Tensor, weight: Tensor, geometry: Geometry, n_bins: int, n_frames: int
) -> tuple[int, ...]:
    return grad.shape[0], weight.shape[1] * geometry.groups, n_bins, n_frames


# -------------------------------------------------------------------- shapes


def _fake_output(input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    shape = _geometry(*arguments).output_shape(input, weight)
    return core.empty(shape, input, memory_format(input, weight))


def _fake_input_grad(grad: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    *given, n_bins, n_frames = arguments
    shape = _input_shape(grad, weight, _geometry(*given), n_bins, n_frames)
    return core.empty(shape, grad, memory_format(grad, weight))


def _fake_weight_grad(input: Tensor, grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *given, kernel_frames, bias = arguments
    geometry = _geometry(*given)
    channels = input.shape[1] // geometry.groups
    shape = (grad.shape[1], channels, len(geometry.taps), kernel_frames)
    return (
        core.empty(shape, input, torch.contiguous_format),
        core.empty(shape[:1] if bias else (0,), input, torch.contiguous_format),
    )


# -------------------------------------------------------------------- derivatives


def _save_for_output(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, _, *ctx.arguments = inputs
    ctx.save_for_backward(input, weight)


def _output_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight = ctx.saved_tensors
    geometry = _geometry(*ctx.arguments)
    return *gradients(geometry, ctx.needs_input_grad, input, weight, grad), *_NO_GEOMETRY


def _save_for_input_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, weight, *ctx.arguments, _, _ = inputs
    ctx.save_for_backward(grad, weight)


def _input_grad_backward(ctx: Any, of_input: Tensor) -> tuple[Tensor | None, ...]:
    grad, weight = ctx.saved_tensors
    arguments, needs = ctx.arguments, ctx.needs_input_grad
    return (
        _operators.tap_conv2d(of_input, weight, None, *arguments) if needs[0] else None,
        _operators.tap_conv2d_weight_grad(of_input, grad, *arguments, weight.shape[3], False)[0]
        if needs[1]
        else None,
        *_NO_GEOMETRY,
        None,
        None,
    )


def _save_for_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, grad, *ctx.arguments, _, ctx.bias = inputs
    ctx.save_for_backward(input, grad)


def _weight_grad_backward(
    ctx: Any, of_weight: Tensor, of_bias: Tensor
) -> tuple[Tensor | None, ...]:
    input, grad = ctx.saved_tensors
    bias = of_bias if ctx.bias else None
    arguments, needs = ctx.arguments, ctx.needs_input_grad
    return (
        _operators.tap_conv2d_input_grad(grad, of_weight, *arguments, *input.shape[2:])
        if needs[0]
        else None,
        _operators.tap_conv2d(input, of_weight, bias, *arguments) if needs[1] else None,
        *_NO_GEOMETRY,
        None,
        None,
    )


_NO_GEOMETRY = (None,) * 5


# -------------------------------------------------------------------- vmap
# Where the kernels differ, each is a group of its own; else the inputs are one larger batch.


def _vmap_output(
    info: Any, dims: tuple[int | None, ...], input: Tensor, weight: Tensor, bias: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, int]:  # fmt: skip
    size = info.batch_size
    if dims[1] is None and dims[2] is None:
        merged = _operators.tap_conv2d(_as_batch(input, dims[0]), weight, bias, *arguments)
        return merged.unflatten(0, (size, -1)), 0
    inputs, weights = _as_channels(input, dims[0], size), _as_kernels(weight, dims[1], size)
    output = _operators.tap_conv2d(inputs, weights, None, *_grouped(arguments, size))
    output = output.unflatten(1, (size, -1))
    if bias is not None:
        output = output + (bias if dims[2] is None else bias.movedim(dims[2], 0))[..., None, None]
    return output, 1


def _vmap_input_grad(
    info: Any, dims: tuple[int | None, ...], grad: Tensor, weight: Tensor, *arguments: Any
) -> tuple[Tensor, int]:
    size = info.batch_size
    if dims[1] is None:
        merged = _operators.tap_conv2d_input_grad(_as_batch(grad, dims[0]), weight, *arguments)
        return merged.unflatten(0, (size, -1)), 0
    grads, weights = _as_channels(grad, dims[0], size), _as_kernels(weight, dims[1], size)
    merged = _operators.tap_conv2d_input_grad(grads, weights, *_grouped(arguments, size))
    return merged.unflatten(1, (size, -1)), 1


def _vmap_weight_grad(
    info: Any, dims: tuple[int | None, ...], input: Tensor, grad: Tensor, *arguments: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    size = info.batch_size
    inputs, grads = _as_channels(input, dims[0], size), _as_channels(grad, dims[1], size)
    merged = _operators.tap_conv2d_weight_grad(inputs, grads, *_grouped(arguments, size))
    of_weight, of_bias = (tensor.unflatten(0, (size, -1)) for tensor in merged)
    return (of_weight, of_bias), (0, 0)


def _as_batch(tensor: Tensor, dim: int | None) -> Tensor:
    assert dim is not None, "vmap calls with something that it maps"
    return tensor.movedim(dim, 0).flatten(0, 1)


def _as_channels(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Return (B, V·C, F, T)."""
    if dim is None:
        tensor = tensor.unsqueeze(1).expand(-1, size, -1, -1, -1)
    else:
        tensor = tensor.movedim(dim, 1)
    return tensor.flatten(1, 2)


def _as_kernels(weight: Tensor, dim: int | None, size: int) -> Tensor:
    """Return (V·O, C / groups, K, K_t)."""
    if dim is None:
        weight = weight.unsqueeze(0).expand(size, -1, -1, -1, -1)
    else:
        weight = weight.movedim(dim, 0)
    return weight.flatten(0, 1)


def _grouped(arguments: tuple[Any, ...], size: int) -> list[Any]:
    taps, stride, padding, dilation, groups, *sizes = arguments
    return [taps, stride, padding, dilation, groups * size, *sizes]


# -------------------------------------------------------------------- counting


def _flops(
    input: Sequence[int], weight: Sequence[int], output: Sequence[int], arguments: tuple[Any, ...]
) -> int:
    """Count two operations for each multiplication of a weight with a row that a tap reads."""
    taps, (frequency_stride, _), *_ = arguments
    read = FrequencyTaps.from_text(taps).rows(input[2], frequency_stride)
    live_rows = sum(rows.stop - rows.start for rows in read)
    return 2 * input[0] * weight[0] * weight[1] * live_rows * weight[3] * output[3]


def _output_flops(input: Any, weight: Any, bias: Any, *arguments: Any, out_shape: Any) -> int:
    return _flops(input, weight, out_shape, arguments)


def _input_grad_flops(grad: Any, weight: Any, *arguments: Any, out_shape: Any) -> int:
    return _flops(out_shape, weight, grad, arguments)


def _weight_grad_flops(input: Any, grad: Any, *arguments: Any, out_shape: Any) -> int:
    return _flops(input, out_shape[0], grad, arguments)


# -------------------------------------------------------------------- registration

for _name, _compute, _fake, _backward, _setup, _batched, _count in (
    (
        "tap_conv2d",
        _output, _fake_output, _output_backward, _save_for_output,
        _vmap_output, _output_flops,
    ),
    (
        "tap_conv2d_input_grad",
        _input_grad, _fake_input_grad, _input_grad_backward, _save_for_input_grad,
        _vmap_input_grad, _input_grad_flops,
    ),
    (
        "tap_conv2d_weight_grad",
        _weight_grad, _fake_weight_grad, _weight_grad_backward, _save_for_weight_grad,
        _vmap_weight_grad, _weight_grad_flops,
    ),
):  # fmt: skip
    _qualified = f"{_NAMESPACE}::{_name}"
    _library.impl(_name, _compute, "CompositeExplicitAutograd")
    register_fake(_qualified, _fake, lib=_library)
    register_autograd(_library, getattr(_operators, _name).default, _backward, _setup)
    register_vmap(_qualified, _batched, lib=_library)
    register_flop_formula(getattr(_operators, _name), _count)
