"""The same convolution, several ways.

Every engine is a module with a function ``convolve(input, weight, bias, geometry)`` of one formula,
the one in `engines.reference`:

    input (B, C, F, T), weight (O, C/g, K, K_t), bias (O) or None, K = len(geometry.taps)
    → (B, O, ceil(F / stride_f), T')

and a function ``unsupported_reason(*tensors)``: what keeps the engine from computing with these
tensors (or, with none, on this machine), or None.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .. import _torch
from ..taps import FrequencyTaps
from . import blocked, lowering, reference
from .fallback import is_plain_call, stock_reason
from .geometry import Geometry, geometry_of
from .native import engine as native
from .triton import engine as triton

__all__ = [
    "ENGINES",
    "Choice",
    "Geometry",
    "choose",
    "engine_of_a_call",
    "geometry_of",
    "unsupported_reason",
]


Convolution = Callable[[Tensor, Tensor, Tensor | None, Geometry], Tensor]


class Engine(Protocol):
    """What an engine is."""

    def convolve(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        """Convolve `input` with `weight`."""

    def unsupported_reason(self, *tensors: Tensor) -> str | None:
        """Return what keeps the engine from computing with `tensors`, or None."""


class Choice(NamedTuple):
    """An engine and why it is used."""

    engine: str
    reason: str


ENGINES: dict[str, Engine] = {
    "reference": reference,
    "lowering": lowering,
    "blocked": blocked,
    "native": native,
    "triton": triton,
}

# Up to this a lowered tensor costs less than dividing the work. On a CPU that is what its allocator
# keeps; and more in training, where slabs are computed twice, unless many rows are dead.
SMALL_BYTES = {"cpu": 16 << 20}
SMALL_BYTES_IN_TRAINING = {"cpu": 128 << 20}
# On an accelerator slabs take longer (docs/gpu.md): they are for what its memory has no room for.
SMALL_BYTES_ELSEWHERE = 256 << 20
SHARE_ELSEWHERE = 1 / 32  # of its memory, if that is more; a training step takes several times it
FEW_DEAD_ROWS = 0.75  # a share of the rows that live


def unsupported_reason(engine: str) -> str | None:
    """Return why an engine cannot run on this machine at all, or None."""
    check_name(engine)
    return ENGINES[engine].unsupported_reason()


def check_name(engine: str) -> None:
    """Check the name of an engine."""
    if not isinstance(engine, str) or (engine != "auto" and engine not in ENGINES):
        raise ValueError(f"engine must be 'auto' or one of {list(ENGINES)}, got {engine!r}")


def choose(
    engine: str,
    input: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    taps: FrequencyTaps | None = None,
) -> Choice:
    """Return the engine that a call with ``engine=engine`` and these tensors uses, and why.

    The rule of ``engine="auto"``: the native core where it can run; the Triton kernels on cards on
    which they were measured; else slabs where the lowered tensor is large; else the lowered tensor.
    What is large depends on whether the call is part of training, and on how many rows are dead.
    """
    check_name(engine)
    if engine != "auto":
        return Choice(engine, "it was requested explicitly")
    if input is None or weight is None:
        return Choice("lowering", "it runs anywhere and is differentiable any number of times")
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if reason := stock_reason(*tensors):
        return Choice("lowering", reason)
    reason = native.unsupported_reason(*tensors)
    if reason is None and input.dtype in _HALF and _torch.has_matrix_units():
        reason = "torch's own convolutions use this processor's matrix units for half types"
    if reason is None:
        return Choice("native", "the native core can run this call")
    if input.device.type != "cpu":
        reason = triton.auto_reason(*tensors)
        if reason is None:
            return Choice("triton", "it was measured to be the fastest on cards like this one")
    if not_blocked := blocked.unsupported_reason(*tensors):
        return Choice("lowering", f"{reason}; as for the engine 'blocked', {not_blocked}")
    lowered = input.numel() * weight.shape[2] * input.element_size()
    trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    lives = taps is None or taps.live_share(input.shape[2]) >= FEW_DEAD_ROWS
    small = SMALL_BYTES_IN_TRAINING if trains and lives else SMALL_BYTES
    kind = input.device.type
    if lowered <= (small[kind] if kind in small else _small_bytes(input.device)):
        return Choice("lowering", f"{reason}; and the lowered tensor is small: {lowered} bytes")
    return Choice("blocked", f"{reason}; and the lowered tensor would take {lowered} bytes")


@lru_cache
def _small_bytes(device: torch.device) -> int:
    share = int(SHARE_ELSEWHERE * _torch.device_property(device, "total_memory"))
    return max(SMALL_BYTES_ELSEWHERE, share)


_HALF = (torch.bfloat16, torch.float16)


def engine_of_a_call(
    engine: str, input: Tensor, weight: Tensor, bias: Tensor | None, taps: FrequencyTaps
) -> Convolution:
    """Return the function of the engine that `choose` chooses.

    For kernels that is their shortest way, where nothing can stand in it for tensors like these.
    """
    name = choose(engine, input, weight, bias, taps).engine
    tensors = (input, weight) if bias is None else (input, weight, bias)
    is_ordinary = is_plain_call(*tensors) and not _torch.may_be_autocasting()
    convolution: Convolution = ENGINES[name].convolve
    for kernels in (native, triton):
        if kernels is ENGINES[name] and is_ordinary and not kernels.unsupported_reason(*tensors):
            convolution = kernels.convolve_plain
    return triton.or_stock(convolution) if name == "triton" and engine == "auto" else convolution
