"""The same convolution, several ways.

Every engine is a function ``convolve(input, weight, bias, taps, stride, padding, dilation,
groups)`` of one formula, the one in `engines.reference`:

    input (B, C, F, T), weight (O, C/g, K, K_t), bias (O) or None, K = len(taps)
    → (B, O, ceil(F / stride_f), T')

with `stride` a pair (frequency, time), and `padding` (on both sides) and `dilation` in time.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..taps import FrequencyTaps
from . import blocked, lowering, reference
from .native import engine as native

__all__ = ["ENGINES", "Choice", "choose", "engine_of_a_call"]


class Convolve(Protocol):
    """What an engine is."""

    def __call__(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        taps: FrequencyTaps,
        stride: tuple[int, int],
        padding: int,
        dilation: int,
        groups: int,
    ) -> Tensor:
        """Convolve `input` with `weight`."""


class Choice(NamedTuple):
    """An engine and why it is used."""

    engine: str
    reason: str


ENGINES: dict[str, Convolve] = {
    "reference": reference.convolve,
    "lowering": lowering.convolve,
    "blocked": blocked.convolve,
    "native": native.convolve,
}

# Below this a lowered tensor costs less than dividing the work.
SMALL_BYTES = {"cpu": 1 << 20}
SMALL_BYTES_ELSEWHERE = 256 << 20


def choose(
    engine: str,
    input: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Choice:
    """Return the engine that a call with ``engine=engine`` and these tensors uses, and why.

    The rule of ``engine="auto"``: the native core where it is built and can run; else slabs where
    the lowered tensor is large; else the lowered tensor.
    """
    if engine != "auto":
        if engine not in ENGINES:
            raise ValueError(f"engine must be 'auto' or one of {list(ENGINES)}, got {engine!r}")
        return Choice(engine, "it was asked for")
    if input is None or weight is None:
        return Choice("lowering", "it runs anywhere and is differentiable any number of times")
    if reason := blocked.why_not(input, weight, bias):
        return Choice("lowering", reason)
    if input.dtype in (torch.bfloat16, torch.float16) and _has_matrix_units(input):
        no_native = "torch's own convolutions use this processor's matrix units for half types"
    else:
        tensors = (input, weight) if bias is None else (input, weight, bias)
        no_native = native.cannot(*tensors) or ""
    if not no_native:
        return Choice("native", "the native core is built and can run this call")
    lowered = input.numel() * weight.shape[2] * input.element_size()
    if lowered <= SMALL_BYTES.get(input.device.type, SMALL_BYTES_ELSEWHERE):
        return Choice("lowering", f"the lowered tensor is small: {lowered} bytes; {no_native}")
    return Choice("blocked", f"the lowered tensor would take {lowered} bytes; {no_native}")


def engine_of_a_call(engine: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> Convolve:
    """Return the function of the engine that `choose` chooses."""
    name = choose(engine, input, weight, bias).engine
    if name == "native" != engine:  # chosen by what native.convolve would ask again
        return native.convolve_unchecked
    return ENGINES[name]


def _has_matrix_units(input: Tensor) -> bool:
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return input.device.type == "cpu" and probe is not None and bool(probe())
