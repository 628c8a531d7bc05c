"""The kernels' calls: plain tensors in, plain tensors out, no autograd."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _torch
from ..geometry import Geometry
from ..lowering import memory_format
from . import cards, plan
from .cards import CannotRunError, unsupported_reason
from .launches import Launch

__all__ = [
    "CannotRunError", "as_gradients_read", "input_grad", "output", "unsupported_reason",
    "weight_grad",
]  # fmt: skip

Shape = tuple[int, ...]  # or strides

# Copies of what is read often, in the layout that is read fastest, are launches of their own.
_COPIED_FROM = 1 << 22  # elements of a tensor, or of the result for a weight
_CHANNELS_IN_A_PIECE = 16  # whole vectors of every dtype
# From where on copies took an H100 less time than they saved: bytes that are read for each number
# of the source (convolution, input's gradient), and times each is read (weight's gradient).
_BYTES_READ_FOR_COPY = 16
_TIMES_READ_FOR_COPIES = 8
_PARTIAL_BYTES = 16 << 20  # of all partial sums of the weight's gradient
_PROGRAMS_PER_PROCESSOR = 8  # many, because taps differ in live rows
_SUMMED_WITH_PARTS = 1 << 15  # numbers of each channel; torch sums more for the bias's gradient
_KEPT_LAUNCHES = 1024  # of each kind: small calls cost their launches


# -------------------------------------------------------------------- calls


def output(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve."""
    result = torch.empty(
        geometry.output_shape(input, weight),
        dtype=input.dtype,
        device=input.device,
        memory_format=memory_format(input, weight),
    )
    _apply(input, weight, bias, result, geometry, adjoint=False)
    return result


def input_grad(grad: Tensor, weight: Tensor, geometry: Geometry, result: Tensor) -> None:
    """Compute the input's gradient: the output's, through the flipped kernel and P_jᵀ."""
    _apply(grad, weight, None, result, geometry, adjoint=True)


def _apply(
    source: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, geometry: Geometry,
    *, adjoint: bool,
) -> None:  # fmt: skip
    source, weight = source.resolve_neg(), weight.resolve_neg()
    if source.numel() >= _COPIED_FROM:
        table = _reads(geometry, source.device, source.shape, target.shape, adjoint)
        source = _copied(source, 1, _apply_layout(source, geometry, table, weight.shape[3]))
    strides = _by_group(weight.stride(), weight.shape[0], geometry.groups)
    if target.numel() >= _COPIED_FROM:
        weight = _packed(weight, geometry.groups, adjoint=adjoint)
        strides = weight.stride()
    launch = _apply_launch(
        geometry, source.device, source.dtype, _precision(source), source.shape, source.stride(),
        strides, weight.shape[-1], target.shape, target.stride(), adjoint, bias is not None,
    )  # fmt: skip
    launch(source, weight, None if bias is None else bias.resolve_neg().contiguous(), target)


def weight_grad(
    input: Tensor, grad: Tensor, geometry: Geometry, result: Tensor, bias: Tensor | None
) -> None:
    """Compute the weight's gradient, and the bias's if there is a tensor for it."""
    source, given = input.resolve_neg(), grad.resolve_neg()
    if source.numel() >= _COPIED_FROM or given.numel() >= _COPIED_FROM:
        layout = _weight_grad_layout(input, grad, geometry, result.shape[3])
        source, given = _copied(source, *layout), _copied(given, *layout)
    launch, n_parts = _weight_grad_launch(
        geometry, source.device, source.dtype, _precision(source), result.shape, source.shape,
        source.stride(), given.shape, given.stride(),
    )  # fmt: skip
    # (part, group, tap, column, channel, output)
    partial = source.new_empty((n_parts * result.numel(),), dtype=torch.float32)
    launch(source, given, partial)
    with_bias = bias is not None and given.numel() <= _SUMMED_WITH_PARTS * given.shape[1]
    total = _total_launch(
        geometry.groups, source.device, source.dtype, n_parts, result.shape, result.stride(),
        given.shape, given.stride(), with_bias,
    )  # fmt: skip
    total(partial, given, result, bias if with_bias else None)
    if bias is not None and not with_bias:
        torch.sum(grad, (0, 2, 3), out=bias)


def as_gradients_read(grad: Tensor, geometry: Geometry, input: Tensor, weight: Tensor) -> Tensor:
    """Return the output's gradient as both other gradients read it: copied once, not twice."""
    if grad.numel() < _COPIED_FROM:
        return grad
    dim, often = _weight_grad_layout(input, grad, geometry, weight.shape[3])
    return _copied(grad.resolve_neg(), dim, often) if dim == 1 else grad


# -------------------------------------------------------------------- their launches


@lru_cache(_KEPT_LAUNCHES)
def _apply_launch(
    geometry: Geometry, device: torch.device, dtype: torch.dtype, precision: str, source: Shape,
    source_stride: Shape, weight_stride: Shape, kernel_frames: int, target: Shape,
    target_stride: Shape, adjoint: bool, has_bias: bool,
) -> Launch:  # fmt: skip
    """Return the launch of `kernels.apply` for tensors of a dtype, which one launch is bound to."""
    groups, n_frames = geometry.groups, target[3]
    channels, out_channels = source[1] // groups, target[1] // groups
    of_group, of_output, of_input, of_tap, of_frame = weight_stride
    out, inner = (channels, out_channels) if adjoint else (out_channels, channels)
    of_one_group = (1, out, inner, len(geometry.taps), kernel_frames)
    _check_reach((source, source_stride), (target, target_stride), (of_one_group, weight_stride))
    _check_steps(geometry, kernel_frames)
    table = _reads(geometry, device, source, target, adjoint)
    padding, (stride, spread) = geometry.padding[0], (geometry.stride[1], 1)
    if adjoint:
        of_output, of_input = of_input, of_output
        padding = geometry.span(kernel_frames) - 1 - padding
        stride, spread = spread, stride
    size = plan.tiles(
        precision, channels, out_channels, kernel_frames, n_frames,
        blends=table.blends, regular=stride == spread == geometry.dilation == 1,
    )  # fmt: skip
    n_tiles = -(-n_frames // (size.frames * size.phases))
    out_tiles = -(-out_channels // size.channels)
    return Launch(
        "apply", device, (target[0] * target[2] * n_tiles, groups * out_tiles, 1),
        (
            target[2], n_frames, source[3], out_channels, n_tiles, out_tiles,
            *source_stride, *target_stride, of_group, of_output, of_input, of_tap, of_frame,
            stride, spread, geometry.dilation, padding,
        ),
        {
            "CHANNELS": channels, "KERNEL_FRAMES": kernel_frames, "FLIP": adjoint,
            "SPREADS": spread > 1, "WIDTH": min(size.depth, plan.power_of_two(channels, 1)),
            "HAS_BIAS": has_bias, "BLENDS": table.blends, "PRECISION": precision,
            "FRAMES": size.frames, "PHASES": size.phases, "OUT": size.channels,
            "DEPTH": size.depth, "num_warps": size.num_warps, "num_stages": size.num_stages,
        },
        table,
    )  # fmt: skip


@lru_cache(_KEPT_LAUNCHES)
def _weight_grad_launch(
    geometry: Geometry, device: torch.device, dtype: torch.dtype, precision: str, weight: Shape,
    source: Shape, source_stride: Shape, grad: Shape, grad_stride: Shape,
) -> tuple[Launch, int]:  # fmt: skip
    """Return the launch of `kernels.weight_grad`, and in how many parts it leaves the sum."""
    groups, (channels, n_taps, kernel_frames) = geometry.groups, weight[1:]
    one = (1, prod(weight) // groups), (1, 1)  # group of the result
    _check_reach((source, source_stride), (grad, grad_stride), one)
    _check_steps(geometry, kernel_frames)
    out_channels, n_frames = weight[0] // groups, grad[3]
    table = plan.reads_by_tap(geometry.taps, device, source[2], geometry.stride[0])
    size = plan.grad_tiles(precision, channels, out_channels, kernel_frames, n_frames)
    depth_tiles = -(-channels * kernel_frames // size.depth)
    out_tiles = -(-out_channels // size.channels)
    programs = (n_taps * depth_tiles, groups * out_tiles)
    # enough parts for every processor
    most = min(source[0] * source[2], _PARTIAL_BYTES // (4 * max(1, prod(weight))))
    n_parts = max(1, min(-(-_programs_wanted(device) // prod(programs)), most))
    launch = Launch(
        "weight_grad", device, (n_parts, *programs),
        (
            source[0], n_frames, source[3], out_channels,
            -(-n_frames // size.frames), depth_tiles, out_tiles, *source_stride, *grad_stride,
            geometry.stride[1], geometry.dilation, geometry.padding[0],
        ),
        {
            "CHANNELS": channels, "KERNEL_FRAMES": kernel_frames, "BLENDS": table.blends,
            "PRECISION": precision, "DEPTH": size.depth, "OUT": size.channels,
            "FRAMES": size.frames, "EVEN": n_frames % size.frames == 0,
            "num_warps": size.num_warps, "num_stages": size.num_stages,
        },
        table,
    )  # fmt: skip
    return launch, n_parts


@lru_cache(_KEPT_LAUNCHES)
def _total_launch(
    groups: int, device: torch.device, dtype: torch.dtype, n_parts: int, weight: Shape,
    weight_stride: Shape, grad: Shape, grad_stride: Shape, has_bias: bool,
) -> Launch:  # fmt: skip
    """Return the launch of `kernels.total` for a gradient of a dtype."""
    out_channels, channels, n_taps, kernel_frames = weight
    batch, _, rows, frames = grad
    n_tiles = -(-prod(weight) // plan.NUMBERS_OF_A_TOTAL)
    return Launch(
        "total", device, (n_tiles + (out_channels if has_bias else 0), 1, 1),
        (
            n_parts, prod(weight), out_channels // groups, n_taps, batch * rows, rows, frames,
            *_by_group(weight_stride, out_channels, groups), *grad_stride,
        ),
        {
            "CHANNELS": channels, "KERNEL_FRAMES": kernel_frames, "HAS_BIAS": has_bias,
            "PARTS": min(32, plan.power_of_two(n_parts, 1)), "NUMBERS": plan.NUMBERS_OF_A_TOTAL,
            "ROWS": 32, "num_warps": 4, "num_stages": 1,
        },
    )  # fmt: skip


@lru_cache(_KEPT_LAUNCHES)
def _copy_launch(
    device: torch.device, dtype: torch.dtype, shape: Shape, source_stride: Shape,
    target_stride: Shape,
) -> Launch:  # fmt: skip
    _check_reach((shape, source_stride), (shape, target_stride))
    batch, channels, rows, frames = shape
    size = {"FRAMES": 64, "CHANNELS": min(32, plan.power_of_two(channels))}
    n_tiles = -(-frames // size["FRAMES"])
    return Launch(
        "copy", device, (batch * rows * n_tiles, -(-channels // size["CHANNELS"]), 1),
        (rows, frames, channels, n_tiles, *source_stride, *target_stride),
        {**size, "num_warps": 4, "num_stages": 1},
    )  # fmt: skip


def _programs_wanted(device: torch.device) -> int:
    if device.type != "cuda":
        return 2
    return _PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def _reads(
    geometry: Geometry, device: torch.device, source: Shape, target: Shape, adjoint: bool
) -> plan.Reads:
    """Return what each target row reads of the source."""
    if adjoint:
        return plan.reads_of_adjoint(geometry.taps, device, target[2], geometry.stride[0])
    return plan.reads(geometry.taps, device, source[2], geometry.stride[0])


def _by_group(stride: Shape, out_channels: int, groups: int) -> Shape:
    """Return a weight's strides for (group, output of the group, input, tap, column)."""
    return (out_channels // groups * stride[0], *stride)


def _precision(tensor: Tensor) -> str:
    """Return how products of float32 are computed, as torch's switches for convolutions say."""
    if tensor.dtype != torch.float32:
        return "ieee"  # which half types do not look at
    return "tf32" if _torch.allows_tf32_in_convolutions() else "tf32x3"


def _check_reach(*layouts: tuple[Shape, Shape]) -> None:
    if any(cards.reach(*layout) >= cards.MOST_ELEMENTS for layout in layouts):
        raise CannotRunError(cards.TOO_LARGE)


def _check_steps(geometry: Geometry, kernel_frames: int) -> None:
    """Check what the kernels count in 32 bits besides elements."""
    span = geometry.span(kernel_frames)
    numbers = geometry.stride[1], geometry.dilation, geometry.padding[0], span
    if max(numbers) >= cards.MOST_ELEMENTS:
        raise CannotRunError("a stride, dilation or padding is 2**31 or more")


# -------------------------------------------------------------------- copies of large tensors


def _apply_layout(source: Tensor, geometry: Geometry, table: plan.Reads, columns: int) -> bool:
    """Return whether to copy the source to channels-last format.

    There 16 bytes are channels of one frame, which every kernel column and tap reads in one piece.
    With frames side by side, each column begins elsewhere, and Triton reads number by number.
    """
    bytes_read = source.element_size() * _times_read(source, table, columns)
    return columns > 1 and bytes_read > _BYTES_READ_FOR_COPY and _in_pieces(source, geometry)


def _weight_grad_layout(
    input: Tensor, grad: Tensor, geometry: Geometry, columns: int
) -> tuple[int, bool]:
    """Return the dimension to lie side by side in memory, and whether that is worth copies.

    Products of TF32 take what is summed, frames, side by side; those of half types take either.
    """
    table = plan.reads_by_tap(geometry.taps, input.device, input.shape[2], geometry.stride[0])
    often = _times_read(input, table, columns) > _TIMES_READ_FOR_COPIES
    if input.dtype == torch.float32:
        return 3, often
    return 1, often and _in_pieces(input, geometry) and _in_pieces(grad, geometry)


def _times_read(source: Tensor, table: plan.Reads, columns: int) -> float:
    """Return how often each number of a source is read, by taps and kernel columns."""
    return len(table.row) * columns / max(1, source.shape[2])


def _in_pieces(tensor: Tensor, geometry: Geometry) -> bool:
    return tensor.shape[1] // geometry.groups >= _CHANNELS_IN_A_PIECE


def _copied(tensor: Tensor, dim: int, often: bool) -> Tensor:
    """Return a large tensor that is read often with the numbers of a dimension side by side."""
    if not often or tensor.stride(dim) == 1 or tensor.numel() < _COPIED_FROM:
        return tensor
    form = torch.channels_last if dim == 1 else torch.contiguous_format
    result = torch.empty_like(tensor, memory_format=form)
    layouts = tensor.shape, tensor.stride(), result.stride()
    _copy_launch(tensor.device, tensor.dtype, *layouts)(tensor, result)
    return result


def _packed(weight: Tensor, groups: int, *, adjoint: bool) -> Tensor:
    """Return a copy in which all that one output takes of a tap lies side by side.

    It is (group, out, in, tap, column); the adjoint sums over the outputs.
    """
    out_channels, *rest = weight.shape
    weight = weight.view(groups, out_channels // groups, *rest)
    if adjoint:
        return weight.permute(0, 3, 2, 4, 1).contiguous().permute(0, 4, 2, 1, 3)
    return weight.permute(0, 3, 1, 4, 2).contiguous().permute(0, 2, 4, 1, 3)
