"""The same convolution, several ways.

Every engine is a function ``convolve(input, weight, bias, taps, stride, padding, dilation,
groups)`` of one formula, the one in `engines.reference`:

    input (B, C, F, T), weight (O, C/g, K, K_t), bias (O) or None, K = len(taps)
    → (B, O, ceil(F / stride_f), T')

with `stride` a pair (frequency, time), and `padding` (on both sides) and `dilation` in time.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from ..taps import FrequencyTaps
from . import lowering, reference

__all__ = ["ENGINES", "Choice", "choose"]


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
}


def choose(engine: str) -> Choice:
    """Return the engine that a call with ``engine=engine`` uses, and why."""
    if engine == "auto":
        return Choice("lowering", "it runs anywhere and is differentiable any number of times")
    if engine not in ENGINES:
        raise ValueError(f"engine must be 'auto' or one of {list(ENGINES)}, got {engine!r}")
    return Choice(engine, "it was asked for")
