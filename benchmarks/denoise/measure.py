"""One measurement, the table that holds them, and the run that fills it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from harmonic_lowering.metrics import pesq, si_sdr, stoi

from ..common.memory import peak_bytes, reset_peak
from ..common.tables import read_rows, write_rows
from ..common.workers import in_workers
from . import faults
from .methods import METHODS
from .mixtures import Made, Mixture, is_for_slow, make
from .recordings import SAMPLE_RATE, Array

__all__ = ["DenoiserRow", "RowKey", "combinations", "measure", "read_table", "run", "score"]


@dataclass(frozen=True)
class RowKey(Mixture):
    """What identifies a measurement; a row with the same key is not measured again."""

    method: str
    version: str

    @property
    def mixture(self) -> Mixture:
        return Mixture(**_fields_of(Mixture, self))


@dataclass(frozen=True)
class DenoiserRow(RowKey):
    """A measurement. Scores that do not apply or could not be computed are nan."""

    sound_s: float
    si_sdr: float
    level_change_db: float = math.nan  # of the clean sound in the result
    pesq: float = math.nan
    stoi: float = math.nan
    seconds: float = math.nan  # processor time, so that other load does not count
    peak_mib: float = math.nan  # above what the process held before; Linux only
    error: str = ""

    @property
    def key(self) -> RowKey:
        return RowKey(**_fields_of(RowKey, self))


def _fields_of(kind: type, of: object) -> dict[str, object]:
    return {field.name: getattr(of, field.name) for field in fields(kind)}


def read_table(path: Path) -> dict[RowKey, DenoiserRow]:
    """Read the table, which need not exist yet."""
    rows = read_rows(path, DenoiserRow) if path.exists() else []
    return {row.key: row for row in rows}


def combinations(
    mixtures: Iterable[Mixture], methods: Sequence[str], slow_everywhere: bool = False
) -> list[RowKey]:
    """Return every combination that applies; slow methods only on few mixtures by default."""
    versions = {name: METHODS[name].version() for name in methods}
    return [
        RowKey(**asdict(mixture), method=name, version=versions[name])
        for mixture in mixtures
        for name in methods
        if METHODS[name].runs_on(mixture)
        and (slow_everywhere or not METHODS[name].slow or is_for_slow(mixture))
    ]


def measure(key: RowKey, file: Path | None, cache: Path) -> DenoiserRow:
    """Mix, denoise, score. `file` is that of a recording that is not from a package."""
    made = _made(key.mixture, file, cache)
    method = METHODS[key.method]
    length = made.clean.shape[-1] / made.sample_rate
    try:
        _warm_up(key.method)
        is_reset = reset_peak()
        before = peak_bytes()
        began = _processor_seconds()
        estimate = method(made.noisy, made.noise, made.sample_rate)
    except Exception as error:  # a peer that fails is a row, not the end of the run
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return DenoiserRow(**asdict(key), sound_s=length, si_sdr=math.nan, error=text)
    seconds = _processor_seconds() - began
    return DenoiserRow(
        **asdict(key),
        sound_s=length,
        **score(made, estimate, key.kind == "speech"),
        seconds=seconds,
        peak_mib=(peak_bytes() - before) / 2**20 if is_reset else math.nan,
    )


def heard(made: Made, estimate: Array) -> tuple[Array, Array]:
    """Return what is scored of the clean sound and of a result.

    A gain is undone, and what is left of 12 dB below is not looked at.
    """
    if made.gain is None:
        return made.clean, estimate
    audible = faults.audible(made.gain)
    gain = made.gain[audible]
    return made.clean[audible] / gain, estimate[audible] / gain


def score(made: Made, estimate: Array, is_speech: bool) -> dict[str, float]:
    """Return the scores of a result: PESQ and STOI of speech that is heard whole.

    The channels of a stereo sound are scored together, as one long sound; PESQ and STOI take their
    mean at 16 kHz.
    """
    clean, estimate = heard(made, estimate)
    pair = [torch.from_numpy(np.ascontiguousarray(x)) for x in (clean, estimate)]
    whole, result = (x.flatten() for x in pair)
    with_level = float(whole @ result / whole.square().sum())
    scores = {
        "si_sdr": float(si_sdr(whole, result)),
        "level_change_db": 20 * math.log10(max(abs(with_level), 1e-6)),
    }
    if is_speech and made.gain is None:
        pair = [torch.from_numpy(_for_speech(x, made.sample_rate)) for x in (clean, estimate)]
        scores |= {"pesq": _or_nan(pesq, pair), "stoi": _or_nan(stoi, pair)}
    return scores


def run(
    wanted: Sequence[RowKey],
    table: Path,
    cache: Path,
    sounds: Mapping[str, Path],
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


@lru_cache(maxsize=2)
def _made(mixture: Mixture, file: Path | None, cache: Path) -> Made:
    return make(mixture, cache, file)


@lru_cache
def _warm_up(name: str) -> None:
    """Have a trained network load its weights, which is not part of its time."""
    if METHODS[name].trained:
        noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE // 2) / 10
        METHODS[name](noise, noise, SAMPLE_RATE)


def _processor_seconds() -> float:
    """Processor time of this process and of the programs that it has run."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _for_speech(sound: Array, sample_rate: int) -> Array:
    import soxr

    return soxr.resample(np.atleast_2d(sound).mean(0), sample_rate, SAMPLE_RATE)


def _or_nan(metric: Callable[..., float], pair: list[torch.Tensor]) -> float:
    """Return nan where a score is not installed or finds no speech, as PESQ in very noisy sound."""
    try:
        return metric(*pair, SAMPLE_RATE)
    except Exception:
        return math.nan
