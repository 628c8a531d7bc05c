"""The network of the learnt mask: what it reads of a spectrogram, and what it is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modules import HarmonicConv2d

__all__ = [
    "NOISE_FRAMES",
    "NOISE_ROWS",
    "MaskNetwork",
    "local_mean",
    "mask_features",
    "merge_bins",
    "split_rows",
]

FEATURES = 7  # planes
NOISE_ROWS, NOISE_FRAMES = 8, 2  # rows and frames of one value of N
LOCAL = 62  # frames on each side of a local mean, which is taken twice: about ±2 s

_FINE = 512  # bins that are rows of their own, up to 8 kHz
_MERGED = 16  # bins of each row above
_ROWS = _FINE + 64  # up to 24 kHz

_RATIOS = (Fraction(1, 3), Fraction(1, 2), 1, 2, 3)
_ORIGIN = Fraction(1, 4)  # a row of the network holds bins 2r and 2r + 1
_DILATIONS = ((1, 1), (2, 2), (4, 4), (8, 8), (1, 16), (2, 32), (4, 1), (8, 4))  # freq, time
_HALF_DB, _SLOPE_DB = 6.5, 5.0  # above the noise: the mask is 1/2; its logit rises by 1
_FLOOR = 1e-9  # below the local level, nothing is told apart
_DEAD = 4 * _FLOOR  # rows with such a floor hold nothing, as above a codec's cut
_SWELL = 2  # frames on each side that share a swell


def merge_bins(power: Tensor) -> Tensor:
    """Turn bins into the network's rows: single up to 8 kHz, means of 16 above.

    Parameters
    ----------
    power : Tensor [shape=(..., bins, T)]
        |X|² of ``Stft.for_rate(sample_rate)``, whose bins are 15.6 Hz apart at any rate.

    Returns
    -------
    Tensor [shape=(..., rows, T)]
        An even number of rows, 512 at 16 kHz and 576 at 48 kHz. The last bins that fill no row
        are left out.

    Examples
    --------
    >>> merge_bins(torch.ones(513, 10)).shape, merge_bins(torch.ones(1537, 10)).shape
    (torch.Size([512, 10]), torch.Size([576, 10]))
    """
    bins = power.shape[-2]
    fine = min(_FINE, bins // 2 * 2)
    groups = min(_ROWS - fine, (bins - fine) // _MERGED) // 2 * 2 if fine == _FINE else 0
    if not groups:
        return power[..., :fine, :]
    high = power[..., fine : fine + groups * _MERGED, :]
    grouped = high.reshape(*power.shape[:-2], groups, _MERGED, power.shape[-1])
    return torch.cat([power[..., :fine, :], grouped.mean(-2)], -2)


def split_rows(rows: Tensor, bins: int) -> Tensor:
    """Give each bin the value of its row, the inverse of `merge_bins` for what is smooth.

    Parameters
    ----------
    rows : Tensor [shape=(..., rows, T)]
    bins : int

    Returns
    -------
    Tensor [shape=(..., bins, T)]
        Bins that no row covers have the last row's value.
    """
    index = torch.arange(bins, device=rows.device)
    index = torch.where(index < _FINE, index, _FINE + (index - _FINE) // _MERGED)
    return rows.index_select(-2, index.clamp_max(rows.shape[-2] - 1))


def mask_features(power: Tensor) -> tuple[Tensor, Tensor]:
    r"""Planes that the network reads, free of the recording's level.

    Each row's level against the local mean of all rows, and against a floor g(t)·n(f), the noise
    if its spectrum only swelled and sank. Harmonic means follow what is quiet, so that sound hardly
    raises them: n is that of P/g over about ±2 s, g that of P/n over the rows, each taken from the
    other, from g = 1. A gate or a leader lowers g for as long as it lasts, and n not at all. Then
    how far the mean level of a row lies above its floor, how far g lies above its mean, and the
    frequency. Two neighbouring rows of the input are one row of the planes.

    Parameters
    ----------
    power : Tensor [shape=(B, rows, T)]
        From `merge_bins`.

    Returns
    -------
    planes : Tensor [shape=(B, 7, rows / 2, T)]
    level : Tensor [shape=(B, 1, T)]
        Local mean power of all rows.
    """
    level = local_mean(power.mean(1, keepdim=True), LOCAL).clamp_min(1e-30)
    relative = power / level + _FLOOR
    decibels = 10 * relative.log10()
    smooth = F.avg_pool2d(relative, 3, 1, 1, count_include_pad=False)
    rows, swell = _separable_floor(smooth)
    floor = 10 * (rows * swell).log10()
    height = local_mean(decibels - floor, LOCAL)
    above = (decibels - floor - 8) / 15
    against = (decibels + 25) / 20
    swelled = 10 * (swell / local_mean(swell, LOCAL)).log10()
    planes = [
        against[:, ::2],
        against[:, 1::2],
        above[:, ::2],
        above[:, 1::2],
        ((height[:, ::2] + height[:, 1::2]) / 2 - 6) / 10,
        (swelled / 8).expand_as(height[:, ::2]),
        _pitch_plane(power.shape[1], power.device)[None, :, None].expand_as(height[:, ::2]),
    ]
    return torch.stack(planes, 1), level


def _separable_floor(power: Tensor) -> tuple[Tensor, Tensor]:
    """Return n (B, rows, T), which is constant but for what a local mean moves, and g (B, 1, T)."""
    rows = local_mean(power.reciprocal(), LOCAL).reciprocal()
    swell = _swell(power, rows)
    rows = local_mean(swell / power, LOCAL).reciprocal()
    return rows, _swell(power, rows)


def _swell(power: Tensor, rows: Tensor) -> Tensor:
    """Return the level of each frame relative to the rows' floors, where these hold something."""
    alive = (rows > _DEAD).to(power)
    ratio = (alive * rows / power).sum(1, keepdim=True)
    size = 2 * _SWELL + 1
    mean = F.avg_pool1d(
        ratio / alive.sum(1, keepdim=True).clamp_min(1), size, 1, _SWELL, count_include_pad=False
    )
    return mean.clamp_min(_FLOOR).reciprocal().where(mean > 0, torch.ones_like(mean))


class MaskNetwork(nn.Module):
    """Harmonic layers at full height, a U along frequency, dilated blocks at its bottom.

    Parameters
    ----------
    widths : sequence of four int >= 1
        Channels at full height and at each of three scales below; the last divisible by 4.
    layer : "harmonic" or "plain"
        Two layers read 1/3, 1/2, 1, 2 and 3 times a row's frequency, or, to compare with, five
        adjacent rows.
    normalised : bool
        With batch normalisation, as it is trained. `folded` takes it away.

    Examples
    --------
    >>> network = MaskNetwork((4, 4, 4, 4)).eval()
    >>> mask, noise = network(torch.randn(1, 7, 256, 20))
    >>> mask.shape, noise.shape
    (torch.Size([1, 512, 20]), torch.Size([1, 64, 10]))
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 48, 64),
        layer: str = "harmonic",
        normalised: bool = True,
    ) -> None:
        super().__init__()
        if layer not in ("harmonic", "plain"):
            raise ValueError(f'layer must be "harmonic" or "plain", got {layer!r}')
        self.widths, self.layer, self.normalised = tuple(widths), layer, normalised
        a, b, c, d = widths

        def unit(convolution: nn.Conv2d, active: bool = True) -> _Unit:
            return _Unit(convolution, normalised, active)

        def conv(
            inputs: int, outputs: int, size: tuple[int, int], stride: tuple[int, int]
        ) -> _Unit:
            padding = (size[0] // 2, size[1] // 2)
            return unit(nn.Conv2d(inputs, outputs, size, stride, padding, bias=not normalised))

        def tall() -> _Unit:
            if layer == "plain":
                return conv(a, a, (5, 3), (1, 1))
            return unit(
                HarmonicConv2d(
                    a,
                    a,
                    (5, 3),
                    padding=1,
                    bias=not normalised,
                    harmonics=_RATIOS,
                    origin=_ORIGIN,
                )
            )

        self.enter = conv(FEATURES, a, (3, 3), (1, 1))
        self.tall_in = tall()
        self.down_1 = conv(a, b, (3, 3), (2, 2))
        self.down_2 = conv(b, c, (3, 3), (2, 1))
        self.down_3 = conv(c, d, (3, 1), (2, 1))
        self.blocks = nn.Sequential(*[_Block(d, dilation, normalised) for dilation in _DILATIONS])
        self.up_3 = conv(d, c, (3, 1), (1, 1))
        self.up_2 = conv(c, b, (3, 3), (1, 1))
        self.up_1 = conv(b, a, (1, 1), (1, 1))
        self.leave = conv(a, a, (3, 3), (1, 1))
        self.tall_out = tall()
        self.join = conv(2 * a + FEATURES, 16, (1, 1), (1, 1))
        self.mask_head = nn.Conv2d(16, 2, 1)
        self.noise_head = nn.Conv2d(c, 1, 1)

    def forward(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Map planes (B, 7, H, T) to the mask and the noise.

        Returns
        -------
        mask : Tensor [shape=(B, 2H, T)]
            0 to 1.
        noise : Tensor [shape=(B, ceil(H / 4), ceil(T / 2))]
            Natural logarithm of N over the local level: a value for 8 rows and 2 frames.
        """
        fine = self._harmonics(self.enter(planes), self.tall_in)
        half = self.down_1(fine)
        quarter = self.down_2(half)
        deep = self.blocks(self.down_3(quarter))
        up = _like(self.up_3(deep), quarter) + quarter
        noise = _floor(planes) + self.noise_head(up)[:, 0].float()
        up = _like(self.up_2(up), half) + half
        up = _like(self.up_1(up), fine) + fine
        up = self._harmonics(self.leave(up), self.tall_out)
        pairs = self.mask_head(self.join(torch.cat([up, fine, planes.to(up)], 1)))
        # What stands out of the noise is let through, unless the network knows better.
        pairs = pairs.float() + (_above(planes, noise.detach()) - _HALF_DB) / _SLOPE_DB
        # Two channels of a row of the network are two rows of the input.
        mask = pairs.transpose(1, 2).flatten(1, 2).sigmoid()
        return mask, noise

    def _harmonics(self, input: Tensor, layer: nn.Module) -> Tensor:
        """Add what a tall layer says; above 8 kHz rows are merged and harmonics lie elsewhere."""
        fine = _FINE // 2
        if input.shape[2] <= fine:
            return cast(Tensor, input + layer(input))
        low = input[:, :, :fine]
        return torch.cat([low + layer(low), input[:, :, fine:]], 2)

    def folded(self) -> MaskNetwork:
        """Return the same function in evaluation mode, its normalisations folded into weights."""
        plain = MaskNetwork(self.widths, self.layer, normalised=False)
        state = {name: value.clone() for name, value in self.state_dict().items()}
        for name, module in self.named_modules():
            if isinstance(module, _Unit) and module.norm is not None:
                norm, at = module.norm, f"{name}."
                for statistic in [key for key in state if key.startswith(f"{at}norm.")]:
                    del state[statistic]
                variance, mean = norm.running_var, norm.running_mean
                if variance is None or mean is None:
                    raise ValueError("a normalisation without running statistics cannot be folded")
                scale = norm.weight.detach() / (variance + norm.eps).sqrt()
                state[f"{at}convolution.weight"] *= scale[:, None, None, None]
                state[f"{at}convolution.bias"] = norm.bias.detach() - mean * scale
        plain.load_state_dict(state)
        return plain.eval()


class _Unit(nn.Module):
    """A convolution, its normalisation if there is one, and a leaky rectifier if asked."""

    def __init__(self, convolution: nn.Conv2d, normalised: bool, active: bool) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = nn.BatchNorm2d(convolution.out_channels) if normalised else None
        self.active = active

    def forward(self, input: Tensor) -> Tensor:
        output = self.convolution(input)
        if self.norm is not None:
            output = self.norm(output)
        return F.leaky_relu(output, 0.1, inplace=True) if self.active else output


class _Block(nn.Module):
    """A residual pair: 3 × 3 of four groups, dilated along both axes, then 1 × 1."""

    def __init__(self, channels: int, dilation: tuple[int, int], normalised: bool) -> None:
        super().__init__()
        wide = nn.Conv2d(
            channels,
            channels,
            3,
            padding=dilation,
            dilation=dilation,
            groups=4,
            bias=not normalised,
        )
        self.wide = _Unit(wide, normalised, active=True)
        mix = nn.Conv2d(channels, channels, 1, bias=not normalised)
        self.mix = _Unit(mix, normalised, active=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.leaky_relu(input + self.mix(self.wide(input)), 0.1)


def local_mean(values: Tensor, reach: int) -> Tensor:
    """Average over ± `reach` frames, twice (a triangle), fewer at the ends; (B, rows, T)."""
    frame = torch.arange(values.shape[-1], device=values.device)
    first, last = (frame - reach).clamp_min(0), (frame + reach + 1).clamp_max(len(frame))
    mean = values.double()  # running sums over what may be very loud and very quiet
    for _ in range(2):
        total = F.pad(mean.cumsum(-1), (1, 0))
        mean = (total[..., last] - total[..., first]) / (last - first)
    return mean.to(values)


def _pitch_plane(rows: int, device: torch.device) -> Tensor:
    """Octaves of each pair of rows, −1.7 to 6.3, halved and centred."""
    row = torch.arange(rows, device=device, dtype=torch.float32)
    bins = torch.where(row < _FINE, row, _FINE + (row - _FINE + 0.5) * _MERGED)
    hertz = (bins / _FINE * 8000).reshape(-1, 2).mean(1)
    return ((hertz + 300) / 2000).log2() / 2


def _floor(planes: Tensor) -> Tensor:
    """Natural logarithm of the rows' floors over the local level, on the grid of the noise."""
    decibels = _against_level(planes) - (15 * planes[:, 2:4].float() + 8)
    half = (NOISE_ROWS // 2, NOISE_FRAMES)  # two rows of the input are one of the planes
    return F.avg_pool2d(decibels.mean(1), half, ceil_mode=True) * (math.log(10) / 10)


def _above(planes: Tensor, noise: Tensor) -> Tensor:
    """Level of each row over the noise in dB, (B, 2, H, T)."""
    fine = F.interpolate(
        noise[:, None], scale_factor=(NOISE_ROWS // 2, NOISE_FRAMES), mode="bilinear"
    )
    fine = fine[..., : planes.shape[2], : planes.shape[3]] * (10 / math.log(10))
    return _against_level(planes) - fine


def _against_level(planes: Tensor) -> Tensor:
    """Level of each row against the local level in dB, (B, 2, H, T)."""
    return 20 * planes[:, :2].float() - 25


def _like(coarse: Tensor, fine: Tensor) -> Tensor:
    return F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
