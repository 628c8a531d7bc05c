"""The native core as an engine: no lowered tensor, only live rows, and a backward that recomputes.

``csrc/tap_conv.cpp`` says how it computes. The input gradient is the same computation with the
transposed matrices and the flipped kernel.

Eager calls go to the core by the shortest way. Compilers, exporters, function transforms and
derivatives of derivatives take the same core through the operators of `operators`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _torch
from .. import lowering
from ..fallback import autocast, is_plain_call, stock_reason
from ..geometry import Geometry
from . import core, operators
from .core import unsupported_reason

__all__ = ["convolve", "convolve_plain", "unsupported_reason"]


def convolve(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve with the native core; the formula is `engines.reference.convolve`'s.

    What needs stock operations (forward mode, ONNX) falls back to `lowering`.

    Raises
    ------
    NotImplementedError
        If there is no native core here, or it does not take these tensors.
    """
    input, weight, bias = autocast(input, weight, bias)
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if not is_plain_call(*tensors):
        if stock_reason(*tensors):
            return lowering.convolve(input, weight, bias, geometry)
        return operators.tap_conv2d(input, weight, bias, geometry)
    if reason := unsupported_reason(*tensors):
        raise NotImplementedError(f"engine 'native' cannot run: {reason}; or use engine='auto'")
    return convolve_plain(input, weight, bias, geometry)


def convolve_plain(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """Convolve plain tensors of an eager call, which the core supports."""
    if not torch.is_grad_enabled():  # what autograd's function costs is a third of a small call
        return core.output(input, weight, bias, geometry)
    return _apply(input, weight, bias, geometry)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        ctx.save_for_backward(input, weight, bias)
        ctx.geometry = geometry
        return core.output(input, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias = ctx.saved_tensors
        geometry, needs = ctx.geometry, ctx.needs_input_grad
        if torch.is_grad_enabled() or not is_plain_call(grad):
            return *operators.gradients(geometry, needs, input, weight, grad), None
        gradients = operators.gradients_by(core, geometry, needs, input, weight, bias, grad)
        return *gradients, None


_apply = _torch.apply_to_plain(_Convolution)
