"""What the networks read, and the sets of music that they learn from and are tested on."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from harmonic_lowering import VQT
from harmonic_lowering.audio import replacing

from . import data

VERSION = 1  # of the sounds and the features: another one makes them, and every row, anew

HOP = 512
HOP_S = HOP / data.SAMPLE_RATE
LOWEST_NOTE = 36  # C2
N_NOTES = 60
BINS_PER_OCTAVE = 36
BINS_PER_SEMITONE = BINS_PER_OCTAVE // 12
VQT_BINS = 246  # up to 7.3 kHz
STFT_WINDOW = 2048
STFT_BINS = 512  # up to 4 kHz
STFT_BIN_HZ = data.SAMPLE_RATE / STFT_WINDOW
DYNAMIC_RANGE_DB = 60

Feature = Literal["vqt", "stft"]

# General MIDI programs, from 0.
TRAINING = (0, 24, 56, 66, 71, 73)  # piano, guitar, trumpet, tenor saxophone, clarinet, flute
VALIDATION = (6, 42, 64, 69)  # harpsichord, cello, soprano saxophone, cor anglais
UNSEEN = (4, 22, 25, 32, 40, 41, 52, 57, 60, 61, 65, 67, 68, 70, 75, 79)
PIECE_S = 5.0
MOST_TRAINING_S = 1800


@dataclass(frozen=True)
class Example:
    """A recording as the networks see it."""

    spectrogram: Tensor  # (freq, time), 0 … 1, half precision
    roll: Tensor  # (note, time), bool


def spectrogram(sound: np.ndarray, feature: Feature) -> Tensor:
    """Return log magnitudes (freq, time): 1 the loudest bin of the recording, 0 60 dB below it."""
    waveform = torch.from_numpy(sound)
    if feature == "vqt":
        magnitude = _VQT(waveform).abs()
    else:
        window = torch.hann_window(STFT_WINDOW)
        spectrum = torch.stft(
            waveform, STFT_WINDOW, HOP, window=window, pad_mode="constant", return_complex=True
        )
        magnitude = spectrum[:STFT_BINS].abs()
    level_db = 20 * (magnitude / magnitude.max().clamp(min=1e-9)).clamp(min=1e-9).log10()
    return (1 + level_db / DYNAMIC_RANGE_DB).clamp(min=0)


_VQT = VQT(
    sr=data.SAMPLE_RATE,
    hop_length=HOP,
    fmin=440 * 2 ** ((LOWEST_NOTE - 69) / 12),
    n_bins=VQT_BINS,
    bins_per_octave=BINS_PER_OCTAVE,
)


def example(piece: data.Piece, feature: Feature) -> Example:
    picture = spectrogram(piece.sound, feature)
    roll = data.piano_roll(piece.notes, picture.shape[1], HOP_S, LOWEST_NOTE, N_NOTES)
    return Example(picture.half(), torch.from_numpy(roll))


# -------------------------------------------------------------------- the sets


@dataclass(frozen=True)
class Set:
    """Recordings for one purpose."""

    title: str
    pieces: Callable[[Path, Path | None], Iterator[data.Piece]]
    count: int
    snr_db: float = math.inf


def _random(font: str, programs: Sequence[int], count: int, seed: int) -> Callable:
    def pieces(cache: Path, debs: Path | None) -> Iterator[data.Piece]:
        soundfont = _soundfont(data.fetch_soundfont(font, cache, debs))
        return data.random_pieces(soundfont, programs, count, seed, PIECE_S)

    return pieces


@lru_cache(maxsize=1)
def _soundfont(path: Path) -> data.SoundFont:
    return data.SoundFont(path)  # which takes seconds where its samples are compressed


def _chorales(cache: Path, debs: Path | None) -> Iterator[data.Piece]:
    return data.chorales(cache)


_N_TRAINING = int(MOST_TRAINING_S / PIECE_S)
_UNSEEN = _random("musescore", UNSEEN, 36, seed=3)
SETS = {
    "training": Set("training", _random("timgm6mb", TRAINING, _N_TRAINING, seed=1), _N_TRAINING),
    "validation": Set("validation", _random("timgm6mb", VALIDATION, 24, seed=2), 24),
    "B": Set("unseen soundfont and instruments", _UNSEEN, 36),
    "B10": Set("the same, pink noise at 10 dB", _UNSEEN, 36, 10),
    "B0": Set("the same, pink noise at 0 dB", _UNSEEN, 36, 0),
    "R": Set("chorales, real recorded notes", _chorales, len(data.CHORALES)),
    "R10": Set("the same, pink noise at 10 dB", _chorales, len(data.CHORALES), 10),
}
TESTS = ("B", "B10", "B0", "R", "R10")


def load(name: str, feature: Feature, cache: Path, debs: Path | None = None) -> list[Example]:
    """Return the examples of a set, made and kept in `cache` the first time."""
    path = cache / f"learning-{VERSION}" / f"{name}-{feature}.pt"
    if not path.exists():
        made = list(_make(name, feature, cache, debs))
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            torch.save([(one.spectrogram, one.roll) for one in made], part)
    return [Example(*tensors) for tensors in torch.load(path, weights_only=True)]


def _make(name: str, feature: Feature, cache: Path, debs: Path | None) -> Iterator[Example]:
    chosen = SETS[name]
    pieces: Iterable[data.Piece] = chosen.pieces(cache, debs)
    for index, piece in enumerate(tqdm(pieces, name, chosen.count, leave=False, file=sys.stderr)):
        if chosen.snr_db < math.inf:
            random = np.random.default_rng((index, round(chosen.snr_db)))
            noisy = data.add_noise(piece.sound, chosen.snr_db, random)
            piece = data.Piece(noisy, piece.notes, piece.instruments)
        yield example(piece, feature)


def training_pieces(examples: Sequence[Example], seconds: float, seed: int) -> list[Example]:
    """Return `seconds` of the training set: another part of it for every seed, where it lasts."""
    count = round(seconds / PIECE_S)
    start = seed * count
    return [examples[(start + index) % len(examples)] for index in range(count)]
