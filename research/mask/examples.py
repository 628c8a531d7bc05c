"""Training examples: a sound, a noise, how loud, and what the recording chain did to both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harmonic_lowering.denoise.mask import LearntMask

from .canvas import Array, Canvas, db, unit
from .music import drone, drums, music
from .noises import Noise, noise
from .rooms import coloured, in_room
from .speech import choir, speech

__all__ = ["NOISES", "SOUNDS", "Batch", "Example", "draw_batch", "draw_example", "draw_sound"]

# How often each is drawn. Of the noises, two thirds move.
SOUNDS = {"speech": 0.4, "music": 0.3, "both": 0.1, "drums": 0.13, "choir": 0.04, "drone": 0.03}
NOISES = {
    "white": 0.12,
    "still": 0.17,
    "moving": 0.2,
    "gusts": 0.1,
    "grains": 0.1,
    "bubbles": 0.15,
    "crackle": 0.04,
    "crowd": 0.12,
}
# Sample rates of a batch and the rate at whose Nyquist frequency its spectrum is cut.
_RATES = (
    (16000, 16000, 0.7),
    (16000, 8000, 0.04),
    (48000, 48000, 0.12),
    (48000, 44100, 0.1),
    (48000, 22050, 0.04),
)
_SILENT = 2e-3


@dataclass(frozen=True)
class Example:
    """A sound and a noise that add up to a recording; the noise's true power on its grid."""

    sound: Array
    noise: Noise


@dataclass(frozen=True)
class Batch:
    """Spectra of examples (B, bins, T) and the true power of their noises (B, H', T')."""

    sound: Tensor
    noise: Tensor
    power: Tensor


def draw_batch(seed: Sequence[int], size: int, seconds: float = 4.0) -> Batch:
    """Return the batch of a seed: the same on every machine with the same libraries.

    One batch has one sample rate, as its spectra have one height.
    """
    random = np.random.default_rng(seed)
    share = np.array([rate[2] for rate in _RATES])
    made_at, heard_at, _ = _RATES[random.choice(len(_RATES), p=share / share.sum())]
    canvas = Canvas(made_at, seconds)
    examples = [draw_example(random, canvas) for _ in range(size)]
    transform = LearntMask.transform(made_at)
    # The transform's bins lie 15.6 Hz apart at any rate, so another rate is a cut.
    bins = LearntMask.transform(heard_at).bins
    sound, other = (
        transform(torch.from_numpy(np.stack(waveforms)))[:, :bins]
        for waveforms in (
            [example.sound for example in examples],
            [example.noise.waveform for example in examples],
        )
    )
    power = torch.from_numpy(np.stack([example.noise.power for example in examples]))
    return Batch(sound, other, power)


def draw_example(
    random: np.random.Generator,
    canvas: Canvas,
    sound_kind: str | None = None,
    noise_kind: str | None = None,
    snr_db: float | None = None,
) -> Example:
    """Draw a sound in noise; what is not given is drawn."""
    sound_kind = sound_kind or _choose(random, SOUNDS)
    noise_kind = noise_kind or _choose(random, NOISES)
    sound = draw_sound(random, canvas, sound_kind)
    if snr_db is None:
        snr_db = random.uniform(-5, 22)
        if random.random() < 0.15:  # nearly clean, or clean
            snr_db = random.uniform(22, 70)
    other = noise(random, canvas, noise_kind).scaled(float(db(-snr_db)))
    if random.random() < 0.12:
        return _through_gate(random, canvas, sound, other)
    return Example(sound, other)


def draw_sound(random: np.random.Generator, canvas: Canvas, kind: str) -> Array:
    """Draw a sound of unit root mean square, with a room and a colour, and now and then an end."""
    while True:
        sound = unit(_dry(random, canvas, kind))
        if random.random() < 0.65:
            sound = in_room(random, canvas, sound, 0.9 if kind == "speech" else 3.0)
        sound = coloured(random, canvas, sound)
        if random.random() < 0.18:  # begins late or stops early
            edge = round(random.uniform(0.1, 0.5) * canvas.length)
            sound[slice(edge) if random.random() < 0.5 else slice(-edge, None)] = 0
        if np.isfinite(sound).all() and sound.std() > _SILENT:
            return unit(sound)


def _dry(random: np.random.Generator, canvas: Canvas, kind: str) -> Array:
    if kind == "speech":
        voice = speech(random, canvas, singing=random.random() < 0.12)
        if random.random() < 0.06:
            voice = voice + speech(random, canvas) * db(random.uniform(-12, 0))
        return voice
    if kind == "both":
        under = music(random, canvas) * db(random.uniform(-18, 4))
        return unit(speech(random, canvas)) + under
    makers = {"music": music, "drums": drums, "choir": choir, "drone": drone}
    return makers[kind](random, canvas)


def _through_gate(
    random: np.random.Generator, canvas: Canvas, sound: Array, other: Noise
) -> Example:
    """What tapes and broadcasts do to sound and noise alike: leaders, gates, fades, steps."""
    level = np.zeros(canvas.frames)
    start = canvas.frame_at(random.uniform(0, 0.8) * canvas.seconds)
    if random.random() < 0.4:
        start = 0
    stop = start + canvas.frame_at(random.uniform(0.15, 1.5))
    level[start:stop] = -random.choice([6, 12, 20, 40, 70])
    width = int(random.choice([1, 5, 25, 125]))
    level = np.convolve(np.pad(level, width, mode="edge"), np.ones(width) / width, "same")
    gain = db(level[width:-width])
    samples = canvas.stretched(gain)
    # The noise's grid has a value for 32 ms, the canvas for 8.
    index = np.minimum(4 * np.arange(other.power.shape[1]) + 1, canvas.frames - 1)
    power = (other.power * gain[index] ** 2).astype(np.float32)
    return Example(sound * samples, Noise(other.waveform * samples, power))


def _choose(random: np.random.Generator, shares: dict[str, float]) -> str:
    return str(
        random.choice(list(shares), p=np.array(list(shares.values())) / sum(shares.values()))
    )
