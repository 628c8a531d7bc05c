"""The order of a run: which cells, which columns in each, and the rows that they give."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch

from ..common import machine
from .columns import COLUMNS, baseline
from .measure import (
    Trial,
    beside_another,
    error,
    interleaved,
    peak_memory,
    peaks,
    quartiles,
    step,
)
from .peer import Peer
from .rows import LayerRow
from .settings import ANCHORS, ONE_VALUE, SETTINGS, Setting, series, toy

__all__ = ["PARTS", "SETTING_NAMES", "Cell", "Options", "cells", "measure_all"]


@dataclass(frozen=True)
class Part:
    """A table of the benchmark: these settings, these columns."""

    what: str
    settings: tuple[Setting, ...]
    columns: tuple[str, ...]
    once: bool = True  # in the first dtype and memory format only
    last_direction: bool = False


_PAPER = tuple(SETTINGS.values())
_ALONE = replace(SETTINGS["9"], batch=1)
_BUSY = (SETTINGS["3"], SETTINGS["9"])
PARTS = {
    "settings": Part(
        "the paper's settings", _PAPER, tuple(c for c in COLUMNS if c != "separate"), once=False
    ),
    "calls": Part(
        "one channel of 8 x 8, and Setting 9, with a batch of one",
        (ONE_VALUE, _ALONE),
        ("auto", "native", "lowering", "conv2d", "compiled", "compiled_conv2d"),
    ),
    "anchors": Part(
        "a kernel of 7 x 7 on 256 x 256, outputs mixed by weights", (ANCHORS,), ("auto", "separate")
    ),
    "series": Part(
        "how the time grows with each size",
        tuple(series()),
        ("auto", "conv2d", "stacking"),
        last_direction=True,
    ),
    "busy": Part(
        "Settings 3 and 9, alone and beside the other process",
        _BUSY,
        ("auto", "native", "blocked", "lowering", "conv2d"),
    ),
}
SETTING_NAMES = tuple(dict.fromkeys(s.name for part in PARTS.values() for s in part.settings))
# These take many times as long as the others, or compile first: one dtype and memory format only.
SLOW = ("stacking", "deform_conv2d", "compiled", "compiled_conv2d")


@dataclass(frozen=True)
class Options:
    """What to measure; every choice applies to every part.

    `seconds` is the time for one cell, divided among its columns; `batch` that of the paper's
    settings.
    """

    parts: tuple[str, ...] = tuple(PARTS)
    settings: tuple[str, ...] = SETTING_NAMES
    columns: tuple[str, ...] = tuple(COLUMNS)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    formats: tuple[str, ...] = ("contiguous", "channels_last")
    directions: tuple[str, ...] = ("forward", "forward+backward")
    device: str = "cpu"
    batch: int = 16
    seconds: float = 2.0
    repetitions: int = 5
    memory: bool = True
    toy: bool = False
    peer_python: str = field(default_factory=lambda: sys.executable)


@dataclass(frozen=True)
class Cell:
    """What is timed in the same rounds."""

    part: str
    setting: Setting
    dtype: str
    memory_format: str
    direction: str
    columns: tuple[str, ...]
    device: str

    def trial(self, column: str) -> Trial:
        """Return one column of the cell."""
        backward = self.direction == "forward+backward"
        return Trial(column, self.setting, self.dtype, self.memory_format, backward, self.device)

    def row(self, column: str, where: dict[str, Any]) -> LayerRow:
        """Return the row of a column, still without figures."""
        s = self.setting
        anchor = s.anchor if isinstance(s.anchor, tuple) else (s.anchor,)
        return LayerRow(
            self.part, s.name, column, self.direction, self.dtype, self.memory_format, s.batch,
            s.in_channels, s.out_channels, s.kernel, " ".join(map(str, anchor)), s.bins, s.frames,
            **where,
        )  # fmt: skip


def cells(options: Options) -> list[Cell]:
    """Return all cells that the options choose, in order."""
    found: list[Cell] = []
    for name in options.parts:
        part = PARTS[name]
        columns = tuple(column for column in part.columns if column in options.columns)
        directions = options.directions[-1:] if part.last_direction else options.directions
        for setting in part.settings:
            if setting.name not in options.settings:
                continue
            if name in ("settings", "busy"):
                setting = replace(setting, batch=options.batch)
            shape = toy(setting) if options.toy else setting
            for dtype in options.dtypes[: 1 if part.once else None]:
                for form in options.formats[: 1 if part.once else None]:
                    first = (dtype, form) == (options.dtypes[0], options.formats[0])
                    wanted = tuple(c for c in columns if first or c not in SLOW)
                    found += [
                        Cell(name, shape, dtype, form, direction, wanted, options.device)
                        for direction in directions
                        if wanted
                    ]
    return found


def measure_all(
    options: Options,
    progress: Callable[[int, int, Cell], None] | None = None,
    known: Iterable[LayerRow] = (),
) -> Iterator[LayerRow]:
    """Measure cell by cell and yield a row for every column, also for one that failed.

    A cell is not measured again if all its rows are among the `known` ones and were measured with
    the same code on the same machine, or if a setting of another name has the same sizes.
    """
    where = machine.record(options.device)
    same = [row for row in known if all(getattr(row, k) == where[k] for k in where if k != "date")]
    done = {row.key: row for row in same}
    limits = lru_cache(None)(
        lambda dtype: peaks(dtype, options.device, size=128 if options.toy else 2048)
    )
    measured: dict[Cell, list[LayerRow]] = {}
    todo = cells(options)
    with closing(Peer(options.peer_python)) as peer:
        for number, cell in enumerate(todo):
            if progress:
                progress(number, len(todo), cell)
            nameless = replace(cell, setting=replace(cell.setting, name=""))
            rows = [cell.row(column, where) for column in cell.columns]
            if all(row.key in done for row in rows):
                rows = [done[row.key] for row in rows]
            elif nameless in measured:
                rows = [replace(row, setting=cell.setting.name) for row in measured[nameless]]
            else:
                rows = list(measure(options, cell, limits(cell.dtype), where, peer))
            measured[nameless] = rows
            yield from rows


def measure(
    options: Options, cell: Cell, limits: tuple[float, float], where: dict[str, Any], peer: Peer
) -> Iterator[LayerRow]:
    """Measure one cell."""
    runs: dict[str, Callable[[], object]] = {}
    times: dict[str, list[float] | Exception] = {}
    alone: dict[str, list[float] | Exception] = {}
    tensors = cell.trial("conv2d").tensors()
    if any(cell.trial(column).compiled for column in cell.columns):
        torch.compiler.reset()  # it recompiles one function a few times only
    for column in cell.columns:
        if column == "deform_conv2d":
            continue
        try:
            runs[column] = step(cell.trial(column).module(), *tensors)
        except Exception as problem:
            times[column] = problem
    if cell.part == "busy":
        alone = interleaved(runs, options.seconds, options.repetitions)
        with beside_another():
            times |= interleaved(runs, options.seconds, options.repetitions)
    else:
        times |= interleaved(runs, options.seconds, options.repetitions)
    runs.clear()
    for column in cell.columns:
        row = cell.row(column, where)
        if column == "deform_conv2d":
            yield _deform(row, peer.ask(cell.trial(column)))
            continue
        found = times[column]
        if isinstance(found, Exception):
            yield replace(row, note=_sentence(found))
            continue
        trial = cell.trial(column)
        row = _timed(row, trial, found, limits)
        base = times.get("separate" if cell.part == "anchors" else baseline(column))
        if isinstance(base, list):
            row = replace(row, ratio=quartiles(found)[1] / quartiles(base)[1])
        if isinstance(before := alone.get(column), list):
            row = replace(row, slowdown=quartiles(found)[1] / quartiles(before)[1], note=_waiting())
        try:
            if cell.part not in ("series", "busy"):
                row = replace(row, error=error(trial))
                # The compiler's own memory would hide the layer's.
                if options.memory and trial.backward and not trial.compiled:
                    row = replace(row, peak_bytes=peak_memory(trial))
        except Exception as problem:
            row = replace(row, note=_sentence(problem))
        yield row


def _waiting() -> str:
    """Return how OpenMP's threads wait, if it is set: it decides what another process costs."""
    policy = os.environ.get("OMP_WAIT_POLICY")
    return f"OMP_WAIT_POLICY={policy}" if policy else ""


def _timed(
    row: LayerRow, trial: Trial, times: list[float], limits: tuple[float, float]
) -> LayerRow:
    low, middle, high = quartiles(times)
    work = trial.setting.multiplications(trial.column, backward=trial.backward)
    moved = trial.setting.bytes(getattr(torch, trial.dtype).itemsize, backward=trial.backward)
    return replace(
        row,
        engine=_engine(trial),
        repetitions=len(times),
        median_ms=1e3 * middle,
        q1_ms=1e3 * low,
        q3_ms=1e3 * high,
        multiplications=work,
        bytes=moved,
        limit_ms=1e3 * max(work / limits[0], moved / limits[1]),
        gemm_gmac_s=limits[0] / 1e9,
        copy_gb_s=limits[1] / 1e9,
    )


def _engine(trial: Trial) -> str:
    """Return the engine that a layer of this package takes."""
    if trial.column in ("auto", "log"):
        layer = trial.module()
        return str(layer.engine_for(trial.tensors(constant=True)[0]).engine)  # type: ignore[operator,union-attr]
    return trial.column if trial.column in ("native", "blocked", "lowering") else ""


def _deform(row: LayerRow, found: dict[str, Any]) -> LayerRow:
    if "error" in found:
        return replace(row, note=found["error"])
    low, middle, high = (1e3 * seconds for seconds in found["deform_conv2d"]["quartiles"])
    return replace(
        row,
        repetitions=found["deform_conv2d"]["repetitions"],
        median_ms=middle,
        q1_ms=low,
        q3_ms=high,
        ratio=middle / (1e3 * found["conv2d"]["quartiles"][1]),
        note=f"batch {found['batch']}, torch {found['torch']}",
    )


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
