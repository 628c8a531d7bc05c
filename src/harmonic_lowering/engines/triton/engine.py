"""Triton kernels as an engine: no lowered tensor, only live rows, and a backward that recomputes.

It differs from the native core's in one thing: kernels are compiled at the first call, and may then
turn out not to run, or to want more memory than there is. Who requested the engine gets an error;
``engine="auto"`` goes on with stock operations (`or_stock`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor

from ... import _torch
from .. import blocked, lowering
from ..fallback import autocast, is_plain_call, stock_reason
from ..geometry import Geometry
from ..native import operators
from . import core
from .cards import CannotRunError, LaunchError, auto_reason, unsupported_reason

__all__ = ["auto_reason", "convolve", "convolve_plain", "or_stock", "unsupported_reason"]


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    *,
    requested: bool = True,
) -> Tensor:
    """Convolve with the Triton kernels; the formula is `engines.reference.convolve`'s.

    What needs stock operations (forward mode, ONNX) falls back to `lowering`; compilers, exporters
    and transforms take the same kernels through the operators of `native.operators`.

    Raises
    ------
    NotImplementedError
        If the kernels cannot run here, or do not take these tensors.
    """
    input, weight, bias = autocast(input, weight, bias)
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if not is_plain_call(*tensors):
        if stock_reason(*tensors):
            return lowering.convolve(input, weight, bias, geometry)
        return operators.tap_conv2d(input, weight, bias, geometry)
    if reason := unsupported_reason(*tensors):
        raise CannotRunError(reason)
    return convolve_plain(input, weight, bias, geometry, requested=requested)


def convolve_plain(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    *,
    requested: bool = True,
) -> Tensor:
    """Convolve plain tensors of an eager call, which the kernels support."""
    if not torch.is_grad_enabled():
        return core.output(input, weight, bias, geometry)
    return _apply(input, weight, bias, geometry, requested)


@cache
def or_stock(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return one of the functions above that uses `blocked` if the kernels turn out not to run."""

    @wraps(convolution)
    def convolve(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        try:
            return convolution(input, weight, bias, geometry, requested=False)
        except _RECOVERABLE as error:
            _warn(error)
        # Not in the handler, which holds what the kernels had allocated.
        return blocked.convolve(input, weight, bias, geometry)

    return convolve


_RECOVERABLE = CannotRunError, torch.OutOfMemoryError


def _warn(error: Exception) -> None:
    """Say that kernels failed; that they do not take some arguments is no failure."""
    if isinstance(error, LaunchError):
        warnings.warn(
            f"{error.args[0]}; engine='auto' goes on with stock operations",
            RuntimeWarning,
            stacklevel=2,
        )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        requested: bool,
    ) -> Tensor:
        ctx.save_for_backward(input, weight, bias)
        ctx.geometry, ctx.requested = geometry, requested
        return core.output(input, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias = ctx.saved_tensors
        geometry, needs = ctx.geometry, ctx.needs_input_grad
        if torch.is_grad_enabled() or not is_plain_call(grad):
            return *operators.gradients(geometry, needs, input, weight, grad), None, None
        try:
            read = grad
            if needs[0] and needs[1]:
                read = core.as_gradients_read(grad, geometry, input, weight)
            gradients = operators.gradients_by(core, geometry, needs, input, weight, bias, read)
            return *gradients, None, None
        except _RECOVERABLE as error:
            if ctx.requested:
                raise
            _warn(error)
        read = grad  # its copy's memory is free again
        return *blocked.gradients(geometry, needs, input, weight, bias, grad), None, None


_apply = _torch.apply_to_plain(_Convolution)
