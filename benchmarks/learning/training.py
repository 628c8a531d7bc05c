"""Train a network and score it: the same steps, batches and settings for every network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve
from torch import Tensor, nn

from .features import DYNAMIC_RANGE_DB, Example

VERSION = 1  # of the training and the networks: another one measures every row anew

OCTAVE_LIKE = (12, 19, 24, 28, 31, 36)  # semitones from a note to its harmonics 2 … 6 and 8


@dataclass(frozen=True)
class Settings:
    """How every network is trained."""

    steps: int = 400
    batch: int = 8
    frames: int = 32
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    equaliser_db: float = 6.0  # standard deviation of the gains of eight bands


def train(
    network: nn.Module,
    examples: Sequence[Example],
    settings: Settings,
    seed: int,
    progress: Callable[[int], object] = lambda step: None,
) -> float:
    """Minimise the cross-entropy of random excerpts; return its mean over the last 50 steps."""
    optimizer = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps, pct_start=0.15
    )
    random = np.random.default_rng(seed)  # the same excerpts for every network
    network.train()
    losses = []
    for step in range(settings.steps):
        spectrogram, roll = excerpts(examples, settings.batch, settings.frames, random)
        spectrogram = equalised(spectrogram, settings.equaliser_db, random)
        loss = nn.functional.binary_cross_entropy_with_logits(network(spectrogram), roll)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress(step + 1)
    return float(np.mean(losses[-50:]))


def excerpts(
    examples: Sequence[Example], batch: int, frames: int, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Draw excerpts: spectrograms (batch, 1, freq, time) and rolls (batch, note, time)."""
    spectrograms, rolls = [], []
    for index in random.integers(len(examples), size=batch):
        example = examples[index]
        start = int(random.integers(example.roll.shape[1] - frames + 1))
        spectrograms.append(example.spectrogram[None, :, start : start + frames])
        rolls.append(example.roll[:, start : start + frames])
    return torch.stack(spectrograms).float(), torch.stack(rolls).float()


def equalised(spectrograms: Tensor, deviation_db: float, random: np.random.Generator) -> Tensor:
    """Give every excerpt random gains, in dB, in eight bands; what is silent stays silent."""
    bands = random.normal(0, deviation_db / DYNAMIC_RANGE_DB, (len(spectrograms), 1, 8))
    gains = nn.functional.interpolate(
        torch.from_numpy(bands).float(), spectrograms.shape[-2], mode="linear", align_corners=True
    )
    return (spectrograms + gains[..., None]).clamp(0, 1) * (spectrograms > 0)


# -------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Predictions:
    """Probabilities and truth of all frames of a set, (note, time)."""

    probability: np.ndarray
    truth: np.ndarray

    def average_precision(self) -> float:
        return float(average_precision_score(self.truth.ravel(), self.probability.ravel()))

    def best_threshold(self) -> float:
        """Return the probability from which on predicting a note gives the best F1."""
        precision, recall, thresholds = precision_recall_curve(
            self.truth.ravel(), self.probability.ravel()
        )
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        return float(thresholds[np.argmax(f1[:-1])])

    def f1(self, threshold: float) -> float:
        predicted = self.probability >= threshold
        both = np.count_nonzero(predicted & self.truth)
        return 2 * both / max(1, np.count_nonzero(predicted) + np.count_nonzero(self.truth))

    def octave_like_errors(self, threshold: float) -> float:
        """Return the false notes that lie at a harmonic or sub-harmonic of a true one ÷ hits."""
        predicted = self.probability >= threshold
        related = np.zeros_like(self.truth)
        for distance in OCTAVE_LIKE:
            related[distance:] |= self.truth[:-distance]
            related[:-distance] |= self.truth[distance:]
        false = np.count_nonzero(predicted & ~self.truth & related)
        return false / max(1, np.count_nonzero(predicted & self.truth))


@torch.no_grad()
def predict(network: nn.Module, examples: Sequence[Example]) -> Predictions:
    network.eval()
    probabilities = [
        network(example.spectrogram.float()[None, None])[0].sigmoid().numpy()
        for example in examples
    ]
    truth = [example.roll.numpy() for example in examples]
    return Predictions(np.concatenate(probabilities, 1), np.concatenate(truth, 1))
