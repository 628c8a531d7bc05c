"""The tests as sound files, and basic-pitch on them, which runs in an environment of its own.

basic-pitch (Apache-2.0) asks for a TensorFlow that no longer installs; its wheel has an ONNX model:

python -m venv VENV; VENV/bin/pip install --no-deps basic-pitch==0.4.0
VENV/bin/pip install onnxruntime librosa mir_eval pretty_midi resampy
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from .data import SAMPLE_RATE, add_noise, chorales, default_cache

__all__ = ["SNRS", "BasicPitch", "chorale_files"]

SNRS = {"clean": np.inf, "10 dB": 10.0}

_PREDICT = """
import sys, numpy as np
from basic_pitch.inference import predict
for path in sys.argv[1:]:
    output, _, notes = predict(path)
    np.savez(path + ".npz", frames=output["note"].T, notes=[note[:3] for note in notes])
"""


def chorale_files(folder: Path) -> Iterator[tuple[str, Path, np.ndarray]]:
    """Yield condition, sound file and notes (start, end, pitch) of chorales of recorded notes."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "notes.json"
    if not table.exists():
        tables = []
        for number, piece in enumerate(chorales(default_cache())):
            for condition, snr_db in SNRS.items():
                noisy = add_noise(piece.sound, snr_db, np.random.default_rng((number, 10)))
                sound = noisy / np.abs(noisy).max()
                soundfile.write(folder / f"{condition}-{number}.wav", sound, SAMPLE_RATE, "FLOAT")
            tables.append([(note.start_s, note.end_s, note.pitch) for note in piece.notes])
        table.write_text(json.dumps(tables))
    for number, notes in enumerate(json.loads(table.read_text())):
        for condition in SNRS:
            yield condition, folder / f"{condition}-{number}.wav", np.array(notes)


class BasicPitch:
    """basic-pitch, with what it does by default; `python` is that of its environment."""

    threshold = 0.3

    def __init__(self, python: str, files: list[Path]) -> None:
        todo = [str(file) for file in files if not Path(f"{file}.npz").exists()]
        if todo:
            subprocess.run([python, "-c", _PREDICT, *todo], check=True, capture_output=True)

    def __call__(self, file: Path) -> tuple[np.ndarray, float, np.ndarray]:
        """Return probabilities (88, T), the seconds of a frame, and notes (start, end, pitch)."""
        with np.load(f"{file}.npz") as content:
            return content["frames"], 256 / 22050, content["notes"]
