"""The prior: a small U-Net of harmonic convolutions over one spectrogram."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modules import HarmonicConv2d
from ..taps import origin_after_pooling

__all__ = ["SpectrogramUNet"]


class SpectrogramUNet(nn.Module):
    """Encoder and decoder of single blocks with skip connections, one width per scale.

    Each block is a convolution of three taps by three frames, an instance normalisation and a
    leaky rectifier. Each scale halves both axes by averaging, which moves frequency zero to a
    fraction of a bin; every harmonic layer gets that origin.

    Parameters
    ----------
    in_channels, out_channels : int >= 1
    widths : sequence of int >= 1
        Channels of each scale, finest first.
    layer : "harmonic" or "plain"
        `HarmonicConv2d` with anchor 3, which reads f/3, 2f/3 and f, or `Conv2d` of the same size.
    stacked : int >= 1
        Rows of the input that are one row of the network, and channels of it: its finest scale
        then takes a share of the time.

    Examples
    --------
    >>> net = SpectrogramUNet(8, 1, widths=(4, 4))
    >>> net(torch.randn(1, 8, 33, 10)).shape
    torch.Size([1, 1, 33, 10])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 1,
        widths: Sequence[int] = (16, 16, 16),
        layer: str = "harmonic",
        stacked: int = 1,
    ) -> None:
        super().__init__()
        self.out_channels, self.stacked = out_channels, stacked
        origins = [origin_after_pooling(0, stacked)]
        for _ in widths[1:]:
            origins.append(origin_after_pooling(origins[-1], 2))
        self.encoder = nn.ModuleList()
        channels = in_channels * stacked
        for width, origin in zip(widths, origins, strict=True):
            self.encoder.append(_block(channels, width, origin, layer))
            channels = width
        self.decoder = nn.ModuleList()
        for width, origin in reversed(list(zip(widths, origins, strict=True))[:-1]):
            self.decoder.append(_block(channels + width, width, origin, layer))
            channels = width
        self.head = nn.Conv2d(channels, out_channels * stacked, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in_channels, F, T) to (B, out_channels, F, T)."""
        output = self.head(self._features(input))
        return self._unstack(output)[:, :, : input.shape[2]]

    def at(self, input: Tensor, bins: Tensor) -> Tensor:
        """Return the output (n, out_channels) at n bins of the flattened (F, T) of one input.

        What few bins need takes less time than all of `forward`.
        """
        row, frame = bins // input.shape[3], bins % input.shape[3]
        features = self._features(input)[0][:, row // self.stacked, frame]
        output = F.linear(features.T, self.head.weight.flatten(1), self.head.bias)
        if self.stacked == 1:
            return output
        of_rows = output.view(len(bins), self.stacked, self.out_channels)
        return of_rows[torch.arange(len(bins), device=bins.device), row % self.stacked]

    def _features(self, input: Tensor) -> Tensor:
        """Map (B, in_channels, F, T) to (B, widths[0], rows, T), the input of `head`."""
        features = self.encoder[0](self._stack(input))
        skips = []
        for block in self.encoder[1:]:
            skips.append(features)
            features = F.avg_pool2d(features, 2, ceil_mode=True, count_include_pad=False)
            features = block(features)
        for block in self.decoder:
            skip = skips.pop()
            features = block(torch.cat([_upsample(features, skip), skip], 1))
        return cast(Tensor, features)

    def _stack(self, input: Tensor) -> Tensor:
        if self.stacked == 1:
            return input
        rows = F.pad(input, (0, 0, 0, -input.shape[2] % self.stacked))
        return torch.cat([rows[:, :, first :: self.stacked] for first in range(self.stacked)], 1)

    def _unstack(self, output: Tensor) -> Tensor:
        batch, _, rows, frames = output.shape
        apart = output.view(batch, self.stacked, self.out_channels, rows, frames)
        return apart.permute(0, 2, 3, 1, 4).flatten(2, 3)


def _block(in_channels: int, out_channels: int, origin: Fraction, layer: str) -> nn.Sequential:
    convolution: nn.Module
    if layer == "harmonic":
        convolution = HarmonicConv2d(
            in_channels, out_channels, 3, padding=1, anchor=3, origin=origin
        )
    elif layer == "plain":
        convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    else:
        raise ValueError(f'layer must be "harmonic" or "plain", got {layer!r}')
    # Instance normalisation: there is only one recording. As groups of one channel it takes a
    # third of the time that torch needs for `InstanceNorm2d`.
    norm = nn.GroupNorm(out_channels, out_channels)
    return nn.Sequential(convolution, norm, nn.LeakyReLU(0.1, inplace=True))


def _upsample(coarse: Tensor, like: Tensor) -> Tensor:
    fine = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    return fine[..., : like.shape[-2], : like.shape[-1]]
