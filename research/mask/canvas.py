"""What all generators draw on: a stretch of time, random curves over it, filters that move."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Array", "Canvas", "db", "log_uniform", "rms", "unit"]

Array = NDArray[np.float32]
_FRAME_S = 0.008
_OVERLAP = 4  # windows over each sample, so 32 ms long
_PULSE_TAPS = 32
_BLOCK = 256  # samples, of the product that sums damped sines


@dataclass(frozen=True)
class Canvas:
    """A clip of `seconds` at `sample_rate`, with a grid of 8 ms by about 31 Hz for its curves.

    Random numbers always come from the caller, so that a seed is a sound.
    """

    sample_rate: int
    seconds: float = 4.0

    @property
    def length(self) -> int:
        """Samples of the clip."""
        return round(self.seconds * self.sample_rate)

    @property
    def hop(self) -> int:
        """Samples between frames of the grid."""
        return round(_FRAME_S * self.sample_rate)

    @property
    def frames(self) -> int:
        """Frames of the grid."""
        return 1 + self.length // self.hop

    @property
    def nyquist(self) -> float:
        """Half the sample rate in Hz."""
        return self.sample_rate / 2

    @cached_property
    def frequency(self) -> NDArray[np.float64]:
        """Hz of the grid's bins, as a column."""
        return np.fft.rfftfreq(_OVERLAP * self.hop, 1 / self.sample_rate)[:, None]

    @cached_property
    def time(self) -> NDArray[np.float64]:
        """Seconds of the grid's frames."""
        return np.arange(self.frames) * self.hop / self.sample_rate

    @cached_property
    def _window(self) -> torch.Tensor:
        return torch.hann_window(_OVERLAP * self.hop)

    def frame_at(self, seconds: float) -> int:
        """Nearest frame, inside the clip."""
        return int(np.clip(round(seconds * self.sample_rate / self.hop), 0, self.frames))

    def curve(self, random: np.random.Generator, spacing_s: float, deviation: float) -> Array:
        """Smooth random curve over the frames, with a knot every `spacing_s`."""
        return smooth_curve(random, self.frames, spacing_s / _FRAME_S, deviation)

    def stretched(self, curve: Array) -> Array:
        """From frames to samples."""
        place = np.arange(self.length) / self.hop
        return np.interp(place, np.arange(len(curve)), curve).astype(np.float32)

    def white(self, random: np.random.Generator) -> Array:
        """White noise whose power per Hz does not depend on the sample rate (1 at 16 kHz)."""
        noise = random.standard_normal(self.length, dtype=np.float32)
        return noise * np.float32(np.sqrt(self.sample_rate / 16000))

    def filtered(self, sound: Array, gain: Array) -> Array:
        """Filter by a gain over the grid (bins, frames), or constant in time (bins, 1)."""
        spectrum = torch.stft(
            torch.from_numpy(np.ascontiguousarray(sound, np.float32)),
            _OVERLAP * self.hop,
            self.hop,
            window=self._window,
            return_complex=True,
        )
        spectrum *= torch.from_numpy(np.asarray(gain, np.float32))
        shaped = torch.istft(
            spectrum, _OVERLAP * self.hop, self.hop, window=self._window, length=len(sound)
        )
        return np.asarray(shaped.numpy())

    def pulses(self, positions: Array, amplitudes: Array) -> Array:
        """Band-limited impulses at fractional sample positions.

        At the periods of a pitch they hold all its harmonics up to the Nyquist frequency, at the
        same level, whatever the pitch does: the excitation of a voice, a string, a reed.
        """
        inside = (positions > 0) & (positions < self.length - 1)
        positions, amplitudes = positions[inside], amplitudes[inside]
        first = np.floor(positions).astype(np.int64) - _PULSE_TAPS // 2 + 1
        taps = first[:, None] + np.arange(_PULSE_TAPS)
        distance = taps - positions[:, None]
        values = np.sinc(distance) * np.cos(np.pi * distance / (_PULSE_TAPS + 2)) ** 2
        values *= amplitudes[:, None]
        within = (taps >= 0) & (taps < self.length)
        train = np.bincount(taps[within], values[within], minlength=self.length)
        return train.astype(np.float32)

    def periods(self, random: np.random.Generator, pitch_hz: Array) -> NDArray[np.float64]:
        """Sample positions of the periods of a pitch that is given for each sample."""
        phase = np.cumsum(np.asarray(pitch_hz, np.float64)) / self.sample_rate + random.uniform()
        whole = np.arange(np.ceil(phase[0]), phase[-1])
        return np.interp(whole, phase, np.arange(len(phase)))


def damped_sines(
    frequency_hz: Array, decay: Array, amplitude: Array, length: int, sample_rate: int
) -> Array:
    r"""Sum of decaying sines, :math:`Σ_k \mathrm{Re}\, a_k e^{(−d_k + 2πi f_k) n / r}`.

    Written as a product of two small matrices, n = 256 j + b: all partials of a struck string
    cost as much as a few copies of the sound.
    """
    rate = (-np.asarray(decay) + 2j * np.pi * np.asarray(frequency_hz)) / sample_rate
    blocks = -(-length // _BLOCK)
    coarse = np.exp(np.outer(np.arange(blocks) * _BLOCK, rate)) * amplitude
    fine = np.exp(np.outer(rate, np.arange(_BLOCK)))
    product = coarse.astype(np.complex64) @ fine.astype(np.complex64)
    return product.real.reshape(-1)[:length]


def smooth_curve(
    random: np.random.Generator, count: int, spacing: float, deviation: float
) -> Array:
    """Random curve of `count` points with normal knots every `spacing` points."""
    knots = random.normal(size=max(2, int(count / spacing) + 3)) * deviation
    place = np.arange(count) / spacing + random.uniform()
    left = np.minimum(place.astype(int), len(knots) - 2)
    part = place - left
    part = np.clip(part * part * (3 - 2 * part), 0, 1)
    return (knots[left] * (1 - part) + knots[left + 1] * part).astype(np.float32)


def log_uniform(random: np.random.Generator, low: float, high: float) -> float:
    """Return a random number that is as likely in each octave."""
    return float(np.exp(random.uniform(np.log(low), np.log(high))))


def db(level: float | Array) -> Array:
    """Amplitude of a level in dB."""
    return np.asarray(10.0 ** (np.asarray(level) / 20))


def rms(sound: Array) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))


def unit(sound: Array) -> Array:
    """Scale to a root mean square of 1; silence stays silent."""
    return (sound / (rms(sound) + 1e-9)).astype(np.float32)
