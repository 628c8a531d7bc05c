"""`harmonic-lowering`: the parser and what all subcommands share."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import cast

from . import bench, build_native, denoise

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def build_parser() -> argparse.ArgumentParser:
    """Collect the subcommands; each module adds its own parser and a function to `run`."""
    parser = argparse.ArgumentParser(
        prog="harmonic-lowering",
        description="Harmonic convolution for audio spectrograms.",
        epilog="exit status: 0 all done, 1 some failed, 2 wrong usage, 130 interrupted",
    )
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    denoise.add_parser(subparsers)
    build_native.add_parser(subparsers)
    bench.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status."""
    arguments = build_parser().parse_args(argv)
    previous = signal.signal(signal.SIGTERM, _terminate)  # so that `finally` clears up
    try:
        return cast(int, arguments.run(arguments))
    except KeyboardInterrupt:
        print("interrupted: nothing half-written was left behind", file=sys.stderr)
        return INTERRUPTED
    except ImportError as error:
        print(f"harmonic-lowering: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)
