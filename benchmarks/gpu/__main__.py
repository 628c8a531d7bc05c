"""Time the layers beside cuDNN's `Conv2d` on the card of this machine, in six minutes.

Writes a table, a page and two charts, and prints a report that needs nothing else to be understood.
What is most useful is measured first: a run that is cut off has written all that it measured.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ..common.machine import record
from ..common.tables import write_rows
from ..layers.rows import LayerRow
from .measure import no_card, no_device
from .page import report, write_page
from .run import Cell, Options, cells, measure_all

INTERRUPTED = 130
_OUTPUT = Path("gpu-benchmarks/gpu-benchmarks.csv")  # what is published lies in docs


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write and print; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        epilog="Exit status: 0 done, 1 a layer failed, 2 wrong usage or no card, 130 interrupted.",
    )
    add = parser.add_argument
    add("-o", "--output", type=Path, default=_OUTPUT, metavar="CSV", help="default: %(default)s")
    add(
        "--minutes", type=float, default=Options.minutes, metavar="M",
        help="begin nothing new after this time (default: %(default)s)",
    )  # fmt: skip
    add("--device", default="cuda", help="default: %(default)s")
    add("--toy", action="store_true", help="tiny sizes on any device: tests the benchmark itself")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.minutes < 1e6:
        parser.error(f"--minutes must be a number > 0, got {arguments.minutes}")
    if arguments.toy and arguments.output == _OUTPUT:
        parser.error("--toy measures nothing: give it an --output of its own")
    if reason := (no_device if arguments.toy else no_card)(arguments.device):
        parser.error(reason)
    options = Options(
        device=arguments.device, minutes=arguments.minutes, toy=arguments.toy,
        seconds=0.01 if arguments.toy else 0.4, repetitions=2 if arguments.toy else 5,
    )  # fmt: skip
    try:
        page = arguments.output.with_suffix(".md")
        page.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=page.parent).close()
    except (OSError, ValueError) as error:
        parser.error(f"cannot write {arguments.output}: {error}")

    rows: list[LayerRow] = []
    n_cells, interrupted = 0, False
    began = time.monotonic()

    def progress(number: int, total: int, cell: Cell) -> None:
        nonlocal n_cells
        n_cells = number + 1  # with this one, which may be cut off
        place = f"{cell.mode} {cell.setting.name} {cell.precision} {cell.memory_format}"
        spent = time.monotonic() - began
        print(f"[{number + 1}/{total}, {spent:.0f} s] {place} {cell.direction}", file=sys.stderr)

    try:
        for row in measure_all(options, progress):
            rows.append(row)
            write_rows(arguments.output, rows, LayerRow)
    except KeyboardInterrupt:
        interrupted = True
    if not rows:
        print("nothing was measured", file=sys.stderr)
        return INTERRUPTED if interrupted else 1
    write_page(rows, page, arguments.output.name, toy=options.toy)
    print("==== report: to send it, open an issue and paste all of this (docs/gpu.md)")
    print(report(rows, environment(options.device), toy=options.toy))
    print("==== end of the report")
    n_cells -= interrupted
    print(f"{n_cells} of {len(cells(options))} cells measured; {arguments.output}, {page}")
    failed = [r for r in rows if r.column in ("triton", "conv2d") and r.median_ms is None]
    return INTERRUPTED if interrupted else 1 if failed else 0


def environment(device: str) -> dict[str, str]:
    """Return what the figures depend on besides this package."""
    found = {name: str(value) for name, value in record(device).items() if value}
    if torch.device(device).type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {
            "capability": f"{card.major}.{card.minor}",
            "processors": str(card.multi_processor_count),
            "memory": f"{card.total_memory / 2**30:.0f} GiB",
            "L2 cache": f"{getattr(card, 'L2_cache_size', 0) / 2**20:.0f} MiB",
            "CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),
        }
    try:
        found["triton"] = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        found["triton"] = "not installed"
    return found | {"python": platform.python_version(), "platform": platform.platform()}


if __name__ == "__main__":
    sys.exit(main())
