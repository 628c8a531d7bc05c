"""The kernels' calls: plain tensors in, plain tensors out, no autograd."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _torch
from ..geometry import Geometry
from ..lowering import Shape, output_layout, stride_by_group
from ..plans import byte_bounded_cache
from . import cards, plan
from .cards import CannotRunError, unsupported_reason
from .launches import Launch

__all__ = [
    "CannotRunError", "as_gradients_read", "forget_launches", "input_grad", "output",
    "unsupported_reason", "weight_grad",
]  # fmt: skip

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


# -------------------------------------------------------------------- calls


def output(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve."""
    source, weight = input.resolve_neg(), weight.resolve_neg()
    if bias is not None:
        bias = bias.resolve_neg().contiguous()
    way = _output_way(
        geometry, source.device, source.dtype, _precision(source), source.shape, source.stride(),
        weight.shape, weight.stride(), bias is not None,
    )  # fmt: skip
    result = torch.empty_strided(way.shape, way.stride, dtype=source.dtype, device=source.device)
    way.run(source, weight, bias, result)
    return result


def input_grad(grad: Tensor, weight: Tensor, geometry: Geometry, result: Tensor) -> None:
    """Compute the input's gradient: the output's, through the flipped kernel and P_jᵀ."""
    source, weight = grad.resolve_neg(), weight.resolve_neg()
    way = _input_grad_way(
        geometry, source.device, source.dtype, _precision(source), source.shape, source.stride(),
        weight.shape, weight.stride(), result.shape, result.stride(),
    )  # fmt: skip
    way.run(source, weight, None, result)


def weight_grad(
    input: Tensor, grad: Tensor, geometry: Geometry, result: Tensor, bias: Tensor | None
) -> None:
    """Compute the weight's gradient, and the bias's if there is a tensor for it."""
    source, given = input.resolve_neg(), grad.resolve_neg()
    way = _weight_grad_way(
        geometry, source.device, source.dtype, _precision(source), source.shape, source.stride(),
        given.shape, given.stride(), result.shape, result.stride(), bias is not None,
    )  # fmt: skip
    if way.source_copy is not None:
        source = way.source_copy.of(source)
    if way.grad_copy is not None:
        given = way.grad_copy.of(given)
    # (part, group, tap, column, channel, output)
    partial = torch.empty_strided((way.n_partial,), (1,), dtype=torch.float32, device=source.device)
    way.launch(source, given, partial)
    way.total(partial, given, result, bias if way.with_bias else None)
    if bias is not None and not way.with_bias:
        torch.sum(grad, (0, 2, 3), out=bias)


def as_gradients_read(grad: Tensor, geometry: Geometry, input: Tensor, weight: Tensor) -> Tensor:
    """Return the output's gradient as both other gradients read it: copied once, not twice."""
    if grad.numel() < _COPIED_FROM or grad.dtype == torch.float32:
        return grad
    _, copy = _copies_for_weight_grad(
        geometry, grad.device, grad.dtype, weight.shape[3], input.shape, input.stride(),
        grad.shape, grad.stride(),
    )  # fmt: skip
    return grad if copy is None else copy.of(grad.resolve_neg())


# -------------------------------------------------------------------- their launches


class _Copy(NamedTuple):
    """A copy in another layout."""

    stride: Shape
    launch: Launch

    def of(self, tensor: Tensor) -> Tensor:
        """Return the tensor's copy."""
        result = torch.empty_strided(
            tensor.shape, self.stride, dtype=tensor.dtype, device=tensor.device
        )
        self.launch(tensor, result)
        return result


class _Way(NamedTuple):
    """How `kernels.apply` is called for tensors of one layout."""

    launch: Launch
    copy: _Copy | None  # of the source
    pack: tuple[int, bool] | None  # `_packed`'s arguments, if the weight is
    shape: Shape  # of the target
    stride: Shape
    table: plan.Reads  # the launch's, whose bytes a cache of ways counts

    def run(self, source: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> None:
        """Compute the target."""
        if self.copy is not None:
            source = self.copy.of(source)
        if self.pack is not None:
            weight = _packed(weight, *self.pack)
        self.launch(source, weight, bias, target)


@byte_bounded_cache
def _output_way(
    geometry: Geometry, device: torch.device, dtype: torch.dtype, precision: str, input: Shape,
    input_stride: Shape, weight: Shape, weight_stride: Shape, has_bias: bool,
) -> _Way:  # fmt: skip
    shape, stride = output_layout(geometry, input, input_stride, weight, weight_stride)
    return _apply_way(
        geometry, device, dtype, precision, input, input_stride, weight, weight_stride, shape,
        stride, adjoint=False, has_bias=has_bias,
    )  # fmt: skip


@byte_bounded_cache
def _input_grad_way(
    geometry: Geometry, device: torch.device, dtype: torch.dtype, precision: str, grad: Shape,
    grad_stride: Shape, weight: Shape, weight_stride: Shape, result: Shape, result_stride: Shape,
) -> _Way:  # fmt: skip
    return _apply_way(
        geometry, device, dtype, precision, grad, grad_stride, weight, weight_stride, result,
        result_stride, adjoint=True, has_bias=False,
    )  # fmt: skip


def _apply_way(
    geometry: Geometry, device: torch.device, dtype: torch.dtype, precision: str, source: Shape,
    source_stride: Shape, weight: Shape, weight_stride: Shape, target: Shape, target_stride: Shape,
    *, adjoint: bool, has_bias: bool,
) -> _Way:  # fmt: skip
    groups, n_frames, kernel_frames = geometry.groups, target[3], weight[3]
    channels, out_channels = source[1] // groups, target[1] // groups
    if adjoint:
        table = plan.reads_of_adjoint(geometry.taps, device, target[2], geometry.stride[0])
    else:
        table = plan.reads(geometry.taps, device, source[2], geometry.stride[0])
    often = _is_worth_a_copy(table, dtype, source[2], channels, kernel_frames)
    copy = _copy(device, dtype, source, source_stride, dim=1) if often else None
    source_stride = source_stride if copy is None else copy.stride
    pack = (groups, adjoint) if prod(target) >= _COPIED_FROM else None
    weight_stride = stride_by_group(weight_stride, weight[0], groups)
    if pack is not None:
        weight_stride = _packed(torch.empty(weight, device="meta"), *pack).stride()
    of_group, of_output, of_input, of_tap, of_frame = weight_stride
    of_one_group = (1, weight[0] // groups, *weight[1:])
    _check_reach((source, source_stride), (target, target_stride), (of_one_group, weight_stride))
    _check_steps(geometry, kernel_frames, (source, source_stride))
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
    launch = Launch(
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
    return _Way(launch, copy, pack, target, target_stride, table)


class _WeightGradWay(NamedTuple):
    """How the weight's gradient is computed from tensors of one layout."""

    launch: Launch  # of `kernels.weight_grad`
    total: Launch  # of `kernels.total`
    n_partial: int  # numbers that the first leaves to the second
    source_copy: _Copy | None
    grad_copy: _Copy | None
    with_bias: bool  # whether `total` sums for the bias
    table: plan.Reads  # the first launch's


@byte_bounded_cache
def _weight_grad_way(
    geometry: Geometry, device: torch.device, dtype: torch.dtype, precision: str, source: Shape,
    source_stride: Shape, grad: Shape, grad_stride: Shape, weight: Shape, weight_stride: Shape,
    has_bias: bool,
) -> _WeightGradWay:  # fmt: skip
    groups, (channels, n_taps, kernel_frames) = geometry.groups, weight[1:]
    table = plan.reads_by_tap(geometry.taps, device, source[2], geometry.stride[0])
    copies = _copies_for_weight_grad(
        geometry, device, dtype, kernel_frames, source, source_stride, grad, grad_stride
    )
    source_stride = source_stride if copies[0] is None else copies[0].stride
    grad_stride = grad_stride if copies[1] is None else copies[1].stride
    numbers = (1, prod(weight)), (1, 1)
    _check_reach((source, source_stride), (grad, grad_stride), numbers)
    _check_steps(geometry, kernel_frames, (source, source_stride))
    out_channels, n_frames = weight[0] // groups, grad[3]
    size = plan.grad_tiles(precision, channels, out_channels, kernel_frames, n_frames)
    n_tiles = -(-n_frames // size.frames)
    if source[0] * 2 * grad[2] * n_tiles >= cards.MOST_ELEMENTS:  # a tap reads at most two rows
        raise CannotRunError("a sum has 2**31 steps or more")
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
            n_tiles, depth_tiles, out_tiles, *source_stride, *grad_stride,
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
    with_bias = has_bias and prod(grad) <= _SUMMED_WITH_PARTS * grad[1]
    n_sums = -(-prod(weight) // plan.NUMBERS_OF_A_TOTAL)
    total = Launch(
        "total", device, (n_sums + (weight[0] if with_bias else 0), 1, 1),
        (
            n_parts, prod(weight), out_channels, n_taps, grad[0] * grad[2], *grad[2:],
            *stride_by_group(weight_stride, weight[0], groups), *grad_stride,
        ),
        {
            "CHANNELS": channels, "KERNEL_FRAMES": kernel_frames, "HAS_BIAS": with_bias,
            "PARTS": min(32, plan.power_of_two(n_parts, 1)), "NUMBERS": plan.NUMBERS_OF_A_TOTAL,
            "ROWS": 32, "num_warps": 4, "num_stages": 1,
        },
    )  # fmt: skip
    return _WeightGradWay(launch, total, n_parts * prod(weight), *copies, with_bias, table)


def forget_launches() -> None:
    """Make all launches anew, for who changes what they are made by."""
    for made in (_output_way, _input_grad_way, _weight_grad_way, _copies_for_weight_grad):
        made.forget()  # type: ignore[union-attr]


def _programs_wanted(device: torch.device) -> int:
    if device.type != "cuda":
        return 2
    return _PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def _precision(tensor: Tensor) -> str:
    """Return how products of float32 are computed, as torch's switches for convolutions say."""
    if tensor.dtype != torch.float32:
        return "ieee"  # which half types do not look at
    return "tf32" if _torch.allows_tf32_in_convolutions() else "tf32x3"


def _check_reach(*layouts: tuple[Shape, Shape]) -> None:
    if any(cards.reach(*layout) >= cards.MOST_ELEMENTS for layout in layouts):
        raise CannotRunError(cards.TOO_LARGE)


def _check_steps(geometry: Geometry, kernel_frames: int, source: tuple[Shape, Shape]) -> None:
    """Check what the kernels count in 32 bits besides elements: frames that lie outside."""
    span = geometry.span(kernel_frames)
    numbers = geometry.stride[1], geometry.dilation, geometry.padding[0] + span
    (*_, n_frames), (*_, step) = source
    if max(numbers) + n_frames >= cards.MOST_ELEMENTS // max(1, step):
        raise CannotRunError("a stride, dilation or padding reaches 2**31 numbers away")


# -------------------------------------------------------------------- copies of large tensors


def _copy(
    device: torch.device, dtype: torch.dtype, shape: Shape, stride: Shape, dim: int
) -> _Copy | None:
    """Return the copy of a large tensor with the numbers of a dimension side by side."""
    if stride[dim] == 1 or prod(shape) < _COPIED_FROM:
        return None
    form = torch.channels_last if dim == 1 else torch.contiguous_format
    target_stride = torch.empty(shape, device="meta", memory_format=form).stride()
    _check_reach((shape, stride), (shape, target_stride))
    batch, channels, rows, frames = shape
    size = {"FRAMES": 64, "CHANNELS": min(32, plan.power_of_two(channels))}
    n_tiles = -(-frames // size["FRAMES"])
    launch = Launch(
        "copy", device, (batch * rows * n_tiles, -(-channels // size["CHANNELS"]), 1),
        (rows, frames, channels, n_tiles, *stride, *target_stride),
        {**size, "num_warps": 4, "num_stages": 1},
    )  # fmt: skip
    return _Copy(target_stride, launch)


def _is_worth_a_copy(
    table: plan.Reads, dtype: torch.dtype, rows: int, channels: int, kernel_frames: int
) -> bool:
    """Return whether to copy the source of `kernels.apply` to channels-last format.

    There 16 bytes are channels of one frame, which every kernel column and tap reads in one piece.
    With frames side by side, each column begins elsewhere, and Triton reads number by number.
    """
    bytes_read = dtype.itemsize * _times_read(table, rows, kernel_frames)
    return (
        kernel_frames > 1 and bytes_read > _BYTES_READ_FOR_COPY and channels >= _CHANNELS_IN_A_PIECE
    )


@byte_bounded_cache
def _copies_for_weight_grad(
    geometry: Geometry, device: torch.device, dtype: torch.dtype, kernel_frames: int, source: Shape,
    source_stride: Shape, grad: Shape, grad_stride: Shape,
) -> tuple[_Copy | None, _Copy | None]:  # fmt: skip
    """Return the copies of source and gradient that `kernels.weight_grad` reads.

    Products of TF32 take what is summed, frames, side by side; those of half types take either.
    """
    table = plan.reads_by_tap(geometry.taps, device, source[2], geometry.stride[0])
    channels = min(source[1], grad[1]) // geometry.groups
    if not _is_worth_copies(table, dtype, source[2], channels, kernel_frames):
        return None, None
    dim = 3 if dtype == torch.float32 else 1
    return (
        _copy(device, dtype, source, source_stride, dim),
        _copy(device, dtype, grad, grad_stride, dim),
    )


def _is_worth_copies(
    table: plan.Reads, dtype: torch.dtype, rows: int, channels: int, kernel_frames: int
) -> bool:
    often = _times_read(table, rows, kernel_frames) > _TIMES_READ_FOR_COPIES
    return often and (dtype == torch.float32 or channels >= _CHANNELS_IN_A_PIECE)


def _times_read(table: plan.Reads, rows: int, kernel_frames: int) -> float:
    """Return how often each number of a source is read, by taps and kernel columns."""
    return len(table.row) * kernel_frames / max(1, rows)


def _packed(weight: Tensor, groups: int, adjoint: bool) -> Tensor:
    """Return a copy in which all that one output takes of a tap lies side by side.

    It is (group, out, in, tap, column); the adjoint sums over the outputs.
    """
    out_channels, *rest = weight.shape
    weight = weight.view(groups, out_channels // groups, *rest)
    if adjoint:
        return weight.permute(0, 3, 2, 4, 1).contiguous().permute(0, 4, 2, 1, 3)
    return weight.permute(0, 3, 1, 4, 2).contiguous().permute(0, 2, 4, 1, 3)
