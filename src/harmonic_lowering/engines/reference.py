"""The definition: row by row, readable, slow. Every other engine is tested against it."""

from __future__ import annotations

import math
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
    n_bins = input.shape[2]
    output_rows = []
    for f in range(0, n_bins, stride[0]):
        row = None
        for tap in range(len(taps)):
            source = _read(input, taps.position(tap, f))
            if source is None and (row is not None or tap < len(taps) - 1):
                continue
            # A row at which every tap is dead is still a row of zeros of the right length.
            source = torch.zeros_like(input[:, :, 0]) if source is None else source
            term = F.conv1d(source, weight[:, :, tap], None, stride[1], padding, dilation, groups)
            row = term if row is None else row + term
        assert row is not None
        output_rows.append(row if bias is None else row + bias.to(row.dtype)[:, None])
    return torch.stack(output_rows, dim=2)


def _read(input: Tensor, position: Fraction) -> Tensor | None:
    """Return X̃[:, :, position]: linear between two bins, nothing outside 0 … n_bins − 1."""
    if not 0 <= position <= input.shape[2] - 1:
        return None
    lower = math.floor(position)
    weight = float(position - lower)
    if weight == 0:
        return input[:, :, lower]
    return (1 - weight) * input[:, :, lower] + weight * input[:, :, lower + 1]
