"""Noises, half of which move, each with its true power N(f, t).

For noise that is Gaussian the truth is what it was made from: the expectation, not one outcome.
For the others (bubbles, grains, crowds) it is the outcome averaged over 125 Hz and 150 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import signal

from harmonic_lowering.denoise.mask import LearntMask
from harmonic_lowering.denoise.mask_network import NOISE_FRAMES, NOISE_ROWS, merge_bins

from .canvas import Array, Canvas, db, log_uniform, rms
from .rooms import colour, in_room
from .speech import speech

__all__ = ["KINDS", "Noise", "measured_power", "noise"]


@dataclass(frozen=True)
class Noise:
    """A noise and its true power on the network's noise grid, (bands, half as many frames)."""

    waveform: Array
    power: Array

    def __add__(self, other: Noise) -> Noise:
        """Both at once: independent noises add in power."""
        return Noise(self.waveform + other.waveform, self.power + other.power)

    def scaled(self, gain: float) -> Noise:
        """Louder or quieter."""
        return Noise(self.waveform * np.float32(gain), self.power * np.float32(gain) ** 2)

    def unit(self) -> Noise:
        """At a root mean square of 1."""
        return self.scaled(1 / (rms(self.waveform) + 1e-9))


def noise(random: np.random.Generator, canvas: Canvas, kind: str) -> Noise:
    """Draw a noise of one of the `KINDS`, of unit root mean square.

    Raises
    ------
    KeyError
        If there is no such kind.
    """
    made = KINDS[kind](random, canvas)
    if random.random() < 0.25:  # over a second one
        under = str(random.choice(["still", "moving", "grains"]))
        made = made.unit() + KINDS[under](random, canvas).unit().scaled(db(random.uniform(-14, 0)))
    return made.unit()


def measured_power(waveform: Array, canvas: Canvas) -> Array:
    """Power of one outcome on the noise grid, averaged over 8 rows and 9 frames."""
    spectrum = LearntMask.transform(canvas.sample_rate)(torch.from_numpy(waveform))
    rows = merge_bins(spectrum.abs().square()[None])
    bands = F.avg_pool2d(rows, (NOISE_ROWS, 1))
    bands = F.avg_pool2d(bands, (1, 9), 1, (0, 4), count_include_pad=False)
    return F.avg_pool2d(bands, (1, NOISE_FRAMES), ceil_mode=True)[0].numpy()


def gaussian(random: np.random.Generator, canvas: Canvas, level_db: Array) -> Noise:
    """Gaussian noise whose level is given in dB over the canvas's grid (bins, frames)."""
    level_db = level_db - level_db.max()
    gain = db(np.clip(level_db, -110, 0))
    gain = np.broadcast_to(gain, (len(canvas.frequency), canvas.frames))
    return Noise(canvas.filtered(canvas.white(random), gain), _expected_power(gain, canvas))


def _expected_power(gain: Array, canvas: Canvas) -> Array:
    """E|X|² on the noise grid, of white noise that was filtered by `gain`."""
    transform = LearntMask.transform(canvas.sample_rate)
    # A frame of the network's transform lasts eight of the canvas's, its bin is half as wide.
    power = torch.from_numpy(np.asarray(gain, np.float32)).square()
    fine = merge_bins(power.repeat_interleave(2, 0)[: transform.bins])
    window = torch.hann_window(13)[1:-1].square()
    spread = F.pad(fine[:, None], (5, 5), mode="replicate")
    spread = F.conv1d(spread, (window / window.sum())[None, None])[:, 0]
    bands = F.avg_pool2d(spread[None], (NOISE_ROWS, 1))[0]
    count = -(-transform.frames(canvas.length) // NOISE_FRAMES)
    index = (4 * torch.arange(count) + 1).clamp_max(bands.shape[1] - 1)
    per_bin = canvas.sample_rate / 16000 * 3 / 8 * transform.n_fft
    return (bands[:, index] * per_bin).numpy()


# Levels over frequency and time, in dB ---------------------------------------------------------


def _spectrum(random: np.random.Generator, canvas: Canvas) -> Array:
    """Level over frequency, (bins, 1): slopes, curves, bands with edges of any steepness, bumps."""
    octaves = np.log2(np.maximum(canvas.frequency, 40) / 1000)
    slope = random.choice([0, random.uniform(-7, 2), random.uniform(-4, 0)])
    knots = np.linspace(-5, 4.6, int(random.integers(4, 16)))
    wave = np.interp(octaves[:, 0], knots, random.normal(size=len(knots)))[:, None]
    level = slope * octaves + random.uniform(0, 5) * wave
    if random.random() < 0.5:
        exact = np.log2(np.maximum(canvas.frequency, 5) / 1000)
        low = np.log2(log_uniform(random, 20, 600) / 1000)
        high = max(low + 0.5, np.log2(log_uniform(random, 150, canvas.nyquist) / 1000))
        level = level * random.uniform(0.2, 1)
        level = level - random.choice([6, 12, 24, 60]) * np.maximum(0, exact - high)
        level = level - random.choice([3, 12, 24, 60]) * np.maximum(0, low - exact)
    for _ in range(random.integers(0, 3)):
        level = level + random.uniform(-8, 14) * _bump(octaves, random.uniform(-3, 4), random)
    return level


def _bump(octaves: Array, centre: float | Array, random: np.random.Generator) -> Array:
    return np.exp(-0.5 * ((octaves - centre) / random.uniform(0.05, 0.8)) ** 2)


def _swell(random: np.random.Generator, canvas: Canvas) -> Array:
    """Level over time: slow and quick curves, events that rise and decay, flutter."""
    level = np.zeros(canvas.frames)
    for _ in range(random.integers(1, 3)):
        level = level + canvas.curve(random, log_uniform(random, 0.2, 5), random.uniform(2, 10))
    if random.random() < 0.35:
        loud = np.full(canvas.frames, 10 ** (random.uniform(-25, -6) / 10))
        now, gap = random.uniform(-0.8, 0.8), random.uniform(0.2, 3)
        while now < canvas.seconds:
            rise, fall = log_uniform(random, 0.05, 1.5), log_uniform(random, 0.2, 2)
            since = canvas.time - now
            event = np.exp(-2 * np.abs(since) / np.where(since < 0, rise, fall))
            loud = np.maximum(loud, 10 ** (random.normal() * 0.4) * event)
            now += random.exponential(gap)
        level = level + 10 * np.log10(loud + 1e-6)
    if random.random() < 0.15:
        level = level + random.uniform(1, 6) * np.sin(
            2 * np.pi * random.uniform(3, 25) * canvas.time + random.uniform(0, 6)
        )
    return np.clip(level, -30, 25)


# The kinds -------------------------------------------------------------------------------------


def _still(random: np.random.Generator, canvas: Canvas) -> Noise:
    return gaussian(random, canvas, _spectrum(random, canvas))


def _white(random: np.random.Generator, canvas: Canvas) -> Noise:
    return gaussian(random, canvas, np.zeros_like(canvas.frequency))


def _moving(random: np.random.Generator, canvas: Canvas) -> Noise:
    """Surf, traffic, a fan that turns: a spectrum that swells, and is brighter when louder."""
    octaves = np.log2(np.maximum(canvas.frequency, 40) / 1000)
    swell = _swell(random, canvas)
    level = _spectrum(random, canvas) + swell
    if random.random() < 0.7:
        tilt = random.uniform(-0.1, 0.4) * swell
        tilt = tilt + canvas.curve(random, random.uniform(0.2, 3), random.uniform(0, 2))
        level = level + tilt * octaves
    if random.random() < 0.4:  # a resonance that wanders
        centre = canvas.curve(random, random.uniform(0.3, 3), 2)
        level = level + random.uniform(4, 15) * _bump(octaves, centre, random)
    if random.random() < 0.3:  # bands that move each on their own
        bands = np.stack(
            [canvas.curve(random, random.uniform(0.15, 1), random.uniform(1, 6)) for _ in range(9)]
        )
        place = np.clip((octaves[:, 0] + 5) / 9.6 * 8, 0, 7.999)
        left, part = place.astype(int), (place % 1)[:, None]
        level = level + bands[left] * (1 - part) + bands[left + 1] * part
    return gaussian(random, canvas, level)


def _gusts(random: np.random.Generator, canvas: Canvas) -> Noise:
    """Wind: a rumble whose corner rises with its level, now and then a whistle."""
    octaves = np.log2(np.maximum(canvas.frequency, 15) / 1000)
    swell = _swell(random, canvas)
    flutter = canvas.curve(random, 0.04, random.uniform(0, 4))
    corner = random.uniform(-4, 1) + random.uniform(0.02, 0.12) * swell
    level = swell + flutter - random.uniform(6, 18) * np.maximum(0, octaves - corner)
    level = level - random.uniform(0, 4) * octaves
    if random.random() < 0.3:
        centre = random.uniform(-1.5, 1.5) + 0.05 * swell + canvas.curve(random, 0.5, 0.1)
        whistle = np.exp(-0.5 * ((octaves - centre) / random.uniform(0.03, 0.15)) ** 2)
        level = level + random.uniform(6, 22) * whistle
    return gaussian(random, canvas, level)


def _grains(random: np.random.Generator, canvas: Canvas) -> Noise:
    """Gaussian noise with log-normal grain of a few bins by a few frames: leaves, gravel, foam."""
    level = _spectrum(random, canvas)
    if random.random() < 0.75:
        level = level + _swell(random, canvas)
    tall, long = int(random.integers(1, 9)), int(random.integers(1, 16))
    rows, columns = len(canvas.frequency), canvas.frames
    grain = random.normal(size=(rows // tall + 1, columns // long + 1))
    grain = np.repeat(np.repeat(grain, tall, 0), long, 1)[:rows, :columns]
    return gaussian(random, canvas, level + grain * random.uniform(2, 9))


def _bubbles(random: np.random.Generator, canvas: Canvas) -> Noise:
    """Resonators struck at random: rain, brooks, applause, rattling; the rate swells."""
    low = log_uniform(random, 50, 1500)
    high = low * log_uniform(random, 2, 40)
    rate = log_uniform(random, 3, 300)  # strikes of each resonator in a second; fewer are drums
    sharpness, spread = log_uniform(random, 0.7, 60), random.uniform(0.2, 1.3)
    slope = random.uniform(-1.2, 0.4)
    swell = np.zeros(canvas.frames)
    if random.random() < 0.8:
        swell = _swell(random, canvas)
    envelope = canvas.stretched(db(swell - swell.max()))
    sound = np.zeros(canvas.length)
    for _ in range(int(random.integers(12, 50))):
        centre = min(log_uniform(random, low, high), 0.47 * canvas.sample_rate)
        struck = random.integers(0, canvas.length, max(1, random.poisson(rate * canvas.seconds)))
        strength = random.normal(size=len(struck)) * np.exp(
            random.normal(size=len(struck)) * spread
        )
        drive = np.bincount(struck, strength * envelope[struck], canvas.length)
        width = centre / (sharpness * np.exp(random.normal() * 0.4))
        radius = np.exp(-np.pi * width / canvas.sample_rate)
        turn = 2 * radius * np.cos(2 * np.pi * centre / canvas.sample_rate)
        ringing = signal.lfilter([1 - radius], [1, -turn, radius**2], drive)
        sound += ringing * (centre / 500) ** slope
    return _outcome(random, canvas, sound.astype(np.float32))


def _crackle(random: np.random.Generator, canvas: Canvas) -> Noise:
    """Sparse impulses of a colour over a quiet hiss: records, fires."""
    rate = log_uniform(random, 5, 2000)
    struck = random.integers(0, canvas.length, max(1, random.poisson(rate * canvas.seconds)))
    strength = random.normal(size=len(struck)) * np.exp(random.normal(size=len(struck)))
    clicks = np.bincount(struck, strength, canvas.length).astype(np.float32)
    shape = db(np.clip(_spectrum(random, canvas), -80, 40))
    sound = canvas.filtered(clicks, np.broadcast_to(shape, (len(shape), canvas.frames)))
    hiss = _still(random, canvas).unit().scaled(db(random.uniform(-25, 5)))
    return _outcome(random, canvas, sound).unit() + hiss


def _crowd(random: np.random.Generator, canvas: Canvas) -> Noise:
    """Many weak voices in a room: a few talkers, each heard many times over at other moments."""
    talkers = [speech(random, canvas) for _ in range(int(random.integers(3, 6)))]
    sound = np.zeros(canvas.length, np.float32)
    for _ in range(int(log_uniform(random, 6, 60))):
        talker = talkers[random.integers(len(talkers))]
        faster = int(random.integers(-3, 4))  # semitones and tempo at once
        place = np.arange(canvas.length) * 2 ** (faster / 12) + random.integers(canvas.length)
        voice = np.interp(place % canvas.length, np.arange(canvas.length), talker)
        sound += (voice * db(random.normal() * 5)).astype(np.float32)
    swell = canvas.curve(random, log_uniform(random, 0.5, 4), random.uniform(0, 5))
    sound = in_room(random, canvas, sound * canvas.stretched(db(swell)), 2.5)
    return _outcome(random, canvas, sound)


def _outcome(random: np.random.Generator, canvas: Canvas, sound: Array) -> Noise:
    """Give a noise whose expectation is not known a colour, and the power that was measured."""
    if random.random() < 0.6:
        sound = canvas.filtered(sound, colour(random, canvas))
    sound = sound.astype(np.float32)
    return Noise(sound, measured_power(sound, canvas))


KINDS: dict[str, Callable[[np.random.Generator, Canvas], Noise]] = {
    "white": _white,
    "still": _still,
    "moving": _moving,
    "gusts": _gusts,
    "grains": _grains,
    "bubbles": _bubbles,
    "crackle": _crackle,
    "crowd": _crowd,
}
