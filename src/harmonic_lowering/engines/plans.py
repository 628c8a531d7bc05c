"""Geometry as tensors on a device, computed once for each geometry."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..taps import FrequencyTaps

__all__ = ["cached_on_device"]

Plan = TypeVar("Plan", bound=tuple[Any, ...])


def cached_on_device(
    build: Callable[[FrequencyTaps, int, int], Plan],
) -> Callable[[FrequencyTaps, int, int, torch.device], Plan]:
    """Let `build(taps, n_bins, stride)` be called with a device, and remember what it made.

    Compilers take the plan as a constant. What is made while a tracer or a function transform is
    at work belongs to that tracer and would be poison outside, so only plain tensors are kept.
    """

    def make(taps: FrequencyTaps, n_bins: int, stride: int, device: torch.device) -> Plan:
        # Outside of inference mode: its tensors could not be saved for a later backward pass.
        with torch.inference_mode(False), torch.device("cpu"):
            entries = build(taps, n_bins, stride)
            moved = [e.to(device) if isinstance(e, Tensor) else e for e in entries]
        return type(entries)(moved)

    remember = lru_cache(maxsize=256)(make)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    @wraps(build)
    def plan(taps: FrequencyTaps, n_bins: int, stride: int, device: torch.device) -> Plan:
        return (remember if _tensors_are_plain() else make)(taps, n_bins, stride, device)

    return plan  # type: ignore[no-any-return]


def _tensors_are_plain() -> bool:
    """Whether a tensor made now is an ordinary one, not a tracer's or a transform's."""
    probe = torch.empty(0)
    return type(probe) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(probe)
