"""Speech-like and sung sounds: a pulse train and noise through a moving vocal tract.

No language is meant: phones of random kinds follow each other with the rhythm, the pitch and the
spectra of speech. What matters to a mask is there: harmonics that glide, formants, pauses,
bursts, fricatives up to the highest frequencies, breath.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import Array, Canvas, db, log_uniform, unit

__all__ = ["choir", "speech"]

# Fricatives: lowest and highest frequency in Hz, level in dB, how often.
_FRICATIVES = (
    (4200, 11000, 0, 0.4),
    (2000, 7500, 0, 0.25),
    (700, 15000, -12, 0.2),
    (900, 6000, -6, 0.15),
)
_PHONES = {
    "fricative": 0.22,
    "plosive": 0.20,
    "none": 0.25,
    "nasal": 0.15,
    "voiced fricative": 0.10,
    "breath": 0.08,
}
_HIGHER_FORMANTS_HZ = np.array([4500, 5600, 6700, 7800, 9000, 11500])


@dataclass
class _Tract:
    """What moves while somebody speaks, over the frames of a canvas."""

    voicing: Array
    breath: Array
    nasal: Array
    accent: Array
    frication: Array  # (bins, frames)
    formant_times: list[float]
    formants_hz: list[Array]


def speech(random: np.random.Generator, canvas: Canvas, singing: bool = False) -> Array:
    """Return one voice, of unit root mean square while it speaks."""
    base_hz = log_uniform(random, 75, 300)
    size = random.uniform(0.85, 1.05) * (1.15 if base_hz > 170 else 1.0)
    tract = _utter(random, canvas, size, random.uniform(2.5, 6.5), singing)
    pitch = _pitch(random, canvas, base_hz, tract, singing)

    periods = canvas.periods(random, canvas.stretched(pitch))
    shimmer = np.exp(random.normal(size=len(periods)) * random.uniform(0, 0.12))
    jitter = (
        random.normal(size=len(periods)) * random.uniform(0, 0.008) * canvas.sample_rate / base_hz
    )
    glottis = canvas.pulses(periods + jitter, shimmer)

    resonance = _resonance(random, canvas, tract, size)
    tilt = (np.maximum(canvas.frequency, 60) / 300) ** -random.uniform(0.4, 1.7)
    voiced = unit(canvas.filtered(glottis, resonance * tilt * _smooth(tract.voicing)))
    if random.random() < 0.04:  # a whisper
        voiced *= 0.03

    # Breath is the same tract excited by noise, stronger above; voices are never without it.
    breathy = np.minimum(resonance * canvas.frequency / 1500, 20)
    amount = 0.15 * tract.breath + tract.voicing * db(random.uniform(-38, -10))
    frication = tract.frication * log_uniform(random, 0.12, 2.5)
    return voiced + canvas.filtered(canvas.white(random), breathy * amount + frication)


def choir(random: np.random.Generator, canvas: Canvas) -> Array:
    """Several voices that sing at once."""
    voices = [speech(random, canvas, singing=True) for _ in range(int(random.integers(2, 5)))]
    return np.sum([voice * db(random.uniform(-8, 0)) for voice in voices], axis=0)


def _utter(
    random: np.random.Generator, canvas: Canvas, size: float, rate: float, singing: bool
) -> _Tract:
    frames = canvas.frames
    tract = _Tract(
        voicing=np.zeros(frames),
        breath=np.zeros(frames),
        nasal=np.zeros(frames),
        accent=np.zeros(frames),
        frication=np.zeros((len(canvas.frequency), frames)),
        formant_times=[-1.0],
        formants_hz=[_vowel(random, size)],
    )
    now = random.uniform(-0.3, 0.4)
    syllables = random.integers(3, 14)
    while now < canvas.seconds + 0.1:
        phone = str(random.choice(list(_PHONES), p=list(_PHONES.values())))
        now = _consonant(random, canvas, tract, phone, now)
        typical = 0.55 / rate * (2.5 if singing else 1)
        lasts = np.clip(random.lognormal(np.log(typical), 0.4), 0.05, 1.2 if singing else 0.5)
        start, stop = canvas.frame_at(now), canvas.frame_at(now + lasts)
        count = stop - start
        if count > 0:
            rise = min(count, int(random.integers(2, 6)))
            fall = min(count, int(random.integers(3, 9)))
            envelope = np.ones(count)
            envelope[:rise] *= np.linspace(0.2, 1, rise)
            envelope[count - fall :] *= np.linspace(1, 0.15, fall)
            tract.voicing[start:stop] = envelope * db(random.uniform(-9, 2))
            tract.accent[start:stop] += np.hanning(count) * random.normal() * 0.1
        tract.formant_times.append(now + lasts * random.uniform(0.1, 0.4))
        tract.formants_hz.append(_vowel(random, size))
        if random.random() < 0.4:  # a diphthong
            tract.formant_times.append(now + lasts * 0.85)
            tract.formants_hz.append(_vowel(random, size))
        now += lasts
        syllables -= 1
        if syllables <= 0:  # a pause, often with a breath taken
            pause = random.uniform(0.1, 0.9)
            if random.random() < 0.3:
                start, stop = canvas.frame_at(now + 0.3 * pause), canvas.frame_at(now + 0.9 * pause)
                tract.breath[start:stop] += np.hanning(stop - start) * db(random.uniform(-20, -6))
            now += pause
            syllables = random.integers(3, 14)
    return tract


def _vowel(random: np.random.Generator, size: float) -> Array:
    low, high = np.array([250, 750, 2200, 3200]), np.array([850, 2300, 3100, 4200])
    return random.uniform(low, high) * size


def _consonant(
    random: np.random.Generator, canvas: Canvas, tract: _Tract, phone: str, now: float
) -> float:
    """Add a consonant that starts at `now`, and say when it ends."""
    if phone in ("fricative", "voiced fricative"):
        end = now + random.uniform(0.05, 0.22)
        start, stop = canvas.frame_at(now), canvas.frame_at(end)
        if stop > start:
            kinds = np.array(_FRICATIVES)
            low, high, level, _ = kinds[random.choice(len(kinds), p=kinds[:, 3])]
            spectrum = _band(
                canvas, low * random.uniform(0.8, 1.2), high * random.uniform(0.8, 1.2)
            )
            envelope = np.sin(np.pi * (np.arange(stop - start) + 0.5) / (stop - start)) ** 0.6
            tract.frication[:, start:stop] += (
                spectrum * envelope * db(level + random.uniform(-12, 3))
            )
            if phone == "voiced fricative":
                tract.voicing[start:stop] = 0.25
        return end
    if phone == "plosive":  # closure, burst, aspiration
        burst = now + random.uniform(0.02, 0.08)
        opened = burst + random.uniform(0.008, 0.02)
        start, stop = (
            canvas.frame_at(burst),
            max(canvas.frame_at(burst) + 1, canvas.frame_at(opened)),
        )
        centre, width = random.uniform(600, 7000), random.uniform(500, 3000)
        spectrum = np.exp(-0.5 * ((canvas.frequency - centre) / width) ** 2)
        tract.frication[:, start:stop] += spectrum * db(random.uniform(-6, 6))
        end = opened + random.uniform(0, 0.06)
        tract.breath[stop : canvas.frame_at(end)] = db(random.uniform(-12, 0))
        return end
    if phone == "nasal":
        end = now + random.uniform(0.04, 0.1)
        start, stop = canvas.frame_at(now), canvas.frame_at(end)
        tract.voicing[start:stop] = 0.5
        tract.nasal[start:stop] = 1
        return end
    if phone == "breath":
        end = now + random.uniform(0.03, 0.08)
        tract.breath[canvas.frame_at(now) : canvas.frame_at(end)] = 0.5
        return end
    return now


def _band(canvas: Canvas, low_hz: float, high_hz: float) -> Array:
    frequency = np.maximum(canvas.frequency, 1)
    return 1 / (1 + (low_hz / frequency) ** 6) / (1 + (frequency / high_hz) ** 6)


def _pitch(
    random: np.random.Generator, canvas: Canvas, base_hz: float, tract: _Tract, singing: bool
) -> Array:
    if singing:
        steps = _smooth(np.round(canvas.curve(random, random.uniform(0.25, 0.6), 4)))
        rate, depth = random.uniform(4.5, 6.5), 0.012 * random.uniform(0.3, 2)
        vibrato = depth * np.sin(2 * np.pi * rate * canvas.time)
        log_pitch = np.log(1.6 * base_hz) + steps * np.log(2) / 12 + vibrato
    else:
        melody = canvas.curve(random, 0.5, 0.12) + canvas.curve(random, 0.12, 0.05)
        log_pitch = np.log(base_hz) + melody + _smooth(tract.accent) - 0.04 * canvas.time
    roughness = 0.012 * random.uniform(0.1, 1) * (3 if random.random() < 0.12 else 1)
    log_pitch = log_pitch + roughness * random.normal(size=canvas.frames)
    return np.clip(np.exp(log_pitch), 55, 900)


def _resonance(random: np.random.Generator, canvas: Canvas, tract: _Tract, size: float) -> Array:
    """Gain of the vocal tract, (bins, frames)."""
    frequency = canvas.frequency
    times = np.array(tract.formant_times)
    tracks = np.array(tract.formants_hz).T
    formants = [_smooth(np.interp(canvas.time, times, track)) for track in tracks]
    bandwidths = np.array([70, 100, 150, 200]) * random.uniform(0.7, 1.5)
    gain = np.ones((len(frequency), canvas.frames))
    for centre, width in zip(formants, bandwidths, strict=True):
        gain *= _pole(frequency, centre, width)
    higher = _HIGHER_FORMANTS_HZ * size * random.uniform(0.95, 1.05, len(_HIGHER_FORMANTS_HZ))
    for centre in higher:
        gain *= _pole(frequency, centre, random.uniform(250, 700))
    # Lips radiate the treble better, and a tract has more poles above those drawn here.
    gain *= (np.maximum(frequency, 50) / 1000) ** random.uniform(-0.3, 0.3)
    gain *= (1 + (frequency / 2500) ** 2) ** random.uniform(0.3, 1.1)
    gain = np.clip(gain, 1e-4, 60)
    return gain * (1 - tract.nasal) + tract.nasal * 4 / (1 + (frequency / 350) ** 2)


def _pole(frequency: Array, centre: float | Array, width: float) -> Array:
    ratio = frequency / centre
    return 1 / np.sqrt((ratio**2 - 1) ** 2 + (ratio * width / centre) ** 2)


def _smooth(track: Array) -> Array:
    """Average over about 40 ms: articulators do not jump."""
    kernel = np.hanning(9)[1:-1]
    padded = np.pad(track, 3, mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), "valid")
