"""Measure what denoisers gain on real recordings, and make docs/denoising.md of it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from harmonic_lowering.audio import replacing

from ..common import machine
from .measure import DenoiserRow, combinations, read_table, run
from .methods import METHODS
from .mixtures import CLEAN, NOISES
from .page import Results, _overview, draw, page
from .recordings import NOISES as RECORDED
from .recordings import RECORDINGS, default_cache, fetch

TABLE = Path(__file__).with_name("results.csv")
PAGE = machine.ROOT / "docs" / "denoising.md"
LEVELS = (0.0, 5.0, 10.0)
DEFAULT_NOISES = ("white", "pink", "hum", "hiss")
QUICK_RECORDINGS = ("librivox-a", "guitar")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is chosen and missing, then show it; return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; what was measured is in {arguments.table}: run again to go on",
            file=sys.stderr,
        )
        return 130
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    if arguments.page_only:
        return _write_page(arguments, arguments.page or PAGE)
    quick = arguments.quick
    sounds = {path.stem: path for path in arguments.sound}
    names = arguments.recordings or (
        QUICK_RECORDINGS if quick else (*sounds, *(one.name for one in RECORDINGS))
    )
    noises = arguments.noises or (("white",) if quick else DEFAULT_NOISES)
    levels = arguments.levels or ((10.0,) if quick else LEVELS)
    methods = arguments.methods or list(METHODS)
    known = {one.name: one for one in RECORDINGS}
    for given, may in ((names, (*known, *sounds)), (noises, NOISES), (methods, METHODS)):
        for name in given:
            if name not in may:
                print(f"error: there is no {name!r}; choose from {', '.join(may)}", file=sys.stderr)
                return 2
    present = []
    for name in methods:
        if reason := METHODS[name].missing():
            print(f"left out: {name}, {reason}", file=sys.stderr)
        else:
            present.append(name)
    for package in ("pesq", "pystoi"):
        if importlib.util.find_spec(package) is None:
            print(f"left out: the score of {package}, which is not installed", file=sys.stderr)
    recorded = [one for one in RECORDED if one.name in noises]
    fetch([known[n] for n in names if n in known] + recorded, arguments.cache, arguments.debs)

    kinds = [(name, known[name].kind if name in known else "speech") for name in names]
    # Slow methods run everywhere only when they are named.
    few = (lambda *_: True) if arguments.methods else slow_on
    wanted = combinations(kinds, noises, levels, present, few)
    if not quick:
        clean = [name for name in ("prior", "prior-fast") if name in present]
        wanted += combinations(kinds, (CLEAN,), (float("inf"),), clean, lambda *_: False)
    rows = run(wanted, arguments.table, arguments.cache, sounds, arguments.jobs, _say)

    chosen = [rows[key] for key in wanted]
    results = Results(chosen)
    print(_overview(results, results.full, None))
    whole = not (
        quick or arguments.recordings or arguments.noises or arguments.levels or arguments.methods
    )
    target = arguments.page or (PAGE if whole else None)
    if target:
        _write_page(arguments, target)
    return 1 if any(row.error for row in chosen) else 0


def _write_page(arguments: argparse.Namespace, target: Path) -> int:
    rows = read_table(arguments.table).values()
    if "noisy" not in Results(rows).rows:
        raise ValueError(
            f"{arguments.table} has no row of the method noisy that the present code has given: "
            "measure first, without --page-only"
        )
    picture = target.parent / "images" / "denoising.png"
    conditions = _conditions(arguments.jobs)
    if arguments.page_only and target.exists():
        # Nothing was measured here and now: what the page says of the machine remains true.
        found = re.search(r"^.*measurements at a time.*$", target.read_text(), re.M)
        conditions = found[0] if found else conditions
    draw(rows, picture)
    with replacing(target) as part:
        part.write_text(page(rows, "images/denoising.png", conditions), encoding="utf-8")
    print(f"wrote {target}, {picture}")
    return 0


def slow_on(recording: str, noise: str, level_db: float) -> bool:
    """By default slow methods run on one speech and one music recording, white noise, 10 dB."""
    return recording in QUICK_RECORDINGS and noise == "white" and level_db == 10


def _say(row: DenoiserRow, left: int) -> None:
    score = f"{row.si_sdr:6.2f} dB" if not row.error else row.error
    print(
        f"{row.method:17}{row.recording:14}{row.noise:7}{row.level_db:4g} dB  {score}  "
        f"{row.seconds:7.2f} s   {left} left",
        file=sys.stderr,
        flush=True,
    )


def _conditions(workers: int) -> str:
    where = machine.record()
    return (
        f"{where['machine']}, {os.cpu_count()} cores, torch {where['torch']}, harmonic-lowering "
        f"{where['version']}, commit {where['commit'] or 'unknown'}, {where['date']}; {workers} "
        "measurements at a time, one thread each; 16 kHz, one channel, excerpts of up to 4 s "
        "(a user's own files whole). Noise is added at 0, 5 and 10 dB over the whole excerpt. "
        "All settings are the same for all sounds."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.denoise", description=__doc__)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    add = parser.add_argument
    add("--recordings", nargs="+", metavar="NAME", help=", ".join(r.name for r in RECORDINGS))
    add(
        "--sound",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="more speech recordings, whole files",
    )
    add(
        "--noises",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(NOISES)} (default: {' '.join(DEFAULT_NOISES)})",
    )
    add("--levels", nargs="+", type=float, metavar="DB", help="(default: 0 5 10)")
    add("--methods", nargs="+", metavar="NAME", help=", ".join(METHODS))
    add("--quick", action="store_true", help="two recordings, white noise at 10 dB")
    add("--jobs", type=int, default=cores, help="measurements at a time (default: %(default)s)")
    add("--table", type=Path, default=TABLE, help="CSV file; its rows are not measured again")
    add("--page", type=Path, help="write the page there (a whole run: docs/denoising.md)")
    add("--page-only", action="store_true", help="make the page from the table, measure nothing")
    add("--cache", type=Path, default=default_cache(), help="folder of the recordings")
    add("--debs", type=Path, help="folder with the Debian packages, instead of apt-get")
    return parser


if __name__ == "__main__":
    sys.exit(main())
