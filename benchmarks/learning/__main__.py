"""Train networks that differ in their taps on polyphonic pitch, and make docs/learning.md of it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from harmonic_lowering.audio import replacing

from ..common import machine
from .data import default_cache
from .measure import Run, RunKey, combinations, read_table, run
from .networks import NETWORKS
from .page import draw, page
from .training import Settings

TABLE = Path(__file__).with_name("results.csv")
PAGE = machine.ROOT / "docs" / "learning.md"
SIZES = (300, 30, 1800)  # seconds of training sound, in the order of interest
SEEDS = 3
CLOSE = {"harmonic": 6, "random": 6}  # seeds where the difference is small
QUICK = ("harmonic", "random", "conv", "unet")


def main(argv: Sequence[str] | None = None) -> int:
    """Make the runs that are chosen and missing, then show them; return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; finished runs are in {arguments.table}: start again to go on",
            file=sys.stderr,
        )
        return 130
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    if not arguments.page_only:
        wanted = _wanted(arguments)
        known = read_table(arguments.table)
        with tqdm(total=len(wanted), unit="run", file=sys.stderr) as bar:
            bar.update(sum(key in known for key in wanted))

            def report(row: Run, left: int) -> None:
                bar.update()
                bar.write(_line(row), file=sys.stderr)

            run(wanted, arguments.table, arguments.cache, arguments.debs, arguments.jobs, report)
    rows = list(read_table(arguments.table).values())
    if not rows:
        raise ValueError(f"{arguments.table} has no runs of the present code: measure first")
    target = arguments.page or (None if arguments.quick or arguments.steps else PAGE)
    if target is None:
        for row in rows:
            print(_line(row))
        return 0
    picture = target.parent / "images" / "learning.png"
    draw(rows, picture)
    with replacing(target) as part:
        part.write_text(page(rows, "images/learning.png"), encoding="utf-8")
    print(f"wrote {target}, {picture}")
    return 0


def _wanted(arguments: argparse.Namespace) -> list[RunKey]:
    networks = arguments.networks or (QUICK if arguments.quick else tuple(NETWORKS))
    sizes = arguments.training_s or ((30,) if arguments.quick else SIZES)
    seeds = arguments.seeds or (1 if arguments.quick else SEEDS)
    steps = arguments.steps or Settings.steps

    def seeds_of(network: str) -> int:
        return seeds if arguments.seeds or arguments.quick else CLOSE.get(network, seeds)

    return combinations(networks, sizes, seeds_of, steps)


def _line(row: Run) -> str:
    return (
        f"{row.network:16}{row.training_s:5} s  seed {row.seed}  AP: B {row.B_ap:.3f} "
        f"10 dB {row.B10_ap:.3f} 0 dB {row.B0_ap:.3f}  R {row.R_ap:.3f}  {row.seconds:6.1f} s"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, metavar="NAME", help=", ".join(NETWORKS))
    add(
        "--training-s",
        nargs="+",
        type=int,
        metavar="S",
        choices=SIZES,
        help="seconds of training sound (default: 300 30 1800)",
    )
    add("--seeds", type=int, help="runs of each (default: 3; 6 of harmonic and random)")
    add("--steps", type=int, help=f"training steps (default: {Settings.steps})")
    add("--quick", action="store_true", help="four networks, 30 s, one seed, no page")
    add("--jobs", type=int, default=cores, help="runs at a time (default: %(default)s)")
    add("--table", type=Path, default=TABLE, help="CSV file; its runs are not made again")
    add("--page", type=Path, help="write the page there (default: docs/learning.md)")
    add("--page-only", action="store_true", help="make the page from the table")
    add("--cache", type=Path, default=default_cache(), help="folder of packages' files")
    add("--debs", type=Path, help="folder with the Debian packages, instead of apt-get")
    return parser


if __name__ == "__main__":
    sys.exit(main())
