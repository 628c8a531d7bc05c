"""Harmonic against plain layers: the same network, data, seeds and steps, with intervals.

    python -m research.mask.ablation FOLDER [--steps N] [--seeds 3] [--on report]

Trains what FOLDER does not hold yet, one run after the other (a run that was stopped goes on),
and prints, for each noise, how much better the harmonic layers are: the mean over sounds and
seeds, and an interval of 95 % by bootstrap over both.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from benchmarks.denoise.recordings import default_cache
from harmonic_lowering.denoise.mask import LearntMask

from .evaluate import Score, measure, recorded, synthetic, write
from .train import Settings, train

__all__ = ["interval"]

_RESAMPLED = 2000


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Mean of differences (seeds, sounds) and its 95 % interval, resampling both."""
    random = np.random.default_rng(0)
    seeds, sounds = differences.shape
    means = []
    for _ in range(_RESAMPLED):
        drawn = differences[random.integers(seeds, size=seeds)]
        means.append(drawn[:, random.integers(sounds, size=sounds)].mean())
    low, high = np.percentile(means, [2.5, 97.5])
    return float(differences.mean()), float(low), float(high)


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--on", choices=("synthetic", "choose", "report"), default="report")
    parser.add_argument("--snr-db", type=float, default=7.5)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--cache", type=Path, default=default_cache())
    options = parser.parse_args()
    torch.set_num_threads(1)
    scores: dict[tuple[str, int], dict[tuple[str, str, str], Score]] = {}
    for seed in range(options.seeds):
        for layer in ("harmonic", "plain"):
            settings = Settings(layer, steps=options.steps, seed=seed, bfloat16=options.bfloat16)
            run = options.folder / f"{layer}-{seed}"
            train(settings, run)
            mask = LearntMask.load(run / "mask.safetensors")
            mixtures = (
                synthetic(options.snr_db)
                if options.on == "synthetic"
                else recorded(options.on, options.snr_db, options.cache)
            )
            measured = measure(mixtures, {"mask": lambda x, mask=mask: mask.apply(x, 16000)})
            write(run / f"{options.on}.csv", measured)
            scores[layer, seed] = {(s.noise, s.kind, s.sound): s for s in measured}
    _print(scores, options.seeds)


def _print(
    scores: Mapping[tuple[str, int], Mapping[tuple[str, str, str], Score]], seeds: int
) -> None:
    print("| noise | kind | score | harmonic | plain | harmonic better by |")
    print("| --- | --- | --- | --- | --- | --- |")
    mixtures = list(scores["harmonic", 0])
    for noise, kind in dict.fromkeys(mixture[:2] for mixture in mixtures):
        own = [mixture for mixture in mixtures if mixture[:2] == (noise, kind)]
        for name in ("si_sdr", "pesq", "stoi"):
            harmonic, plain = (
                np.array(
                    [
                        [dataclasses.asdict(scores[layer, seed][one])[name] for one in own]
                        for seed in range(seeds)
                    ]
                )
                for layer in ("harmonic", "plain")
            )
            if np.isnan(harmonic).any() or np.isnan(plain).any():
                continue
            mean, low, high = interval(harmonic - plain)
            print(
                f"| {noise} | {kind} | {name} | {harmonic.mean():.3g} | {plain.mean():.3g} | "
                f"{mean:+.3f} ({low:+.3f} … {high:+.3f}) |"
            )


if __name__ == "__main__":
    main()
