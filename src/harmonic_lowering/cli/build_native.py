"""`harmonic-lowering build-native`: compile the optional native core for this machine."""

from __future__ import annotations

import argparse
import sys

from ..engines.native import build as native
from ..engines.native import library


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "build-native",
        help="compile the optional native core, which makes the layers faster on the CPU",
        description="Compile the native core for this very processor, into the user's cache "
        "folder, where it is used instead of the one in the installed wheel. Needs a C++ compiler "
        "(CXX, or c++).",
    )
    parser.add_argument(
        "--status", action="store_true", help="say which one is used, and build nothing"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Build, or say what is there."""
    if arguments.status:
        reason = library.unsupported_reason()
        used = library.info()
        print(reason or f"the native core ({used.origin}, {used.instruction_set}): {used.path}")
        return 0 if reason is None else 1
    try:
        path = native.build()
    except native.BuildError as error:
        print(f"harmonic-lowering: {error}", file=sys.stderr)
        return 1
    print(f"the native core is built: {path}")
    return 0
