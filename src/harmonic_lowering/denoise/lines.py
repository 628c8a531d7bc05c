r"""Steady spectral lines at multiples of a frequency that may drift: follow them and fit them.

Lines are followed in baseband, at 64 complex samples a second, so that all iterations work on
small arrays. All lines of a family share one phase θ(t); line n turns with n·θ. The power between
12 and 20 Hz from a line tells how far its amplitude can be trusted at that moment: the pauses of a
voice count for much, its vowels for little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Baseband", "Lines", "extend", "track"]

_RATE = 64.0  # Hz, of the baseband
_FLAT = 24.0  # Hz, half the flat part of a band
_FRAME = 16  # samples of the baseband, a quarter of a second
_HOP = 8
_BESIDE = [3, 4, 5, 11, 12, 13]  # bins of a frame's spectrum, 12 to 20 Hz from the line
_OUTLIER = 3.0  # ratio to the expected deviation from which a frame loses weight
_FLUTTER = 0.03  # deviation of an amplitude, relative to it, that is expected of a steady line
_UNSTEADY = 0.2  # such a deviation that no steady line has
_OVERLAP = 1.2  # variance of a mean over overlapping frames, relative to independent ones
_DOUBT = 4.0  # ratio of an amplitude's power to its variance that chance may give
_SURE = 30.0  # … that makes a line a guide for the phase
_SEEN = 0.3  # … and is visible for this share of the time, and not as fitted for less
_STIFFNESS = tuple(10.0**exponent for exponent in range(-2, 9, 2))
_GUIDES = (5, 10, 20)  # highest multiples that guide the phase in the first rounds
_ROUNDS = 2  # more, in which all do
_APART = 0.001  # relative distance of a constant frequency from the mean of one that drifts
_BLOCK = 1 << 14  # samples


class Baseband:
    """A channel from which narrow bands are cut, each sampled at about 64 Hz.

    Attributes
    ----------
    times : Tensor [shape=(T,)], seconds
        Of the samples of each band.
    """

    def __init__(self, channel: Tensor, sample_rate: int) -> None:
        self._padded = math.ceil((len(channel) + sample_rate // 4) / 4096) * 4096
        self._spectrum = torch.fft.rfft(channel.double(), self._padded)
        self._per_hertz = self._padded / sample_rate
        self._half = round(_RATE / 2 * self._per_hertz)
        step = self._per_hertz / (2 * self._half)
        self.times = torch.arange(int(len(channel) / sample_rate / step)).double() * step

    def bands(self, frequencies: Tensor) -> Tensor:
        """Return the analytic signal within 24 Hz of each frequency (K, T), with its carrier."""
        offset = torch.arange(-self._half, self._half)
        fade = (self._half - offset.abs()) / self._per_hertz / (_RATE / 2 - _FLAT)
        taper = torch.sin(math.pi / 2 * fade.clamp(0, 1)).square()
        center = (frequencies * self._per_hertz).round().long()[:, None]
        band = torch.fft.ifftshift(self._spectrum[center + offset] * taper, dim=1)
        scale = 4 * self._half / self._padded
        turn = 2 * math.pi / self._per_hertz * center * self.times
        carrier = torch.polar(torch.full_like(turn, scale), turn)
        analytic: Tensor = torch.fft.ifft(band)[:, : len(self.times)] * carrier
        return analytic


@dataclass(frozen=True)
class _Fit:
    """Amplitudes that change linearly from frame `first` to frame `last`."""

    first: int
    last: int
    amplitude: Tensor  # complex (K), in the middle
    slope: Tensor  # complex (K), by which it changes from the middle to the end
    certainty: Tensor  # (K), power of the amplitude over its variance
    support: Tensor  # (K), share of the frames in which the line is visible and as fitted
    dissent: Tensor  # (K), share of the frames with a visible line in which it is not as fitted

    def model(self, frames: Tensor) -> Tensor:
        """Return the amplitudes (K, len(frames)); those that may be chance are lowered."""
        place = (2 * frames - self.first - self.last) / max(1, self.last - self.first)
        likely = (1 - _DOUBT / self.certainty).clamp_min(0)
        return likely[:, None] * (self.amplitude[:, None] + self.slope[:, None] * place)


class _Presence(NamedTuple):
    """From which to which sample of the baseband lines are present, as what, and how surely."""

    begin: int
    end: int
    fit: _Fit
    gain: float  # of the logarithm of the likelihood


@dataclass(frozen=True)
class Lines:
    """K lines at the multiples of a frequency, which begin and end together.

    Attributes
    ----------
    multiples : Tensor [shape=(K,)]
    times, phase : Tensor [shape=(T,)]
        Phase of the fundamental in radians, at times in seconds.
    begin, end : int
        The range of `times` in which the lines are present.
    fit : _Fit
        Their amplitudes there.
    """

    multiples: Tensor
    times: Tensor
    phase: Tensor
    begin: int
    end: int
    fit: _Fit

    @property
    def whole(self) -> bool:
        """Whether the lines are present from beginning to end."""
        return self.begin == 0 and self.end == len(self.times)

    @property
    def seconds(self) -> float:
        """How long the lines are present."""
        return float(self.times[self.end - 1] - self.times[self.begin])

    @property
    def frequency(self) -> float:
        """The mean frequency in Hz while the lines are present."""
        turned = float(self.phase[self.end - 1] - self.phase[self.begin])
        return turned / self.seconds / (2 * math.pi)

    def steady(
        self, least_support: float, most_dissent: float, most_change: float = math.inf
    ) -> Tensor:
        """Return the multiples at which there is a steady line."""
        frames = self.fit.last - self.fit.first + 1
        enough = self.fit.support * frames >= max(_FRAME // 2, least_support * frames)
        level = self.fit.slope.abs() <= most_change * self.fit.amplitude.abs()
        return self.multiples[enough & level & (self.fit.dissent <= most_dissent)]

    def without(self, dropped: Tensor) -> Lines:
        """Return the family with some lines absent."""
        certainty = self.fit.certainty.masked_fill(dropped, 0)
        return replace(self, fit=replace(self.fit, certainty=certainty))

    def signal(self, length: int, sample_rate: int) -> Tensor:
        """Return the sum of all lines (length,), zero where they are absent."""
        step = float(self.times[1])
        sound = torch.zeros(length).double()
        chosen = (self.fit.certainty > _DOUBT).nonzero()[:, 0].tolist()
        begin = 0 if self.begin == 0 else round(self.begin * step * sample_rate)
        end = length if self.end == len(self.times) else round(self.end * step * sample_rate)
        for start in range(begin, end, _BLOCK):
            time = torch.arange(start, min(end, start + _BLOCK)).double() / sample_rate
            phase = _interpolate(self.phase, self.times, time)
            frames = (time / step - (_FRAME - 1) / 2) / _HOP
            ends = self.fit.model(frames[[0, -1]])  # linear between
            share = torch.linspace(0, 1, len(time)).double()
            for index in chosen:
                turn = self.multiples[index] * phase
                amplitude = ends[index, 0] + (ends[index, 1] - ends[index, 0]) * share
                sound[start : start + len(time)] += (
                    amplitude.real * turn.cos() - amplitude.imag * turn.sin()
                )
        return sound


def track(baseband: Baseband, multiples: Tensor, frequency: float) -> Lines:
    """Follow lines at multiples of about `frequency`, of which many may be absent.

    At 4 Hz from a multiple, its phase turns by half a circle between frames: the largest distance
    at which a line is found.
    """
    bands = baseband.bands(multiples * frequency)
    phase = 2 * math.pi * frequency * baseband.times
    for _ in range(2):
        phase = phase + _turning(_Frames(bands, phase, multiples), baseband.times)
    count = bands.shape[1]
    starts = [(0, count), *((count * third // 3, count * (third + 1) // 3) for third in range(3))]
    for most in _GUIDES:
        frames = _Frames(bands, phase, multiples)
        begin, end, fit, _ = frames.presence(starts)
        starts = [(0, count), (begin, end)]
        guides = multiples <= most * multiples[0]
        phase = _realigned(phase, baseband.times, frames, fit, guides, everywhere=True)
    return _settled(bands, baseband.times, [phase], multiples, (begin, end))


def extend(lines: Lines, baseband: Baseband, multiples: Tensor) -> Lines:
    """Return the same family with other multiples, and its phase more exact by them.

    Notes beside the lines pull the phase, so one that does not drift is tried as well.
    """
    bands = baseband.bands(multiples * lines.frequency)
    phases = [lines.phase, _constant(lines.phase, lines.times, bands, multiples)]
    return _settled(bands, baseband.times, phases, multiples, (lines.begin, lines.end))


def _settled(
    bands: Tensor, times: Tensor, phases: list[Tensor], multiples: Tensor, present: tuple[int, int]
) -> Lines:
    """Repeat the fit and the alignment of the best phase with all lines, while they gain by it."""
    everything = (0, bands.shape[1])

    def family(phase: Tensor) -> tuple[_Frames, Tensor, _Presence]:
        frames = _Frames(bands, phase, multiples)
        return frames, phase, frames.presence([everything, present])

    frames, phase, found = max(map(family, phases), key=lambda one: one[2].gain)
    for _ in range(_ROUNDS):
        aligned = _realigned(phase, times, frames, found.fit, multiples > 0, everywhere=False)
        following = family(aligned)
        if following[2].gain <= found.gain:
            break
        frames, phase, found = following
    return Lines(multiples, times, phase, found.begin, found.end, found.fit)


def _constant(phase: Tensor, times: Tensor, bands: Tensor, multiples: Tensor) -> Tensor:
    """Return the phase of the constant frequency that suits most lines, near that of `phase`."""
    seconds = float(times[-1])
    slope = float(phase[-1] - phase[0]) / seconds
    frames = _Frames(bands, slope * times, multiples)
    step = 2 * math.pi / (4 * float(multiples[-1]) * seconds)
    reach = round(_APART * slope / step)
    offset = torch.arange(-reach, reach + 1).double() * step
    turn = torch.outer(offset, _middles(frames, times))
    likely = torch.zeros_like(offset)
    # One line after the other: all at once, a minute would take gigabytes.
    for multiple, amplitude, weight in zip(
        multiples, frames.amplitude, 1 / frames.beside, strict=True
    ):
        angle = -multiple * turn
        total = torch.polar(torch.ones_like(angle), angle) @ (weight * amplitude)
        likely += (total.abs().square() / weight.sum()).log1p()
    return (slope + float(offset[likely.argmax()])) * times


class _Frames:
    """Bands with the common phase taken off, and their complex amplitudes in frames (K, T)."""

    def __init__(self, bands: Tensor, phase: Tensor, multiples: Tensor) -> None:
        turn = -multiples[:, None] * phase
        self.multiples = multiples[:, None]
        self.bands = bands * torch.polar(torch.ones_like(turn), turn)
        window = torch.hann_window(_FRAME, periodic=False).double()
        spectrum = torch.fft.fft(self.bands.unfold(1, _FRAME, _HOP) * (window / window.sum()))
        self.amplitude = spectrum[..., 0]
        beside = spectrum[..., _BESIDE].abs().square().mean(2)
        self.beside = beside + 1e-12 * beside.max() + 1e-300
        self.count = self.amplitude.shape[1]

    def presence(self, starts: list[tuple[int, int]]) -> _Presence:
        """Return from which to which sample of the bands the lines are present, and their fit.

        Of all intervals it is the one over which the logarithm of the likelihood, that of Student's
        distribution, gains the most by the lines. The search begins with each of `starts`.
        """
        samples = self.bands.shape[1]
        nearest = (torch.arange(samples) - (_FRAME - 1) / 2) / _HOP
        frame = nearest.round().long().clamp(0, self.count - 1)
        most, best = -math.inf, (0, samples)
        for begin, end in starts:
            for _ in range(2):
                fit = self._fit(begin, end)
                model = fit.model(nearest)
                expected = self.beside + (_FLUTTER * fit.amplitude.abs()[:, None]) ** 2
                scale = _OUTLIER * expected[:, frame]
                with_lines = ((self.bands - model).abs().square() / scale).log1p()
                without = (self.bands.abs().square() / scale).log1p()
                gain = (without - with_lines).sum(0)
                total = torch.cat([torch.zeros(1).double(), gain.cumsum(0)])
                rise = total - total.cummin(0).values
                end = int(rise.argmax())
                begin = int(total[: end + 1].argmin())
                if end - begin < 3 * _FRAME:
                    break
                begin = 0 if begin < _HOP else begin
                end = samples if end > samples - _HOP else end
                if float(rise.max()) > most:
                    most, best = float(rise.max()), (begin, end)
        return _Presence(*best, self._fit(*best), most)

    def _fit(self, begin: int, end: int) -> _Fit:
        """Fit amplitudes from sample `begin` to `end`; frames that deviate have little weight."""
        first = min(max(0, math.ceil((begin - _FRAME // 4) / _HOP)), self.count - 3)
        last = min(max(first + 2, (end - _FRAME * 3 // 4) // _HOP), self.count - 1)
        value = self.amplitude[:, first : last + 1]
        beside = self.beside[:, first : last + 1]
        place = torch.linspace(-1, 1, last - first + 1).double()
        mean = torch.complex(value.real.median(1).values, value.imag.median(1).values)
        slope = torch.zeros_like(mean)
        for _ in range(4):  # reweighted least squares
            deviation = (value - mean[:, None] - slope[:, None] * place).abs().square()
            expected = beside + (_FLUTTER * mean.abs()[:, None]) ** 2
            weight = 1 / (expected + deviation / _OUTLIER)
            total, first_moment = weight.sum(1), (weight * place).sum(1)
            second_moment = (weight * place * place).sum(1)
            zeroth, onto = (weight * value).sum(1), (weight * place * value).sum(1)
            determinant = total * second_moment - first_moment**2 + 1e-9 * total**2
            mean = (second_moment * zeroth - first_moment * onto) / determinant
            slope = (total * onto - first_moment * zeroth) / determinant
        deviation = (value - mean[:, None] - slope[:, None] * place).abs().square()
        squares = weight.square().sum(1)
        effective = total.square() / squares  # number of frames that count
        variance = _OVERLAP * (weight.square() * deviation).sum(1) / total.square()
        variance = variance * effective / (effective - 2).clamp_min(0.1) + 1e-300
        shrunk = (1 - 3 * _DOUBT * variance / (slope.abs().square() + 1e-300)).clamp_min(0)
        slope = slope * shrunk
        power = (mean[:, None] + slope[:, None] * place).abs().square()
        visible = power > 4 * beside
        agrees = deviation < 4 * beside + _UNSTEADY**2 * power
        seen = visible.sum(1).clamp_min(1)
        return _Fit(
            first,
            last,
            mean,
            slope,
            mean.abs().square() / variance,
            (visible & agrees).sum(1) / len(place),
            (visible & ~agrees).sum(1) / seen,
        )


def _middles(frames: _Frames, times: Tensor) -> Tensor:
    """Times of the middles of the frames."""
    return (torch.arange(frames.count).double() * _HOP + (_FRAME - 1) / 2) * float(times[1])


def _turning(frames: _Frames, times: Tensor) -> Tensor:
    """Return the phase that is missing, from how far the lines turn between frames."""
    product = frames.amplitude[:, 1:] * frames.amplitude[:, :-1].conj()
    size = product.abs().clamp_min(1e-300)
    trust = (size / (frames.beside[:, 1:] * frames.beside[:, :-1]).sqrt()).clamp_max(30)
    alike = (product / size).mean(1).abs().square()[:, None] - 4 / product.shape[1]
    trust = trust * alike.clamp_min(1e-9) * frames.multiples**2
    weight = trust.sum(0)
    turn = (trust * product.angle() / frames.multiples).sum(0) / weight
    at = _middles(frames, times)
    rate = _smooth(turn, weight, order=2) / float(at[1] - at[0])
    return _interpolate(rate, (at[1:] + at[:-1]) / 2, times).cumsum(0) * float(times[1])


def _realigned(
    phase: Tensor, times: Tensor, frames: _Frames, fit: _Fit, guides: Tensor, everywhere: bool
) -> Tensor:
    """Return the phase that suits the fit, smoothed as a whole."""
    index = torch.arange(frames.count)
    model = fit.model(index.clamp(fit.first, fit.last))
    steady = (fit.certainty > _SURE) & (fit.support > _SEEN) & (fit.dissent < _SEEN)
    guides = (guides & steady)[:, None]
    deviation = (frames.amplitude - model).abs().square()
    expected = frames.beside + _FLUTTER**2 * model.abs().square()
    weight = frames.multiples * guides / (expected + deviation / _OUTLIER)
    if not everywhere:
        weight = weight * ((index >= fit.first) & (index <= fit.last))
    curvature = (frames.multiples * weight * model.abs().square()).sum(0)
    if not bool(curvature.any()):
        return phase
    pull = (weight * (frames.amplitude * model.conj()).imag).sum(0)
    offset = pull / curvature.clamp_min(1e-9 * float(curvature.max()))
    middles = _middles(frames, times)
    now = _interpolate(phase, times, middles)
    line = torch.linspace(0, 1, len(now)).double() * (now[-1] - now[0])
    smooth = _smooth(now - line + offset, curvature, order=3)
    return phase + _interpolate(smooth + line - now, middles, times)


def _smooth(values: Tensor, weight: Tensor, order: int) -> Tensor:
    """Smooth with Whittaker's penalty on differences, as much as cross-validation says."""
    size = len(values)
    penalty = torch.eye(size).double().diff(n=order, dim=0)
    penalty = penalty.T @ penalty
    weight = weight / weight.mean() + 1e-9
    best, least = values, math.inf
    for stiffness in _STIFFNESS:
        hat = torch.linalg.solve((weight.diag() + stiffness * penalty), weight.diag())
        smooth = hat @ values
        error = (weight * (values - smooth).square()).sum() / (size - hat.trace()).square()
        if float(error) < least:
            best, least = smooth, float(error)
    return best


def _interpolate(values: Tensor, at: Tensor, to: Tensor) -> Tensor:
    """Interpolate linearly; the ends go on as straight lines."""
    right = torch.searchsorted(at, to).clamp(1, len(at) - 1)
    share = (to - at[right - 1]) / (at[right] - at[right - 1])
    return torch.lerp(values[right - 1], values[right], share)
