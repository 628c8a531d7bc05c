"""The noise of a whole recording, of which each segment takes what holds for it.

A segment alone may mislead its estimate: where music fills it, there is no moment of noise alone,
and a floor of its own would jump at its borders. So stretches spread over the recording are
estimated first. Their states that are the same noise are one state of the recording, made of the
lowest, as signal can only raise an estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..spectral import Stft, binary_scale
from .noise_model import NoiseModel, NoiseState, Spectrum

__all__ = ["RecordingNoise"]

_PREVAILING = 0.4  # share of a stretch that a state lasts, unless it is a gate or a pause
_SHARE = 3  # a state is the mean of the lowest third of those that agree
_MOST_RATIO = 2.0**30  # of amplitudes in one recording; beyond, squares may leave their range


@dataclass(frozen=True)
class _State:
    """A state of the recording, and the times in seconds where it was found."""

    noise: NoiseState
    times: Sequence[float]


@dataclass(frozen=True)
class RecordingNoise:
    """The states of the noise of each channel, none where nothing is known.

    They are those of the recording divided by `scale`.
    """

    channels: Sequence[Sequence[_State]]
    scale: float = 1.0
    time: float = field(default=0.0, kw_only=True)

    @classmethod
    def of(
        cls,
        stretches: Iterable[tuple[float, Tensor]],
        sample_rate: int,
        windows_s: Sequence[float],
        prepare: Callable[[Tensor], Tensor] = lambda samples: samples,
    ) -> RecordingNoise:
        """Estimate it from stretches: the time of each in seconds, and its samples (C, L).

        `prepare` is what is done to a segment before.
        """
        found: list[list[tuple[float, NoiseState]]] = []
        scale = 0.0
        base: Stft | None = None
        for time, samples in stretches:
            loudest = float(samples.abs().max())
            own = binary_scale(loudest)
            scale = scale or (own if loudest else 0.0)
            if not loudest or not 1 / _MOST_RATIO < own / scale < _MOST_RATIO:
                continue
            found = found or [[] for _ in samples]
            for channel, states in zip(prepare(samples / own), found, strict=True):
                if bool(channel.any()):
                    model = NoiseModel.of(channel, sample_rate, windows_s)
                    base = model.base
                    factor = (own / scale) ** 2
                    states += [
                        (time, state.scaled(factor))
                        for index, state in enumerate(model.states)
                        if float((model.state == index).float().mean()) >= _PREVAILING
                    ]
        return cls([_merged(states, base) for states in found] if base else [], scale)

    def scaled(self, factor: float) -> RecordingNoise:
        """Return the noise of the recording times a factor."""
        return replace(self, scale=self.scale * factor)

    def at(self, time: float) -> RecordingNoise:
        """Return the noise for use at a time in seconds."""
        return replace(self, time=time)

    def states(self, index: int) -> list[NoiseState]:
        """Return the states of a channel, the nearest first."""
        if not self.channels or not 1 / _MOST_RATIO < self.scale < _MOST_RATIO:
            return []

        def distance(state: _State) -> float:
            return min(abs(time - self.time) for time in state.times)

        ordered = sorted(self.channels[index], key=distance)
        return [state.noise.scaled(self.scale**2) for state in ordered]


def _merged(found: Sequence[tuple[float, NoiseState]], base: Stft) -> list[_State]:
    """Join the states that are the same noise; those that may be music make none."""
    certain = [each for each in found if each[1].is_steady]
    if not certain:
        certain = sorted(found, key=lambda each: _level(each[1], base))[:1]
    groups: list[list[tuple[float, NoiseState]]] = []
    for time, state in sorted(certain, key=lambda each: _level(each[1], base)):
        for group in groups:
            if not state.is_other(group[0][1], base):
                group.append((time, state))
                break
        else:
            groups.append([(time, state)])
    return [
        _State(
            _mean([state for _, state in group[: -(-len(group) // _SHARE)]]),
            [time for time, _ in group],
        )
        for group in groups
    ]


def _level(state: NoiseState, base: Stft) -> float:
    return float(state.at(base).log().mean())


def _mean(states: Sequence[NoiseState]) -> NoiseState:
    """Return the mean in dB of each transform's estimates."""
    by_size: dict[int, list[Spectrum]] = {}
    for state in states:
        for spectrum in state.spectra:
            by_size.setdefault(spectrum.transform.n_fft, []).append(spectrum)
    spectra = [
        replace(each[0], density=torch.stack([one.density.log() for one in each]).mean(0).exp())
        for each in by_size.values()
    ]
    return replace(states[0], spectra=spectra)
