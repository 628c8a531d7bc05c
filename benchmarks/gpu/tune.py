"""Time the Triton kernels with many tiles on the card of this machine: what its table is chosen by.

python -m benchmarks.gpu.tune [--minutes 3] [--output TABLE.csv]

Kernels are compiled first, by as many processes as there are cores. Then each kernel of a training
step is timed with each of its tiles, beside cuDNN's for the same gradient of an ordinary
convolution, and with and without a copy in channels-last format before it. Prints the fastest of
each, and writes all; a run that is cut off has written what it measured.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from harmonic_lowering import DeadTapWarning
from harmonic_lowering.engines import geometry_of
from harmonic_lowering.engines.triton import cards, core, plan

from ..common.tables import markdown, write_rows
from ..layers.measure import FORMATS
from ..layers.settings import SETTINGS, Setting, toy
from .measure import PRECISIONS, no_card, precision, repeated

__all__ = ["main"]

PASSES = ("forward", "input gradient", "weight gradient")
# how the source comes: as frames side by side, those copied to channels-last first, channels last
SOURCES = ("contiguous", "copied", "channels_last")
CHOSEN = {name: SETTINGS[name] for name in ("3", "1", "1a", "3a")} | {
    "few": replace(SETTINGS["3"], name="few", in_channels=2, out_channels=16),
    "many": Setting("many", 1, 3, 128, 128, in_channels=64, out_channels=64),
}
_ROUNDS = 3
_SHARE_FOR_COMPILING = 0.6  # of the time, at most


@dataclass(frozen=True)
class Trial:
    """One kernel with one choice of tiles."""

    setting: Setting
    precision: str
    which: str  # of PASSES
    source: str  # of SOURCES
    tiles: tuple[int, ...]  # of plan.Tiles, or plan.GradTiles

    @property
    def place(self) -> tuple[str, str, str]:
        """What is compared with the same kernel of cuDNN."""
        return self.setting.name, self.precision, self.which


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    setting: str
    precision: str
    which: str
    source: str
    tiles: str
    us: float
    conv2d_us: float
    device: str
    torch: str


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, time, write and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.tune", description=__doc__)
    add = parser.add_argument
    add("-o", "--output", type=Path, default=Path("gpu-tiles.csv"), metavar="CSV")
    add("--minutes", type=float, default=3.0, metavar="M", help="default: %(default)s")
    add("--toy", action="store_true", help="one tiny kernel on the CPU: tests the program itself")
    arguments = parser.parse_args(argv)
    device = "cpu" if arguments.toy else "cuda"
    if not 0 < arguments.minutes < 1e6:
        parser.error(f"--minutes must be a number > 0, got {arguments.minutes}")
    if arguments.toy and not cards.is_interpreted():
        parser.error("--toy interprets the kernels: set TRITON_INTERPRET=1 in the environment")
    if reason := cards.unsupported_reason() if arguments.toy else no_card(device):
        parser.error(f"nothing to tune here: {reason}")
    todo = trials() if not arguments.toy else list(_toy_trials())
    deadline = time.monotonic() + 60 * arguments.minutes
    if not arguments.toy:
        _compile(todo, _SHARE_FOR_COMPILING * 60 * arguments.minutes)
    rows: list[Row] = []
    for place, group in itertools.groupby(todo, lambda trial: trial.place):
        if time.monotonic() > deadline:
            break
        rows += _timed(list(group), device)
        write_rows(arguments.output, rows, Row)
        print(f"{' '.join(place)}: {_best(rows, place)}", file=sys.stderr)
    print(report(rows))
    print(f"{len(rows)} of {len(todo)} measured; {arguments.output}")
    return 0 if rows else 1


def trials() -> list[Trial]:
    """Return all trials, the most useful settings first."""
    found = []
    for setting, kind, which in itertools.product(CHOSEN.values(), ("bfloat16", "tf32"), PASSES):
        for source in SOURCES:
            found += [Trial(setting, kind, which, source, t) for t in _tiles(setting, which)]
    return found


def _tiles(setting: Setting, which: str) -> Iterator[tuple[int, ...]]:
    inputs, outputs = setting.in_channels, setting.out_channels
    if which == "input gradient":
        inputs, outputs = outputs, inputs
    out = min(64, plan.power_of_two(outputs))
    if which == "weight gradient":
        for depth, frames, warps, stages in itertools.product(
            (64, 128), (32, 64, 128), (4, 8), (1, 2)
        ):
            if depth * frames < 8192 or (depth * frames == 8192 and warps == 8):
                yield depth, out, frames, warps, stages
        return
    few = inputs < 16
    for (frames, warps), depth, phases, stages in itertools.product(
        ((64, 4), (128, 4), (128, 8)), (16, 32, 64), (1, 2), (1, 2)
    ):
        if not (few and depth == 64) and not (phases == 2 and (few or out == 64)):
            yield frames, out, depth, phases, warps, stages


def _toy_trials() -> Iterator[Trial]:
    for which in PASSES:
        tiles = (16, 16, 16, 4, 2) if which == "weight gradient" else (16, 16, 16, 2, 4, 2)
        yield Trial(replace(toy(SETTINGS["3a"]), batch=1), "tf32", which, "copied", tiles)


# -------------------------------------------------------------------- one kernel


@contextmanager
def _chosen(trial: Trial) -> Iterator[None]:
    """Let the kernels be launched as the trial says."""
    names = "_is_worth_a_copy", "_is_worth_copies"
    before = plan.tiles, plan.grad_tiles, *(getattr(core, name) for name in names)
    plan.tiles = lambda *_, **__: plan.Tiles(*trial.tiles)  # type: ignore[assignment]
    plan.grad_tiles = lambda *_: plan.GradTiles(*trial.tiles)  # type: ignore[assignment]
    for name in names:
        setattr(core, name, lambda *_: trial.source == "copied")
    core.forget_launches()
    try:
        with precision(trial.precision), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeadTapWarning)
            yield
    finally:
        plan.tiles, plan.grad_tiles, *decisions = before
        for name, decision in zip(names, decisions, strict=True):
            setattr(core, name, decision)
        core.forget_launches()


def _tensors(setting: Setting, dtype: str, source: str, device: str) -> list[Tensor]:
    """Return input, output gradient and weight."""
    form = FORMATS["channels_last" if source == "channels_last" else "contiguous"]
    plane = setting.bins, setting.frames
    shapes = [
        (setting.batch, setting.in_channels, *plane),
        (setting.batch, setting.out_channels, *plane),
        (setting.out_channels, setting.in_channels, setting.kernel, setting.kernel),
    ]
    kind = getattr(torch, dtype)
    made = [torch.randn(shape, device=device).to(kind) for shape in shapes]
    return [tensor.contiguous(memory_format=form) for tensor in made]


def _kernel(trial: Trial, x: Tensor, grad: Tensor, weight: Tensor) -> Callable[[], object]:
    s = trial.setting
    geometry = geometry_of(s.taps(), 1, s.kernel // 2, 1, 1, s.kernel)
    if trial.which == "forward":
        return lambda: core.output(x, weight, None, geometry)
    if trial.which == "input gradient":
        of_input = torch.empty_like(x)
        return lambda: core.input_grad(grad, weight, geometry, of_input)
    of_weight = torch.empty_like(weight)
    return lambda: core.weight_grad(x, grad, geometry, of_weight, None)


def _conv2d(trial: Trial, x: Tensor, grad: Tensor, weight: Tensor) -> Callable[[], object]:
    padding = trial.setting.kernel // 2
    if trial.which == "forward":
        return lambda: torch.conv2d(x, weight, None, 1, padding)
    wanted = [trial.which == "input gradient", trial.which == "weight gradient", False]
    return lambda: torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], 1, wanted
    )


# -------------------------------------------------------------------- all of them


def _compile(todo: Sequence[Trial], seconds: float) -> None:
    """Run each once at a batch of one, in many processes: Triton keeps what it compiles on disk."""
    n = min(len(os.sched_getaffinity(0)), 16)
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with context.Pool(n) as pool:
        done = pool.starmap(_compile_some, [(todo[part::n], seconds) for part in range(n)])
    spent = time.monotonic() - began
    print(f"{sum(done)} of {len(todo)} compiled by {n} processes, {spent:.0f} s", file=sys.stderr)


def _compile_some(todo: Sequence[Trial], seconds: float) -> int:
    began, done = time.monotonic(), 0
    core._COPIED_FROM = 0  # at a batch of one, as for the whole
    for trial in todo:
        if time.monotonic() - began > seconds:
            break
        dtype = PRECISIONS[trial.precision]
        tensors = _tensors(replace(trial.setting, batch=1), dtype, trial.source, "cuda")
        try:
            with _chosen(trial):
                _kernel(trial, *tensors)()
            done += 1
        except cards.CannotRunError:
            cards.failures.clear()  # tiles that do not fit; they will be left out
    return done


def _timed(group: Sequence[Trial], device: str) -> Iterator[Row]:
    """Time the trials of one place."""
    first = group[0]
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU (toy sizes, interpreted)"
    for source, trials_of_it in itertools.groupby(group, lambda trial: trial.source):
        tensors = _tensors(first.setting, PRECISIONS[first.precision], source, device)
        with precision(first.precision):
            baseline = _microseconds(_conv2d(first, *tensors), device)
        for trial in trials_of_it:
            try:
                with _chosen(trial):
                    us = _microseconds(_kernel(trial, *tensors), device)
            except cards.CannotRunError:
                cards.failures.clear()
                continue
            text = "/".join(map(str, trial.tiles))
            yield Row(*trial.place, source, text, us, baseline, name, torch.__version__)


def _microseconds(run: Callable[[], object], device: str) -> float:
    """Return the median time of a call among calls back to back."""
    several, calls = repeated(run, device)
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        several()
        times.append((time.perf_counter() - began) / calls)
    return 1e6 * statistics.median(times)


def _best(rows: Sequence[Row], place: tuple[str, str, str]) -> str:
    here = [row for row in rows if (row.setting, row.precision, row.which) == place]
    best = min(here, key=lambda row: row.us, default=None)
    return f"{best.us:.0f} µs of {best.conv2d_us:.0f}" if best else "none ran"


def report(rows: Sequence[Row]) -> str:
    """Return the fastest tiles of each kernel and source."""
    lines = []
    for key, group in itertools.groupby(
        rows, lambda row: (row.setting, row.precision, row.which, row.source)
    ):
        found = sorted(group, key=lambda row: row.us)
        several = "; ".join(f"{row.us:.0f} ({row.tiles})" for row in found[:3])
        lines.append([*key, several, f"{found[-1].us:.0f}", f"{found[0].conv2d_us:.0f}"])
    head = ["setting", "precision", "pass", "source", "fastest, µs (tiles)", "slowest", "Conv2d"]
    return markdown(head, lines)


if __name__ == "__main__":
    sys.exit(main())
