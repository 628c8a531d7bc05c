"""Compiling the native core on the user's machine: only when asked to, and never needed.

`build` compiles ``csrc/tap_conv.cpp`` and its headers for this machine's processor and this torch,
into a folder of the user's cache, where `library.load` finds it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from .library import FLAGS, SOURCE, library_path, load, open_library

__all__ = ["BuildError", "build"]


class BuildError(RuntimeError):
    """The native core could not be compiled; everything works without it, slower."""


def build() -> Path:
    """Compile the native core for this machine and return the path of the library.

    Takes some ten seconds, and one file of the user's cache folder; a later version of torch or
    of this package needs it again. The compiler is ``$CXX``, or else ``c++``.

    Raises
    ------
    BuildError
        If there is no compiler or it fails; the message has its last lines.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise BuildError(_failed("there is no C++ compiler: set CXX, or install g++ or clang"))
    target = library_path()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            command = [*compiler.split(), *FLAGS, *_torch_flags(), str(SOURCE), "-o", str(made)]
            command += _link_flags()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-12:])
                raise BuildError(_failed(f"{' '.join(command)}\n{last}"))
            open_library(
                made
            )  # a library that does not load must not take the place of one that does
            os.replace(made, target)
    except OSError as error:
        raise BuildError(_failed(str(error))) from error
    load.cache_clear()
    return target


def _torch_flags() -> list[str]:
    include = Path(torch.__file__).parent / "include"
    abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
    return ["-fPIC", "-shared", "-isystem", str(include), f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]


def _link_flags() -> list[str]:
    # OpenMP's library is the one torch has loaded already, found by its name.
    library = Path(torch.__file__).parent / "lib"
    flags = [f"-L{library}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{library}"]
    if sys.platform == "darwin":
        return [*flags, "-undefined", "dynamic_lookup"]
    return [*flags, "-fopenmp"]


def _failed(reason: str) -> str:
    return (
        f"the native core was not built: {reason}\n"
        "Everything works without it: engine='auto' uses stock torch calls, which are slower."
    )
