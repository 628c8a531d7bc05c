"""Compiling the native core: for the user's cache, and for wheels.

The hook that builds wheels loads this file by its path, so it uses the standard library alone and
nothing of this package.

A library's name ends in a digest of its content: what is half-written or damaged is not mistaken
for one that works, and writing one is a single renaming.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = [
    "INSTRUCTION_SETS",
    "BuildError",
    "compile_library",
    "find_compiler",
    "is_intact",
    "source_digest",
    "stored",
]

TEMPORARY = ".build-"  # how folders of builds that are under way begin
SOURCES = Path(__file__).parent / "csrc"
# Contraction of a·b + c to one instruction is the compilers' default and stays; nothing here
# changes the order of a sum, so that results are the same from run to run.
FLAGS = (
    "-O3",
    "-std=c++17",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-exceptions",
    "-fno-rtti",
    "-fvisibility=hidden",
    f"-ffile-prefix-map={SOURCES}=csrc",
    "-shared",
)
# What the libraries of a wheel are compiled for, by machine, the best one first. The names are
# what tap_conv_instruction_set() says.
INSTRUCTION_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "x86-64-v4-bf16": ("-march=x86-64-v4", "-mavx512bf16"),
        "x86-64-v4": ("-march=x86-64-v4",),
        "x86-64-v3": ("-march=x86-64-v3",),
    },
    "aarch64": {"aarch64": ()},
}


class BuildError(RuntimeError):
    """The native core could not be compiled; everything works without it, slower."""


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler: ``$CXX``, or else the first one found.

    Raises
    ------
    BuildError
        If there is none.
    """
    if command := shlex.split(os.environ.get("CXX", "")):
        return command
    # Not GCC on Windows, which does not align vectors on the stack there (its bug 54412).
    for name in ("clang++",) if sys.platform == "win32" else ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise BuildError("there is no C++ compiler: set CXX, or install g++ or clang")


def compile_library(
    compiler: Sequence[str],
    flags: Sequence[str],
    folder: Path,
    name: str,
    *,
    suffix: str,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """Compile the core with `flags` besides `FLAGS`, and return ``folder/name-DIGEST{suffix}``.

    It is there only when it is whole and `check` has not raised.

    Raises
    ------
    BuildError
        If the compiler cannot be run or fails; the message has its last lines.
    OSError
        If the folder cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=TEMPORARY) as temporary:
        made = Path(temporary) / f"core{suffix}"
        command = [*compiler, *FLAGS, *_platform_flags(suffix), *flags]
        command += [str(SOURCES / "tap_conv.cpp"), "-o", str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise BuildError(f"{compiler[0]}: {error.strerror}") from error
        if done.returncode or not made.exists():
            last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-12:])
            raise BuildError(f"{shlex.join(command)}\n{last}")
        made.chmod(0o755)  # whatever the umask: what others can write is not loaded
        if check:
            check(made)
        target = folder / f"{name}-{_digest(made.read_bytes())}{suffix}"
        os.replace(made, target)
    return target


def stored(folder: Path, name: str) -> list[Path]:
    """Return the libraries of that name in a folder, the newest first."""
    try:
        found = [path for path in folder.iterdir() if path.stem.rpartition("-")[0] == name]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def is_intact(path: Path) -> bool:
    """Return whether a library's content is what its name says."""
    return path.stem.rpartition("-")[2] == _digest(path.read_bytes())


def source_digest(*more: str) -> str:
    """Return a digest of the source, the flags and `more`."""
    key = hashlib.sha256()
    for file in sorted(SOURCES.iterdir()):
        key.update(file.name.encode() + b"\0" + file.read_bytes())
    for part in (*(flag for flag in FLAGS if str(SOURCES) not in flag), *more):
        key.update(part.encode() + b"\0")
    return key.hexdigest()[:16]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _platform_flags(suffix: str) -> list[str]:
    if suffix == ".dylib":
        return ["-fPIC", "-Wl,-dead_strip_dylibs", "-Wl,-x"]
    if suffix == ".dll":
        return ["-s"]
    # Only what it needs: that is libc alone, not the C++ library that the compiler adds.
    return ["-fPIC", "-s", "-Wl,--as-needed", "-Wl,-z,noexecstack"]
