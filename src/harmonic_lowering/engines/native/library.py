"""Finding and loading the native core, and the structures that it is called with."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
from functools import lru_cache
from pathlib import Path

import torch

__all__ = ["Call", "Rows", "library_path", "load", "open_library", "unsupported_reason"]

SOURCE = Path(__file__).parent / "csrc" / "tap_conv.cpp"
# Contraction of a·b + c to one instruction is the compilers' default and stays; nothing here
# changes the order of a sum, so that results are the same from run to run.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math")
COMMAND = "harmonic-lowering build-native"

int64, pointer = ctypes.c_int64, ctypes.c_void_p


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


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """Return the library, or None if it has not been built for this torch and processor."""
    try:
        return open_library(library_path())
    except OSError:
        return None


def unsupported_reason() -> str | None:
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


def open_library(path: Path) -> ctypes.CDLL:
    """Open a library; OSError or AttributeError if it is not one of ours."""
    library = ctypes.CDLL(str(path))
    for name in ("tap_conv_apply", "tap_conv_grad_weight"):
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.POINTER(Call)], ctypes.c_int
    return library


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


def run(name: str, call: Call) -> None:
    """Call a function of the core."""
    core = load()
    assert core is not None, "unsupported_reason() has looked"
    if getattr(core, name)(ctypes.byref(call)):
        raise NotImplementedError(f"{name}: dtype code {call.dtype}")
