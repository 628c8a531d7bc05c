"""What is compared: each column is a module that does the work of a setting."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.lowering import gather_plan
from ..modules import HarmonicConv2d, LogHarmonicConv2d
from .settings import Setting

__all__ = ["COLUMNS", "build", "truth"]

COLUMNS = {
    "auto": "HarmonicConv2d, engine chosen by itself",
    "native": 'engine="native"',
    "blocked": 'engine="blocked"',
    "lowering": 'engine="lowering"',
    "log": "LogHarmonicConv2d, engine chosen by itself",
    "conv2d": "torch.nn.Conv2d of the same shape",
    "stacking": "the paper's method, plainly: resample, stack, convolve",
    "separate": "one HarmonicConv2d for each anchor, outputs mixed",
}


def build(column: str, setting: Setting) -> nn.Module:
    """Return the module of a column in float64, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _build(column, setting).double()


def _build(column: str, setting: Setting) -> nn.Module:
    channels, kernel = (setting.in_channels, setting.out_channels), setting.kernel
    time = kernel // 2
    if column == "conv2d":
        return nn.Conv2d(*channels, kernel, padding=time)
    if column == "stacking":
        return Stacking(setting)
    if column == "separate":
        return Separate(setting)
    if column.startswith("log"):
        return LogHarmonicConv2d(
            *channels,
            kernel,
            padding=time,
            anchor=setting.anchor,
            bins_per_octave=setting.bins_per_octave,
            engine="lowering" if column == "log truth" else "auto",
        )
    return HarmonicConv2d(*channels, kernel, padding=time, anchor=setting.anchor, engine=column)


def truth(column: str) -> str:
    """Return the column which in float64 says what the result should be."""
    if column == "log":
        return "log truth"
    return column if column in ("conv2d", "separate") else "lowering"


class Stacking(nn.Module):
    """The paper's method written down in stock calls, without any of this package's engines."""

    lower: Tensor
    upper: Tensor
    blend: Tensor
    live: Tensor

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        like = HarmonicConv2d(
            setting.in_channels, setting.out_channels, setting.kernel, anchor=setting.anchor
        )
        self.weight, self.bias = like.weight, like.bias
        lower, upper, blend = gather_plan(setting.taps(), torch.device("cpu"), setting.bins, 1)
        shape = (setting.kernel, setting.bins)
        self.register_buffer("lower", lower.view(shape).clamp(max=setting.bins - 1))
        above = lower if upper is None else upper
        self.register_buffer("upper", above.view(shape).clamp(max=setting.bins - 1))
        self.register_buffer("blend", blend.view(*shape, 1).clone())
        self.register_buffer("live", (lower < setting.bins).view(*shape, 1).double())
        self.padding = setting.kernel // 2

    def forward(self, input: Tensor) -> Tensor:
        """Resample for each kernel row, stack as channels, convolve along time."""
        copies = [
            torch.lerp(input[:, :, lower], input[:, :, upper], blend) * live
            for lower, upper, blend, live in zip(
                self.lower, self.upper, self.blend, self.live, strict=True
            )
        ]
        kernel = self.weight.transpose(1, 2).flatten(1, 2).unsqueeze(2)
        return F.conv2d(torch.cat(copies, 1), kernel, self.bias, padding=(0, self.padding))


class Separate(nn.Module):
    """Several anchors as several layers, and their outputs mixed."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        anchors = setting.anchor if isinstance(setting.anchor, tuple) else (setting.anchor,)
        self.layers = nn.ModuleList(
            _build("auto", replace(setting, anchor=anchor)) for anchor in anchors
        )
        self.mix = nn.Parameter(torch.ones(len(anchors)))

    def forward(self, input: Tensor) -> Tensor:
        """Return the mixture."""
        total: Tensor = self.mix[0] * self.layers[0](input)
        for weight, layer in zip(self.mix[1:], self.layers[1:], strict=True):
            total = total + weight * layer(input)
        return total
