"""The networks that are compared: the same recipe and size, other taps.

Input (batch, 1, freq, time): a log-magnitude spectrogram. Output (batch, note, time): logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harmonic_lowering import HarmonicConv2d, LogHarmonicConv2d, LogHarmonicLowering

from .features import (
    BINS_PER_OCTAVE,
    BINS_PER_SEMITONE,
    LOWEST_NOTE,
    N_NOTES,
    STFT_BIN_HZ,
    Feature,
)

PARAMETERS = 7600
RATIOS = (1 / 3, 1 / 2, 1, 2, 3, 4, 5, 6, 7, 8)
ROWS = len(RATIOS)
PRIOR_LOGIT = -3.0  # about one note in twenty sounds

Layer = Callable[[int, int], nn.Module]
"""Makes a layer of so many channels in and out that leaves frequency and time as they are."""


@dataclass(frozen=True)
class Network:
    """A row of the table: what it is called, what it reads, how it is made."""

    title: str
    feature: Feature
    build: Callable[[int, int], nn.Module]  # width and seed to network

    def __call__(self, seed: int) -> nn.Module:
        """Return the network whose size is nearest to `PARAMETERS`, freshly initialised."""
        width = min(
            range(4, 25),
            key=lambda width: abs(count_parameters(self.build(width, seed)) - PARAMETERS),
        )
        torch.manual_seed(seed)
        return self.build(width, seed)


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# -------------------------------------------------------------------- layers


def conv(rows: int = 3, columns: int = 3) -> Layer:
    """`Conv2d`, whose rows are adjacent bins."""

    def make(c_in: int, c_out: int) -> nn.Module:
        above = rows // 2
        return nn.Sequential(
            nn.ZeroPad2d((0, 0, rows - 1 - above, above)),
            nn.Conv2d(c_in, c_out, (rows, columns), padding=(0, columns // 2)),
        )

    return make


def dilated(c_in: int, c_out: int) -> nn.Module:
    """`Conv2d` with rows half an octave apart, which reach as far as the harmonics do."""
    step = BINS_PER_OCTAVE // 2
    below = 3 * step  # three of ten rows below the bin, as many as reach an octave and a half down
    return nn.Sequential(
        nn.ZeroPad2d((0, 0, below, (ROWS - 1) * step - below)),
        nn.Conv2d(c_in, c_out, (ROWS, 1), dilation=(step, 1)),
    )


def harmonic(c_in: int, c_out: int) -> nn.Module:
    """Harmonics and sub-harmonics on a log-frequency axis."""
    return LogHarmonicConv2d(
        c_in, c_out, (ROWS, 1), harmonics=RATIOS, bins_per_octave=BINS_PER_OCTAVE
    )


def upward(c_in: int, c_out: int) -> nn.Module:
    """The first ten harmonics, which all lie at or above the bin."""
    return LogHarmonicConv2d(c_in, c_out, (ROWS, 1), bins_per_octave=BINS_PER_OCTAVE)


def random_shifts(seed: int) -> Layer:
    """The bin itself and nine others, anywhere within the reach of the harmonics."""
    low = round(BINS_PER_OCTAVE * np.log2(min(RATIOS)))
    high = round(BINS_PER_OCTAVE * np.log2(max(RATIOS)))
    others = [shift for shift in range(low, high + 1) if shift != 0]
    drawn = np.random.default_rng(seed).choice(others, ROWS - 1, replace=False)
    shifts = sorted([0, *map(int, drawn)])
    return lambda c_in, c_out: LogHarmonicConv2d(c_in, c_out, (ROWS, 1), shifts=shifts)


def linear_harmonic(c_in: int, c_out: int) -> nn.Module:
    """Harmonics and sub-harmonics on a linear frequency axis."""
    return HarmonicConv2d(c_in, c_out, (ROWS, 1), harmonics=RATIOS)


# -------------------------------------------------------------------- networks


def stack(*layers: nn.Module) -> nn.Sequential:
    """Chain layers, each followed by a normalisation and a ReLU."""
    parts: list[nn.Module] = []
    for layer in layers:
        last = layer[-1] if isinstance(layer, nn.Sequential) else layer
        parts += [layer, nn.BatchNorm2d(last.out_channels), nn.ReLU()]
    return nn.Sequential(*parts)


class PitchNetwork(nn.Module):
    """A body on the spectrogram, then one logit per note."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, spectrogram: Tensor) -> Tensor:
        return self.head(self.body(spectrogram))


class SemitoneHead(nn.Module):
    """Three adjacent bins to a note, on the log-frequency axis."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels, 1, (BINS_PER_SEMITONE, 1), stride=(BINS_PER_SEMITONE, 1), padding=(1, 0)
        )
        nn.init.constant_(self.conv.bias, PRIOR_LOGIT)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, 0, :N_NOTES]


class InterpolatedHead(nn.Module):
    """A linear-frequency axis, read at the frequencies of the notes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, (3, 1), padding=(1, 0))
        nn.init.constant_(self.conv.bias, PRIOR_LOGIT)
        hz = 440 * 2 ** ((np.arange(N_NOTES) + LOWEST_NOTE - 69) / 12)
        place = torch.tensor(hz / STFT_BIN_HZ)
        self.register_buffer("bin", place.long(), persistent=False)
        self.register_buffer("weight", place.frac().float()[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.conv(x)[:, 0]
        return torch.lerp(logits[:, self.bin], logits[:, self.bin + 1], self.weight)


class UNet(nn.Module):
    """Two scales down and up again, all 3×3, with skip connections."""

    def __init__(self, width: int) -> None:
        super().__init__()
        plain = conv()
        self.top = stack(plain(1, width))
        self.middle = stack(plain(width, width))
        self.bottom = stack(plain(width, width), plain(width, width))
        self.up_middle = stack(plain(2 * width, width))
        self.up_top = stack(plain(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        top = self.top(x)
        middle = self.middle(F.max_pool2d(top, 2, ceil_mode=True))
        bottom = self.bottom(F.max_pool2d(middle, 2, ceil_mode=True))
        middle = self.up_middle(torch.cat((middle, _as_large(bottom, middle)), 1))
        return self.up_top(torch.cat((top, _as_large(middle, top)), 1))


def _as_large(x: Tensor, as_this: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2)[..., : as_this.shape[-2], : as_this.shape[-1]]


def alternating(layer: Layer, head: Callable[[int], nn.Module] = SemitoneHead) -> Callable:
    """The layer in question and a 3×3 layer in turn, twice."""

    def build(width: int, seed: int) -> nn.Module:
        plain = conv()
        body = stack(layer(1, width), plain(width, width), layer(width, width), plain(width, width))
        return PitchNetwork(body, head(width))

    return build


def build_random(width: int, seed: int) -> nn.Module:
    return alternating(random_shifts(seed))(width, seed)


def build_plain(depth: int, head: Callable[[int], nn.Module] = SemitoneHead) -> Callable:
    """3×3 layers only."""

    def build(width: int, seed: int) -> nn.Module:
        plain = conv()
        body = stack(plain(1, width), *(plain(width, width) for _ in range(depth - 1)))
        return PitchNetwork(body, head(width))

    return build


def build_lowered(width: int, seed: int) -> nn.Module:
    """Harmonics as channels of the input (an HCQT), then 3×3 layers only."""
    lower = LogHarmonicLowering(harmonics=RATIOS, bins_per_octave=BINS_PER_OCTAVE)
    plain = conv()
    body = stack(plain(ROWS, width), *(plain(width, width) for _ in range(3)))
    return PitchNetwork(nn.Sequential(lower, body), SemitoneHead(width))


def build_unet(width: int, seed: int) -> nn.Module:
    return PitchNetwork(UNet(width), SemitoneHead(width))


NETWORKS = {
    "harmonic": Network("harmonic, 1/3, 1/2, 1 … 8", "vqt", alternating(harmonic)),
    "random": Network("the same layer, random shifts", "vqt", build_random),
    "upward": Network("harmonic, 1 … 10: upward only", "vqt", alternating(upward)),
    "lowering": Network("lowering once (HCQT), then 3×3", "vqt", build_lowered),
    "dilated": Network("Conv2d, dilated by half an octave", "vqt", alternating(dilated)),
    "same-shape": Network("Conv2d, the same kernel shape", "vqt", alternating(conv(ROWS, 1))),
    "conv": Network("Conv2d 3×3, four layers", "vqt", build_plain(4)),
    "conv-deep": Network("Conv2d 3×3, eight layers", "vqt", build_plain(8)),
    "unet": Network("U-Net, 3×3", "vqt", build_unet),
    "stft-harmonic": Network(
        "HarmonicConv2d, 1/3, 1/2, 1 … 8", "stft", alternating(linear_harmonic, InterpolatedHead)
    ),
    "stft-same-shape": Network(
        "Conv2d, the same kernel shape", "stft", alternating(conv(ROWS, 1), InterpolatedHead)
    ),
    "stft-conv": Network("Conv2d 3×3, four layers", "stft", build_plain(4, InterpolatedHead)),
}
