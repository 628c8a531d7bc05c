"""What the engines with a backward of their own share: when to hand over to `lowering`, and how.

Such an engine is opaque to autograd's transforms. Asked for what only stock operations can do, it
lets `lowering` compute the call, which gives the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..taps import FrequencyTaps
from . import lowering
from .lowering import memory_format

__all__ = [
    "Geometry",
    "autocast",
    "compute_dtypes",
    "computes_in",
    "differentiable_again",
    "hands_over",
    "memory_format",
]


@dataclass(frozen=True)
class Geometry:
    """The arguments of an engine that are not tensors."""

    taps: FrequencyTaps
    stride: tuple[int, int]
    padding: int
    dilation: int
    groups: int

    def lowering(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the call by `lowering`."""
        return lowering.convolve(
            input,
            weight,
            bias,
            self.taps,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    def output_shape(self, input: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
        """Return (B, O, F', T')."""
        batch, _, bins, frames = input.shape
        span = self.dilation * (weight.shape[3] - 1) + 1
        return (
            batch,
            weight.shape[0],
            -(-bins // self.stride[0]),
            (frames + 2 * self.padding - span) // self.stride[1] + 1,
        )


def hands_over(*tensors: Tensor) -> str | None:
    """Return why a call needs stock operations, whatever the engine, or None."""
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return "compilers and exporters need stock operations"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch.func transforms need stock operations"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation needs stock operations"
    if _get_current_dispatch_mode() is not None:
        return "a dispatch mode wants to see stock operations"
    for tensor in tensors:
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"a {type(tensor).__name__} may give operations a meaning of its own"
        if tensor.layout != torch.strided or tensor.device.type == "meta":
            return f"a {tensor.layout} tensor on {tensor.device} has no memory to work on"
        if tensor.numel() == 0:
            return "there is nothing to compute"
    return None


def autocast(
    input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast the tensors where `conv2d` would: within autocast, all but float64."""
    if not _may_be_autocasting():
        return input, weight, bias
    tensors = (input, weight, bias)
    return tuple(t if t is None else t.to(computes_in(t)) for t in tensors)  # type: ignore[return-value]


def computes_in(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which a tensor takes part: within autocast, not its own."""
    if not _may_be_autocasting():
        return tensor.dtype
    device = tensor.device.type
    known = torch.amp.is_autocast_available(device)
    if tensor.dtype == torch.float64 or not known or not torch.is_autocast_enabled(device):
        return tensor.dtype
    return torch.get_autocast_dtype(device)


def compute_dtypes(*tensors: Tensor) -> set[torch.dtype]:
    """Return the dtypes in which tensors take part."""
    if not _may_be_autocasting():
        return {tensor.dtype for tensor in tensors}
    return {computes_in(tensor) for tensor in tensors}


def _may_be_autocasting() -> bool:
    """Nearly never, and the rest takes microseconds."""
    return torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled()


def differentiable_again(
    geometry: Geometry,
    needs: Sequence[bool],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients as differentiable functions of the tensors, by way of `lowering`."""
    wanted = [
        tensor
        for tensor, need in zip((input, weight, bias), needs, strict=False)
        if need and tensor is not None
    ]
    output = geometry.lowering(input, weight, bias)
    found = iter(torch.autograd.grad(output, wanted, grad, create_graph=True))
    return tuple(next(found) if need else None for need in needs[:3])  # type: ignore[return-value]
