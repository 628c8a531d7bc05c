"""Launches of the kernels: plain tensors in, plain tensors out, no autograd."""

from __future__ import annotations

import importlib
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ... import _torch
from ..fallback import compute_dtypes
from ..geometry import Geometry
from ..lowering import memory_format
from . import plan

__all__ = [
    "MEASURED_CAPABILITIES", "CannotRunError", "auto_reason", "input_grad", "output",
    "unsupported_reason", "weight_grad",
]  # fmt: skip

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)  # tensor cores that take TF32 and bfloat16

# Cards, by their capability, on which `make bench-gpu` has found this engine to be right, and
# faster than stock operations. `engine="auto"` uses it on these only. No card has been tried yet.
MEASURED_CAPABILITIES: frozenset[tuple[int, int]] = frozenset()

_REACH = 1 << 31  # elements of one batch item, which the kernels count in 32 bits
_PACKED_FROM = 1 << 20  # elements of a result from which a weight is packed first
_TOO_LARGE = "a batch item has 2**31 elements or more"
_PARTIAL_BYTES = 16 << 20  # of all partial sums of the weight's gradient
_PROGRAMS_PER_PROCESSOR = 8  # many, because taps differ in live rows
_failures: dict[torch.device, str] = {}  # which did not compile or launch, and why
_in_graphs: list[plan.Pairs] = []  # tables that a captured CUDA graph reads for as long as it lives


class CannotRunError(NotImplementedError):
    """The kernels do not run here; another engine may."""


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
    if any(_reach(tensor) >= _REACH for tensor in tensors):
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


def _reach(tensor: Tensor) -> int:
    """Return how far apart the elements of a batch item lie in memory."""
    sizes, strides = tensor.shape[1:], tensor.stride()[1:]
    return sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))


# -------------------------------------------------------------------- calls


def output(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve."""
    result = torch.empty(
        geometry.output_shape(input, weight),
        dtype=input.dtype,
        device=input.device,
        memory_format=memory_format(input, weight),
    )
    if _reach(result) >= _REACH:
        raise CannotRunError(f"engine 'triton' cannot run: {_TOO_LARGE}; or use engine='auto'")
    table = plan.pairs(geometry.taps, input.device, input.shape[2], geometry.stride[0])
    _apply(
        input, weight, bias, result, table, geometry,
        stride=geometry.stride[1], spread=1, padding=geometry.padding[0], adjoint=False,
    )  # fmt: skip
    return result


def input_grad(grad: Tensor, weight: Tensor, geometry: Geometry, result: Tensor) -> None:
    """Compute the input's gradient: the output's, through the flipped kernel and P_jᵀ."""
    table = plan.pairs_of_adjoint(geometry.taps, grad.device, result.shape[2], geometry.stride[0])
    padding = geometry.span(weight.shape[3]) - 1 - geometry.padding[0]
    _apply(
        grad, weight, None, result, table, geometry,
        stride=1, spread=geometry.stride[1], padding=padding, adjoint=True,
    )  # fmt: skip


def weight_grad(
    input: Tensor, grad: Tensor, geometry: Geometry, result: Tensor, bias: Tensor | None
) -> None:
    """Compute the weight's gradient, and the bias's if there is a tensor for it."""
    input, grad = input.resolve_neg(), grad.resolve_neg()
    out_channels, channels, n_taps, kernel_frames = result.shape
    groups = geometry.groups
    out_channels //= groups
    n_frames = grad.shape[3]
    size = plan.grad_tiles(input.dtype, channels, out_channels, kernel_frames, n_frames)
    depth_tiles = -(-channels * kernel_frames // size.depth)
    out_tiles = -(-out_channels // size.channels)
    parts = (n_taps * depth_tiles, groups * out_tiles)
    table = plan.pairs_by_tap(geometry.taps, input.device, input.shape[2], geometry.stride[0])
    _keep_for_graphs(table)
    partial = torch.empty(
        (_n_splits(input, result.numel(), parts), groups, n_taps, kernel_frames, channels,
         out_channels),
        dtype=torch.float32, device=input.device,
    )  # fmt: skip
    _launch(
        "weight_grad", input.device, (len(partial), *parts), size.num_warps, size.num_stages,
        input, grad, partial, *table[:4],
        len(input), n_frames, input.shape[3], out_channels,
        -(-n_frames // size.frames), depth_tiles, out_tiles,
        *input.stride(), *grad.stride(),
        geometry.stride[1], geometry.dilation, geometry.padding[0],
        CHANNELS=channels, KERNEL_FRAMES=kernel_frames, BLENDS=table.blends,
        PRECISION=_precision(input), DEPTH=size.depth, OUT=size.channels, FRAMES=size.frames,
    )  # fmt: skip
    # (g, tap, τ, c, o) → (g·o, c, tap, τ)
    total = partial.sum(0) if len(partial) > 1 else partial[0]
    result.copy_(total.permute(0, 4, 3, 1, 2).reshape(result.shape))
    if bias is not None:
        bias.copy_(grad.sum((0, 2, 3)))


def _apply(
    source: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, table: plan.Pairs,
    geometry: Geometry, *, stride: int, spread: int, padding: int, adjoint: bool,
) -> None:  # fmt: skip
    source, weight = source.resolve_neg(), weight.resolve_neg()
    groups, kernel_frames = geometry.groups, weight.shape[3]
    channels, out_channels = source.shape[1] // groups, target.shape[1] // groups
    precision, n_frames = _precision(source), target.shape[3]
    span = geometry.span(kernel_frames)
    size = plan.tiles(
        source.dtype, precision, channels, out_channels, kernel_frames, span, n_frames,
        moves=stride == spread == 1,
    )  # fmt: skip
    step, lead = size.frames, 0
    if size.columns and max(n_frames, source.shape[3]) > size.frames:
        align = 16 // source.element_size() if _has_aligned_rows(source) else 1
        lead = -(-padding // align) * align
        step = (size.frames - span + 1 + padding - lead) // align * align
    n_tiles = -(-n_frames // step)
    out_tiles = -(-out_channels // size.channels)
    # (group, tap, input, frame, output), so that the outputs of a term lie side by side
    kernel = weight.unflatten(0, (groups, -1))
    kernel = kernel.permute(0, 3, 1, 4, 2) if adjoint else kernel.permute(0, 3, 2, 4, 1)
    if target.numel() >= _PACKED_FROM:
        kernel = kernel.contiguous()
    group_stride, tap_stride, in_stride, frame_stride, out_stride = kernel.stride()
    _keep_for_graphs(table)
    _launch(
        "apply", source.device, (len(target) * target.shape[2] * n_tiles, groups * out_tiles),
        size.num_warps, size.num_stages,
        source, kernel, None if bias is None else bias.resolve_neg().contiguous(), target,
        *table[:4],
        target.shape[2], n_frames, source.shape[3], out_channels, n_tiles, out_tiles,
        *source.stride(), *target.stride(),
        group_stride, out_stride, in_stride, tap_stride, frame_stride,
        stride, spread, geometry.dilation, padding,
        CHANNELS=channels, KERNEL_FRAMES=kernel_frames, FLIP=adjoint, HAS_BIAS=bias is not None,
        BLENDS=table.blends, PRECISION=precision, COLUMNS=size.columns, FRAMES=size.frames,
        STEP=step, LEAD=lead, OUT=size.channels, DEPTH=size.depth, N_COLUMNS=1 << (kernel_frames - 1).bit_length(),
    )  # fmt: skip


def _has_aligned_rows(source: Tensor) -> bool:
    """Return whether frames lie side by side, and every row of them begins at 16 bytes."""
    _, *strides, frame_stride = source.stride()
    size = source.element_size()
    return frame_stride == 1 and all(stride * size % 16 == 0 for stride in strides)


def _launch(
    name: str, device: torch.device, grid: tuple[int, ...], num_warps: int, num_stages: int,
    *arguments: Any, **constants: Any,
) -> None:  # fmt: skip
    """Launch a kernel; what keeps Triton from compiling it is remembered.

    Raises
    ------
    CannotRunError
        If it does not compile, or the card refuses it.
    """
    if 0 in grid:
        return
    try:
        kernel = getattr(_kernels(), name)
        with _device(device):
            # Fused multiply-adds are Triton's default, which it warns that it will change.
            kernel[grid](
                *arguments, **constants, num_warps=num_warps, num_stages=num_stages,
                enable_fp_fusion=True,
            )  # fmt: skip
    except Exception as error:  # Triton, its assembler, a C compiler, the driver: anything
        if isinstance(error, torch.OutOfMemoryError):
            raise
        what = (str(error).strip().splitlines() or ["no message"])[0]
        _failures[device] = (
            f"on {device} Triton could not compile or launch the kernel {name!r} "
            f"({type(error).__name__}: {what})"
        )
        raise CannotRunError(_failures[device]) from error


def _kernels() -> ModuleType:
    return importlib.import_module(f"{__package__}.kernels")


def _device(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _precision(tensor: Tensor) -> str:
    """Return how products of float32 are computed, as torch's switches for convolutions say."""
    if tensor.dtype != torch.float32:
        return "ieee"  # which half types do not look at
    return "tf32" if _torch.allows_tf32_in_convolutions() else "tf32x3"


def _n_splits(input: Tensor, weight_size: int, parts: tuple[int, int]) -> int:
    """Return in how many parts the weight's gradient is summed: enough for every processor."""
    wanted = 2
    if input.device.type == "cuda":
        processors = torch.cuda.get_device_properties(input.device).multi_processor_count
        wanted = -(-_PROGRAMS_PER_PROCESSOR * processors // (parts[0] * parts[1]))
    most = min(len(input) * input.shape[2], _PARTIAL_BYTES // (4 * max(1, weight_size)))
    return max(1, min(wanted, most))


def _keep_for_graphs(table: plan.Pairs) -> None:
    """Keep a table for ever if a CUDA graph is being captured: caches may drop it, graphs not."""
    if table.row.is_cuda and torch.cuda.is_current_stream_capturing():
        _in_graphs.append(table)
