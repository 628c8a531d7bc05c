"""Where the kernels run, where `auto` uses them, and what keeps them from running."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from ... import _torch
from ..fallback import compute_dtypes

__all__ = [
    "MEASURED_CAPABILITIES", "MOST_ELEMENTS", "TOO_LARGE", "CannotRunError", "LaunchError",
    "auto_reason", "failures", "have_launched", "is_interpreted", "reach", "unsupported_reason",
]  # fmt: skip

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)  # tensor cores that take TF32 and bfloat16

# Cards, by their capability, on which `make bench-gpu` has found this engine to be right, and
# faster than stock operations wherever it was measured. `engine="auto"` uses it on these only.
MEASURED_CAPABILITIES = frozenset({(9, 0)})  # H100, docs/gpu-benchmarks.md

MOST_ELEMENTS = 1 << 31  # of one batch item, which the kernels count in 32 bits
TOO_LARGE = "a batch item has 2**31 elements or more"
have_launched: set[torch.device] = set()  # devices on which a kernel was launched
failures: dict[torch.device, str] = {}  # devices on which none could be, and why


class CannotRunError(NotImplementedError):
    """The kernels do not run here, for a reason; another engine may."""

    def __str__(self) -> str:
        return f"engine 'triton' cannot run: {self.args[0]}; or use engine='auto'"


class LaunchError(CannotRunError):
    """A kernel did not compile or launch though all that is known beforehand was in order."""


def unsupported_reason(*tensors: Tensor) -> str | None:
    """Return what keeps the kernels from computing with these tensors, or None."""
    if reason := _unsupported_machine():
        return reason
    if not tensors:
        return _all_too_old()
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        return f"the tensors are on different devices: {sorted(map(str, devices))}"
    for device in devices:
        if reason := failures.get(device) or _unsupported_device(device):
            return reason
    dtypes = compute_dtypes(*tensors)
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        names = sorted(str(dtype) for dtype in dtypes)
        return f"it takes one of {[str(d) for d in DTYPES]}, the same for all, got {names}"
    if torch.bfloat16 in dtypes and is_interpreted():
        return "Triton's interpreter gets bfloat16 wrong (its issue 11584): use float16 or float32"
    if any(reach(tensor.shape, tensor.stride()) >= MOST_ELEMENTS for tensor in tensors):
        return TOO_LARGE
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
    number = _number(capability) if capability else "none"
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


def _all_too_old() -> str | None:
    """Return why no card here will do; a call is about its own card, and asks nothing of others."""
    if is_interpreted():
        return None
    cards = range(torch.cuda.device_count())
    best = max((torch.cuda.get_device_capability(card) for card in cards), default=(0, 0))
    if best < LEAST_CAPABILITY:
        least = _number(LEAST_CAPABILITY)
        return f"it needs a card of capability {least}, and the best here has {_number(best)}"
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
            f"{device} has the capability {_number(capability)}, and its kernels need "
            f"{_number(LEAST_CAPABILITY)}"
        )
    return None


def _number(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _capability(device: torch.device) -> tuple[int, int] | None:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def reach(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Return how far apart the elements of a batch item lie in memory."""
    return sum((n - 1) * step for n, step in zip(shape[1:], stride[1:], strict=True))
