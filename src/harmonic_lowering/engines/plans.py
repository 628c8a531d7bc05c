"""Geometry as tensors on a device, computed once for each geometry."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from ..taps import FrequencyTaps

__all__ = ["cached_on_device"]

Sizes = ParamSpec("Sizes")
Plan = TypeVar("Plan", bound=tuple[Any, ...])


def cached_on_device(
    build: Callable[Concatenate[FrequencyTaps, Sizes], Plan],
) -> Callable[Concatenate[FrequencyTaps, torch.device, Sizes], Plan]:
    """Let `build(taps, *sizes)` be called as `(taps, device, *sizes)`, and remember what it made.

    Compilers take the plan as a constant. What is made while a tracer or a function transform is
    at work belongs to that tracer and would be poison outside, so only plain tensors are kept.
    """

    def make(
        taps: FrequencyTaps, device: torch.device, *args: Sizes.args, **kwargs: Sizes.kwargs
    ) -> Plan:
        # Outside of inference mode: its tensors could not be saved for a later backward pass.
        with torch.inference_mode(False), torch.device("cpu"):
            entries = build(taps, *args, **kwargs)
            return type(entries)(e.to(device) if isinstance(e, Tensor) else e for e in entries)

    remember = lru_cache(maxsize=256)(make)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    @wraps(build)
    def plan(
        taps: FrequencyTaps, device: torch.device, *args: Sizes.args, **kwargs: Sizes.kwargs
    ) -> Plan:
        if _tensors_are_plain():
            return remember(taps, device, *args, **kwargs)  # type: ignore[arg-type]
        return make(taps, device, *args, **kwargs)

    return plan  # type: ignore[no-any-return]


def _tensors_are_plain() -> bool:
    """Whether a tensor made now is an ordinary one, not a tracer's or a transform's."""
    probe = torch.empty(0)
    return type(probe) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(probe)
