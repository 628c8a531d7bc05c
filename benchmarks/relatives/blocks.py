"""Blocks of published models, written anew from their papers, and the layers that take their place.

Each `…_layer` function takes a block and returns a layer of this package with the block's weights.
Spectrograms are (batch, channel, freq, time) throughout; HPPNet and HarmoF0 are published with the
last two axes the other way round.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harmonic_lowering import LogHarmonicConv2d, LogHarmonicLowering

HARMONICA = tuple(sorted({sign * n for n in (0, 12, 19, 24, 28, 31, 34, 36) for sign in (-1, 1)}))
HPPNET = (48, 76, 96, 111, 124, 135, 144, 152)
HARMOF0 = (0, 48, 76, 96, 111, 124, 135, 144, 152, 159, 166, 172)
BASIC_PITCH = (0.5, 1, 2, 3, 4, 5, 6, 7)


def shifted(x: Tensor, by: int) -> Tensor:
    """Return x[f + by], and zero where that lies outside."""
    bins = x.shape[-2]
    by = max(-bins, min(bins, by))
    return F.pad(x, (0, 0, max(0, -by), max(0, by)))[..., max(0, by) : max(0, by) + bins, :]


class Harmonica(nn.Module):
    """Shift by each offset, concatenate, and mix with a 1×1 convolution."""

    def __init__(
        self, in_channels: int, out_channels: int, offsets: tuple[int, ...] = HARMONICA
    ) -> None:
        super().__init__()
        self.offsets = offsets
        self.mix = nn.Conv2d(in_channels * len(offsets), out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.cat([shifted(x, offset) for offset in self.offsets], 1))


def harmonica_layer(block: Harmonica) -> LogHarmonicConv2d:
    rows, mix = len(block.offsets), block.mix
    layer = LogHarmonicConv2d(
        mix.in_channels // rows, mix.out_channels, (rows, 1), shifts=block.offsets
    ).to(mix.weight)
    weight = mix.weight.view(mix.out_channels, rows, -1).transpose(1, 2)[..., None]
    layer.load_state_dict({"weight": weight, "bias": mix.bias})
    return layer


class HPPNet(nn.Module):
    """Eight convolutions of three rows, dilated by the distance of a harmonic each, and summed."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels, (3, 1), padding="same", dilation=(distance, 1))
            for distance in HPPNET
        )

    def forward(self, x: Tensor) -> Tensor:
        return sum(convolution(x) for convolution in self.convolutions)


def hppnet_layer(block: HPPNet) -> LogHarmonicConv2d:
    first = block.convolutions[0]
    shifts = (*(-d for d in reversed(HPPNET)), 0, *HPPNET)
    layer = LogHarmonicConv2d(
        first.in_channels, first.out_channels, (len(shifts), 1), shifts=shifts
    ).to(first.weight)
    below, at, above = torch.stack([c.weight for c in block.convolutions]).unbind(3)
    rows = [*below.flip(0), at.sum(0), *above]
    bias = torch.stack([c.bias for c in block.convolutions]).sum(0)
    layer.load_state_dict({"weight": torch.stack(rows, 2), "bias": bias})
    return layer


class HarmoF0(nn.Module):
    """A 1×1 convolution for each harmonic, shifted down to the pitch; the sum of all."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(in_channels, out_channels, 1) for _ in HARMOF0)

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.convolutions, HARMOF0, strict=True)
        return sum(shifted(convolution(x), distance) for convolution, distance in pairs)


class HarmoF0Layer(nn.Module):
    """The same: a channel of ones carries the biases, which end where their harmonic does."""

    def __init__(self, block: HarmoF0) -> None:
        super().__init__()
        first = block.convolutions[0]
        self.layer = LogHarmonicConv2d(
            first.in_channels + 1, first.out_channels, (len(HARMOF0), 1), shifts=HARMOF0, bias=False
        ).to(first.weight)
        weight = torch.stack([c.weight[..., 0] for c in block.convolutions], 2)
        bias = torch.stack([c.bias for c in block.convolutions], 1)[:, None, :, None]
        self.layer.load_state_dict({"weight": torch.cat([weight, bias], 1)})

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.cat([x, torch.ones_like(x[:, :1])], 1))


class BasicPitch(nn.Module):
    """Harmonic stacking: copies of a spectrogram of 36 bins an octave, cut to the lower ones."""

    def __init__(self, bins: int = 264) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        distances = (36 * torch.tensor(BASIC_PITCH).double().log2()).round().int().tolist()
        return torch.cat([shifted(x, by) for by in distances], 1)[..., : self.bins, :]


class BasicPitchLayer(LogHarmonicLowering):
    """The same."""

    def __init__(self, bins: int = 264) -> None:
        super().__init__(harmonics=BASIC_PITCH, bins_per_octave=36, interpolation="nearest")
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., : self.bins, :]
