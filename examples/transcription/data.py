"""Training clips: scores and chance, played by soundfonts and recorded notes, in rooms and noise.

python -m examples.transcription.data --clips 224

A clip follows from its number alone, so an interrupted run goes on where it was. What it is made of
comes from packages, see benchmarks/learning/data.py and band.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.learning.band import SECONDS, Band, Voice, record
from benchmarks.learning.data import Note, default_cache
from benchmarks.learning.scores import read_scores
from harmonic_lowering.transcribe.network import vqt_levels


def from_score(random: np.random.Generator, scores: list[list[Voice]]) -> list[Voice]:
    """Return a stretch of a piece, at a tempo that its note lengths suggest."""
    parts = scores[random.integers(len(scores))]
    median = np.median([length for part in parts for _, length, _ in part])
    quarter_s = random.uniform(0.22, 0.75) / median
    last = max(start for part in parts for start, _, _ in part)
    begin = random.uniform(0, max(1e-3, last - SECONDS / quarter_s))
    shift, legato = int(random.integers(-6, 7)), random.uniform(0.75, 1)
    return [
        [
            ((start - begin) * quarter_s + random.normal(0, 0.01), length * quarter_s * legato,
             pitch + shift)
            for start, length, pitch in part
            if begin <= start < begin + SECONDS / quarter_s
        ]
        for part in parts
    ]  # fmt: skip


def by_chance(random: np.random.Generator) -> list[Voice]:
    """Return voices that wander, some in parallel at an octave or a fifth."""
    voices: list[Voice] = []
    for _ in range(random.integers(1, 7)):
        if voices and random.random() < 0.25:
            interval = int(random.choice((-24, -12, 7, 12, 19, 24)))
            doubled = voices[random.integers(len(voices))]
            voices.append([(start, length, pitch + interval) for start, length, pitch in doubled])
            continue
        centre, pace = random.uniform(36, 90), random.uniform(0.12, 1.2)
        time, pitch, voice = random.uniform(0, 2), centre, []
        while time < SECONDS:
            length = pace * random.choice((0.5, 1, 1, 1, 2, 3)) * random.uniform(0.9, 1.1)
            pitch += random.normal(0, 4) + 0.3 * (centre - pitch)
            if random.random() < 0.85:
                voice.append((time, length * random.uniform(0.6, 1), round(pitch)))
            time += length
        voices.append(voice)
    return voices


def make(number: int, band: Band, scores: list[list[Voice]]) -> tuple[np.ndarray, list[Note]]:
    """Return the sound of a clip, and its notes."""
    random = np.random.default_rng(number)
    voices = from_score(random, scores) if random.random() < 0.6 else by_chance(random)
    sound, notes = band.play(random, voices)
    return record(random, sound), notes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("transcription"))
    parser.add_argument("--clips", type=int, default=224)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--debs", type=Path, help="folder with Debian packages, not apt-get")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clips = arguments.folder / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    scores = read_scores(arguments.folder / "scores.json")
    band = Band(arguments.cache, arguments.debs)
    for number in range(arguments.clips):
        file = clips / f"{number:05d}.npz"
        if file.exists():
            continue
        sound, notes = make(number, band, scores)
        level = vqt_levels(torch.from_numpy(sound)).numpy().astype(np.float16)
        table = np.array([(n.start_s, n.end_s, n.pitch) for n in notes], np.float32)
        part = file.with_suffix(".part.npz")
        np.savez(part, level=level, notes=table.reshape(-1, 3))
        part.rename(file)
        if number % 20 == 0:
            print(f"clip {number} of {arguments.clips}", flush=True)


if __name__ == "__main__":
    main()
