"""What happens between a sound and the microphone: a room, a colour, a band."""

from __future__ import annotations

import numpy as np
from scipy import signal

from .canvas import Array, Canvas, db, log_uniform, rms

__all__ = ["colour", "coloured", "in_room"]


def in_room(random: np.random.Generator, canvas: Canvas, sound: Array, longest_s: float) -> Array:
    """Add a few reflections and a reverberation that decays 60 dB in at most `longest_s`."""
    decay_s = log_uniform(random, 0.1, longest_s)
    length = round(min(1.2 * decay_s, 2.0) * canvas.sample_rate)
    seconds = np.arange(length) / canvas.sample_rate
    tail = random.standard_normal(length) * np.exp(-6.9 * seconds / decay_s)
    tail *= np.minimum(1, seconds / random.uniform(0.002, 0.03))
    # Air and walls take the treble first.
    dark = signal.lfilter([1 - 0.9], [1, -0.9], tail)
    tail = tail * (1 - (mixed := random.uniform(0.2, 1))) + dark * mixed * 2
    tail *= db(random.uniform(-15, 3)) / np.sqrt(np.sum(tail**2) + 1e-12)
    tail[0] += 1
    for _ in range(random.integers(0, 6)):
        tail[round(random.uniform(0.002, 0.04) * canvas.sample_rate) % length] += random.uniform(
            -0.5, 0.5
        )
    return signal.fftconvolve(sound, tail)[: canvas.length].astype(np.float32)


def colour(random: np.random.Generator, canvas: Canvas, strong: float = 1.0) -> Array:
    """Random gain of a microphone, an equaliser, a codec's low-pass, over the grid's bins."""
    frequency = canvas.frequency[:, 0]
    octaves = np.log2(np.maximum(frequency, 30) / 1000)
    knots = np.linspace(-5, 4.6, 10)
    level = strong * np.interp(octaves, knots, random.normal(size=len(knots)) * 2.5)
    level += strong * random.uniform(-2, 2) * octaves
    level -= 12 * np.maximum(0, np.log2(random.uniform(30, 120) / np.maximum(frequency, 1)))
    if random.random() < 0.3:  # nothing above a corner, gently or at once
        corner = log_uniform(random, 2500, 16000)
        level -= random.choice([6, 12, 48]) * np.maximum(
            0, np.log2(np.maximum(frequency, 1) / corner)
        )
    return db(np.clip(level, -100, 40))[:, None]


def coloured(random: np.random.Generator, canvas: Canvas, sound: Array) -> Array:
    """Filter by a random `colour`, at the same root mean square."""
    shaped = canvas.filtered(sound, colour(random, canvas))
    return shaped * np.float32(rms(sound) / (rms(shaped) + 1e-9))
