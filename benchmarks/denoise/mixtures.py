"""Noise, and noise added to a recording at a given level."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from .recordings import NOISES as RECORDED
from .recordings import SAMPLE_RATE, load

NOISES = {
    "white": "the same power at all frequencies",
    "pink": "−3 dB per octave, above 20 Hz",
    "hum": "50 Hz and its multiples up to 2 kHz, falling as 1/k, over pink noise 20 dB lower",
    **{noise.name: noise.what for noise in RECORDED},
}
CLEAN = "none"  # no noise added: does a method leave a clean recording unchanged?


def mixture(clean: np.ndarray, name: str, noise: str, level_db: float, cache: Path) -> np.ndarray:
    """Return the noise to be added to the recording `name`: the same one on every machine.

    `level_db` is the signal-to-noise ratio over the whole excerpt.
    """
    if noise == CLEAN:
        return np.zeros_like(clean)
    random = np.random.default_rng(zlib.crc32(f"{name} {noise}".encode()))
    sound = _noise(noise, len(clean), random, cache)
    sound = sound - sound.mean()
    return sound * (np.linalg.norm(clean) / np.linalg.norm(sound) * 10 ** (-level_db / 20))


def _noise(noise: str, length: int, random: np.random.Generator, cache: Path) -> np.ndarray:
    if noise == "white":
        return random.standard_normal(length)
    if noise == "pink":
        return _pink(length, random)
    if noise == "hum":
        phase = 2 * np.pi * 50 * np.arange(length) / SAMPLE_RATE
        starts = random.uniform(0, 2 * np.pi, 40)
        tones = sum(np.sin(k * phase + start) / k for k, start in enumerate(starts, 1))
        return tones / np.std(tones) + 0.1 * _pink(length, random)
    recorded = next((one for one in RECORDED if one.name == noise), None)
    if recorded is None:
        raise ValueError(f"no noise is called {noise!r}, only {', '.join(NOISES)}")
    sound = load(recorded, cache)
    start = int(random.integers(len(sound)))
    return np.resize(np.roll(sound, -start), length)


def _pink(length: int, random: np.random.Generator) -> np.ndarray:
    spectrum = np.fft.rfft(random.standard_normal(length))
    hertz = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    sound = np.fft.irfft(spectrum * (hertz >= 20) / np.sqrt(np.maximum(hertz, 20)), length)
    return sound / np.std(sound)
