"""The native core: a little C++, compiled on the user's machine when asked to, and never needed.

`build` compiles ``tap_conv.cpp`` and its headers for this machine's processor and this torch, into
a folder of the user's cache; `load` returns the library if a fitting one is there. Nothing is ever
built unasked, and importing this module does neither.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

__all__ = ["BuildError", "build", "library_path", "load", "why_not_loaded"]

SOURCE = Path(__file__).with_name("tap_conv.cpp")
# Contraction of a·b + c to one instruction is the compilers' default and stays; nothing here
# changes the order of a sum, so that results are the same from run to run.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math")
COMMAND = "harmonic-lowering build-native"

int64, pointer = ctypes.c_int64, ctypes.c_void_p


class BuildError(RuntimeError):
    """The native core could not be compiled; everything works without it, slower."""


class Rows(ctypes.Structure):
    """``struct Rows`` of ``call.h``: the sparse matrices of all taps."""

    _fields_ = (
        ("pointer", pointer),
        ("column", pointer),
        ("value", pointer),
        ("rows", int64),
    )


class Call(ctypes.Structure):
    """``struct Call`` of ``call.h``, field by field."""

    _fields_ = (
        ("dtype", int64),
        ("batch", int64),
        ("groups", int64),
        ("in_channels", int64),
        ("out_channels", int64),
        ("taps", int64),
        ("kernel_time", int64),
        ("src_rows", int64),
        ("src_len", int64),
        ("dst_rows", int64),
        ("dst_len", int64),
        ("stride", int64),
        ("spread", int64),
        ("dilation", int64),
        ("padding", int64),
        ("src", pointer),
        ("src_stride", int64 * 4),
        ("dst", pointer),
        ("dst_stride", int64 * 4),
        ("weight", pointer),
        ("weight_stride", int64 * 5),
        ("bias", pointer),
        ("matrix", Rows),
        ("transposed", Rows),
        ("blend_first", pointer),
    )


def library_path() -> Path:
    """Return where the library for this source, torch and processor is, or would be."""
    key = hashlib.sha256()
    for file in [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]:
        key.update(file.read_bytes())
    for part in (torch.__version__, platform.machine(), _processor(), *FLAGS):
        key.update(part.encode() + b"\0")
    name = f"tap_conv-{key.hexdigest()[:16]}.{'dylib' if sys.platform == 'darwin' else 'so'}"
    return _cache_folder() / name


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
            _open(made)  # a library that does not load must not take the place of one that does
            os.replace(made, target)
    except OSError as error:
        raise BuildError(_failed(str(error))) from error
    load.cache_clear()
    return target


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """Return the library, or None if it has not been built for this torch and processor."""
    try:
        return _open(library_path())
    except OSError:
        return None


def why_not_loaded() -> str | None:
    """Return why the native core cannot be used, or None if it can."""
    if load() is not None:
        return None
    try:
        path = library_path()
    except OSError as error:
        return str(error)
    if path.exists():
        return f"{path} does not load; build it again with: {COMMAND}"
    return (
        f"it is not built for torch {torch.__version__} on this machine; build it with: {COMMAND}"
    )


def _open(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name in ("tap_conv_apply", "tap_conv_grad_weight"):
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.POINTER(Call)], ctypes.c_int
    return library


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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _cache_folder() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "harmonic-lowering"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "harmonic-lowering"


def _failed(reason: str) -> str:
    return (
        f"the native core was not built: {reason}\n"
        "Everything works without it: engine='auto' uses stock torch calls, which are slower."
    )
