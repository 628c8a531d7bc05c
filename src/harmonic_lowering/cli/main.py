"""`harmonic-lowering`: the parser, and what all subcommands share."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import cast

from .. import __version__
from . import build_native, denoise, info, transcribe, web
from .status import INTERRUPTED, Parser, UnwritableError

_TERMINATING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def build_parser() -> argparse.ArgumentParser:
    """Collect the subcommands; each module adds its own parser and a function to `run`."""
    parser: argparse.ArgumentParser = Parser(
        prog="harmonic-lowering",
        description="Harmonic convolution for audio spectrograms.",
        epilog="Exit status: 0 all done, 1 some failed, 2 wrong usage, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    denoise.add_parser(subparsers)
    transcribe.add_parser(subparsers)
    build_native.add_parser(subparsers)
    info.add_parser(subparsers)
    web.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status."""
    parser = build_parser()
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["bench"]:
        parser.error(
            "bench has left the package: run 'make bench' in a checkout of the repository, or "
            "'harmonic-lowering info' for a table of ten seconds"
        )
    arguments = parser.parse_args(words)
    in_main_thread = threading.current_thread() is threading.main_thread()
    # So that `finally` cleans up; only the main thread may install handlers.
    previous = {
        number: signal.signal(number, _terminate)
        for number in _TERMINATING
        if in_main_thread and signal.getsignal(number) != signal.SIG_IGN  # nohup stays nohup
    }
    try:
        return cast(int, arguments.run(arguments))
    except KeyboardInterrupt:
        print("interrupted: nothing half-written was left behind", file=sys.stderr)
        return INTERRUPTED
    except (BrokenPipeError, UnwritableError) as error:
        # The reader of our output went away, or there is no room; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, UnwritableError):
            print(f"harmonic-lowering: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"harmonic-lowering: {error}", file=sys.stderr)
        return 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _terminate(number: int, _: FrameType | None) -> None:
    print("terminated: nothing half-written was left behind", file=sys.stderr)
    sys.exit(128 + number)
