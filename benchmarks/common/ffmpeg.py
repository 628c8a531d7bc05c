"""The program ffmpeg, fed and read through pipes."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

__all__ = ["run_ffmpeg"]


def run_ffmpeg(arguments: Sequence[str], given: bytes = b"") -> bytes:
    """Return what ffmpeg writes to its standard output.

    Raises
    ------
    OSError
        If it is not installed, or fails.
    """
    command = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-y", *arguments]
    try:
        done = subprocess.run(command, input=given, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise OSError("the program ffmpeg is not installed (apt install ffmpeg)") from error
    if done.returncode:
        raise OSError(f"ffmpeg failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
