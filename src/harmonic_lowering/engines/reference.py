"""The definition: row by row, readable, slow. Every other engine is tested against it."""

from __future__ import annotations

import math
import operator
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from ..taps import FrequencyTaps

__all__ = ["convolve"]


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    taps: FrequencyTaps,
    stride: tuple[int, int] = (1, 1),
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve along time, reading for each output row what its taps read.

    ``Y[b, o, f, t] = bias[o] + Σ_c Σ_j Σ_τ W[o, c, j, τ] · X̃[b, c, position_j(f), t·s + τ·d − p]``
    """
    n_bins = operator.index(input.shape[2])  # torch.jit.trace has a tensor here
    padded = F.pad(input, (0, 0, 0, 1))  # a last row of zeros, to be read from outside the input
    output_rows = []
    for f in range(0, n_bins, stride[0]):
        terms = [
            F.conv1d(
                _read(padded, taps.position(tap, f)),
                weight[:, :, tap],
                None,
                stride[1],
                padding,
                dilation,
                groups,
            )
            for tap in range(len(taps))
        ]
        row = sum(terms[1:], start=terms[0])
        output_rows.append(row if bias is None else row + bias.to(row.dtype)[:, None])
    return torch.stack(output_rows, dim=2)


def _read(padded: Tensor, position: Fraction) -> Tensor:
    """Return X̃[:, :, position]: linear between two bins, zero outside 0 … n_bins − 1."""
    n_bins = operator.index(padded.shape[2]) - 1
    if not 0 <= position <= n_bins - 1:
        return padded[:, :, n_bins]
    lower = math.floor(position)
    weight = float(position - lower)
    if weight == 0:
        return padded[:, :, lower]
    return (1 - weight) * padded[:, :, lower] + weight * padded[:, :, lower + 1]
