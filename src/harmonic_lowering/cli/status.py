"""What all subcommands share: exit statuses that have a name, and a parser that knows dashes."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

INTERRUPTED = 130  # 128 + SIGINT, as shells count


class UnwritableError(OSError):
    """Standard output cannot be written, although somebody reads it."""


class Parser(argparse.ArgumentParser):
    """Says how to name a file that begins with a dash, if that was the mistake."""

    def error(self, message: str) -> NoReturn:
        """End with status 2 and one sentence."""
        dashed = [word for word in sys.argv[1:] if word[:1] == "-" and os.path.lexists(word)]
        if dashed and "--" not in sys.argv:
            message += f"; for the file {dashed[0]} write -- {dashed[0]}, or ./{dashed[0]}"
        super().error(message)
