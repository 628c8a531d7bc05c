r"""The power of the noise at each frequency and time, estimated from a noisy recording alone.

Real recordings mislead an estimate that pools all frames: half a second of tape leader, a gate, a
fade or a change of gain holds far less noise than the rest, and the low powers are all there. So
every frame gets a *floor*, the level of the smallest powers in it relative to an estimate of N(f).
A signal can only raise a floor. Where the noise is steady the floors of nearly all frames agree
within 2 dB; where they do not, frames are sorted by floor, and the estimate is the one, of those
that leave out more and more of the quietest frames, that most floors agree with. Runs of frames
far above or below it that agree among themselves have an estimate of their own; other frames below
scale it down.

Sustained low notes mislead a single window: where it is too short to resolve their harmonics, every
bin holds signal. So N(f) is estimated with windows of 32 to 512 ms; signal can only raise an
estimate, so the lowest one is nearest.

A segment full of music has no moment of noise alone; `noise_recording.py` finds the noise of the
whole recording, and a segment has another one only where that is certain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spectral import Stft
from .noise_estimate import estimate_noise, truncated_mean

__all__ = ["NoiseModel", "NoiseState", "Spectrum"]

_WINDOW_S = 0.064  # in which the level over time is found
_WINDOWS_S = (0.032, 0.128, 0.256, 0.512)  # in which N(f) is estimated as well
_FIRST_BIN = 4  # of an estimate that other windows can rely on; below, it is too low
_STEEPEST = 4.0  # times the noise there is the most that is expected below
_TOLERANCE = 10**0.1  # of an estimate over the lowest: windows differ by as much by chance
_MIN_FRAMES = 10  # for an estimate of N(f)
_MIN_OTHER_FRAMES = 24  # the same in further windows, whose lowest is taken
_BANDS = 8  # in which floors are found; a change of level shows in all of them
_BAND_BINS = 32  # of a band that a floor looks at: neighbours tell the same
_MIN_BAND = 1e-5  # of the loudest band's noise; what is quieter may be rounding errors
_RADIUS = 1  # frames on either side that share a floor
_BIAS_DB = 0.6  # of the second lowest of eight bands below the mean
_NEAR_DB = 2.0  # floors that agree
_FAR_DB = 3.0  # floors of another level
_STEADY = 0.8  # share of floors that agree
_STEADY_RUN = 0.85  # the same in runs of another level
_STEADY_BOTH = 0.7  # in the runs and the rest; where all is unsteady, a run may be chance
_LEFT_OUT = (0.15, 0.35, 0.55, 0.75)  # shares of the frames, quietest first
_MIN_GAIN = 0.15  # in the share of floors that agree, for leaving frames out
_MIN_AGREEING = 0.5  # and the least such share; sounds without noise may have a third
_MIN_RUN_S = 0.3  # of a level that has its own spectrum
_MIN_FALLEN_S, _MIN_RISEN_S = 0.4, 0.8  # of all such runs; a cymbal may mimic a higher level
_MOST_STATES = 6
_LOWEST_DB = -120.0
_SAME_DB = 1.5  # two estimates of the same noise may differ by as much
_CERTAIN = 0.9  # share of a band's floors that agree where it holds noise alone


@dataclass(frozen=True)
class Spectrum:
    """N(f) in one transform, for a window of unit energy."""

    transform: Stft
    density: Tensor

    def scaled(self, factor: float) -> Spectrum:
        """Return the density times a factor."""
        return replace(self, density=self.density * factor)

    def at(self, other: Stft) -> Tensor:
        """Return the density at the bins of another transform."""
        density = self.density.clone()[None, None]
        density[..., :_FIRST_BIN] = density[..., _FIRST_BIN, None]
        ratio = self.transform.n_fft / other.n_fft
        if ratio > 1:  # the other's window smears more
            radius = round(ratio)
            density = F.avg_pool1d(density, 2 * radius + 1, 1, radius, count_include_pad=False)
        log = density.clamp_min(torch.finfo(density.dtype).tiny).log()
        there = F.interpolate(log, other.bins, mode="linear", align_corners=True)[0, 0].exp()
        first = math.ceil(_FIRST_BIN / ratio)
        there[:first] = _STEEPEST * there[first]
        return there


@dataclass(frozen=True)
class NoiseState:
    """N(f) of one state of the noise, in each transform that could make an estimate.

    `steady` is the share of floors that agree with it; of the bands in which floors are found,
    `certain` (8,) are those that seem to hold noise alone.
    """

    spectra: Sequence[Spectrum]
    steady: float
    certain: Tensor

    @property
    def is_steady(self) -> bool:
        """Whether it is certainly noise: nearly all floors agree."""
        return self.steady >= _STEADY

    def scaled(self, factor: float) -> NoiseState:
        """Return the state of a sound times the square root of a factor."""
        return replace(self, spectra=[each.scaled(factor) for each in self.spectra])

    def at(self, transform: Stft) -> Tensor:
        """Return the density in a transform: its own, or others that are lower."""
        return _lowest(self.spectra, transform)

    def is_other(self, known: NoiseState, base: Stft) -> bool | None:
        """Say whether it is certainly another noise (true), the same (false) or neither (none).

        A signal can raise an estimate, in some bands or in all, but not lower it.
        """
        ratio_db = 10 * (self.at(base) / known.at(base).to(self.certain.device)).log10()
        bands_db = _bands(ratio_db).mean(1)
        lowest_db = bands_db.sort().values
        if float(lowest_db[1]) < -_SAME_DB or float(lowest_db[0]) < -_FAR_DB:
            return True
        if float(lowest_db[1]) > _SAME_DB:
            return True if self.is_steady else None
        return bool((self.certain & (bands_db > _FAR_DB)).any())


@dataclass(frozen=True)
class NoiseModel:
    """Noise in one of a few states at each time, and a level that may fall below it.

    `state` (T,) and `gain_db` (T,) hold for each frame of `base`. `steady` says whether the level
    never changes.
    """

    base: Stft
    state: Tensor
    gain_db: Tensor
    states: Sequence[NoiseState]
    steady: bool

    @classmethod
    def of(
        cls,
        channel: Tensor,
        sample_rate: int,
        windows_s: Sequence[float] = (),
        known: Sequence[NoiseState] = (),
    ) -> NoiseModel:
        """Estimate the noise of one channel (L,) that is not silent, for use in some windows.

        A state of its own that is not certainly another noise than all that are `known` is the
        first of those that it may be.
        """
        base = Stft.for_rate(sample_rate, _WINDOW_S, overlap=2)
        if len(channel) < base.n_fft:
            return cls._of_moment(channel, sample_rate, base, windows_s)
        power = base(channel).abs().square()
        # The ends are mirrored: the spectra of symmetric frames are real, with more small powers.
        power[:, 0], power[:, -1] = power[:, 1], power[:, -2]
        levels = _Levels(power, sample_rate / base.hop_length)
        others = [Stft.for_rate(sample_rate, each) for each in {*_WINDOWS_S, *windows_s}]
        states = []
        for index in range(len(levels.spectra)):
            state = levels.of_state(index, base)
            taken = _first_of(state, known, base)
            if taken is None:  # other windows may tell more
                estimates = levels.estimates(index, channel, base, others)
                state = replace(state, spectra=[*state.spectra, *estimates])
                taken = _first_of(state, known, base)
            if taken is not None:
                levels.take(index, taken.at(base) * base.window_energy)
            states.append(taken or state)
        return cls(base, levels.state, levels.gain_db, states, levels.steady and len(known) < 2)

    @classmethod
    def _of_moment(
        cls, channel: Tensor, sample_rate: int, base: Stft, windows_s: Sequence[float]
    ) -> NoiseModel:
        """Estimate the noise of a channel that is too short to have a level over time."""
        spectra = []
        for transform in (Stft.for_rate(sample_rate, window_s) for window_s in windows_s):
            if transform.n_fft <= len(channel):
                noise = estimate_noise(transform(channel).abs().square())
                spectra.append(Spectrum(transform, noise / transform.window_energy))
        never = torch.zeros(1, dtype=channel.dtype)
        state = NoiseState(spectra, 0.0, torch.zeros(_BANDS, dtype=torch.bool))
        return cls(base, never.long(), never, [state], steady=True)

    def power(self, transform: Stft, frames: int) -> Tensor:
        """Return N (F, T) in a transform."""
        near = self.base.nearest(transform, frames, len(self.state))
        densities = torch.stack([state.at(transform) for state in self.states], 1)
        gain = 10 ** (self.gain_db[near] / 10)
        return densities[:, self.state[near]] * gain * transform.window_energy


class _Levels:
    """The level of the noise over time: `state` and `gain_db` of each frame, N(f) of each state."""

    def __init__(self, power: Tensor, frame_rate: float) -> None:
        self.power = power
        self.frame_rate = frame_rate
        self.state = torch.zeros(power.shape[1], dtype=torch.long)
        self.gain_db = torch.zeros(power.shape[1], dtype=power.dtype)
        self.spectra: list[Tensor] = []
        self.agreeing: list[float] = []
        spectrum, agreeing = _prevailing(power)
        self._assign(torch.arange(power.shape[1]), spectrum, agreeing)
        self.steady = agreeing >= _STEADY and len(self.spectra) == 1

    def _assign(self, frames: Tensor, spectrum: Tensor, agreeing: float) -> None:
        """Give frames a new state, then look among them for runs that need another one."""
        self.state[frames] = len(self.spectra)
        self.spectra.append(spectrum)
        self.agreeing.append(agreeing)
        # A floor is the lowest level within the radius; its maximum restores the edges.
        floors_db = _floors_db(self.power[:, frames], spectrum)
        fallen = self._let_fall(frames, floors_db)
        for apart, seconds in ((fallen, _MIN_FALLEN_S), (floors_db > _FAR_DB, _MIN_RISEN_S)):
            run = _long_runs(apart, round(_MIN_RUN_S * self.frame_rate))
            power = self.power[:, frames[run]]
            if len(self.spectra) == _MOST_STATES or power.shape[1] < seconds * self.frame_rate:
                continue
            if not bool(power.max() > 0):
                continue
            other, among = _prevailing(power)
            both = agreeing + among * power.shape[1] / len(frames)
            if among >= _STEADY_RUN and (apart is fallen or both >= _STEADY_BOTH):
                edges = run if apart is fallen else _widened(run.to(floors_db)) > 0
                self._assign(frames[edges], other, among)

    def _let_fall(self, frames: Tensor, floors_db: Tensor) -> Tensor:
        """Set the gain of frames; return which lie far below their state."""
        level_db = _widened(floors_db)
        fallen = level_db < -_FAR_DB
        self.gain_db[frames] = level_db.clamp_min(_LOWEST_DB).where(fallen, torch.zeros(()))
        return fallen

    def _full(self, index: int) -> Tensor:
        return (self.state == index) & (self.gain_db == 0)

    def of_state(self, index: int, base: Stft) -> NoiseState:
        """Return a state with the estimate in `base` alone."""
        spectrum = self.spectra[index]
        certain = torch.zeros(_BANDS, dtype=torch.bool)
        power = self.power[:, self._full(index)]
        if power.shape[1] > _RADIUS:
            loud, floors_db = _band_floors_db(power, spectrum)
            certain[loud] = (floors_db.abs() < _NEAR_DB).float().mean(1) >= _CERTAIN
        density = spectrum / base.window_energy
        return NoiseState([Spectrum(base, density)], self.agreeing[index], certain)

    def estimates(
        self, index: int, channel: Tensor, base: Stft, transforms: Sequence[Stft]
    ) -> list[Spectrum]:
        """Return the estimates of a state in other transforms, where there are enough frames."""
        found = []
        inside = self._full(index)
        for other in transforms:
            if other.n_fft == base.n_fft or other.shortest > len(channel):
                continue
            covered = _covered(inside, base, other, other.frames(len(channel)))
            if int(covered.sum()) >= _MIN_OTHER_FRAMES:
                whole = other(channel).abs().square()[:, covered]
                if bool(whole.max() > 0):
                    found.append(Spectrum(other, estimate_noise(whole) / other.window_energy))
        return found

    def take(self, index: int, spectrum: Tensor) -> None:
        """Measure by how much the frames of a state lie below another N (F,)."""
        frames = (self.state == index).nonzero()[:, 0]
        self._let_fall(frames, _floors_db(self.power[:, frames], spectrum))


def _first_of(state: NoiseState, known: Sequence[NoiseState], base: Stft) -> NoiseState | None:
    """Return the first known state that is not certainly another noise, if there is one."""
    return next((each for each in known if state.is_other(each, base) is not True), None)


def _prevailing(power: Tensor) -> tuple[Tensor, float]:
    """Return N (F,) that most floors agree with, and the share of them that do."""
    loudness = power.sum(0)
    audible = loudness > 1e-10 * loudness.max()

    def estimate(kept: Tensor) -> tuple[Tensor, Tensor, float]:
        spectrum = estimate_noise(power[:, kept])
        floors_db = _floors_db(power, spectrum)
        return spectrum, floors_db, float((floors_db[audible].abs() < _NEAR_DB).float().mean())

    best, first, most = estimate(audible)
    order = first[audible].sort().values
    for share in _LEFT_OUT:
        if most >= _STEADY:
            break
        kept = audible & (first >= order[int(share * len(order))])
        if int(kept.sum()) < _MIN_FRAMES:
            break
        _, floors_db, _ = estimate(kept)
        kept = audible & (floors_db > -_FAR_DB)
        if int(kept.sum()) < _MIN_FRAMES:
            continue
        spectrum, _, agreeing = estimate(kept)
        if agreeing > max(most + _MIN_GAIN, _MIN_AGREEING):
            best, most = spectrum, agreeing
    return best, most


def _floors_db(power: Tensor, spectrum: Tensor) -> Tensor:
    """Return the level of the smallest powers around each frame, relative to N (F,), in dB.

    It is that of the second lowest band, for one band may be a hole.
    """
    floors_db = _band_floors_db(power, spectrum)[1].sort(0).values
    return floors_db[min(1, len(floors_db) - 1)] + _BIAS_DB


def _band_floors_db(power: Tensor, spectrum: Tensor) -> tuple[Tensor, Tensor]:
    """Return which bands are loud enough to have a floor, and their floors (bands, T) in dB."""
    noise = _bands(spectrum).mean(1)
    loud = noise > _MIN_BAND * noise.max()
    ratio = _bands(power / spectrum[:, None])[loud]
    ratio = ratio[:, :: max(1, ratio.shape[1] // _BAND_BINS)]
    near = F.pad(ratio, (_RADIUS, _RADIUS), mode="reflect").unfold(2, 2 * _RADIUS + 1, 1)
    rows = near.transpose(1, 2).flatten(2)  # (bands, T, values)
    return loud, 10 * truncated_mean(rows.flatten(0, 1)).view(rows.shape[:2]).log10()


def _bands(values: Tensor) -> Tensor:
    """Cut the bins (F, …) into equal bands (bands, bins, …)."""
    size = len(values) // _BANDS
    return values[len(values) - size * _BANDS :].reshape(_BANDS, size, *values.shape[1:])


def _widened(values: Tensor) -> Tensor:
    """Return the largest value within the radius."""
    return F.max_pool1d(values[None], 2 * _RADIUS + 1, 1, _RADIUS)[0]


def _long_runs(mask: Tensor, length: int) -> Tensor:
    """Keep the runs of true that are at least so long."""
    values, counts = torch.unique_consecutive(mask, return_counts=True)
    long: Tensor = values & (counts >= length)
    return long.repeat_interleave(counts)


def _covered(inside: Tensor, base: Stft, other: Stft, frames: int) -> Tensor:
    """Say which frames of another transform see only frames of `base` that are inside."""
    radius = max(0, round((other.n_fft - base.n_fft) / 2 / base.hop_length))
    worst = -F.max_pool1d(-inside[None].float(), 2 * radius + 1, 1, radius)[0]
    return worst[base.nearest(other, frames, len(worst))] > 0


def _lowest(estimates: Sequence[Spectrum], transform: Stft) -> Tensor:
    """Return a transform's own estimate, or others that are lower by more than chance."""
    own = [each.density for each in estimates if each.transform.n_fft == transform.n_fft]
    others = [each.at(transform) for each in estimates if each.transform.n_fft != transform.n_fft]
    if not others:
        return own[0]
    lowest = torch.stack(others).amin(0)
    return torch.minimum(own[0], _TOLERANCE * lowest) if own else lowest
