r"""Steady spectral lines at the multiples of one frequency that may drift: track and fit them.

A line is followed in baseband, at 64 complex samples a second, so that all iterations work on tiny
arrays. All lines of a family share one phase θ(t); line n turns with n·θ. What lies between 12 and
20 Hz from a line at the same moment says how far its amplitude can be trusted there: the pauses of
a voice count for much, its vowels for nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Baseband", "Family", "track"]

_RATE = 64.0  # Hz, of the baseband
_FLAT = 24.0  # Hz; beyond, up to half the rate, the band fades out
_FRAME = 16  # samples of the baseband: a quarter of a second
_HOP = 8
_BESIDE = [3, 4, 5, 11, 12, 13]  # bins of a frame, 12 to 20 Hz above and below the line
_OUTLIER = 3.0  # ratio of powers where a frame's deviation begins to lower its weight
_FLUTTER = 0.03  # deviation of a line that is always accepted, relative to its amplitude
_DOUBT = 4.0  # power of a line's amplitude, relative to its variance, that chance may give
_OVERLAP = 1.2  # variance of a mean over overlapping frames, relative to independent ones
_COARSE = 10  # the first passes only use multiples up to this one, whose phases are unambiguous
_SMOOTHNESS = [10.0**exponent for exponent in range(-2, 9, 2)]


class Baseband:
    """A channel from which narrow bands are cut, each sampled at about 64 Hz."""

    def __init__(self, channel: Tensor, sample_rate: int) -> None:
        self._padded = padded = math.ceil((len(channel) + sample_rate // 4) / 4096) * 4096
        self._spectrum = torch.fft.rfft(channel.double(), padded)
        self._per_hertz = padded / sample_rate
        self._width = 2 * round(_RATE / 2 * self._per_hertz)
        step = self._per_hertz / self._width
        self.times = torch.arange(int(len(channel) / sample_rate / step)).double() * step

    def bands(self, frequencies: Tensor) -> Tensor:
        """Return the analytic signal around each frequency in Hz (K, T)."""
        half = self._width // 2
        offset = torch.arange(-half, half)
        fade = (half / self._per_hertz - offset.abs() / self._per_hertz) / (_RATE / 2 - _FLAT)
        taper = torch.sin(math.pi / 2 * fade.clamp(0, 1)).square()
        center = (frequencies * self._per_hertz).round().long()[:, None]
        band = self._spectrum[center + offset] * taper
        base = torch.fft.ifft(torch.fft.ifftshift(band, dim=1))[:, : len(self.times)]
        turn = 2 * math.pi / self._per_hertz * center * self.times
        scale = 2 * self._width / self._padded
        return base * torch.polar(torch.full_like(turn, scale), turn)


@dataclass
class Family:
    """Lines at the multiples of a frequency, n (K), that share a phase θ and a beginning and end."""

    multiples: Tensor
    times: Tensor
    phase: Tensor  # θ at `times`
    begin: int  # of `times`
    end: int
    amplitude: Tensor  # complex, in the middle
    slope: Tensor  # complex, by which it changes from the middle to the end
    certainty: Tensor  # power of the amplitude over its variance
    unrest: Tensor  # median deviation relative to what the surroundings and flutter explain

    @property
    def frequency(self) -> float:
        """The mean frequency in Hz."""
        span = slice(self.begin, self.end)
        phase, times = self.phase[span], self.times[span]
        return float((phase[-1] - phase[0]) / (times[-1] - times[0]) / (2 * math.pi))

    def signal(self, length: int, sample_rate: int) -> Tensor:
        """Return the sum of the lines (L)."""


def track(bands: Tensor, times: Tensor, multiples: Tensor, frequency: float) -> Family:
    """Follow the lines."""
    count = len(times)
    step = float(times[1])
    middle = (torch.arange((count - _FRAME) // _HOP + 1) * _HOP + (_FRAME - 1) / 2) * step
    phase = 2 * math.pi * frequency * times
    low = multiples <= max(_COARSE, int(multiples[0]))
    for _ in range(2):
        amplitude, beside = _frames(bands[low], phase, multiples[low])
        phase = phase + _turning(amplitude, beside, multiples[low], middle, times)
    for round in range(6):
        amplitude, beside = _frames(bands, phase, multiples)
        begin, end, fit = _present(bands, phase, multiples, amplitude, beside)
        if round < 3:
            begin, end = 0, count
        phase = _realigned(phase, amplitude, beside, multiples, fit, begin, end, middle, times, [5, 10, 20, 40, 60, 60][round])
    amplitude, beside = _frames(bands, phase, multiples)
    begin, end, fit = _present(bands, phase, multiples, amplitude, beside)
    return Family(multiples, times, phase, begin, end, *fit)


def _baseband(bands: Tensor, phase: Tensor, multiples: Tensor) -> Tensor:
    turn = -multiples[:, None] * phase
    return bands * torch.polar(torch.ones_like(turn), turn)


def _frames(bands: Tensor, phase: Tensor, multiples: Tensor) -> tuple[Tensor, Tensor]:
    """Return the complex amplitude of each line in each frame, and the power beside it (K, T)."""
    frames = _baseband(bands, phase, multiples).unfold(1, _FRAME, _HOP)
    window = torch.hann_window(_FRAME, periodic=False).double()
    spectrum = torch.fft.fft(frames * (window / window.sum()))
    beside = spectrum[..., _BESIDE].abs().square().mean(2)
    return spectrum[..., 0], beside + 1e-12 * beside.max() + 1e-300


def _turning(
    amplitude: Tensor, beside: Tensor, multiples: Tensor, middle: Tensor, times: Tensor
) -> Tensor:
    """Return the phase to add, from how the lines turn from frame to frame."""
    n = multiples[:, None]
    product = amplitude[:, 1:] * amplitude[:, :-1].conj()
    trust = (product.abs() / (beside[:, 1:] * beside[:, :-1]).sqrt()).clamp_max(30)
    direction = product / product.abs().clamp_min(1e-300)
    steady = direction.mean(1).abs().square()[:, None]
    trust = trust * (steady - 4 / product.shape[1]).clamp_min(1e-9)
    weight = (n * n * trust).sum(0)
    turn = (n * trust * product.angle()).sum(0) / weight
    rate = _smooth(turn, weight, order=2) / float(middle[1] - middle[0])
    at = (middle[1:] + middle[:-1]) / 2
    fine = _interpolate(rate, at, times)
    step = float(times[1])
    return torch.cumsum(fine, 0) * step


def _realigned(phase, amplitude, beside, multiples, fit, begin, end, middle, times, most):
    mean, slope, certainty, _ = fit
    n = multiples[:, None]
    model = (mean * (1 - _DOUBT / certainty).clamp_min(0))[:, None]
    deviation = (amplitude - mean[:, None]).abs().square()
    weight = 1 / (beside + (_FLUTTER * mean.abs()[:, None]) ** 2 + deviation / _OUTLIER)
    weight = weight * ((certainty > 30) & (multiples <= most * int(multiples[0])))[:, None]
    inside = _inside(begin, end, amplitude.shape[1])
    slopes = (n * n * weight * model.abs().square()).sum(0) * inside
    offset = (n * weight * (amplitude * model.conj()).imag).sum(0) * inside / slopes.clamp_min(1e-30)
    at_middle = _interpolate(phase, times, middle)
    straight = at_middle[0] + (at_middle[-1] - at_middle[0]) * torch.linspace(0, 1, len(middle)).double()
    smooth = _smooth(at_middle - straight + offset, slopes, order=3)
    change = smooth + straight - at_middle
    return phase + _interpolate(change, middle, times)


def _inside(begin: int, end: int, frames: int) -> Tensor:
    start = torch.arange(frames) * _HOP
    inside = (start + _FRAME * 0.25 >= begin) & (start + _FRAME * 0.75 <= end)
    return inside.double()


def _fit(amplitude: Tensor, beside: Tensor, inside: Tensor):
    """Fit amplitudes that change linearly, with little weight for what deviates."""
    chosen = inside.nonzero()[:, 0]
    value, power = amplitude[:, chosen], beside[:, chosen]
    u = torch.linspace(-1, 1, len(chosen)).double()
    mean = torch.complex(value.real.median(1).values, value.imag.median(1).values)
    slope = torch.zeros_like(mean)
    for _ in range(6):
        model = mean[:, None] + slope[:, None] * u
        deviation = (value - model).abs().square()
        expected = power + (_FLUTTER * mean.abs()[:, None]) ** 2
        weight = 1 / (expected + deviation / _OUTLIER)
        total, first, second = weight.sum(1), (weight * u).sum(1), (weight * u * u).sum(1)
        zeroth, onto = (weight * value).sum(1), (weight * u * value).sum(1)
        determinant = total * second - first * first
        mean = (second * zeroth - first * onto) / determinant
        slope = (total * onto - first * zeroth) / determinant
    deviation = (value - mean[:, None] - slope[:, None] * u).abs().square()
    variance = _OVERLAP * (weight.square() * deviation).sum(1) / total.square()
    certainty = mean.abs().square() / (variance + 1e-300)
    slope = slope * (1 - _DOUBT * 3 * variance / (slope.abs().square() + 1e-300)).clamp_min(0)
    unrest = (deviation / expected).median(1).values
    return mean, slope, certainty, unrest


def _present(bands, phase, multiples, amplitude, beside):
    """Find where the lines are present; return the beginning, the end and the fit there."""
    count, frames = bands.shape[1], amplitude.shape[1]
    base = _baseband(bands, phase, multiples)
    index = ((torch.arange(count) - _FRAME / 2) / _HOP).round().long().clamp(0, frames - 1)
    best = (-math.inf, 0, count, None)
    thirds = [round(count * k / 3) for k in range(4)]
    for begin, end in [(0, count), *zip(thirds[:-1], thirds[1:])]:
        for _ in range(2):
            if end - begin < 2 * _FRAME:
                break
            fit = _fit(amplitude, beside, _inside(begin, end, frames))
            mean, slope, certainty, _ = fit
            model = (mean * (1 - _DOUBT / certainty).clamp_min(0))[:, None]
            weight = 1 / (beside + (_FLUTTER * mean.abs()[:, None]) ** 2)[:, index]
            gain = ((2 * (base * model.conj()).real - model.abs().square()) * weight).sum(0)
            total = torch.cat([torch.zeros(1).double(), gain.cumsum(0)])
            rise = total - total.cummin(0).values
            end = int(rise.argmax())
            begin = int(total[: end + 1].argmin())
            if begin < _FRAME/2: begin = 0
            if end > count - _FRAME/2: end = count
            if float(rise.max()) > best[0] and end - begin >= 2 * _FRAME:
                best = (float(rise.max()), begin, end, None)
    _, begin, end, _ = best
    return begin, end, _fit(amplitude, beside, _inside(begin, end, frames))


def _interpolate(values: Tensor, at: Tensor, to: Tensor) -> Tensor:
    """Interpolate linearly, and beyond the ends go on as straight."""
    right = torch.searchsorted(at, to).clamp(1, len(at) - 1)
    left = right - 1
    share = (to - at[left]) / (at[right] - at[left])
    return values[left] + share * (values[right] - values[left])


def _smooth(values: Tensor, weight: Tensor, order: int) -> Tensor:
    """Whittaker's smoother; how smooth, generalised cross-validation says."""
    size = len(values)
    difference = torch.eye(size).double()
    for _ in range(order):
        difference = difference[1:] - difference[:-1]
    penalty = difference.T @ difference
    weight = weight + 1e-9 * weight.max()
    weight = weight / weight.mean()
    best, result = math.inf, values
    for stiffness in _SMOOTHNESS:
        hat = torch.linalg.solve(torch.diag(weight) + stiffness * penalty, torch.diag(weight))
        smooth = hat @ values
        error = float((weight * (values - smooth).square()).sum())
        freedom = size - float(hat.diagonal().sum())
        score = error / freedom**2
        if score < best:
            best, result = score, smooth
    return result
