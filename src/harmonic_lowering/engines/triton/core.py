"""Launches of the kernels: plain tensors in, plain tensors out, no autograd."""

from __future__ import annotations

import importlib
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from math import prod
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import _torch
from ..fallback import compute_dtypes
from ..geometry import Geometry
from ..lowering import memory_format
from . import plan

__all__ = [
    "MEASURED_CAPABILITIES", "CannotRunError", "as_gradients_read", "auto_reason", "input_grad",
    "output", "unsupported_reason", "weight_grad",
]  # fmt: skip

Shape = tuple[int, ...]  # or strides

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)  # tensor cores that take TF32 and bfloat16

# Cards, by their capability, on which `make bench-gpu` has found this engine to be right, and
# faster than stock operations wherever it was measured. `engine="auto"` uses it on these only.
MEASURED_CAPABILITIES = frozenset({(9, 0)})  # H100, docs/gpu-benchmarks.md

_REACH = 1 << 31  # elements of one batch item, which the kernels count in 32 bits
# Copies of what is read often, in the layout that is read fastest, are launches of their own.
_COPIED_FROM = 1 << 22  # elements of a tensor, or of the result for a weight
_CHANNELS_IN_A_PIECE = 16  # whole vectors of every dtype
# From where on copies took an H100 less time than they saved: bytes that are read for each number
# of the source (convolution, input's gradient), and times each is read (weight's gradient).
_BYTES_READ_FOR_COPY = 16
_TIMES_READ_FOR_COPIES = 8
_TOO_LARGE = "a batch item has 2**31 elements or more"
_MOST_PROGRAMS = 65535  # on the second and third axis of a grid
_PARTIAL_BYTES = 16 << 20  # of all partial sums of the weight's gradient
_PROGRAMS_PER_PROCESSOR = 8  # many, because taps differ in live rows
_failures: dict[torch.device, str] = {}  # which did not compile or launch, and why
_in_graphs: list[plan.Reads] = []  # tables that a captured CUDA graph reads for as long as it lives


class CannotRunError(NotImplementedError):
    """The kernels do not run here, for a reason; another engine may."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"engine 'triton' cannot run: {reason}; or use engine='auto'")


# -------------------------------------------------------------------- where they run


def unsupported_reason(*tensors: Tensor) -> str | None:
    """Return what keeps the kernels from computing with these tensors, or None."""
    if reason := _unsupported_machine():
        return reason
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        return f"the tensors are on different devices: {sorted(map(str, devices))}"
    for device in devices:
        if reason := _failures.get(device) or _unsupported_device(device):
            return reason
    dtypes = compute_dtypes(*tensors)
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        names = sorted(str(dtype) for dtype in dtypes)
        return f"it takes one of {[str(d) for d in DTYPES]}, the same for all, got {names}"
    if torch.bfloat16 in dtypes and is_interpreted():
        return "Triton's interpreter gets bfloat16 wrong (its issue 11584): use float16 or float32"
    if any(_reach(tensor.shape, tensor.stride()) >= _REACH for tensor in tensors):
        return _TOO_LARGE
    return None


def auto_reason(*tensors: Tensor) -> str | None:
    """Return why ``engine="auto"`` does not choose these kernels, or None."""
    if reason := _not_measured(tensors[0].device):  # nothing else is traced by a compiler then
        return reason
    reason = unsupported_reason(*tensors)
    return f"as for the engine 'triton', {reason}" if reason else None


@_torch.compile_time_constant
def _not_measured(device: torch.device) -> str | None:
    if reason := _unsupported_machine() or _unsupported_device(device):
        return f"as for the engine 'triton', {reason}"
    capability = _capability(device)
    if capability in MEASURED_CAPABILITIES:
        return None
    number = ".".join(map(str, capability or ("none",)))
    return (
        f"engine 'triton' can run and has not been measured on cards of capability {number}, so "
        "only engine='triton' uses it (docs/gpu.md)"
    )


def is_interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@_torch.compile_time_constant
def _unsupported_machine() -> str | None:
    if reason := _triton_is_missing():
        return reason
    if is_interpreted():
        return None
    if not torch.cuda.is_available():
        return "it needs an NVIDIA card that torch can use (torch.cuda.is_available() is False)"
    if torch.version.hip:
        return "its kernels are written for NVIDIA cards, and this torch is built for AMD's"
    return None


@cache
def _triton_is_missing() -> str | None:
    try:
        importlib.import_module("triton")
    except Exception as error:  # a package that does not fit its torch raises anything
        return f"the package triton cannot be imported ({error}): pip install triton"
    return None


@_torch.compile_time_constant
def _unsupported_device(device: torch.device) -> str | None:
    if is_interpreted():
        return None
    if device.type != "cuda":
        return f"its kernels run on NVIDIA cards, and a tensor is on {device}"
    capability = _capability(device) or (0, 0)
    if capability < LEAST_CAPABILITY:
        return (
            f"{device} has the capability {'.'.join(map(str, capability))}, and its kernels need "
            f"{'.'.join(map(str, LEAST_CAPABILITY))}"
        )
    return None


def _capability(device: torch.device) -> tuple[int, int] | None:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def _reach(shape: Shape, stride: Shape) -> int:
    """Return how far apart the elements of a batch item lie in memory."""
    return sum((n - 1) * step for n, step in zip(shape[1:], stride[1:], strict=True))


# -------------------------------------------------------------------- calls


def output(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve."""
    result = torch.empty(
        geometry.output_shape(input, weight),
        dtype=input.dtype,
        device=input.device,
        memory_format=memory_format(input, weight),
    )
    table = plan.reads(geometry.taps, input.device, input.shape[2], geometry.stride[0])
    _apply(input, weight, bias, result, table, geometry, adjoint=False)
    return result


def input_grad(grad: Tensor, weight: Tensor, geometry: Geometry, result: Tensor) -> None:
    """Compute the input's gradient: the output's, through the flipped kernel and P_jᵀ."""
    table = plan.reads_of_adjoint(geometry.taps, grad.device, result.shape[2], geometry.stride[0])
    _apply(grad, weight, None, result, table, geometry, adjoint=True)


def weight_grad(
    input: Tensor, grad: Tensor, geometry: Geometry, result: Tensor, bias: Tensor | None
) -> None:
    """Compute the weight's gradient, and the bias's if there is a tensor for it."""
    table = plan.reads_by_tap(geometry.taps, input.device, input.shape[2], geometry.stride[0])
    source, given = input.resolve_neg(), grad.resolve_neg()
    if source.numel() >= _COPIED_FROM or given.numel() >= _COPIED_FROM:
        layout = _weight_grad_layout(input, grad, geometry, table, result.shape[3])
        source, given = _copied(source, *layout), _copied(given, *layout)
    launch = _weight_grad_launch(
        geometry, _precision(source), source.device, result.shape, source.shape, source.stride(),
        given.shape, given.stride(), table.blends,
    )  # fmt: skip
    groups, (channels, n_taps, kernel_frames) = geometry.groups, result.shape[1:]
    partial = torch.empty(
        (launch.grid[0], groups, n_taps, kernel_frames, channels, result.shape[0] // groups),
        dtype=torch.float32, device=source.device,
    )  # fmt: skip
    _launch("weight_grad", source.device, launch, table, source, given, partial)
    # (part, g, tap, τ, c, o) → (g, o, c, tap, τ)
    parts, total = partial.permute(0, 1, 5, 4, 2, 3), _by_group(result, groups)
    if total.dtype == torch.float32:
        torch.sum(parts, 0, out=total)
    else:
        total.copy_(parts.sum(0))
    if bias is not None:
        bias.copy_(grad.sum((0, 2, 3)))


def as_gradients_read(grad: Tensor, geometry: Geometry, input: Tensor, weight: Tensor) -> Tensor:
    """Return the output's gradient as both other gradients read it: copied once, not twice."""
    if grad.numel() < _COPIED_FROM:
        return grad
    table = plan.reads_by_tap(geometry.taps, input.device, input.shape[2], geometry.stride[0])
    dim, often = _weight_grad_layout(input, grad, geometry, table, weight.shape[3])
    return _copied(grad.resolve_neg(), dim, often) if dim == 1 else grad


def _apply(
    source: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, table: plan.Reads,
    geometry: Geometry, *, adjoint: bool,
) -> None:  # fmt: skip
    source = source.resolve_neg()
    if source.numel() >= _COPIED_FROM:
        source = _copied(source, 1, _apply_layout(source, geometry, table, weight.shape[3]))
    weight = _by_group(weight.resolve_neg(), geometry.groups)
    if target.numel() >= _COPIED_FROM:
        weight = _packed(weight, adjoint=adjoint)
    launch = _apply_launch(
        geometry, _precision(source), source.shape, source.stride(), weight.shape, weight.stride(),
        target.shape, target.stride(), adjoint, bias is not None, table.blends,
    )  # fmt: skip
    bias = None if bias is None else bias.resolve_neg().contiguous()
    _launch("apply", source.device, launch, table, source, weight, bias, target)


class _Launch(NamedTuple):
    """All of a launch but its tensors."""

    grid: tuple[int, ...]
    numbers: tuple[int, ...]
    constants: dict[str, Any]  # what a kernel is compiled for
    compiled: dict[Any, Any]  # what Triton made of it, by what else that depends on


def _launchable(grid: Shape, numbers: Shape, constants: dict[str, Any]) -> _Launch:
    if max(grid[1:]) > _MOST_PROGRAMS:
        raise CannotRunError(f"more than {_MOST_PROGRAMS} groups, or pieces of channels")
    return _Launch(grid, numbers, constants, {})


@lru_cache(maxsize=1024)  # small calls cost their launches
def _apply_launch(
    geometry: Geometry, precision: str, source: Shape, source_stride: Shape, weight: Shape,
    weight_stride: Shape, target: Shape, target_stride: Shape, adjoint: bool, has_bias: bool,
    blends: bool,
) -> _Launch:  # fmt: skip
    _check_reach((source, source_stride), (target, target_stride), (weight, weight_stride))
    groups, kernel_frames, n_frames = geometry.groups, weight[-1], target[3]
    _check_steps(geometry, kernel_frames)
    channels, out_channels = source[1] // groups, target[1] // groups
    of_group, of_output, of_input, of_tap, of_frame = weight_stride
    padding, (stride, spread) = geometry.padding[0], (geometry.stride[1], 1)
    if adjoint:
        of_output, of_input = of_input, of_output
        padding = geometry.span(kernel_frames) - 1 - padding
        stride, spread = spread, stride
    size = plan.tiles(
        precision, channels, out_channels, kernel_frames, n_frames,
        blends=blends, regular=stride == spread == geometry.dilation == 1,
    )  # fmt: skip
    n_tiles = -(-n_frames // (size.frames * size.phases))
    out_tiles = -(-out_channels // size.channels)
    return _launchable(
        (target[0] * target[2] * n_tiles, groups * out_tiles, 1),
        (
            target[2], n_frames, source[3], out_channels, n_tiles, out_tiles,
            *source_stride, *target_stride, of_group, of_output, of_input, of_tap, of_frame,
            stride, spread, geometry.dilation, padding,
        ),
        {
            "CHANNELS": channels, "KERNEL_FRAMES": kernel_frames, "FLIP": adjoint,
            "SPREADS": spread > 1, "WIDTH": min(size.depth, plan.power_of_two(channels, 1)),
            "HAS_BIAS": has_bias, "BLENDS": blends, "PRECISION": precision,
            "FRAMES": size.frames, "PHASES": size.phases, "OUT": size.channels,
            "DEPTH": size.depth, "num_warps": size.num_warps, "num_stages": size.num_stages,
        },
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _weight_grad_launch(
    geometry: Geometry, precision: str, device: torch.device, weight: Shape, source: Shape,
    source_stride: Shape, grad: Shape, grad_stride: Shape, blends: bool,
) -> _Launch:  # fmt: skip
    groups, (channels, n_taps, kernel_frames) = geometry.groups, weight[1:]
    one = (1, prod(weight) // groups), (1, 1)  # group of the result
    _check_reach((source, source_stride), (grad, grad_stride), one)
    _check_steps(geometry, kernel_frames)
    out_channels, n_frames = weight[0] // groups, grad[3]
    size = plan.grad_tiles(precision, channels, out_channels, kernel_frames, n_frames)
    depth_tiles = -(-channels * kernel_frames // size.depth)
    out_tiles = -(-out_channels // size.channels)
    programs = (n_taps * depth_tiles, groups * out_tiles)
    # in how many parts the sum is divided: enough for every processor
    n_parts = -(-_programs_wanted(device) // prod(programs))
    most = min(source[0] * source[2], _PARTIAL_BYTES // (4 * max(1, prod(weight))))
    return _launchable(
        (max(1, min(n_parts, most)), *programs),
        (
            source[0], n_frames, source[3], out_channels,
            -(-n_frames // size.frames), depth_tiles, out_tiles, *source_stride, *grad_stride,
            geometry.stride[1], geometry.dilation, geometry.padding[0],
        ),
        {
            "CHANNELS": channels, "KERNEL_FRAMES": kernel_frames, "BLENDS": blends,
            "PRECISION": precision, "DEPTH": size.depth, "OUT": size.channels,
            "FRAMES": size.frames, "EVEN": n_frames % size.frames == 0,
            "num_warps": size.num_warps, "num_stages": size.num_stages,
        },
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _copy_launch(shape: Shape, source_stride: Shape, target_stride: Shape) -> _Launch:
    _check_reach((shape, source_stride), (shape, target_stride))
    batch, channels, rows, frames = shape
    size = {"FRAMES": 64, "CHANNELS": min(32, plan.power_of_two(channels))}
    n_tiles = -(-frames // size["FRAMES"])
    return _launchable(
        (batch * rows * n_tiles, -(-channels // size["CHANNELS"]), 1),
        (rows, frames, channels, n_tiles, *source_stride, *target_stride),
        {**size, "num_warps": 4, "num_stages": 1},
    )


def _programs_wanted(device: torch.device) -> int:
    if device.type != "cuda":
        return 2
    return _PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def _apply_layout(source: Tensor, geometry: Geometry, table: plan.Reads, columns: int) -> bool:
    """Return whether to copy the source to channels-last format.

    There 16 bytes are channels of one frame, which every kernel column and tap reads in one piece.
    With frames side by side, each column begins elsewhere, and Triton reads number by number.
    """
    bytes_read = source.element_size() * _times_read(source, table, columns)
    return columns > 1 and bytes_read > _BYTES_READ_FOR_COPY and _in_pieces(source, geometry)


def _weight_grad_layout(
    input: Tensor, grad: Tensor, geometry: Geometry, table: plan.Reads, columns: int
) -> tuple[int, bool]:
    """Return the dimension to lie side by side in memory, and whether that is worth copies.

    Products of TF32 take what is summed, frames, side by side; those of half types take either.
    """
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
    launch = _copy_launch(tensor.shape, tensor.stride(), result.stride())
    _launch("copy", tensor.device, launch, None, tensor, result)
    return result


def _by_group(weight: Tensor, groups: int) -> Tensor:
    out_channels, *rest = weight.shape
    return weight.view(groups, out_channels // groups, *rest)


def _packed(weight: Tensor, *, adjoint: bool) -> Tensor:
    """Return a copy in which all that one output takes of a tap lies side by side.

    A weight is (group, out, in, tap, frame) here; the adjoint sums over the outputs.
    """
    if adjoint:
        return weight.permute(0, 3, 2, 4, 1).contiguous().permute(0, 4, 2, 1, 3)
    return weight.permute(0, 3, 1, 4, 2).contiguous().permute(0, 2, 4, 1, 3)


def _launch(
    name: str,
    device: torch.device,
    launch: _Launch,
    table: plan.Reads | None,
    *tensors: Tensor | None,
) -> None:
    """Launch a kernel; what keeps Triton from compiling it is remembered.

    Raises
    ------
    CannotRunError
        If it does not compile, or the card refuses it.
    """
    if 0 in launch.grid:
        return
    if reason := _failures.get(device):
        raise CannotRunError(reason)
    if table and device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _in_graphs.append(table)  # caches may drop it, graphs not
    arguments = (*tensors, *(table[:4] if table else ()), *launch.numbers)
    variant = device, *(t if t is None else (t.dtype, t.data_ptr() % 16) for t in tensors)
    try:
        with _device(device):
            if ready := launch.compiled.get(variant):
                kernel, constants = ready
                kernel[launch.grid](*arguments, *constants)
                return
            # Fused multiply-adds are Triton's default, which it warns that it will change.
            kernel = getattr(_kernels(), name)
            compiled = kernel[launch.grid](*arguments, **launch.constants, enable_fp_fusion=True)
            if compiled is not None and _compiled_kernels_take_constants():
                names = [parameter.name for parameter in kernel.params[len(arguments) :]]
                launch.compiled[variant] = compiled, [launch.constants[name] for name in names]
    except Exception as error:  # Triton, its assembler, a C compiler, the driver: anything
        if isinstance(error, torch.OutOfMemoryError):
            raise
        what = (str(error).strip().splitlines() or ["no message"])[0]
        _failures[device] = (
            f"on {device} Triton could not compile or launch the kernel {name!r} "
            f"({type(error).__name__}: {what})"
        )
        raise CannotRunError(_failures[device]) from error


@cache
def _compiled_kernels_take_constants() -> bool:
    """Whether what Triton compiled is called as above, in a third of its usual launch's time."""
    major, minor = importlib.import_module("triton").__version__.split(".")[:2]
    return (3, 4) <= (int(major), int(minor)) <= (3, 9)


@cache
def _kernels() -> ModuleType:
    return importlib.import_module(f"{__package__}.kernels")


def _device(device: torch.device) -> AbstractContextManager[Any]:
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return nullcontext()
    return torch.cuda.device(device)


def _precision(tensor: Tensor) -> str:
    """Return how products of float32 are computed, as torch's switches for convolutions say."""
    if tensor.dtype != torch.float32:
        return "ieee"  # which half types do not look at
    return "tf32" if _torch.allows_tf32_in_convolutions() else "tf32x3"


def _check_reach(*layouts: tuple[Shape, Shape]) -> None:
    if any(_reach(*layout) >= _REACH for layout in layouts):
        raise CannotRunError(_TOO_LARGE)


def _check_steps(geometry: Geometry, kernel_frames: int) -> None:
    """Check what the kernels count in 32 bits besides elements."""
    span = geometry.span(kernel_frames)
    if max(geometry.stride[1], geometry.dilation, geometry.padding[0], span) >= _REACH:
        raise CannotRunError("a stride, dilation or padding is 2**31 or more")
