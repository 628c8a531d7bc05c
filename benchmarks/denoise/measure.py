"""One measurement, the table that holds them, and the run that fills it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from harmonic_lowering.metrics import pesq, si_sdr, stoi

from ..common.memory import peak_bytes, reset_peak
from ..common.tables import read_rows, write_rows
from ..common.workers import in_workers
from .methods import METHODS
from .mixtures import mixture
from .recordings import RECORDINGS, SAMPLE_RATE, Recording, load, normalised, read


@dataclass(frozen=True)
class RowKey:
    """What identifies a measurement; a row with the same key is not measured again."""

    recording: str
    kind: str
    noise: str
    level_db: float
    method: str
    version: str


@dataclass(frozen=True)
class DenoiserRow(RowKey):
    """A measurement. Scores that do not apply or could not be computed are nan."""

    sound_s: float
    si_sdr: float
    pesq: float = math.nan
    stoi: float = math.nan
    seconds: float = math.nan  # processor time on one thread, so that other load does not count
    peak_mib: float = math.nan  # above what the process held before; Linux only
    error: str = ""

    @property
    def key(self) -> RowKey:
        return RowKey(**{field.name: getattr(self, field.name) for field in fields(RowKey)})


def read_table(path: Path) -> dict[RowKey, DenoiserRow]:
    """Read the table, which need not exist yet."""
    rows = read_rows(path, DenoiserRow) if path.exists() else []
    return {row.key: row for row in rows}


def combinations(
    recordings: Sequence[tuple[str, str]],
    noises: Sequence[str],
    levels: Sequence[float],
    methods: Sequence[str],
    slow_on: Callable[[str, str, float], bool],
) -> list[RowKey]:
    """Return every combination; slow methods only where `slow_on(recording, noise, level)`."""
    return [
        RowKey(recording, kind, noise, float(level), method, METHODS[method].version())
        for method in methods
        for recording, kind in recordings
        for noise in noises
        for level in levels
        if not METHODS[method].slow or slow_on(recording, noise, level)
    ]


def measure(key: RowKey, sound: Path | None, cache: Path) -> DenoiserRow:
    """Mix, denoise, score. `sound` is the file of a recording that is not from a package."""
    clean = _clean(key.recording, sound, cache)
    noise = mixture(clean, key.recording, key.noise, key.level_db, cache)
    noisy = clean + noise
    length = len(clean) / SAMPLE_RATE
    is_reset = reset_peak()
    before = peak_bytes()
    began = time.process_time()
    try:
        estimate = METHODS[key.method].run(noisy, noise)
    except Exception as error:  # a peer that fails is a row, not the end of the run
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return DenoiserRow(**asdict(key), sound_s=length, si_sdr=math.nan, error=text)
    seconds = time.process_time() - began
    peak_mib = (peak_bytes() - before) / 2**20 if is_reset else math.nan
    pair = [torch.from_numpy(np.ascontiguousarray(x)) for x in (clean, estimate)]
    speech = key.kind == "speech"
    return DenoiserRow(
        **asdict(key),
        sound_s=length,
        si_sdr=float(si_sdr(*pair)),
        pesq=_score(pesq, pair) if speech else math.nan,
        stoi=_score(stoi, pair) if speech else math.nan,
        seconds=seconds,
        peak_mib=peak_mib,
    )


def run(
    wanted: Sequence[RowKey],
    table: Path,
    cache: Path,
    sounds: dict[str, Path],
    workers: int,
    report: Callable[[DenoiserRow, int], None],
) -> dict[RowKey, DenoiserRow]:
    """Measure what is missing in the table, one thread each; write the table after each result.

    An interrupt loses what is being measured at the moment, nothing else.
    """
    rows = read_table(table)
    missing = [key for key in wanted if key not in rows or rows[key].error]
    arguments = [(key, sounds.get(key.recording), cache) for key in missing]
    for done, left in in_workers(measure, arguments, workers):
        for row in done:
            rows[row.key] = row
            report(row, left)
        write_rows(table, rows.values(), DenoiserRow)
    return rows


@lru_cache(maxsize=4)
def _clean(name: str, sound: Path | None, cache: Path) -> np.ndarray:
    if sound is not None:
        return normalised(read(sound))
    recording: Recording = next(one for one in RECORDINGS if one.name == name)
    return load(recording, cache)


def _score(score: Callable[..., float], pair: list[torch.Tensor]) -> float:
    """Return nan where a score is not installed or finds no speech, as PESQ in very noisy sound."""
    try:
        return score(*pair, SAMPLE_RATE)
    except Exception:
        return math.nan
