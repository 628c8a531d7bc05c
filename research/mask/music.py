"""Notes, chords, drums and drones of random instruments.

Sustained instruments are pulse trains (all harmonics, whatever the pitch does) through a body;
struck and plucked ones are damped sines (any partials, each with a decay of its own).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .canvas import Array, Canvas, damped_sines, db, log_uniform, smooth_curve, unit

__all__ = ["drone", "drums", "music"]

_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9, 12, 14))
_ROLES = {"melody": 60, "chord": 48, "bass": 33, "arpeggio": 52}  # lowest MIDI note
_HIGHEST_HZ = 4500.0
_SUSTAINED = ("bow", "blow", "reed", "organ", "synthesiser")
_STRUCK = ("pluck", "piano", "bell", "mallet")


@dataclass(frozen=True)
class Note:
    """One note of a part, in seconds, Hz and amplitude."""

    start: float
    lasts: float
    pitch_hz: float
    loudness: float


def music(random: np.random.Generator, canvas: Canvas) -> Array:
    """Return a piece for one to eight instruments, now and then with drums or over a drone."""
    parts = int(random.choice([1, 2, 3, 4, 6, 8], p=[0.18, 0.2, 0.2, 0.2, 0.14, 0.08]))
    beat = random.uniform(0.2, 0.8)
    root, scale = int(random.integers(12)), _SCALES[random.integers(len(_SCALES))]
    tuning = 440 * 2 ** (random.normal() * 0.2 / 12)
    sound = np.zeros(canvas.length, np.float32)
    for _ in range(parts):
        role = str(random.choice(list(_ROLES)))
        notes = _score(random, canvas, role, beat, root, scale, tuning)
        if notes:
            sound += unit(_play(random, canvas, notes)) * db(random.uniform(-14, 0))
    if random.random() < 0.35:
        sound = unit(sound) + drums(random, canvas, beat) * db(random.uniform(-16, 8))
    if random.random() < 0.08:
        sound = unit(sound) + drone(random, canvas) * db(random.uniform(-12, 3))
    return unit(sound)


def drone(random: np.random.Generator, canvas: Canvas) -> Array:
    """Return a tone that lasts: a contrabass, an organ pedal, a tambura, a saw at 30 to 200 Hz."""
    pitch = log_uniform(random, 30, 200)
    notes = [Note(-0.5, canvas.seconds + 1, pitch, 1.0)]
    if random.random() < 0.4:
        notes.append(Note(-0.5, canvas.seconds + 1, pitch * float(random.choice([1.5, 2, 3])), 0.5))
    return unit(_sustained(random, canvas, notes, str(random.choice(_SUSTAINED))))


def drums(random: np.random.Generator, canvas: Canvas, beat: float | None = None) -> Array:
    """Return a drum loop of a few instruments, each with its own pattern and sound."""
    beat = beat or random.uniform(0.2, 0.8)
    sound = np.zeros(canvas.length, np.float32)
    names = random.choice(list(_DRUMS), size=int(random.integers(1, 6)), replace=False)
    for name in names:
        division = beat / int(random.choice([1, 2, 4]))
        likely, level = random.uniform(0.25, 1), random.uniform(-12, 0)
        strike = _DRUMS[str(name)](random, canvas)
        for when in np.arange(random.uniform(-0.2, beat), canvas.seconds, division):
            if random.random() < likely:
                hit = strike(random) * db(level + random.uniform(-9, 0))
                _add(sound, hit.astype(np.float32), round(when * canvas.sample_rate))
    return unit(sound)


def _score(
    random: np.random.Generator,
    canvas: Canvas,
    role: str,
    beat: float,
    root: int,
    scale: tuple[int, ...],
    tuning: float,
) -> list[Note]:
    lengths = {
        "melody": [0.5, 1, 1, 2, 4],
        "chord": [2, 4, 4],
        "bass": [1, 2, 4],
        "arpeggio": [0.5],
    }
    notes: list[Note] = []
    now, degree = random.uniform(-0.5, 0.5), int(random.integers(7))
    while now < canvas.seconds:
        step = beat * float(random.choice(lengths[role]))
        degree = int(np.clip(degree + random.integers(-3, 4), -3, 10))
        if random.random() > 0.12:  # else a rest
            octave = 12 * int(random.integers(2))
            chord = [0, 2, 4, 7][: random.integers(3, 5)] if role == "chord" else [0]
            for above in chord:
                place = degree + above
                key = _ROLES[role] + octave + root + scale[place % 7] + 12 * (place // 7)
                pitch = tuning * 2 ** ((key - 69) / 12)
                loudness = float(db(random.uniform(-8, 0))) / len(chord) ** 0.5
                if pitch < _HIGHEST_HZ:
                    notes.append(Note(now, step * random.uniform(0.8, 1.2), pitch, loudness))
        now += step
    return notes


def _play(random: np.random.Generator, canvas: Canvas, notes: list[Note]) -> Array:
    kind = str(random.choice([*_SUSTAINED, *_STRUCK]))
    play = _sustained if kind in _SUSTAINED else _struck
    return play(random, canvas, notes, kind)


# Sustained -------------------------------------------------------------------------------------


def _sustained(random: np.random.Generator, canvas: Canvas, notes: list[Note], kind: str) -> Array:
    attack = {"bow": (0.03, 0.25), "blow": (0.02, 0.1)}.get(kind, (0.004, 0.05))
    attack_s, release_s = log_uniform(random, *attack), log_uniform(random, 0.03, 0.4)
    voices = int(random.choice([1, 1, 2, 4])) if kind in ("bow", "synthesiser") else 1
    detune = random.uniform(2, 14) / 1200 * np.log(2)
    vibrato = random.uniform(0, 0.008) if kind in ("bow", "blow") and random.random() < 0.7 else 0
    air = {"bow": (-45, -25), "blow": (-40, -15)}.get(kind, (-70, -45))
    swing = 2.0 if kind in ("bow", "blow", "reed") else 0.4  # dB of a slow change in loudness

    positions, amplitudes = [], []
    loudness = np.zeros(canvas.length, np.float32)
    for note in notes:
        envelope, start = _envelope(random, canvas, note, attack_s, release_s, swing)
        if len(envelope) == 0:
            continue
        loudness[start : start + len(envelope)] += envelope
        seconds = np.arange(len(envelope)) / canvas.sample_rate
        for _ in range(voices):
            rate = random.uniform(4.5, 6.5)
            bend = vibrato * np.sin(2 * np.pi * rate * seconds) * np.minimum(1, seconds / 0.3)
            pitch = note.pitch_hz * np.exp(random.normal() * detune + bend)
            periods = canvas.periods(random, pitch)
            strength = np.interp(periods, np.arange(len(envelope)), envelope)
            positions.append(periods + start)
            amplitudes.append(strength / np.sqrt(note.pitch_hz))
            if kind == "reed":  # half a period later, upside down: odd harmonics only
                half = canvas.sample_rate / note.pitch_hz / 2
                positions.append(periods + start + half)
                amplitudes.append(-strength / np.sqrt(note.pitch_hz))
    if not positions:
        return np.zeros(canvas.length, np.float32)
    train = unit(canvas.pulses(np.concatenate(positions), np.concatenate(amplitudes)))
    breath = canvas.white(random) * loudness / (np.abs(loudness).max() + 1e-9)
    return canvas.filtered(train + breath * db(random.uniform(*air)), _body(random, canvas))


def _envelope(
    random: np.random.Generator,
    canvas: Canvas,
    note: Note,
    attack_s: float,
    release_s: float,
    swing_db: float,
) -> tuple[Array, int]:
    """Loudness of a note over the samples that it sounds, and the first of them."""
    start = max(0, round(note.start * canvas.sample_rate))
    stop = min(canvas.length, round((note.start + note.lasts) * canvas.sample_rate))
    seconds = np.arange(start, max(start, stop)) / canvas.sample_rate - note.start
    envelope = np.minimum(1, seconds / attack_s) * np.minimum(1, (note.lasts - seconds) / release_s)
    slow = smooth_curve(random, max(4, int(note.lasts * 20)), 8, swing_db)
    place = np.linspace(0, len(slow) - 1, max(1, len(seconds)))[: len(seconds)]
    envelope = envelope * db(np.interp(place, np.arange(len(slow)), slow)) * note.loudness
    return envelope.astype(np.float32), start


def _body(random: np.random.Generator, canvas: Canvas) -> Array:
    """Gain of an instrument: a tilt, a corner, a few resonances, brightness that may move."""
    octaves = np.log2(np.maximum(canvas.frequency, 30) / 300)
    corner = np.log2(log_uniform(random, 600, 9000) / 300)
    if random.random() < 0.4:
        corner = corner + canvas.curve(random, random.uniform(0.1, 1), random.uniform(0.2, 1.2))
    level = -random.uniform(0, 9) * octaves - random.uniform(6, 24) * np.maximum(
        0, octaves - corner
    )
    for _ in range(random.integers(1, 6)):
        centre, width = random.uniform(-1, 4.5), random.uniform(0.08, 0.6)
        level = level + random.uniform(-6, 14) * np.exp(-0.5 * ((octaves - centre) / width) ** 2)
    return db(np.clip(level, -90, 40))


# Struck and plucked ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Struck:
    """Partials of a struck or plucked instrument, relative to a note's pitch."""

    ratios: Array
    levels_db: Array
    decays: Array  # per second at 300 Hz
    damped: bool
    knock_db: float
    roughness_db: float = 2.0


def _struck(random: np.random.Generator, canvas: Canvas, notes: list[Note], kind: str) -> Array:
    instrument = _struck_instrument(random, kind)
    sound = np.zeros(canvas.length, np.float32)
    for note in notes:
        rings = 2 * note.lasts if instrument.damped else 6.0
        length = round(min(rings, canvas.seconds - note.start) * canvas.sample_rate)
        frequency = note.pitch_hz * instrument.ratios
        heard = frequency < 0.48 * canvas.sample_rate
        if length < 64 or not heard.any():
            continue
        wobble = random.normal(size=heard.sum()) * instrument.roughness_db
        turned = np.exp(2j * np.pi * random.random(heard.sum()))
        tone = damped_sines(
            frequency[heard],
            instrument.decays[heard] * (note.pitch_hz / 300) ** 0.5,
            db(instrument.levels_db[heard] + wobble) * turned,
            length,
            canvas.sample_rate,
        )
        knock = random.standard_normal(length) * np.exp(
            -np.arange(length) / (0.01 * canvas.sample_rate)
        )
        tone = tone + knock * np.abs(tone[:256]).max() * db(instrument.knock_db)
        tone *= np.minimum(1, np.arange(length) / (0.002 * canvas.sample_rate))
        fade = min(length, round(0.05 * canvas.sample_rate))
        tone[length - fade :] *= np.linspace(1, 0, fade)
        _add(
            sound,
            (tone * note.loudness).astype(np.float32),
            round(note.start * canvas.sample_rate),
        )
    return sound


def _struck_instrument(random: np.random.Generator, kind: str) -> _Struck:
    if kind in ("bell", "mallet"):
        count = int(random.integers(3, 12))
        ratios = np.sort(np.r_[1, np.exp(random.uniform(0, 2.6, count - 1))])
        decays = random.uniform(0.5, 6, count) * (1 + 0.4 * np.arange(count))
        decays *= 4 if kind == "mallet" else 1
        levels = random.normal(size=count) * 6 - 3 * np.arange(count)
        return _Struck(ratios, levels, decays, False, random.uniform(-50, -15))
    number = np.arange(1, int(random.integers(6, 60)) + 1)
    stiffness = 10 ** random.uniform(-5, -3.2) if kind == "piano" or random.random() < 0.5 else 0
    plucked_at = random.uniform(0.05, 0.5)  # a string plucked there lacks partials
    comb = 20 * np.log10(np.abs(np.sin(np.pi * number * plucked_at)) + 0.03)
    levels = -random.uniform(10, 36) * np.log10(number) + comb * random.uniform(0.2, 1)
    slow = log_uniform(random, 0.4, 7)
    return _Struck(
        ratios=number * np.sqrt(1 + stiffness * number**2),
        levels_db=levels,
        decays=slow * (1 + random.uniform(0, 0.4) * (number - 1)),
        damped=random.random() < 0.7,
        knock_db=random.uniform(-50, -12),
    )


# Drums -----------------------------------------------------------------------------------------

_Strike = Callable[[np.random.Generator], Array]


def _kick(random: np.random.Generator, canvas: Canvas) -> _Strike:
    seconds = np.arange(round(0.5 * canvas.sample_rate)) / canvas.sample_rate
    low, bend, speed = random.uniform(40, 90), random.uniform(0.5, 4), random.uniform(20, 70)
    phase = 2 * np.pi * np.cumsum(low * (1 + bend * np.exp(-seconds * speed))) / canvas.sample_rate
    sound = np.sin(phase) * np.exp(-seconds * random.uniform(5, 18))
    click = db(random.uniform(-40, -6))

    def strike(random: np.random.Generator) -> Array:
        return sound + click * random.standard_normal(len(seconds)) * np.exp(-seconds * 300)

    return strike


def _skin(random: np.random.Generator, canvas: Canvas) -> _Strike:
    """Return a tom, a conga, a tabla: modes of a membrane, harmonic or not, and a slap of noise."""
    length = round(0.7 * canvas.sample_rate)
    membrane = np.array([1, 1.59, 2.14, 2.3, 2.65, 2.92, 3.16, 3.5, 3.6])
    ratios = np.arange(1, 8) if random.random() < 0.3 else membrane
    frequency = random.uniform(70, 400) * ratios
    decay = random.uniform(4, 16) * (1 + random.uniform(0, 0.5) * np.arange(len(ratios)))
    level = db(random.normal(size=len(ratios)) * 5 - random.uniform(0, 5) * np.arange(len(ratios)))
    noise = _noise_strike(random, canvas, 0.1, (20, 80), (200, 5000))
    amount = db(random.uniform(-30, 0))

    def strike(random: np.random.Generator) -> Array:
        turned = level * np.exp(2j * np.pi * random.random(len(level)))
        sound = damped_sines(frequency, decay, turned, length, canvas.sample_rate)
        slap = noise(random)
        sound[: len(slap)] += slap * amount
        return sound

    return strike


def _snare(random: np.random.Generator, canvas: Canvas) -> _Strike:
    skin = _skin(random, canvas)
    rattle = _noise_strike(random, canvas, 0.35, (10, 35), (300, 12000))

    def strike(random: np.random.Generator) -> Array:
        sound, noise = skin(random) * 0.5, rattle(random)
        sound[: len(noise)] += noise
        return sound

    return strike


def _cymbal(random: np.random.Generator, canvas: Canvas) -> _Strike:
    """Return noise and a dense cloud of high modes; closed hats decay in 30 ms, crashes in 1 s."""
    slow = log_uniform(random, 1.5, 60)
    lasts = min(2.0, 5 / slow)
    count = int(random.integers(20, 120))
    top = min(16000.0, 0.45 * canvas.sample_rate)
    frequency = np.exp(random.uniform(np.log(300), np.log(top), count))
    level = db(random.normal(size=count) * 6 + 6 * np.log2(frequency / 4000).clip(-4, 0))
    decay = slow * random.uniform(0.6, 1.6, count)
    noise = _noise_strike(random, canvas, lasts, (slow, 1.3 * slow), (3000, 18000))
    amount = db(random.uniform(-12, 12))

    def strike(random: np.random.Generator) -> Array:
        sound = noise(random) * amount
        turned = level * np.exp(2j * np.pi * random.random(count))
        sound += damped_sines(frequency, decay, turned, len(sound), canvas.sample_rate) / 6
        return sound

    return strike


def _clap(random: np.random.Generator, canvas: Canvas) -> _Strike:
    return _noise_strike(random, canvas, 0.2, (25, 90), (500, 9000))


def _wood(random: np.random.Generator, canvas: Canvas) -> _Strike:
    """Return a block, a rim, a stick: two or three short modes."""
    count, length = int(random.integers(1, 4)), round(0.15 * canvas.sample_rate)
    frequency = log_uniform(random, 300, 2500) * np.exp(random.uniform(0, 1.2, count))
    decay = random.uniform(25, 120, count)

    def strike(random: np.random.Generator) -> Array:
        turned = np.exp(2j * np.pi * random.random(count))
        return damped_sines(frequency, decay, turned, length, canvas.sample_rate)

    return strike


def _noise_strike(
    random: np.random.Generator,
    canvas: Canvas,
    lasts_s: float,
    decays: tuple[float, float],
    band_hz: tuple[float, float],
) -> _Strike:
    """Return a burst of band-limited noise; its spectrum stays, its samples change."""
    length = round(lasts_s * canvas.sample_rate)
    frequency = np.fft.rfftfreq(length, 1 / canvas.sample_rate)
    low, high = np.sort(np.exp(random.uniform(*np.log(band_hz), 2)))
    spectrum = 1 / (1 + (low / np.maximum(frequency, 1)) ** 4) / (1 + (frequency / (2 * high)) ** 4)
    envelope = np.exp(-np.arange(length) / canvas.sample_rate * random.uniform(*decays))

    def strike(random: np.random.Generator) -> Array:
        noise = np.fft.irfft(np.fft.rfft(random.standard_normal(length)) * spectrum, length)
        return noise / (noise.std() + 1e-9) * envelope

    return strike


_DRUMS: dict[str, Callable[[np.random.Generator, Canvas], _Strike]] = {
    "kick": _kick,
    "skin": _skin,
    "second skin": _skin,
    "snare": _snare,
    "cymbal": _cymbal,
    "hat": _cymbal,
    "clap": _clap,
    "wood": _wood,
}


def _add(sound: Array, part: Array, start: int) -> None:
    """Add `part` at `start`, which may lie before the beginning; what is outside is cut."""
    if start < 0:
        part, start = part[-start:], 0
    part = part[: max(0, len(sound) - start)]
    sound[start : start + len(part)] += part
