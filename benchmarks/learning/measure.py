"""One run (train a network, score it), and the table that holds the runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

from ..common import machine
from ..common.tables import read_rows, write_rows
from ..common.workers import in_workers
from . import features, training
from .networks import NETWORKS, count_parameters

CORE = ("harmonic", "random", "conv", "unet", "upward", "lowering")
VERSION = f"{features.VERSION}.{training.VERSION}"


@dataclass(frozen=True)
class RunKey:
    """What identifies a run; a run with the same key is not made again."""

    network: str
    training_s: int
    seed: int
    steps: int
    version: str = VERSION


@dataclass(frozen=True)
class Run(RunKey):
    """A network's scores: of frames, the threshold of F1 from the validation set."""

    parameters: int = 0
    loss: float = 0.0
    threshold: float = 0.0
    validation_ap: float = 0.0
    B_ap: float = 0.0
    B_f1: float = 0.0
    B_octave_like: float = 0.0  # false notes at harmonics of true ones ÷ true notes found
    B10_ap: float = 0.0
    B10_f1: float = 0.0
    B0_ap: float = 0.0
    B0_f1: float = 0.0
    R_ap: float = 0.0
    R_f1: float = 0.0
    R_octave_like: float = 0.0
    R10_ap: float = 0.0
    R10_f1: float = 0.0
    seconds: float = 0.0  # processor time of the training, one thread
    machine: str = ""

    @property
    def key(self) -> RunKey:
        return RunKey(**{field.name: getattr(self, field.name) for field in fields(RunKey)})


def read_table(path: Path) -> dict[RunKey, Run]:
    """Read the table, which need not exist yet; only runs of the present version count."""
    rows = read_rows(path, Run) if path.exists() else []
    return {row.key: row for row in rows if row.version == VERSION}


def run(
    wanted: Sequence[RunKey],
    table: Path,
    cache: Path,
    debs: Path | None,
    workers: int,
    report: Callable[[Run, int], None],
) -> None:
    """Make the runs that the table lacks, in this order; write the table after each."""
    rows = read_table(table)
    arguments = [(key, cache) for key in wanted if key not in rows]
    if not arguments:
        return
    # Made here once, not by several workers at the same time.
    for feature in {NETWORKS[key.network].feature for key, _ in arguments}:
        for name in features.SETS:
            features.load(name, feature, cache, debs)
    for done, left in in_workers(measure, arguments, workers):
        for row in done:
            rows[row.key] = row
            report(row, left)
        write_rows(table, rows.values(), Run)


def measure(key: RunKey, cache: Path) -> Run:
    """Train and score one network."""
    network = NETWORKS[key.network]
    sets = {name: _load(name, network.feature, cache) for name in features.SETS}
    examples = features.training_pieces(sets["training"], key.training_s, key.seed)
    model = network(key.seed)
    began = time.process_time()
    loss = training.train(model, examples, training.Settings(steps=key.steps), key.seed)
    seconds = time.process_time() - began
    validation = training.predict(model, sets["validation"])
    threshold = validation.best_threshold()
    scores: dict[str, float] = {"validation_ap": validation.average_precision()}
    for name in features.TESTS:
        predictions = training.predict(model, sets[name])
        scores[f"{name}_ap"] = predictions.average_precision()
        scores[f"{name}_f1"] = predictions.f1(threshold)
        if features.SETS[name].snr_db == float("inf"):
            scores[f"{name}_octave_like"] = predictions.octave_like_errors(threshold)
    return Run(
        **asdict(key),
        parameters=count_parameters(model),
        loss=loss,
        threshold=threshold,
        seconds=seconds,
        machine="{machine}, torch {torch}, {date}".format(**machine.record()),
        **scores,
    )


@lru_cache(maxsize=2 * len(features.SETS))
def _load(name: str, feature: features.Feature, cache: Path) -> list[features.Example]:
    return features.load(name, feature, cache)


def combinations(
    networks: Iterable[str], sizes: Iterable[int], seeds: Callable[[str], int], steps: int
) -> list[RunKey]:
    """Return every run, those that say most first, so that a run cut short is worth something."""
    keys = [
        RunKey(network, size, seed, steps)
        for network in networks
        for size in sizes
        for seed in range(seeds(network))
    ]
    return sorted(keys, key=lambda key: (key.training_s > 300, key.network not in CORE, key.seed))
