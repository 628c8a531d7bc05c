"""Geometry as tensors on a device, computed once for each geometry."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..taps import FrequencyTaps

__all__ = ["cached_on_device", "remembered"]

KEPT_BYTES = 16 << 20  # for each kind of plan; a network's geometries take a few MB
Plan = TypeVar("Plan", bound=tuple[Any, ...])


def cached_on_device(
    build: Callable[..., Plan],
) -> Callable[..., Plan]:
    """Let `build(taps, *sizes)` be called as `(taps, device, *sizes)`, and remember what it made.

    Compilers take the plan as a constant. What is made while a tracer or a function transform is
    at work belongs to that tracer and would be poison outside, so only plain tensors are kept.
    """

    def make(taps: FrequencyTaps, device: torch.device, *sizes: int) -> Plan:
        # Outside of inference mode: its tensors could not be saved for a later backward pass.
        with torch.inference_mode(False), torch.device("cpu"), _untraced():
            entries = build(taps, *sizes)
            return type(entries)(e.to(device) if isinstance(e, Tensor) else e for e in entries)

    remember = remembered(make)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def known(taps: FrequencyTaps, device: torch.device, *sizes: int) -> Plan:
        return (remember if _tensors_are_plain() else make)(taps, device, *sizes)

    @wraps(build)
    def plan(taps: FrequencyTaps, device: torch.device, *sizes: int) -> Plan:
        # A tracer's size is a symbol, or a tensor. As an index it becomes the int that it stands
        # for: the number of bins is fixed in a graph, batch and time are not.
        return known(taps, device, *map(operator.index, sizes))  # type: ignore[no-any-return]

    return plan


def remembered(make: Callable[..., Plan]) -> Callable[..., Plan]:
    """Keep what `make` makes, the newest `KEPT_BYTES` of it."""
    plans: dict[tuple[Any, ...], Plan] = {}
    held = 0
    lock = Lock()

    def remember(*key: Any) -> Plan:
        nonlocal held
        plan = plans.get(key)
        if plan is None:
            plan = make(*key)
            with lock:
                held += 0 if key in plans else _n_bytes(plan)
                plans[key] = plan
                while held > KEPT_BYTES and len(plans) > 1:
                    held -= _n_bytes(plans.pop(next(iter(plans))))
        return plan

    return remember


def _n_bytes(plan: tuple[Any, ...]) -> int:
    inner = (_n_bytes(entry) for entry in plan if isinstance(entry, tuple))
    return sum(inner) + sum(entry.nbytes for entry in plan if isinstance(entry, Tensor))


@contextmanager
def _untraced() -> Iterator[None]:
    """Pause torch.jit.trace, which would record how a constant is made."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def _tensors_are_plain() -> bool:
    """Whether a tensor made now is an ordinary one, not a tracer's or a transform's."""
    probe = torch.empty(0)
    return type(probe) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(probe)
