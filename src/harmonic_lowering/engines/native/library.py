"""Finding and loading the native core, and the structures that it is called with.

Searched in this order, and the first library that can be used is taken:

1. what ``harmonic-lowering build-native`` made for this processor, in the user's cache folder;
2. what the installed wheel has, the best instruction set that this processor runs first.

Nothing here raises for want of a library: what is passed over is remembered with its reason.
"""

from __future__ import annotations

import ctypes
import os
import platform
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from .compiler import INSTRUCTION_SETS, is_intact, source_digest, stored

__all__ = ["Call", "CoreInfo", "Rows", "cache_folder", "info", "load", "run", "unsupported_reason"]

ABI = 1  # of call.h
PACKAGED = Path(__file__).parent / "lib"
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
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
    """``struct Call`` of ``call.h``, field by field; `run` fills in the threads."""

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
        ("input_dilation", int64),
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
        ("threads", int64),
        ("parallel_for", pointer),
        ("gomp_parallel", pointer),
    )

    def set_time(self, *, stride: int, input_dilation: int, dilation: int, padding: int) -> None:
        """Set what acts on time; ctypes would take an integer of any size, and cut it."""
        most = 1 << 60
        if max(stride, input_dilation, dilation, abs(padding)) > most:
            raise ValueError(
                "stride, dilation and padding in time must be at most 2**60, "
                f"got {stride=}, {input_dilation=}, {dilation=}, {padding=}"
            )
        self.stride, self.input_dilation = stride, input_dilation
        self.dilation, self.padding = dilation, padding


@dataclass(frozen=True)
class CoreInfo:
    """The native core in use, and what was passed over for it.

    Attributes
    ----------
    path : Path or None
        The library in use.
    origin : str
        "built here", "wheel", or "" if there is none.
    instruction_set : str
        What it was compiled for: "x86-64-v3", say.
    threads : str
        How it runs on torch's threads: "torch_parallel_for", "GOMP_parallel", or "".
    candidates : tuple of (str, str)
        Each library that was passed over, and why.
    """

    path: Path | None
    origin: str
    instruction_set: str
    threads: str
    candidates: tuple[tuple[str, str], ...]


class Core:
    """A library that has been loaded and answers as it should.

    Raises
    ------
    OSError
        If it does not load or is not a library of this version.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        try:
            self.functions = {
                name: getattr(library, name) for name in ("tap_conv_apply", "tap_conv_grad_weight")
            }
            interface = library.tap_conv_abi(), library.tap_conv_call_size()
            instruction_set = library.tap_conv_instruction_set
        except AttributeError as error:
            raise OSError(f"it is another library: {error}") from error
        if interface != (ABI, ctypes.sizeof(Call)):
            raise OSError(f"it has the interface {interface}, not {(ABI, ctypes.sizeof(Call))}")
        instruction_set.restype = ctypes.c_char_p
        self.instruction_set = instruction_set().decode()
        for function in self.functions.values():
            function.argtypes, function.restype = [ctypes.POINTER(Call)], ctypes.c_int


@dataclass(frozen=True)
class _Threads:
    """The function by which torch lends its threads, and its address."""

    name: str
    address: int


@lru_cache(maxsize=1)
def _search() -> tuple[Core | None, CoreInfo]:
    passed_over: list[tuple[str, str]] = []
    if (threads := _threads()) is not None:
        for path, origin, reason in _candidates():
            core = None
            try:
                core = None if reason else Core(path)
            except OSError as error:
                reason = str(error)
            if core is not None and not (reason := _beyond_torch(core.instruction_set)):
                used = CoreInfo(
                    path, origin, core.instruction_set, threads.name, tuple(passed_over)
                )
                return core, used
            passed_over.append((str(path), reason or ""))
    return None, CoreInfo(None, "", "", "", tuple(passed_over))


def load() -> Core | None:
    """Return the native core, or None; searched for once in a process."""
    return _search()[0]


def forget() -> None:
    """Search anew at the next call, for one that has been built since."""
    _search.cache_clear()


def info() -> CoreInfo:
    """Return which native core is used, and which libraries were passed over."""
    return _search()[1]


def unsupported_reason(*dtypes: torch.dtype) -> str | None:
    """Return why the native core cannot be used (with these dtypes), or None if it can."""
    core = load()
    if core is None and _threads() is None:
        return (
            f"torch {torch.__version__} on {sys.platform} does not lend its threads to the core; "
            "torch 2.10 and later do"
        )
    if core is None:
        passed_over = "; ".join(f"{path}: {why}" for path, why in info().candidates)
        return f"{passed_over or 'none is installed for this processor'}; build it with: {COMMAND}"
    if torch.bfloat16 in dtypes and not core.instruction_set.endswith("bf16"):
        return "this processor has no instructions for bfloat16 that the native core can use"
    return None


def run(name: str, call: Call) -> None:
    """Call a function of the core on torch's threads.

    Raises
    ------
    MemoryError
        If there is not enough memory for what it needs beside its arguments.
    ValueError
        If it refuses the arguments, which are then beyond what it can count.
    """
    core, threads = load(), _threads()
    if core is None or threads is None:
        raise RuntimeError(f"there is no native core: {unsupported_reason()}")
    call.threads = torch.get_num_threads()
    if threads.name == "torch_parallel_for":
        call.parallel_for = threads.address
    else:
        call.gomp_parallel = threads.address
    status = core.functions[name](ctypes.byref(call))
    if status == 2:
        raise MemoryError("the native core could not get the memory that this call needs")
    if status:
        raise ValueError(
            f"the native core refused the call (status {status}): sizes, strides, dilation or "
            "padding are out of its range"
        )


def cache_folder() -> Path:
    """Return where `build` puts what it makes.

    Raises
    ------
    RuntimeError
        If the user has no home folder.
    """
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "harmonic-lowering"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return Path(base or Path.home() / "AppData" / "Local") / "harmonic-lowering"
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "harmonic-lowering"


def built_name() -> str:
    """Return the name, less its digest, of a library built for this source and processor."""
    processor = _processor_flags() or platform.processor()
    return f"tap_conv-{source_digest(str(ABI), platform.machine(), processor)}"


def _candidates() -> Iterator[tuple[Path, str, str | None]]:
    """Yield each library that may serve: its path, its origin and what is wrong with it."""
    try:
        folder = cache_folder()
    except RuntimeError as error:
        yield Path("~"), "built here", str(error)
    else:
        yield from _libraries(folder, built_name(), "built here")
    for instruction_set in _instruction_sets():
        yield from _libraries(PACKAGED, f"tap_conv-{instruction_set}", "wheel")


def _libraries(folder: Path, name: str, origin: str) -> Iterator[tuple[Path, str, str | None]]:
    try:
        found = [path for path in stored(folder, name) if path.suffix == SUFFIX]
        for path in found:
            yield path, origin, _untrusted(path, origin) or _damaged(path)
    except OSError as error:
        yield folder, origin, error.strerror or str(error)


def _damaged(path: Path) -> str | None:
    return None if is_intact(path) else "it is damaged or half-written: its name is not its digest"


def _untrusted(path: Path, origin: str) -> str | None:
    """Code that somebody else could have written is not run."""
    if origin == "wheel" or sys.platform == "win32":
        return None
    for each in (path.parent, path):
        status = each.stat()
        if status.st_uid != os.geteuid():
            return f"{each} belongs to another user"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"{each} can be written by others"
    return None


def _instruction_sets() -> list[str]:
    """Return what this processor runs, the best one first.

    torch's own answer counts, so ``ATEN_CPU_CAPABILITY=avx2`` holds for the core as well; where
    the system tells the processor's flags, these count besides.
    """
    machine = platform.machine().lower()
    if machine in ("arm64", "aarch64"):
        return list(INSTRUCTION_SETS["aarch64"])
    if machine not in ("x86_64", "amd64"):
        return []
    capability = torch.backends.cpu.get_cpu_capability()
    flags = set(_processor_flags().split())
    v3 = {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "abm"}
    v4 = v3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
    runs = {
        "x86-64-v3": capability in ("AVX2", "AVX512") and (not flags or v3 <= flags),
        "x86-64-v4": capability == "AVX512" and (not flags or v4 <= flags),
        "x86-64-v4-bf16": capability == "AVX512" and v4 | {"avx512_bf16"} <= flags,
    }
    return [name for name in INSTRUCTION_SETS["x86_64"] if runs[name]]


def _beyond_torch(instruction_set: str) -> str | None:
    known = [name for names in INSTRUCTION_SETS.values() for name in names]
    if instruction_set in known and instruction_set not in _instruction_sets():
        return f"it needs {instruction_set}, torch uses {torch.backends.cpu.get_cpu_capability()}"
    return None


@lru_cache(maxsize=1)
def _processor_flags() -> str:
    """Return the processor's flags, or nothing where the system does not tell them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return line.partition(":")[2].strip()


@lru_cache(maxsize=1)
def _threads() -> _Threads | None:
    """Look up how torch lends its threads: its own function, or its OpenMP library's."""
    gomp = ("GOMP_parallel",) if sys.platform == "linux" else ()
    return _find_threads(("torch_parallel_for", *gomp))


def _find_threads(names: tuple[str, ...]) -> _Threads | None:
    file = {"darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}.get(
        sys.platform, "libtorch_cpu.so"
    )
    # A symbol is searched for in a library and in those that it needs.
    for path in (Path(torch.__file__).parent / "lib" / file, Path(torch._C.__file__)):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        for name in names:
            try:
                address = ctypes.cast(getattr(library, name), pointer).value
            except AttributeError:
                continue
            if address:
                return _Threads(name, address)
    return None
