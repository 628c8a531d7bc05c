"""What happens to recordings besides noise: gates, fades, steps, codecs, clicks; and a bass."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from ..common.ffmpeg import run_ffmpeg
from .recordings import Array

__all__ = ["audible", "clicks", "coded", "dither", "fade", "gate", "saw", "step"]

_LOWEST_E_HZ = 41.2
_CODECS = {
    "mp3": ("mp3", "-c:a libmp3lame -b:a 32k"),
    "opus": ("ogg", "-c:a libopus -b:a 24k"),
    "vorbis": ("ogg", "-c:a libvorbis -q:a 1"),
}


def audible(gain: Array) -> Array:
    """Where a gain leaves enough to judge the sound by: from −12 dB on."""
    return gain >= 10 ** (-12.1 / 20)


def dither(length: int, random: np.random.Generator) -> Array:
    """Return the triangular dither of 16-bit recordings: at most one step."""
    return (random.random(length) - random.random(length)) / 2**15


def gate(clean: Array, sample_rate: int) -> Array:
    """Gain of a gate that shuts in the quietest fifth of the sound, and takes 20 ms for it."""
    level = _smooth(clean**2, sample_rate // 10)
    return _smooth((level > np.quantile(level, 0.2)).astype(float), sample_rate // 50)


def fade(length: int, sample_rate: int, seconds: float = 1.5) -> Array:
    """Gain that falls to −60 dB over the last `seconds`."""
    before_end = np.arange(length, 0, -1) / sample_rate
    return 10 ** (-3 * np.clip(1 - before_end / seconds, 0, 1))


def step(length: int, sample_rate: int) -> Array:
    """Gain that falls by 12 dB in the middle, within 10 ms."""
    lowered = (np.arange(length) >= length // 2).astype(float)
    return 10 ** (-12 / 20 * _smooth(lowered, sample_rate // 100))


def clicks(length: int, sample_rate: int, random: np.random.Generator) -> Array:
    """Twenty clicks a second: noise or ringing that dies within 0.5 to 2.5 ms."""
    sound = np.zeros(length)
    for _ in range(round(20 * length / sample_rate)):
        size = round(random.uniform(0.0005, 0.0025) * sample_rate)
        time = np.arange(size)
        ringing = np.sin(2 * np.pi * random.uniform(0.05, 0.4) * time + random.uniform(0, 6.3))
        wave = ringing if random.random() < 0.5 else random.standard_normal(size)
        start = int(random.integers(length - size))
        decay = np.exp(-3 * time / size)
        sound[start : start + size] += random.lognormal(0, 0.5) * decay * wave
    return sound


def saw(length: int, sample_rate: int) -> Array:
    """Return a sawtooth of 41.2 Hz, without aliases."""
    phase = 2 * np.pi * _LOWEST_E_HZ * np.arange(length) / sample_rate
    partials = range(1, int(0.45 * sample_rate / _LOWEST_E_HZ))
    return np.sum([np.sin(k * phase) / k for k in partials], axis=0)


def coded(sound: Array, sample_rate: int, codec: str) -> Array:
    """Encode and decode one channel with ffmpeg; the result has the length and no delay."""
    suffix, options = _CODECS[codec]
    raw = f"-f f32le -ar {sample_rate} -ac 1".split()
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / f"sound.{suffix}")
        run_ffmpeg([*raw, "-i", "-", *options.split(), file], sound.astype("<f4").tobytes())
        decoded = np.frombuffer(run_ffmpeg(["-i", file, *raw, "-"]), "<f4").astype(float)
    return np.pad(decoded[: len(sound)], (0, max(0, len(sound) - len(decoded))))


def _smooth(values: Array, width: int) -> Array:
    window = np.hanning(width + 2)
    edges = np.pad(values, width, mode="edge")
    return np.convolve(edges, window / window.sum(), "same")[width:-width]
