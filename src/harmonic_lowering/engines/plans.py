"""Geometry as tensors on a device, computed once for each geometry."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import _torch
from ..taps import FrequencyTaps

__all__ = ["byte_bounded_cache", "cached_on_device"]

KEPT_BYTES = 16 << 20  # for each kind of plan; a network's geometries take a few MB
_MOST_PLANS = 4096
Plan = TypeVar("Plan", bound=tuple[Any, ...])


def cached_on_device(build: Callable[..., Plan]) -> Callable[..., Plan]:
    """Let `build(taps, *sizes)` be called as `(taps, device, *sizes)`, and cache what it makes.

    Compilers take the plan as a constant. What is made while a tracer is at work belongs to that
    tracer and is not kept.
    """

    def make(taps: FrequencyTaps, device: torch.device, *sizes: int) -> Plan:
        with _torch.making_constants():
            entries = build(taps, *sizes)
            return type(entries)(e.to(device) if isinstance(e, Tensor) else e for e in entries)

    cached = byte_bounded_cache(make)

    @_torch.compile_time_constant
    def known(taps: FrequencyTaps, device: torch.device, *sizes: int) -> Plan:
        with _torch.making_constants():
            is_plain = _torch.is_plain(torch.empty(0))
        return (cached if is_plain else make)(taps, device, *sizes)

    @wraps(build)
    def plan(taps: FrequencyTaps, device: torch.device, *sizes: int) -> Plan:
        # A tracer's size is a symbol, or a tensor. As an index it becomes the int that it stands
        # for: with stock operations the number of bins is fixed in a graph, batch and time are not.
        return known(taps, device, *map(operator.index, sizes))

    return plan


def byte_bounded_cache(make: Callable[..., Plan]) -> Callable[..., Plan]:
    """Keep what `make` makes, the newest `KEPT_BYTES` of it, and at most `_MOST_PLANS`."""
    plans: dict[tuple[Any, ...], Plan] = {}
    held = 0
    lock = Lock()

    def cached(*key: Any) -> Plan:
        nonlocal held
        plan = plans.get(key)
        if plan is None:
            plan = make(*key)
            with lock:
                held += 0 if key in plans else _n_bytes(plan)
                plans[key] = plan
                while (held > KEPT_BYTES and len(plans) > 1) or len(plans) > _MOST_PLANS:
                    held -= _n_bytes(plans.pop(next(iter(plans))))
        return plan

    def forget() -> None:
        nonlocal held
        with lock:
            plans.clear()
            held = 0

    cached.forget = forget  # type: ignore[attr-defined]
    return cached


def _n_bytes(plan: tuple[Any, ...]) -> int:
    inner = (_n_bytes(entry) for entry in plan if isinstance(entry, tuple))
    return sum(inner) + sum(entry.nbytes for entry in plan if isinstance(entry, Tensor))
