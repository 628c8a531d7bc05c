"""The paper's method: stack what the taps read as channels, then one ordinary convolution.

The stacked ("lowered") tensor has the resampled copies of channel c at ``c·K … c·K + K − 1``, so
that it is a view of one gather along frequency, the weight (O, C/g, K, K_t) is used as
(O, C/g·K, 1, K_t) without being copied, and groups stay together:

    input (B, C, F, T) → read (B, C, K·F', T) = (B, C·K, F', T) → conv2d with kernel (1, K_t)

Everything is a stock operation, so autograd (any number of times), vmap, autocast, compile and
export come free. The price is memory: a tensor K times the input, kept for the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..taps import FrequencyTaps
from .plans import cached_on_device

__all__ = ["convolve", "memory_format", "read_taps"]


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
    """Stack, then convolve; the formula is `engines.reference.convolve`'s."""
    # Rows are gathered fastest where each is in one piece; the result's format is Conv2d's again.
    lowered = read_taps(input.contiguous(), taps, stride[0]).flatten(1, 2)
    kernel = weight.flatten(1, 2).unsqueeze(2)
    strides, dilations = (1, stride[1]), (1, dilation)
    output = F.conv2d(lowered, kernel, bias, strides, (0, padding), dilations, groups)
    return output.contiguous(memory_format=memory_format(input, weight))


def read_taps(input: Tensor, taps: FrequencyTaps, stride: int = 1) -> Tensor:
    """Return what every tap reads, as (B, C, K, F', T)."""
    lower, upper, weight = gather_plan(taps, input.device, input.shape[2], stride)
    padded = F.pad(input, (0, 0, 0, 1))  # one row of zeros, for taps outside the input
    read = padded.index_select(2, lower)
    if upper is not None:
        # Blended in float32 where the input is a half type: its 8 bits would round the weights.
        weight = weight.to(input.dtype if input.dtype == torch.float64 else torch.float32)
        above = padded.index_select(2, upper).to(weight.dtype)
        # Not lerp, which is below + w·(above − below): NaN where one of them is infinite.
        read = read.to(weight.dtype).mul_(1 - weight).add_(above.mul_(weight)).to(input.dtype)
    batch, channels, _, frames = input.shape
    return read.view(batch, channels, len(taps), -(-input.shape[2] // stride), frames)


@cached_on_device
def gather_plan(
    taps: FrequencyTaps, n_bins: int, stride: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the lower and upper source row and the upper row's weight, for each tap and row.

    Rows that read nothing, and upper rows of weight 0, point at row `n_bins`, which holds zeros:
    an infinity in a row that is not read does not turn into 0·∞.
    """
    n_rows = -(-n_bins // stride)
    lower = [n_bins] * (len(taps) * n_rows)
    upper = list(lower)
    weight = [0.0] * len(lower)
    for tap, rows in enumerate(taps.rows(n_bins, stride)):
        for row, source, blend in zip(
            range(rows.start, rows.stop), rows.lower, rows.weight, strict=True
        ):
            place = tap * n_rows + row
            lower[place], weight[place] = source, blend
            if blend:
                upper[place] = source + 1
    return (
        torch.tensor(lower),
        torch.tensor(upper) if any(weight) else None,
        torch.tensor(weight, dtype=torch.float64).unsqueeze(-1),
    )


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """Return what `Conv2d` returns: channels last if the input or the weight is."""
    for tensor in tensors:
        # what is_contiguous(memory_format=torch.channels_last) asks, which vmap does not answer
        channels, _, frames = tensor.shape[1:]
        strides = (1, channels * frames, channels)
        if not tensor.is_contiguous() and tensor.stride()[1:] == strides:
            return torch.channels_last
    return torch.contiguous_format
