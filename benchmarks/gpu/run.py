"""The order of a run: the most useful first, until the time is up."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..common import machine
from ..layers.measure import error, interleaved, peak_memory, peaks, quartiles
from ..layers.rows import LayerRow
from ..layers.settings import SETTINGS, Setting, toy
from .measure import (
    PRECISIONS,
    CardTrial,
    captured,
    pass_of,
    precision,
    repeated,
    stock_by_default,
)  # fmt: skip

__all__ = ["COLUMNS", "Cell", "Options", "cells", "measure_all"]

COLUMNS = {
    "conv2d": "`torch.nn.Conv2d` of the same shape by cuDNN, which chooses its algorithm",
    "triton": '`HarmonicConv2d(engine="triton")`',
    "auto": "`HarmonicConv2d` with the stock engine that it chooses without Triton's kernels",
    "stacking": "the paper's method in stock operations: resample, stack, convolve",
    "log": '`LogHarmonicConv2d(engine="triton")`',
    "deform_conv2d": "torchvision's, with offsets that make it read where the taps read",
}  # fmt: skip
BOTH = "forward+backward"
_USUAL = ("conv2d", "triton", "auto", "stacking", "log")
_FIRST = ("1", "3", "3a", "9")
_SMALL = ("6", "7", "8", "9")


@dataclass(frozen=True)
class Options:
    """What limits a run; `toy` tests the benchmark itself, on any device."""

    device: str = "cuda"
    minutes: float = 5.5  # after which no cell begins
    seconds: float = 0.4  # for a cell, divided among its columns
    repetitions: int = 5
    toy: bool = False


@dataclass(frozen=True)
class Cell:
    """What is timed in the same rounds; `mode` is "eager" or "graph"."""

    mode: str
    setting: Setting
    precision: str
    memory_format: str
    direction: str
    columns: tuple[str, ...]

    def trial(self, column: str, device: str) -> CardTrial:
        """Return one column of the cell."""
        return CardTrial(
            column, self.setting, PRECISIONS[self.precision], self.memory_format,
            self.direction == BOTH, device,
        )  # fmt: skip

    def row(self, column: str, where: dict[str, Any]) -> LayerRow:
        """Return the row of a column, still without figures."""
        s = self.setting
        return LayerRow(
            self.mode, s.name, column, self.direction, self.precision, self.memory_format, s.batch,
            s.in_channels, s.out_channels, s.kernel, str(s.anchor), s.bins, s.frames, **where,
        )  # fmt: skip


def cells(options: Options) -> list[Cell]:
    """Return all cells, the most useful first."""
    every = tuple(SETTINGS)
    both, forward = (BOTH,), ("forward",)
    blocks = (
        # mode, settings, precisions, formats, directions, columns
        ("eager", _FIRST, ("bfloat16", "tf32"), ("contiguous",), forward + both, _USUAL),
        ("graph", _SMALL, ("bfloat16", "tf32"), ("contiguous",), both, ("conv2d", "triton")),
        ("eager", every, ("tf32", "bfloat16"), ("contiguous",), both + forward, _USUAL),
        ("eager", _FIRST, ("tf32", "bfloat16"), ("channels_last",), both, _USUAL),
        ("eager", ("3", "9"), ("tf32",), ("contiguous",), both, ("conv2d", "deform_conv2d")),
        ("graph", _SMALL, ("bfloat16", "tf32"), ("contiguous",), forward, ("conv2d", "triton")),
        ("eager", every, ("float32",), ("contiguous",), both + forward, _USUAL),
        ("eager", every, tuple(PRECISIONS), ("channels_last",), both + forward, _USUAL),
        ("eager", every, ("tf32",), ("contiguous",), both, ("conv2d", "deform_conv2d")),
        ("graph", every, tuple(PRECISIONS), ("contiguous",), both, ("conv2d", "triton", "log")),
    )
    found: dict[tuple[object, ...], Cell] = {}
    for mode, names, precisions, formats, directions, columns in blocks:
        if mode == "graph" and torch.device(options.device).type != "cuda":
            continue
        for name in names:
            setting = toy(SETTINGS[name]) if options.toy else SETTINGS[name]
            for kind in precisions:
                for form in formats:
                    for direction in directions:
                        cell = Cell(mode, setting, kind, form, direction, columns)
                        found.setdefault((mode, name, kind, form, direction, columns), cell)
    return list(found.values())


def measure_all(
    options: Options, progress: Callable[[int, int, Cell], None] | None = None
) -> Iterator[LayerRow]:
    """Measure cell by cell until the time is up, and yield a row for every column."""
    deadline = time.monotonic() + 60 * options.minutes
    where = machine.record(options.device)
    limits: dict[str, tuple[float, float]] = {}
    todo = cells(options)
    for number, cell in enumerate(todo):
        if time.monotonic() > deadline:
            return
        if progress:
            progress(number, len(todo), cell)
        with precision(cell.precision), stock_by_default():
            if cell.precision not in limits:
                size = 128 if options.toy else 4096
                dtype = PRECISIONS[cell.precision]
                limits[cell.precision] = peaks(dtype, options.device, size=size)
            yield from measure(options, cell, limits[cell.precision], where)
        gc.collect()  # a graph's memory


def measure(
    options: Options, cell: Cell, limits: tuple[float, float], where: dict[str, Any]
) -> Iterator[LayerRow]:
    """Measure one cell."""
    runs: dict[str, Callable[[], object]] = {}
    calls: dict[str, int] = {}
    times: dict[str, list[float] | Exception] = {}
    for column in cell.columns:
        try:
            run = pass_of(cell.trial(column, options.device))
            run = captured(run) if cell.mode == "graph" else run
            runs[column], calls[column] = repeated(run, options.device)
        except Exception as problem:
            times[column] = problem
    times |= interleaved(runs, options.seconds, options.repetitions)
    runs.clear()
    base = times.get("conv2d")
    for column in cell.columns:
        row, found = cell.row(column, where), times[column]
        if isinstance(found, Exception):
            yield replace(row, note=f"{type(found).__name__}: {found}".splitlines()[0])
            continue
        trial = cell.trial(column, options.device)
        low, middle, high = (seconds / calls[column] for seconds in quartiles(found))
        work = trial.setting.multiplications(column, backward=trial.backward)
        itemsize = getattr(torch, trial.dtype).itemsize
        moved = trial.setting.bytes(itemsize, backward=trial.backward)
        row = replace(
            row, engine=_engine(trial), repetitions=len(found),
            median_ms=1e3 * middle, q1_ms=1e3 * low, q3_ms=1e3 * high,
            multiplications=work, bytes=moved,
            limit_ms=1e3 * max(work / limits[0], moved / limits[1]),
            gemm_gmac_s=limits[0] / 1e9, copy_gb_s=limits[1] / 1e9,
        )  # fmt: skip
        if isinstance(base, list):
            row = replace(row, ratio=middle / (quartiles(base)[1] / calls["conv2d"]))
        try:
            if cell.mode == "eager" and column in _USUAL:
                row = replace(row, error=error(trial))
                if trial.backward:
                    row = replace(row, peak_bytes=peak_memory(trial))
        except Exception as problem:
            row = replace(row, note=f"{type(problem).__name__}: {problem}".splitlines()[0])
        yield row


def _engine(trial: CardTrial) -> str:
    if trial.column != "auto":
        return "triton" if trial.column in ("triton", "log") else ""
    layer = trial.module()
    return str(layer.engine_for(trial.tensors(constant=True)[0]).engine)  # type: ignore[operator,union-attr]
