"""What the engines that are opaque to autograd share: when a call needs stock operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _torch
from ..checks import compute_dtype
from . import lowering
from .geometry import Geometry

__all__ = ["autocast", "compute_dtypes", "double_backward", "is_plain_call", "stock_reason"]


def is_plain_call(*tensors: Tensor) -> bool:
    """Whether tensors are ordinary ones of an eager call: their memory can be worked on."""
    if not _torch.is_eager():
        return False
    for tensor in tensors:
        if not _torch.is_plain(tensor) or tensor.is_meta or tensor._is_zerotensor():
            return False
        if not tensor.numel():
            return False
    return True


def stock_reason(*tensors: Tensor) -> str | None:
    """Return why a call needs stock operations, which neither a core nor an operator can be."""
    if _torch.is_jit_tracing():
        return "torch.jit.trace needs stock operations"
    if _torch.is_exporting_to_onnx():
        return "ONNX has stock operations only"
    if _torch.has_forward_mode():
        return "forward-mode differentiation needs stock operations"
    for tensor in tensors:
        if not _torch.obeys_operators(tensor):
            return f"a {type(tensor).__name__} may override operators"
    return None


def autocast(
    input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast the tensors where `conv2d` would: within autocast, all but float64."""
    if not _torch.may_be_autocasting():
        return input, weight, bias
    tensors = (input, weight, bias)
    return tuple(t if t is None else t.to(compute_dtype(t)) for t in tensors)  # type: ignore[return-value]


def compute_dtypes(*tensors: Tensor) -> set[torch.dtype]:
    """Return the dtypes in which tensors take part."""
    return {compute_dtype(tensor) for tensor in tensors}


def double_backward(
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
    with torch.enable_grad():
        output = lowering.convolve(input, weight, bias, geometry)
        found = iter(torch.autograd.grad(output, wanted, grad, create_graph=True))
    return tuple(next(found) if need else None for need in needs[:3])  # type: ignore[return-value]
