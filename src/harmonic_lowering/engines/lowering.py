"""The paper's method: stack what the taps read as channels, then one ordinary convolution.

The stacked ("lowered") tensor has the resampled copies of channel c at ``c·K … c·K + K − 1``, so
that it is a view of one gather along frequency, the weight (O, C/g, K, K_t) is used as
(O, C/g·K, 1, K_t) without being copied, and groups stay together:

    input (B, C, F, T) → read (B, C, K·F', T) = (B, C·K, F', T) → conv2d with kernel (1, K_t)

Everything is a stock operation, so autograd (any number of times), vmap, autocast, compile and
export come free. The price is memory: a tensor K times the input, kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .._torch import replicated_beside
from ..taps import FrequencyTaps
from .geometry import Geometry
from .plans import cached_on_device

__all__ = [
    "conv_over_time", "convolve", "memory_format", "output_layout", "read_taps",
    "stride_by_group", "unsupported_reason",
]  # fmt: skip

Shape = tuple[int, ...]  # or strides


def unsupported_reason(*tensors: Tensor) -> str | None:
    """Return None: it runs anywhere."""


def convolve(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Stack, then convolve; the formula is `engines.reference.convolve`'s."""
    # Rows are gathered fastest where each is in one piece; the result's format is Conv2d's again.
    lowered = read_taps(input.contiguous(), geometry.taps, geometry.stride[0]).flatten(1, 2)
    output = conv_over_time(lowered, weight.flatten(1, 2).unsqueeze(2), bias, geometry)
    if memory_format(input, weight) == torch.channels_last:
        return output.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as vmap can do it
    return output.contiguous()


def read_taps(input: Tensor, taps: FrequencyTaps, stride: int = 1) -> Tensor:
    """Return what every tap reads, as (B, C, K, F', T)."""
    plan = gather_plan(taps, input.device, input.shape[2], stride)
    lower, upper, weight = replicated_beside(input, *plan)
    assert lower is not None
    assert weight is not None
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


def conv_over_time(rows: Tensor, kernel: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve (B, C, F', T) with a kernel (O, C / groups, 1, K_t) that acts on each row alone.

    torch's CPU library is wrong or crashes for some strided convolutions of half types, and where
    the padding is longer than the input. Such calls pad, cut and step by themselves. In bfloat16 it
    multiplies channels in pairs, an odd one with the next number in memory and zero, which is NaN
    if that number is: such calls get another channel of zeros.
    """
    (before, after), stride = geometry.padding, geometry.stride[1]
    n_frames, kernel_frames = rows.shape[3], kernel.shape[3]
    is_half = rows.dtype in (torch.bfloat16, torch.float16)
    if before != after or before >= n_frames or (stride > 1 and (is_half or kernel_frames == 1)):
        output_frames = geometry.output_frames(n_frames, kernel_frames)
        needed = (output_frames - 1) * stride + geometry.span(kernel_frames)
        rows = F.pad(rows, (before, max(0, needed - before - n_frames)))[..., :needed]
        before = 0
        if kernel_frames == 1:
            rows, stride = rows[..., ::stride], 1
        elif output_frames == 1:
            stride = 1
    if kernel.shape[1] % 2 and rows.dtype == torch.bfloat16 and rows.device.type == "cpu":
        kernel = F.pad(kernel, (0, 0, 0, 0, 0, 1))
        batch, channels, *plane = rows.shape
        rows = rows.reshape(batch, geometry.groups, channels // geometry.groups, *plane)
        rows = F.pad(rows, (0, 0, 0, 0, 0, 1)).flatten(1, 2)
    return F.conv2d(
        rows, kernel, bias, (1, stride), (0, before), (1, geometry.dilation), geometry.groups
    )


def input_grad(grad: Tensor, weight: Tensor, geometry: Geometry, shape: tuple[int, ...]) -> Tensor:
    """Return the gradient of an input of `shape`, without autograd."""
    zeros = weight.new_zeros(shape)
    return _pull_back(lambda input: convolve(input, weight, None, geometry), zeros, grad)


def weight_grad(input: Tensor, grad: Tensor, geometry: Geometry, shape: tuple[int, ...]) -> Tensor:
    """Return the gradient of a weight of `shape`, without autograd."""
    zeros = input.new_zeros(shape)
    return _pull_back(lambda weight: convolve(input, weight, None, geometry), zeros, grad)


def _pull_back(linear: Callable[[Tensor], Tensor], zeros: Tensor, grad: Tensor) -> Tensor:
    pull_back: Callable[[Tensor], tuple[Tensor]] = torch.func.vjp(linear, zeros)[1]
    return pull_back(grad)[0]


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


def output_layout(
    geometry: Geometry, input: Shape, input_stride: Shape, weight: Shape, weight_stride: Shape
) -> tuple[Shape, Shape]:
    """Return shape and strides of the output, which has the memory format of `Conv2d`'s."""
    layouts = (input, input_stride), (weight, weight_stride)
    given = [torch.empty_strided(*layout, device="meta") for layout in layouts]
    shape, form = geometry.output_shape(*given), memory_format(*given)
    return shape, torch.empty(shape, device="meta", memory_format=form).stride()


def stride_by_group(stride: Shape, out_channels: int, groups: int) -> Shape:
    """Return a weight's strides for (group, output of the group, input, tap, column)."""
    return (out_channels // groups * stride[0], *stride)


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """Return what `Conv2d` returns: channels last if the input or the weight is."""
    for tensor in tensors:
        if not tensor.is_contiguous():
            # what is_contiguous(memory_format=torch.channels_last) asks, which vmap cannot answer
            channels, _, frames = tensor.shape[1:]
            if tensor.stride()[1:] == (1, channels * frames, channels):
                return torch.channels_last
    return torch.contiguous_format
