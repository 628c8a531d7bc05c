"""The order of a run: which cells, which columns in each, and the rows that come of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch

from ..engines import choose
from .columns import COLUMNS
from .measure import Case, error, interleaved, peak_memory, peaks, quartiles, step
from .peer import Peer
from .records import Row, machine
from .settings import ANCHORS, SETTINGS, Setting, series, toy

__all__ = ["PARTS", "Cell", "Plan", "cells", "measure_all"]

PARTS = {
    "settings": "the paper's settings",
    "call": "Setting 9 with a batch of one: what a call costs",
    "anchors": "seven anchors in one layer, and in seven",
    "series": "how the time grows with each size",
}
# These are many times slower than the others: they are timed in one dtype and memory format only.
SLOW = ("stacking", "deform_conv2d")


@dataclass(frozen=True)
class Plan:
    """What to measure. `seconds` is the time for one cell, divided among its columns."""

    parts: tuple[str, ...] = tuple(PARTS)
    settings: tuple[str, ...] = tuple(SETTINGS)
    columns: tuple[str, ...] = (*(name for name in COLUMNS if name != "separate"), "deform_conv2d")
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

    def case(self, column: str) -> Case:
        """Return one column of the cell."""
        backward = self.direction == "forward+backward"
        return Case(column, self.setting, self.dtype, self.memory_format, backward, self.device)

    def row(self, column: str, where: dict[str, Any]) -> Row:
        """Return the row of a column, as yet without figures."""
        s = self.setting
        anchor = s.anchor if isinstance(s.anchor, tuple) else (s.anchor,)
        return Row(
            self.part, s.name, column, self.direction, self.dtype, self.memory_format, s.batch,
            s.in_channels, s.out_channels, s.kernel, " ".join(map(str, anchor)), s.bins, s.frames,
            **where,
        )  # fmt: skip


def cells(plan: Plan) -> list[Cell]:
    """Return all cells of a plan, in order."""
    found: list[Cell] = []
    first = replace(plan, dtypes=plan.dtypes[:1], formats=plan.formats[:1])

    def add(part: str, setting: Setting, columns: Iterable[str], plan: Plan) -> None:
        fewer = [column for column in columns if column not in SLOW]
        for dtype in plan.dtypes:
            for form in plan.formats:
                once = (dtype, form) == (plan.dtypes[0], plan.formats[0])
                wanted = tuple(columns if once else fewer)
                for direction in plan.directions:
                    shape = toy(setting) if plan.toy else setting
                    cell = Cell(part, shape, dtype, form, direction, wanted, plan.device)
                    if part in plan.parts and wanted:
                        found.append(cell)

    for name in plan.settings:
        add("settings", replace(SETTINGS[name], batch=plan.batch), plan.columns, plan)
    few = [c for c in plan.columns if c in ("auto", "conv2d")]
    add("call", replace(SETTINGS["9"], batch=1), few, first)
    add("anchors", ANCHORS, ("auto", "separate"), first)
    last = replace(first, directions=plan.directions[-1:])
    for setting in series():
        add("series", setting, [c for c in plan.columns if c in (*few, "stacking")], last)
    return found


def measure_all(
    plan: Plan,
    progress: Callable[[int, int, Cell], None] | None = None,
    known: Iterable[Row] = (),
) -> Iterator[Row]:
    """Measure cell by cell and yield a row for every column, also for one that failed.

    A cell whose rows are all among the `known` ones, measured by the same code on the same machine,
    is not measured again; neither is a setting that has another name and the same sizes.
    """
    where = machine(plan.device)
    same = [row for row in known if all(getattr(row, k) == where[k] for k in where if k != "date")]
    done = {row.key: row for row in same}
    limits = lru_cache(None)(
        lambda dtype: peaks(dtype, plan.device, size=128 if plan.toy else 2048)
    )
    measured: dict[Cell, list[Row]] = {}
    todo = cells(plan)
    with closing(Peer(plan.peer_python)) as peer:
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
                rows = list(measure(plan, cell, limits(cell.dtype), where, peer))
            measured[nameless] = rows
            yield from rows


def measure(
    plan: Plan, cell: Cell, limits: tuple[float, float], where: dict[str, Any], peer: Peer
) -> Iterator[Row]:
    """Measure one cell."""
    runs: dict[str, Callable[[], object]] = {}
    times: dict[str, list[float] | Exception] = {}
    tensors = cell.case("conv2d").tensors()
    for column in cell.columns:
        if column == "deform_conv2d":
            continue
        try:
            runs[column] = step(cell.case(column).module(), *tensors)
        except Exception as problem:
            times[column] = problem
    times |= interleaved(runs, plan.seconds, plan.repetitions)
    runs.clear()
    baseline = times.get("separate" if cell.part == "anchors" else "conv2d")
    for column in cell.columns:
        row = cell.row(column, where)
        if column == "deform_conv2d":
            yield _deform(row, peer.ask(cell.case(column)))
            continue
        found = times[column]
        if isinstance(found, Exception):
            yield replace(row, note=_sentence(found))
            continue
        case = cell.case(column)
        row = _timed(row, case, found, limits)
        if isinstance(baseline, list):
            row = replace(row, ratio=quartiles(found)[1] / quartiles(baseline)[1])
        try:
            if cell.part != "series":
                row = replace(row, error=error(case))
                if plan.memory and case.backward:
                    row = replace(row, peak_bytes=peak_memory(case))
        except Exception as problem:
            row = replace(row, note=_sentence(problem))
        yield row


def _timed(row: Row, case: Case, times: list[float], limits: tuple[float, float]) -> Row:
    low, middle, high = quartiles(times)
    work = case.setting.multiplications(case.column, backward=case.backward)
    moved = case.setting.bytes(getattr(torch, case.dtype).itemsize, backward=case.backward)
    return replace(
        row,
        engine=_engine(case),
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


def _engine(case: Case) -> str:
    """Return the engine that a layer of this package takes."""
    if case.column in ("auto", "log"):
        layer = case.module()
        return choose("auto", case.tensors(constant=True)[0], layer.weight, layer.bias).engine  # type: ignore[arg-type]
    return case.column if case.column in ("native", "blocked", "lowering") else ""


def _deform(row: Row, found: dict[str, Any]) -> Row:
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
