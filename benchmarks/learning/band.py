"""Musicians and rooms for training: soundfonts, recorded notes, echo, equaliser and noise.

No instrument or package of the recorded notes here is one of `data.RECORDED`, which are for tests.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr

from ..common.packages import unpack_debian, unpack_npm
from .data import SAMPLE_RATE, Note, SoundFont

SECONDS = 20.0  # that are played
# Debian packages, and the soundfonts in them: MIT and GPL-2.
FONTS = {
    "fluid-soundfont-gm": "usr/share/sounds/sf2/FluidR3_GM.sf2",
    "timgm6mb-soundfont": "usr/share/sounds/sf2/TimGM6mb.sf2",
}
RECORDED = (
    "trombone", "tuba", "harp", "harmonium", "organ", "guitar-acoustic", "guitar-electric",
    "contrabass", "bass-electric",
)  # fmt: skip
# General MIDI programs with a pitch, and for how many seconds those are heard that decay.
SUSTAINED = (*range(16, 24), *range(40, 45), *range(48, 51), 52, 53, *range(56, 83), 109)
DECAYING = {
    **dict.fromkeys((*range(8), *range(24, 31)), 2.5),
    **dict.fromkeys((*range(32, 40), 45, 46, *range(104, 108)), 1.2),
    **dict.fromkeys(range(8, 14), 0.6),
}

Voice = list[tuple[float, float, int]]  # start and length in seconds, pitch


class Recorded:
    """An instrument of recorded notes."""

    def __init__(self, name: str, folder: Path) -> None:
        package = f"tonejs-instrument-{name}-mp3"
        if not (folder / package).is_dir():
            unpack_npm(package, (".mp3",), folder / package)
        names = ["C", "Cs", "D", "Ds", "E", "F", "Fs", "G", "Gs", "A", "As", "B"]
        self.files = {
            names.index(file.stem[:-1]) + 12 * (int(file.stem[-1]) + 1): file
            for file in (folder / package).glob("*.mp3")
            if file.stem[:-1] in names
        }

    @cache  # noqa: B019
    def sound(self, pitch: int) -> np.ndarray:
        """Return the nearest recorded note, played faster or slower."""
        nearest = min(self.files, key=lambda other: (abs(other - pitch), other))
        sound, rate = soundfile.read(self.files[nearest], dtype="float32", always_2d=True)
        mono = sound[: 6 * rate].mean(1)
        mono = soxr.resample(mono, rate * 2 ** ((pitch - nearest) / 12), SAMPLE_RATE)
        audible = np.flatnonzero(np.abs(mono) > 0.03 * np.abs(mono).max())
        return mono[max(0, audible[0] - SAMPLE_RATE // 200) : audible[-1]]

    def reaches(self, voice: list[Note]) -> bool:
        lowest, highest = min(self.files) - 3, max(self.files) + 3
        return all(lowest <= note.pitch <= highest for note in voice)

    def play(self, voice: list[Note]) -> tuple[np.ndarray, list[Note]]:
        """Return the sound, and the notes as long as they are heard."""
        release = np.linspace(1, 0, SAMPLE_RATE // 20, dtype=np.float32)
        out, heard = np.zeros(int(SAMPLE_RATE * SECONDS), np.float32), []
        for note in voice:
            start = int(note.start_s * SAMPLE_RATE)
            whole = self.sound(note.pitch)
            wanted = int((note.end_s - note.start_s) * SAMPLE_RATE)
            part = whole[: wanted + len(release)] * (note.velocity / 127)
            part[-len(release) :] *= release[-len(part) :]
            part = part[: len(out) - start]
            out[start : start + len(part)] += part
            end = min(note.end_s, note.start_s + len(whole) / SAMPLE_RATE)
            heard.append(Note(note.start_s, end, note.pitch))
        return out, heard


class Band:
    """Everybody who can play."""

    def __init__(self, folder: Path, debs: Path | None) -> None:
        for package, path in FONTS.items():
            if not (folder / path).is_file():
                unpack_debian(package, [path], folder, debs)
        self.fonts = [SoundFont(folder / path) for path in FONTS.values()]
        self.recorded = [Recorded(name, folder / "npm") for name in RECORDED]

    def play(
        self, random: np.random.Generator, voices: list[Voice]
    ) -> tuple[np.ndarray, list[Note]]:
        """Return a mixture of voices, and its notes."""
        mixture, notes = np.zeros(int(SAMPLE_RATE * SECONDS), np.float32), []
        alike, chosen = random.random() < 0.35, self._choose(random)
        for voice in voices:
            if not alike:
                chosen = self._choose(random)
            real, font, program = chosen
            loudness = random.uniform(45, 105)
            played = [
                Note(start, min(start + max(length, 0.06), SECONDS), pitch,
                     velocity=int(np.clip(loudness + random.normal(0, 10), 25, 127)))
                for start, length, pitch in voice
                if 0 <= start < SECONDS - 0.1 and 21 <= pitch <= 108
            ]  # fmt: skip
            if not played:
                continue
            if real is not None and real.reaches(played):
                sound, played = real.play(played)
            else:
                longest = DECAYING.get(program, math.inf)
                played = [
                    Note(n.start_s, min(n.end_s, n.start_s + longest), n.pitch, 0, n.velocity)
                    for n in played
                ]
                sound = font.play(played, [program], SECONDS).sound
            seconds = sum(note.end_s - note.start_s for note in played)
            level = math.sqrt(float(np.sum(np.square(sound))) / SAMPLE_RATE / seconds)
            mixture += sound * (10 ** (-random.uniform(0, 9) / 20) / max(level, 1e-6))
            notes += played
        return mixture, notes

    def _choose(self, random: np.random.Generator) -> tuple[Recorded | None, SoundFont, int]:
        real = self.recorded[random.integers(len(self.recorded))]
        kinds = (range(4), SUSTAINED, tuple(DECAYING))  # pianos are played most
        program = random.choice(kinds[random.choice(3, p=(0.2, 0.5, 0.3))])
        font = self.fonts[random.integers(len(self.fonts))]
        return real if random.random() < 0.5 else None, font, int(program)


def record(random: np.random.Generator, sound: np.ndarray) -> np.ndarray:
    """Add a room, an equaliser and noise, each to some recordings."""
    count = len(sound)
    frequencies = np.fft.rfftfreq(2 * count, 1 / SAMPLE_RATE)
    spectrum = np.fft.rfft(sound, 2 * count)
    if random.random() < 0.6:
        decay_s = random.uniform(0.1, 0.9)
        time = np.arange(int(SAMPLE_RATE * decay_s)) / SAMPLE_RATE
        room = random.normal(size=len(time)) * 10 ** (-3 * time / decay_s)
        room *= 10 ** (-random.uniform(4, 25) / 20) / np.linalg.norm(room)
        room[0] = 1
        spectrum *= np.fft.rfft(room, 2 * count)
    if random.random() < 0.6:
        gains = np.cumsum(random.normal(0, 3, 9))
        octave = np.log2(np.maximum(frequencies, 31.25) / 31.25)
        spectrum *= 10 ** (np.interp(octave, range(9), gains - gains.mean()) / 20)
    sound = np.fft.irfft(spectrum)[:count]
    if random.random() < 0.6:
        white = np.fft.rfft(random.normal(size=2 * count))
        slope = np.maximum(frequencies, 20) ** -random.uniform(0, 1)
        noise = np.fft.irfft(white * slope)[:count]
        snr_db = random.uniform(3, 40)
        sound += noise * np.sqrt(np.mean(sound**2) / np.mean(noise**2)) * 10 ** (-snr_db / 20)
    return (sound / max(float(np.abs(sound).max()), 1e-6)).astype(np.float32)
