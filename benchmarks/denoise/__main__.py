"""Measure what denoisers gain on real recordings, and make docs/denoising.md of it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from harmonic_lowering.audio import replacing

from ..common import machine
from .measure import DenoiserRow, combinations, read_table, run
from .methods import METHODS
from .mixtures import FAULTS, KEPT, NOISES, PARTS, fetch_for, mixtures
from .page import draw, overview, page, results_of
from .recordings import SOUNDS, default_cache

TABLE = Path(__file__).with_name("results.csv")
PAGE = machine.ROOT / "docs" / "denoising.md"
REPORTED = tuple(part for part in PARTS if part != "choose")
QUICK = ("librivox-a", "guitar")


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
    sounds = {path.stem: path for path in arguments.sound}
    parts = arguments.parts or (("steady",) if arguments.quick else REPORTED)
    if not _known(arguments.methods, METHODS) or not _known(arguments.parts, PARTS):
        return 2
    possible = [one for part in PARTS for one in mixtures(part, sounds)]
    chosen = list(dict.fromkeys(one for part in parts for one in mixtures(part, sounds)))
    if arguments.quick:
        chosen = [
            one
            for one in chosen
            if one.recording in QUICK and one.noise == "white" and one.level_db == 10
        ]
    for given, field in (
        (arguments.recordings, "recording"),
        (arguments.noises, "noise"),
        (arguments.levels, "level_db"),
    ):
        if not _known(given, {getattr(one, field): None for one in possible}):
            return 2
        chosen = [one for one in chosen if not given or getattr(one, field) in given]
    if not chosen:
        print("error: no mixture of the chosen parts is of that kind", file=sys.stderr)
        return 2
    methods = _present(arguments.methods or list(METHODS))
    wanted = combinations(chosen, methods, slow_everywhere=bool(arguments.methods))
    fetch_for(chosen, arguments.cache, arguments.debs)
    rows = run(wanted, arguments.table, arguments.cache, sounds, arguments.jobs, _say)

    measured = [rows[key] for key in wanted]
    for part in parts:
        if found := overview(results_of(measured, part)):
            print(f"{PARTS[part]}\n\n{found}\n")
    whole = not (
        arguments.quick
        or arguments.parts
        or arguments.recordings
        or arguments.noises
        or arguments.levels
        or arguments.methods
    )
    target = arguments.page or (PAGE if whole else None)
    if target:
        _write_page(arguments, target)
    return 1 if any(row.error for row in measured) else 0


def _known(given: Collection[object] | None, may: Collection[object]) -> bool:
    """Say which name is wrong, if one is."""
    for name in given or ():
        if name not in may:
            print(
                f"error: there is no {name!r}; choose from {', '.join(map(str, may))}",
                file=sys.stderr,
            )
            return False
    return True


def _present(names: Sequence[str]) -> list[str]:
    """Return the methods that can run here, and name the others."""
    present = []
    for name in names:
        if reason := METHODS[name].missing():
            print(f"left out: {name}, {reason}", file=sys.stderr)
        else:
            present.append(name)
    for package in ("pesq", "pystoi"):
        if importlib.util.find_spec(package) is None:
            print(f"left out: the score of {package}: pip install {package}", file=sys.stderr)
    return present


def _write_page(arguments: argparse.Namespace, target: Path) -> int:
    rows = list(read_table(arguments.table).values())
    if not any(row.method == "noisy" for row in rows):
        raise ValueError(
            f"{arguments.table} has no row of the method noisy: measure first, without --page-only"
        )
    folder = target.parent / "images"
    conditions = _conditions(arguments.jobs)
    if arguments.page_only and target.exists():
        # Nothing was measured here and now: what the page says of the machine remains true.
        found = re.search(r"^.*measurements at a time.*$", target.read_text(), re.M)
        conditions = found[0] if found else conditions
    pictures = {}
    for part in ("steady", "real"):
        picture = folder / ("denoising.png" if part == "steady" else f"denoising-{part}.png")
        if draw(rows, part, picture):
            pictures[part] = f"images/{picture.name}"
    text = page(rows, pictures, conditions, arguments.cache)
    with replacing(target) as file:
        file.write_text(text, encoding="utf-8")
    print(f"wrote {target}")
    return 0


def _say(row: DenoiserRow, left: int) -> None:
    score = f"{row.si_sdr:6.2f} dB" if not row.error else row.error
    print(
        f"{row.method:17}{row.part:8}{row.recording:14}{row.noise:12}{row.level_db:4g} dB  {score}"
        f"  {row.seconds:7.2f} s   {left} left",
        file=sys.stderr,
        flush=True,
    )


def _conditions(workers: int) -> str:
    where = machine.record()
    return (
        f"{where['machine']}, {os.cpu_count()} cores, torch {where['torch']}, harmonic-lowering "
        f"{where['version']}, commit {where['commit'] or 'unknown'}, {where['date']}; {workers} "
        "measurements at a time, one thread each. All settings are the same for all sounds."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.denoise", description=__doc__)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    add = parser.add_argument
    add(
        "--parts",
        nargs="+",
        metavar="NAME",
        help="; ".join(f"{name}: {what}" for name, what in PARTS.items())
        + f" (default: {' '.join(REPORTED)})",
    )
    add("--methods", nargs="+", metavar="NAME", help=", ".join(METHODS))
    add("--recordings", nargs="+", metavar="NAME", help=", ".join(r.name for r in SOUNDS))
    add(
        "--sound",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="more speech recordings for steady noise, whole files",
    )
    add("--noises", nargs="+", metavar="NAME", help=", ".join([*NOISES, *FAULTS, *KEPT]))
    add("--levels", nargs="+", type=float, metavar="DB", help="signal-to-noise ratios")
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
