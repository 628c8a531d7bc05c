"""`harmonic-lowering bench`: a loop over `benchmark.measure_all`."""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ..benchmark import PARTS, SETTINGS, Plan, Row, measure_all, read_csv, worse
from ..benchmark.records import Writer
from ..benchmark.run import Cell, cells

PEERS = Path(".venv-peers/bin/python")
DTYPES = ("float32", "bfloat16", "float16", "float64")


def add_parser(subparsers: Any) -> None:
    """Add `bench` to the command line."""
    default = Plan()
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bench",
        help="time the layers beside Conv2d and their other peers",
        description="Time the layers beside Conv2d, the paper's method and deformable convolution, "
        "in turns; write a CSV table. Wants a quiet machine.",
        epilog="Lists are separated by commas. Exit status: 0 done, 1 a layer failed or became "
        "slower than in --reference-csv, 2 wrong usage, 130 interrupted.",
    )
    for flag, known, chosen in (
        ("parts", tuple(PARTS), default.parts),
        ("settings", tuple(SETTINGS), default.settings),
        ("columns", default.columns, default.columns),
        ("dtypes", DTYPES, default.dtypes),
        ("formats", default.formats, default.formats),
        ("directions", default.directions, default.directions),
    ):
        parser.add_argument(
            f"--{flag}", type=_several(known), default=chosen, metavar="LIST",
            help=f"of {', '.join(known)} (default: {','.join(chosen)})",
        )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, metavar="CSV", help="write the rows here")
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    parser.add_argument(
        "--resume", action="store_true", help="keep what an interrupted run left beside the output"
    )
    parser.add_argument("--device", default=default.device, help="default: %(default)s")
    parser.add_argument("--threads", type=_count, metavar="N", help="default: torch's own choice")
    parser.add_argument("--batch", type=_count, default=default.batch, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=_positive, default=default.seconds, metavar="S",
        help="time for one cell, divided among its columns (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="batch 2, a tenth of the time, memory not measured"
    )
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to test the benchmark")
    parser.add_argument(
        "--peer-python", metavar="PYTHON",
        help=f"a Python that has torchvision (default: {PEERS} if it is there, else this one)",
    )  # fmt: skip
    parser.add_argument("--reference-csv", type=Path, metavar="CSV", help="compare ratios with it")
    parser.add_argument(
        "--tolerance", type=_positive, default=0.15, metavar="SHARE",
        help="by how much a ratio may be worse (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=lambda arguments: run(arguments, parser))


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Measure, write and print the rows; compare them, if asked."""
    output, reference, known, plan = arguments.output, [], [], _plan(arguments)
    if not cells(plan):
        parser.error("none of the --columns is measured in any of the --parts")
    try:
        torch.empty(0, device=arguments.device)
        if arguments.reference_csv:
            reference = read_csv(arguments.reference_csv)
        if output and not output.parent.is_dir():
            parser.error(f"{output}: there is no folder {output.parent}; make it first")
        if output and output.exists() and not arguments.force:
            parser.error(f"{output}: exists already; allow replacing it with --force")
        if arguments.resume and not output:
            parser.error("--resume needs the --output of the interrupted run")
        if arguments.resume and Writer.beside(output).exists():
            known = read_csv(Writer.beside(output))
        writer = Writer(output) if output else None
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        parser.error(str(error).splitlines()[0])
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = []
    try:
        for row in measure_all(plan, _progress(arguments.quiet), known):
            rows.append(row)
            if writer:
                writer.write(row)
            print(_line(row), flush=True)
        if writer:
            writer.finish()
            print(output)
    except KeyboardInterrupt:
        kept = f"; {len(rows)} rows are in {writer.part}, go on with --resume" if writer else ""
        print(f"interrupted{kept}", file=sys.stderr)
        return 130
    finally:
        if writer:
            writer.close()
    failed = [row for row in rows if row.column in ("auto", "conv2d") and row.median_ms is None]
    for row in failed:
        print(f"setting {row.setting}, {row.column}: {row.note}", file=sys.stderr)
    slower = _compare(rows, reference, arguments.tolerance) if reference else False
    return 1 if failed or slower else 0


def _progress(quiet: bool) -> Any:
    began = time.monotonic()

    def progress(number: int, total: int, cell: Cell) -> None:
        print(
            f"[{number + 1}/{total}, {time.monotonic() - began:.0f} s] {cell.part} "
            f"{cell.setting.name} {cell.dtype} {cell.memory_format} {cell.direction}",
            file=sys.stderr,
            flush=True,
        )

    return None if quiet else progress


def _plan(arguments: argparse.Namespace) -> Plan:
    quick, default = arguments.quick or arguments.toy, Plan()
    names = ("parts", "settings", "columns", "dtypes", "formats", "directions", "device", "toy")
    return Plan(
        **{name: getattr(arguments, name) for name in names},
        batch=2 if arguments.quick else arguments.batch,
        seconds=arguments.seconds / (10 if quick else 1),
        repetitions=2 if quick else default.repetitions,
        memory=not arguments.quick,
        peer_python=arguments.peer_python or (str(PEERS) if PEERS.exists() else sys.executable),
    )


def _line(row: Row) -> str:
    place = f"{row.setting:14} {row.column:14} {row.direction:16} {row.dtype:9} "
    place += f"{row.memory_format:14}"
    if row.median_ms is None:
        return f"{place} {row.note}"
    ratio = "" if row.ratio is None else f"{row.ratio:8.3f} x"
    return f"{place}{row.median_ms:10.3f} ms{ratio}  {row.engine}"


def _compare(rows: list[Row], reference: list[Row], tolerance: float) -> bool:
    """Print the rows that became slower; say whether there are any, or nothing to compare."""
    if rows[0].machine != reference[0].machine:
        print(
            f"the reference is from {reference[0].machine}, this run from {rows[0].machine}: "
            "ratios differ between processors",
            file=sys.stderr,
        )
    try:
        slower = list(worse(rows, reference, tolerance))
    except ValueError as error:
        print(f"harmonic-lowering: {error}", file=sys.stderr)
        return True
    for row, old in slower:
        now = "failed" if row.ratio is None else f"{row.ratio:.3f}"
        print(f"worse: {_line(row)}   ratio {old:.3f} became {now}", file=sys.stderr)
    print(f"{len(slower)} rows are worse than the reference by more than {tolerance:.0%}")
    return bool(slower)


def _several(known: tuple[str, ...]) -> Any:
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
