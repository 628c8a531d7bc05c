"""Score the network on Bach's chorales played with recorded notes, which no training saw.

python -m examples.transcription.evaluate [--peer PYTHON]

PYTHON is that of an environment with basic-pitch (see benchmarks/learning/peers.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import mir_eval
import numpy as np
import soundfile
import torch
from sklearn.metrics import average_precision_score

from benchmarks.learning.data import Note, piano_roll
from benchmarks.learning.peers import SNRS, BasicPitch, chorale_files
from harmonic_lowering.transcribe import Transcriber
from harmonic_lowering.transcribe.network import FRAME_S, LOWEST, PITCHES, vqt_levels

Result = tuple[np.ndarray, float, np.ndarray]  # probabilities, seconds of a frame, notes


class Ours:
    def __init__(self, weights: Path | None, **thresholds: float) -> None:
        self.transcriber = Transcriber.load(weights, **thresholds)
        self.threshold = self.transcriber.frame

    @torch.no_grad()
    def __call__(self, file: Path) -> Result:
        sound, rate = soundfile.read(file, dtype="float32")
        found = self.transcriber(torch.from_numpy(sound), rate).notes
        levels = vqt_levels(torch.from_numpy(sound))
        frames = self.transcriber.network(levels[None])[0, 0].sigmoid().numpy()
        notes = [(note.start_s, note.end_s, note.pitch) for note in found]
        return frames, FRAME_S, np.array(notes).reshape(-1, 3)


def note_f1(truth: np.ndarray, found: np.ndarray) -> list[float]:
    """Return the F1 of notes by their onsets, within 50 ms, and by onsets and ends."""
    if not len(found):
        return [0.0, 0.0]
    arguments = []
    for table in (truth, found):
        arguments += [table[:, :2], 440 * 2 ** ((table[:, 2] - 69) / 12)]
    score = mir_eval.transcription.precision_recall_f1_overlap
    return [score(*arguments, offset_ratio=ratio)[2] for ratio in (None, 0.2)]


def frame_f1(truth: np.ndarray, found: np.ndarray) -> float:
    return float(2 * (truth & found).sum() / max(truth.sum() + found.sum(), 1))


def scores(
    model: Callable[[Path], Result], threshold: float, tests: list[tuple[Path, np.ndarray]]
) -> list[float]:
    """Return AP and F1 of frames, and the F1 of notes by onsets and by both ends."""
    truths, probabilities, notes = [], [], []
    for file, truth in tests:
        frames, frame_s, found = model(file)
        played = [Note(start, end, int(pitch)) for start, end, pitch in truth]
        truths.append(piano_roll(played, frames.shape[1], frame_s, LOWEST, PITCHES).ravel())
        probabilities.append(frames.ravel())
        notes.append(note_f1(truth, found))
    truth, probability = np.concatenate(truths), np.concatenate(probabilities)
    average_precision = float(average_precision_score(truth, probability))
    return [average_precision, frame_f1(truth, probability >= threshold), *np.mean(notes, 0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("transcription"))
    parser.add_argument("--weights", type=Path, help="default: those of the training in --folder")
    parser.add_argument("--onset", type=float, default=0.4)
    parser.add_argument("--frame", type=float, default=0.4)
    parser.add_argument("--peer", metavar="PYTHON")
    arguments = parser.parse_args()
    tests = list(chorale_files(arguments.folder / "test"))
    weights = arguments.weights or arguments.folder / "transcription.safetensors"
    models = {"this network": Ours(weights, onset=arguments.onset, frame=arguments.frame)}
    if arguments.peer:
        models["basic-pitch"] = BasicPitch(arguments.peer, [file for _, file, _ in tests])
    print("| model | sound | AP | frame F1 | note F1 (onsets) | with ends |\n" + "| --- " * 6 + "|")
    for name, model in models.items():
        for condition in SNRS:
            of_condition = [(file, notes) for kind, file, notes in tests if kind == condition]
            numbers = " | ".join(f"{s:.3f}" for s in scores(model, model.threshold, of_condition))
            print(f"| {name} | {condition} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
