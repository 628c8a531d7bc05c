"""One measurement, the table that holds them, and the run that fills it."""

from __future__ import annotations

import csv
import dataclasses
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from harmonic_lowering.metrics import pesq, si_sdr, stoi

from .methods import METHODS
from .mixtures import mixture
from .recordings import RECORDINGS, SAMPLE_RATE, Recording, load, normalised, read


@dataclass(frozen=True)
class Job:
    """What makes a measurement what it is; a row with the same job is not measured again."""

    recording: str
    kind: str
    noise: str
    level_db: float
    method: str
    version: str


@dataclass(frozen=True)
class Row(Job):
    """A measurement. Scores that do not apply or could not be had are nan."""

    sound_s: float
    si_sdr: float
    pesq: float = math.nan
    stoi: float = math.nan
    seconds: float = math.nan  # of the processor, on one thread: what else runs does not count
    peak_mib: float = math.nan  # above what the process held before; Linux only
    error: str = ""

    @property
    def job(self) -> Job:
        return Job(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Job)})


FIELDS = [field.name for field in dataclasses.fields(Row)]


def read_rows(path: Path) -> dict[Job, Row]:
    """Read the table; a line that a killed run left unfinished is passed over."""
    rows: dict[Job, Row] = {}
    if not path.exists():
        return rows
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            try:
                types = {field.name: field.type for field in dataclasses.fields(Row)}
                values = {
                    name: float(line[name]) if types[name] == "float" else line[name]
                    for name in FIELDS
                }
                row = Row(**values)
            except (KeyError, TypeError, ValueError):
                continue
            if None not in values.values():
                rows[row.job] = row
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write the whole table beside, then rename, so that it is never half there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            values = dataclasses.asdict(row)
            writer.writerow(
                {
                    name: f"{value:.6g}" if isinstance(value, float) else value
                    for name, value in values.items()
                }
            )
    beside.replace(path)


def jobs(
    recordings: Sequence[tuple[str, str]],
    noises: Sequence[str],
    levels: Sequence[float],
    methods: Sequence[str],
    slow_on: Callable[[str, str, float], bool],
) -> list[Job]:
    """Every combination; the slow methods only where `slow_on(recording, noise, level)`."""
    return [
        Job(recording, kind, noise, float(level), method, METHODS[method].version())
        for method in methods
        for recording, kind in recordings
        for noise in noises
        for level in levels
        if not METHODS[method].slow or slow_on(recording, noise, level)
    ]


def measure(job: Job, sound: Path | None, cache: Path) -> Row:
    """Mix, denoise, score. `sound` is the file of a recording that is not one of the packages'."""
    clean = _clean(job.recording, sound, cache)
    noise = mixture(clean, job.recording, job.noise, job.level_db, cache)
    noisy = clean + noise
    length = len(clean) / SAMPLE_RATE
    before = _reset_peak()
    began = time.process_time()
    try:
        estimate = METHODS[job.method].run(noisy, noise)
    except Exception as error:  # a peer that fails is a row, not the end of the run
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Row(**dataclasses.asdict(job), sound_s=length, si_sdr=math.nan, error=text)
    seconds = time.process_time() - began
    peak = _status("VmHWM") - before
    pair = [torch.from_numpy(np.ascontiguousarray(x)) for x in (clean, estimate)]
    speech = job.kind == "speech"
    return Row(
        **dataclasses.asdict(job),
        sound_s=length,
        si_sdr=float(si_sdr(*pair)),
        pesq=_score(pesq, pair) if speech else math.nan,
        stoi=_score(stoi, pair) if speech else math.nan,
        seconds=seconds,
        peak_mib=peak,
    )


def run(
    wanted: Sequence[Job],
    table: Path,
    cache: Path,
    sounds: dict[str, Path],
    workers: int,
    report: Callable[[Row, int], None],
) -> dict[Job, Row]:
    """Measure what the table lacks, each job on one thread; keep the table after each result.

    An interrupt loses what is being measured at the moment, nothing else.
    """
    rows = read_rows(table)
    open_jobs = [job for job in wanted if job not in rows or rows[job].error]
    if not open_jobs:
        return rows
    # Read by the workers when they load numpy and torch, so before they start.
    os.environ |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    # Spawned: a fork would carry over torch's threads and this process's memory.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin)
    try:
        pending = {pool.submit(measure, job, sounds.get(job.recording), cache) for job in open_jobs}
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                row = future.result()
                rows[row.job] = row
                report(row, len(pending))
            write_rows(table, rows.values())
    finally:
        # A job at work may take minutes, and its result would not be kept.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
    return rows


@lru_cache(maxsize=4)
def _clean(name: str, sound: Path | None, cache: Path) -> np.ndarray:
    if sound is not None:
        return normalised(read(sound))
    recording: Recording = next(one for one in RECORDINGS if one.name == name)
    return load(recording, cache)


def _score(score: Callable[..., float], pair: list[torch.Tensor]) -> float:
    """Return nan where a score is not installed or finds no speech, as PESQ in very bad sound."""
    try:
        return score(*pair, SAMPLE_RATE)
    except Exception:
        return math.nan


def _begin() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()  # also where it was killed


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _reset_peak() -> float:
    """Set the peak that Linux keeps of this process to its present memory, and return that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return math.nan
    return _status("VmRSS")


def _status(name: str) -> float:
    """MiB of a line of /proc/self/status; nan where there is none."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return math.nan
