"""What is compared: each column is a module that does the work of a setting."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harmonic_lowering import HarmonicConv2d, LogHarmonicConv2d, UpwardTapsWarning

from .settings import Setting

__all__ = ["COLUMNS", "baseline", "build", "truth"]

COLUMNS = {
    "auto": "`HarmonicConv2d` with the engine that it chooses",
    "native": '`HarmonicConv2d(engine="native")`',
    "high": '`HarmonicConv2d` after `torch.set_float32_matmul_precision("high")`',
    "blocked": '`HarmonicConv2d(engine="blocked")`',
    "lowering": '`HarmonicConv2d(engine="lowering")`',
    "log": "`LogHarmonicConv2d` with the engine that it chooses",
    "conv2d": "`torch.nn.Conv2d` of the same shape",
    "compiled": "`torch.compile(HarmonicConv2d(...))`; its ratio is to `compiled_conv2d`",
    "compiled_conv2d": "`torch.compile(torch.nn.Conv2d(...))`; its ratio is to `conv2d`",
    "stacking": "the paper's method in stock operations: resample, stack, convolve",
    "separate": "one `HarmonicConv2d` for each anchor, outputs mixed",
    "deform_conv2d": "torchvision's, with offsets that make it read where the taps read",
}
_ENGINES = ("auto", "native", "blocked", "lowering")


# The paper's settings look upwards, whatever that is good for.
warnings.filterwarnings("ignore", category=UpwardTapsWarning)


def build(column: str, setting: Setting) -> nn.Module:
    """Return the module of a column in float64, always with the same weights; never compiled."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _build(column.removeprefix("compiled_"), setting).double()


def _build(column: str, setting: Setting) -> nn.Module:
    channels, kernel = (setting.in_channels, setting.out_channels), setting.kernel
    padding = kernel // 2
    if column == "conv2d":
        return nn.Conv2d(*channels, kernel, padding=padding)
    if column == "stacking":
        return Stacking(setting)
    if column == "separate":
        return Separate(setting)
    if column.startswith("log"):
        return LogHarmonicConv2d(
            *channels,
            kernel,
            padding=padding,
            anchor=setting.anchor,
            bins_per_octave=setting.bins_per_octave,
            engine="lowering" if column == "log truth" else "auto",
        )
    if column not in (*_ENGINES, "high", "compiled"):
        raise ValueError(f"no column is called {column!r}, only {', '.join(COLUMNS)}")
    engine = column if column in _ENGINES else "auto"
    layer = HarmonicConv2d(*channels, kernel, padding=padding, anchor=setting.anchor, engine=engine)
    if column == "high":
        layer.float32_matmul_precision = "high"  # `measure.step` sets it
    return layer


def baseline(column: str) -> str:
    """Return the column that a column's ratio is to."""
    return "compiled_conv2d" if column == "compiled" else "conv2d"


def truth(column: str) -> str:
    """Return the column that gives the right result when it computes in float64."""
    if column == "log":
        return "log truth"
    if column.endswith("conv2d"):
        return "conv2d"
    return column if column == "separate" else "lowering"


class Stacking(nn.Module):
    """The paper's method written down in stock operations, without this package's engines."""

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
        last = setting.bins - 1
        positions = setting.taps().positions(setting.bins)
        lower = torch.tensor([[min(math.floor(p), last) for p in row] for row in positions])
        blend = [[float(p - math.floor(p)) for p in row] for row in positions]
        live = [[float(p <= last) for p in row] for row in positions]
        self.register_buffer("lower", lower)
        self.register_buffer("upper", (lower + 1).clamp(max=last))
        self.register_buffer("blend", torch.tensor(blend, dtype=torch.float64)[..., None])
        self.register_buffer("live", torch.tensor(live, dtype=torch.float64)[..., None])
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
