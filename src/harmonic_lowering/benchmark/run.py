"""The order of a run: which cells, which columns in each, and the rows that come of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from ..engines import choose
from .columns import COLUMNS
from .measure import Case, error, interleaved, peak_memory, peaks, quartiles, step
from .peer import ask, batch_for
from .records import Row, machine
from .settings import ANCHORS, SETTINGS, Setting, series, toy

__all__ = ["PARTS", "Cell", "Plan", "cells", "measure_all"]

PARTS = {
    "settings": "the paper's settings",
    "call": "Setting 9 with a batch of one: what a call costs",
    "anchors": "seven anchors in one layer, and in seven",
    "series": "how the time grows with each size",
}
MAIN = tuple(name for name in COLUMNS if name != "separate")


@dataclass(frozen=True)
class Plan:
    """What to measure. `seconds` is the time for one cell, divided among its columns."""

    parts: tuple[str, ...] = tuple(PARTS)
    settings: tuple[str, ...] = tuple(SETTINGS)
    columns: tuple[str, ...] = (*MAIN, "deform_conv2d")
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    formats: tuple[str, ...] = ("contiguous", "channels_last")
    directions: tuple[str, ...] = ("forward", "forward+backward")
    device: str = "cpu"
    batch: int = 16
    seconds: float = 2.0
    repetitions: int = 3
    memory: bool = True
    toy: bool = False
    peer_python: str | None = None


@dataclass(frozen=True)
class Cell:
    """What is timed in the same rounds."""

    part: str
    setting: Setting
    dtype: str
    memory_format: str
    backward: bool
    columns: tuple[str, ...]

    @property
    def direction(self) -> str:
        """The pass, in words."""
        return "forward+backward" if self.backward else "forward"


def cells(plan: Plan) -> list[Cell]:
    """Return all cells of a plan, in order."""
    found: list[Cell] = []

    def add(part: str, setting: Setting, columns: tuple[str, ...], whole: bool) -> None:
        if part not in plan.parts:
            return
        shape = toy(setting) if plan.toy else setting
        for dtype in plan.dtypes if whole else plan.dtypes[:1]:
            for form in plan.formats if whole else plan.formats[:1]:
                for direction in plan.directions:
                    found.append(
                        Cell(part, shape, dtype, form, direction == "forward+backward", columns)
                    )

    for name in plan.settings:
        add("settings", replace(SETTINGS[name], batch=plan.batch), plan.columns, True)
    few = tuple(c for c in plan.columns if c in ("auto", "conv2d"))
    add("call", replace(SETTINGS["9"], batch=1), few, False)
    add("anchors", ANCHORS, ("auto", "separate"), False)
    for setting in series():
        add("series", setting, tuple(c for c in plan.columns if c in (*few, "stacking")), False)
    return found


def measure_all(
    plan: Plan, progress: Callable[[int, int, Cell], None] | None = None
) -> Iterator[Row]:
    """Measure cell by cell and yield a row for every column, also for one that failed."""
    todo = cells(plan)
    where = machine(plan.device)
    limits = lru_cache(None)(
        lambda dtype: peaks(dtype, plan.device, size=128 if plan.toy else 2048)
    )
    for number, cell in enumerate(todo):
        if progress:
            progress(number, len(todo), cell)
        yield from measure(plan, cell, limits(cell.dtype), where)


def measure(
    plan: Plan, cell: Cell, limits: tuple[float, float], where: dict[str, Any]
) -> Iterator[Row]:
    """Measure one cell."""
    runs, failed, modules = {}, {}, {}
    for column in cell.columns:
        case = Case(
            column, cell.setting, cell.dtype, cell.memory_format, cell.backward, plan.device
        )
        if column == "deform_conv2d":
            continue
        modules[column] = case
        try:
            runs[column] = step(case)
        except Exception as problem:
            failed[column] = problem
    times: dict[str, list[float] | Exception] = {
        **failed,
        **interleaved(runs, plan.seconds, plan.repetitions),
    }
    runs.clear()
    baseline = times.get("separate" if cell.part == "anchors" else "conv2d")
    for column, case in modules.items():
        yield _row(plan, cell, case, times[column], baseline, limits, where)
    if "deform_conv2d" in cell.columns and cell.memory_format == "contiguous":
        yield _deform_row(plan, cell, where)


def _blank(cell: Cell, column: str, where: dict[str, Any]) -> Row:
    s = cell.setting
    anchor = s.anchor if isinstance(s.anchor, tuple) else (s.anchor,)
    return Row(
        cell.part, s.name, column, cell.direction, cell.dtype, cell.memory_format, s.batch,
        s.in_channels, s.out_channels, s.kernel, " ".join(map(str, anchor)), s.bins, s.frames,
        **where,
    )  # fmt: skip


def _row(
    plan: Plan,
    cell: Cell,
    case: Case,
    times: list[float] | Exception,
    baseline: list[float] | Exception | None,
    limits: tuple[float, float],
    where: dict[str, Any],
) -> Row:
    row = _blank(cell, case.column, where)
    if isinstance(times, Exception):
        return replace(row, note=f"{type(times).__name__}: {times}".splitlines()[0])
    low, middle, high = quartiles(times)
    work = cell.setting.multiplications(case.column, backward=cell.backward)
    moved = cell.setting.bytes(getattr(torch, cell.dtype).itemsize, backward=cell.backward)
    row = replace(
        row,
        engine=_engine(case),
        repetitions=len(times),
        median_ms=1e3 * middle,
        q1_ms=1e3 * low,
        q3_ms=1e3 * high,
        ratio=middle / quartiles(baseline)[1] if isinstance(baseline, list) else None,
        multiplications=work,
        bytes=moved,
        limit_ms=1e3 * max(work / limits[0], moved / limits[1]),
        gemm_gmac_s=limits[0] / 1e9,
        copy_gb_s=limits[1] / 1e9,
    )
    try:
        if cell.part != "series":
            row = replace(row, error=error(case))
            if plan.memory:
                row = replace(row, peak_bytes=peak_memory(case))
    except Exception as problem:
        row = replace(row, note=f"{type(problem).__name__}: {problem}".splitlines()[0])
    return row


def _engine(case: Case) -> str:
    """Return the engine that a layer of this package takes."""
    if case.column in ("auto", "log"):
        layer = case.module()
        return choose("auto", case.input(), layer.weight, layer.bias).engine  # type: ignore[arg-type]
    return case.column if case.column in ("native", "blocked", "lowering") else ""


def _deform_row(plan: Plan, cell: Cell, where: dict[str, Any]) -> Row:
    row = _blank(cell, "deform_conv2d", where)
    if plan.peer_python is None:
        return replace(row, note="not installed (make bench-peers)")
    if plan.device != "cpu":
        return replace(row, note="timed on the CPU only")
    found = ask(plan.peer_python, cell.setting, cell.dtype, cell.backward, where["threads"])
    if "error" in found:
        return replace(row, note=found["error"])
    low, middle, high = (1e3 * seconds for seconds in found["deform"])
    return replace(
        row,
        repetitions=found["deform n"],
        median_ms=middle,
        q1_ms=low,
        q3_ms=high,
        ratio=middle / (1e3 * found["conv2d"][1]),
        note=f"batch {batch_for(cell.setting)}, torch {found['torch']}",
    )
