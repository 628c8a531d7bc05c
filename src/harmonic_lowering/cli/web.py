"""`harmonic-lowering web`: a page in the browser that does what `denoise` does."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add `web` to the command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "web",
        help="remove noise from recordings on a page in the browser",
        description="Serve a page on which recordings are dropped or recorded, denoised, compared "
        "and downloaded, and open it in the browser. Nothing leaves this machine; files are "
        "deleted when their page is closed. Ctrl-C ends it.",
        epilog="Exit status: 0 ended with Ctrl-C, 1 the page cannot be served, 2 wrong usage, "
        "143 terminated.",
    )
    add = parser.add_argument
    add(
        "--host", default="127.0.0.1",
        help="address to serve on; 0.0.0.0 lets other machines in, without a password or "
        "encryption (default: %(default)s, this machine only)",
    )  # fmt: skip
    add("--port", type=_port, default=7860, help="0: any free one (default: %(default)s)")
    add("--no-browser", action="store_true", help="only print the address")
    add(
        "--max-size", type=_positive, default=500.0, metavar="MB",
        help="largest recording (default: %(default)g)",
    )  # fmt: skip
    add(
        "--max-length", type=_positive, default=60.0, metavar="MIN",
        help="longest recording in minutes (default: %(default)g)",
    )  # fmt: skip
    add(
        "--jobs", type=_count, default=1, metavar="N",
        help="recordings denoised at a time; they share the threads (default: %(default)s)",
    )  # fmt: skip
    add(
        "--waiting", type=_count, default=8, metavar="N",
        help="pages that may wait for their turn; more are sent away (default: %(default)s)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from ..web import Limits, PageError, serve  # not when another command runs

    limits = Limits(
        size_mb=arguments.max_size,
        minutes=arguments.max_length,
        jobs=arguments.jobs,
        waiting=arguments.waiting,
    )
    try:
        serve(arguments.host, arguments.port, limits=limits, browser=not arguments.no_browser)
    except PageError as error:
        print(f"harmonic-lowering: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("the page is closed and its files are deleted", file=sys.stderr)
    return 0


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"must be a number in 0 … 65535, got {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1000):
        raise argparse.ArgumentTypeError(f"must be a whole number in 1 … 999, got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return number
