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
    ) -> None:
        super().__init__()
        origins = [Fraction(0)]
        for _ in widths[1:]:
            origins.append(origin_after_pooling(origins[-1], 2))
        self.encoder = nn.ModuleList()
        channels = in_channels
        for width, origin in zip(widths, origins, strict=True):
            self.encoder.append(_block(channels, width, origin, layer))
            channels = width
        self.decoder = nn.ModuleList()
        for width, origin in reversed(list(zip(widths, origins, strict=True))[:-1]):
            self.decoder.append(_block(channels + width, width, origin, layer))
            channels = width
        self.head = nn.Conv2d(channels, out_channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in_channels, F, T) to (B, out_channels, F, T)."""
        return cast(Tensor, self.head(self.features(input)))

    def features(self, input: Tensor) -> Tensor:
        """Map (B, in_channels, F, T) to (B, widths[0], F, T), the input of `head`."""
        features = self.encoder[0](input)
        skips = []
        for block in self.encoder[1:]:
            skips.append(features)
            features = F.avg_pool2d(features, 2, ceil_mode=True, count_include_pad=False)
            features = block(features)
        for block in self.decoder:
            skip = skips.pop()
            features = block(torch.cat([_upsample(features, skip), skip], 1))
        return cast(Tensor, features)


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
