"""Compiling the native core on the user's machine, for this processor, into the user's cache.

For processors that no wheel covers, and for every last percent: `library.load` takes what is built
here before what a wheel has.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from . import library
from .compiler import TEMPORARY, BuildError, compile_library, find_compiler

__all__ = ["BuildError", "build"]


def build() -> Path:
    """Compile the native core for this machine and return the path of the library.

    Takes some twenty seconds, and one file of the user's cache folder; a later version of this
    package needs it again, another torch does not. The compiler is ``$CXX``, or else ``c++``.

    Raises
    ------
    BuildError
        If there is no compiler or it fails; the message has its last lines.
    """
    try:
        folder = library.cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(folder.stat().st_mode & ~0o022)  # code that others can write is not loaded
        _remove_abandoned(folder)
        target = compile_library(
            find_compiler(),
            ["-march=native"],
            folder,
            library.built_name(),
            suffix=library.SUFFIX,
            check=library.Core,
        )
    except (OSError, RuntimeError) as error:  # BuildError, or no home folder
        raise BuildError(
            f"the native core was not built: {error}\n"
            "Everything works without it: engine='auto' uses stock torch calls, which are slower."
        ) from error
    library.forget()
    return target


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary folders of builds that were killed."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if time.time() - path.stat().st_mtime > 3600:
            shutil.rmtree(path, ignore_errors=True)
