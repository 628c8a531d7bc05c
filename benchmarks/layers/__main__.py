"""Time the layers beside `Conv2d`, the paper's method and deformable convolution.

A run without any selection writes docs/benchmarks.csv and makes docs/benchmarks.md from it. A run
that selects something prints its rows, and writes them only where --output says.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..common.machine import ROOT
from ..common.tables import write_rows
from .columns import COLUMNS
from .rows import LayerRow, read_csv, regressions
from .run import PARTS, SETTING_NAMES, Cell, Options, cells, measure_all

TABLE = ROOT / "docs" / "benchmarks.csv"
PEERS = ROOT / ".venv-peers" / "bin" / "python"
DTYPES = ("float32", "bfloat16", "float16", "float64")
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write and print the rows; compare them if asked; return the exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    options, default = _options(arguments), Options()
    whole = replace(options, peer_python=default.peer_python) == default
    output: Path | None = arguments.output or (TABLE if whole else None)
    if not cells(options):
        parser.error("nothing to measure: no part has both the --settings and the --columns")
    try:
        torch.empty(0, device=options.device)
        reference = read_csv(arguments.reference_csv) if arguments.reference_csv else []
        known: list[LayerRow] = []
        for path in filter(None, (output, arguments.page)):
            if not path.parent.is_dir():
                parser.error(f"{path}: there is no folder {path.parent}; make it first")
        if output is not None:
            if arguments.output and output.exists() and not arguments.force:
                parser.error(f"{output}: exists already; allow replacing it with --force")
            if arguments.resume and _part(output).exists():
                known = read_csv(_part(output))
        elif arguments.resume:
            parser.error("--resume needs the --output of the interrupted run")
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        parser.error(str(error).splitlines()[0])
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    rows: list[LayerRow] = []
    try:
        for row in measure_all(options, None if arguments.quiet else _progress(), known):
            rows.append(row)
            if output is not None:
                write_rows(_part(output), rows, LayerRow)
            print(_line(row), flush=True)
    except KeyboardInterrupt:
        kept = f"; {len(rows)} rows are in {_part(output)}, go on with --resume" if output else ""
        print(f"interrupted{kept if rows else ''}", file=sys.stderr)
        return INTERRUPTED
    if output is not None:
        os.replace(_part(output), output)
        print(output)
    page = arguments.page or (TABLE.with_suffix(".md") if output == TABLE else None)
    if page is not None:
        from .page import write_page

        write_page(rows, page, output.name if output else "")
        print(page)
    failed = [row for row in rows if row.column in ("auto", "conv2d") and row.median_ms is None]
    for row in failed:
        print(f"setting {row.setting}, {row.column}: {row.note}", file=sys.stderr)
    slower = _compare(rows, reference, arguments.tolerance) if reference else False
    return 1 if failed or slower else 0


def _part(output: Path) -> Path:
    """Return where the rows are until they are complete."""
    return output.with_name(output.name + ".part")


def _progress() -> Callable[[int, int, Cell], None]:
    began = time.monotonic()

    def progress(number: int, total: int, cell: Cell) -> None:
        print(
            f"[{number + 1}/{total}, {time.monotonic() - began:.0f} s] {cell.part} "
            f"{cell.setting.name} {cell.dtype} {cell.memory_format} {cell.direction}",
            file=sys.stderr,
            flush=True,
        )

    return progress


def _line(row: LayerRow) -> str:
    place = f"{row.part:9}{row.setting:14} {row.column:16} {row.direction:16} {row.dtype:9} "
    place += f"{row.memory_format:14}"
    if row.median_ms is None:
        return f"{place} {row.note}"
    ratio = "" if row.ratio is None else f"{row.ratio:8.3f} x"
    slower = "" if row.slowdown is None else f"  {row.slowdown:.2f} x as long as alone"
    return f"{place}{row.median_ms:10.3f} ms{ratio}{slower}  {row.engine}"


def _compare(rows: list[LayerRow], reference: list[LayerRow], tolerance: float) -> bool:
    """Print the regressions; return whether there are any, or nothing could be compared."""
    if rows[0].machine != reference[0].machine:
        print(
            f"the reference is from {reference[0].machine}, this run from {rows[0].machine}: "
            "ratios differ between processors",
            file=sys.stderr,
        )
    try:
        slower = list(regressions(rows, reference, tolerance))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return True
    for row, old in slower:
        now = "failed" if row.ratio is None else f"{row.ratio:.3f}"
        print(f"regression: {_line(row)}   ratio {old:.3f} became {now}", file=sys.stderr)
    print(f"{len(slower)} rows are worse than the reference by more than {tolerance:.0%}")
    return bool(slower)


def _options(arguments: argparse.Namespace) -> Options:
    quick, default = arguments.quick or arguments.toy, Options()
    names = ("parts", "settings", "columns", "dtypes", "formats", "directions", "device", "toy")
    return Options(
        **{name: getattr(arguments, name) for name in names},
        batch=2 if arguments.quick else arguments.batch,
        seconds=arguments.seconds / (10 if quick else 1),
        repetitions=2 if quick else default.repetitions,
        memory=not arguments.quick,
        peer_python=arguments.peer_python or (str(PEERS) if PEERS.exists() else sys.executable),
    )


def _parser() -> argparse.ArgumentParser:
    default = Options()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.layers",
        description=__doc__,
        epilog="Lists are separated by commas; each one narrows every part: --settings 9 measures "
        "Setting 9 only. Needs a quiet machine. Exit status: 0 done, 1 a layer failed or became "
        "slower than in --reference-csv, 2 wrong usage, 130 interrupted.",
    )
    for flag, known in (
        ("parts", tuple(PARTS)),
        ("settings", SETTING_NAMES),
        ("columns", tuple(COLUMNS)),
        ("dtypes", DTYPES),
        ("formats", default.formats),
        ("directions", default.directions),
    ):
        chosen: tuple[str, ...] = getattr(default, flag)
        shown = "all" if chosen == known else ",".join(chosen)
        parser.add_argument(
            f"--{flag}", type=_several(known), default=chosen, metavar="LIST",
            help=f"of {', '.join(known)} (default: {shown})",
        )  # fmt: skip
    add = parser.add_argument
    add("-o", "--output", type=Path, metavar="CSV", help="write the rows to this file")
    add("--page", type=Path, metavar="MD", help="make a page, and its charts in images/ beside it")
    add("--force", action="store_true", help="overwrite the output")
    add("--resume", action="store_true", help="keep what an interrupted run left in OUTPUT.part")
    add("--device", default=default.device, help="default: %(default)s")
    add("--threads", type=_count, metavar="N", help="default: torch's own choice")
    add("--batch", type=_count, default=default.batch, help="default: %(default)s")
    add(
        "--seconds", type=_positive, default=default.seconds, metavar="S",
        help="time for one cell, divided among its columns (default: %(default)s)",
    )  # fmt: skip
    add("--quick", action="store_true", help="batch 2, a tenth of the time, memory not measured")
    add("--toy", action="store_true", help="tiny sizes, to test the benchmark itself")
    add(
        "--peer-python", metavar="PYTHON",
        help=f"a Python that has torchvision (default: {PEERS.relative_to(ROOT)} if it exists, "
        "else this one)",
    )  # fmt: skip
    add("--reference-csv", type=Path, metavar="CSV", help="compare ratios with this table")
    add(
        "--tolerance", type=_positive, default=0.15, metavar="SHARE",
        help="by how much a ratio may be worse (default: %(default)s)",
    )  # fmt: skip
    add("-q", "--quiet", action="store_true", help="no progress")
    return parser


def _several(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def several(text: str) -> tuple[str, ...]:
        given = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
        if unknown := [part for part in given if part not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
        return given

    return several


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an int >= 1, got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number > 0, got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
