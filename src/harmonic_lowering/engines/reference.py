"""The definition: row by row, readable, slow. Every other engine is tested against it."""

from __future__ import annotations

import math
import operator

import torch
import torch.nn.functional as F
from torch import Tensor

from .._torch import constant_object
from ..checks import compute_dtype
from ..taps import FrequencyTaps
from .geometry import Geometry

__all__ = ["convolve", "unsupported_reason"]


def unsupported_reason(*tensors: Tensor) -> str | None:
    """Return None: it runs anywhere."""


def convolve(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve along time, reading for each output row what its taps read.

    ``Y[b, o, f, t] = bias[o] + Σ_c Σ_j Σ_τ W[o, c, j, τ] · X̃[b, c, position_j(f), t·s + τ·d − p]``
    """
    n_bins = operator.index(input.shape[2])  # torch.jit.trace has a tensor here
    # Zeros before and after time, and a last row of zeros to be read from outside the input.
    padded = F.pad(input, (*geometry.padding, 0, 1))
    # torch's CPU library computes some strided convolutions of half types wrongly.
    is_half = compute_dtype(input) in (torch.bfloat16, torch.float16)
    stride, step = (1, geometry.stride[1]) if is_half else (geometry.stride[1], 1)
    output_rows = []
    for f in range(0, n_bins, geometry.stride[0]):
        terms = [
            F.conv1d(
                _read(padded, *place),
                weight[:, :, tap],
                None,
                stride,
                0,
                geometry.dilation,
                geometry.groups,
            )[..., ::step]
            for tap, place in enumerate(_places(geometry.taps, n_bins, f))
        ]
        row = sum(terms[1:], start=terms[0])
        output_rows.append(row if bias is None else row + bias.to(row.dtype)[:, None])
    return torch.stack(output_rows, dim=2)


def _read(padded: Tensor, lower: int, upper_weight: float) -> Tensor:
    """Return X̃ at ``lower + upper_weight``: linear between two bins."""
    if upper_weight == 0:
        return padded[:, :, lower]
    return (1 - upper_weight) * padded[:, :, lower] + upper_weight * padded[:, :, lower + 1]


@constant_object
def _places(taps: FrequencyTaps, n_bins: int, f: int) -> tuple[tuple[int, float], ...]:
    """Return for each tap the bin below its position, and the weight of the bin above.

    Outside 0 … n_bins − 1 the input is zero, and so is its row `n_bins`.
    """
    places = []
    for tap in range(len(taps)):
        position = taps.position(tap, f)
        if 0 <= position <= n_bins - 1:
            lower = math.floor(position)
            places.append((lower, float(position - lower)))
        else:
            places.append((n_bins, 0.0))
    return tuple(places)
