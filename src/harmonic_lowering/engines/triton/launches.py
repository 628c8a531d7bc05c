"""Launches: a kernel with all that is known before its tensors, so that a call adds addresses only.

Small calls cost their Python. So a launch is made once for each geometry and layout, and from its
second call on the CUDA driver is called directly, by ctypes, in a fraction of the time that
Triton's own launcher takes.
"""

from __future__ import annotations

import ctypes
import importlib
from contextlib import nullcontext
from functools import cache, partial
from math import prod
from struct import Struct
from threading import Lock
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import cards, plan

__all__ = ["Launch", "LaunchConfig"]

_MOST_PROGRAMS = (1 << 31) - 1, 65535, 65535  # on each axis of a grid
_ALIGNMENT = 16  # bytes that Triton compiles for
# What a kernel may need that only Triton's launcher provides; none of ours does.
_NEEDS_TRITON = (
    "global_scratch_size", "profile_scratch_size", "launch_cooperative_grid", "launch_pdl",
)  # fmt: skip
_MOST_TOGETHER = (1 << 31) - 1  # Triton multiplies in 32 bits, and launches nothing above
_in_graphs: list[plan.Reads] = []  # tables that a captured CUDA graph reads for as long as it lives


class Launch:
    """A kernel to be launched with tensors of one device, dtype and layout.

    Parameters
    ----------
    name : str
        Of a function in `kernels`; its arguments are the tensors, the table, the numbers.
    device : torch.device
    grid : (int, int, int)
        Number of programs on each axis.
    numbers : tuple of int
    constants : dict
        What the kernel is compiled for.
    table : plan.Reads, optional

    Raises
    ------
    CannotRunError
        If the grid is larger than cards have them.
    """

    def __init__(
        self, name: str, device: torch.device, grid: tuple[int, int, int], numbers: tuple[int, ...],
        constants: dict[str, Any], table: plan.Reads | None = None,
    ) -> None:  # fmt: skip
        most = zip(grid, _MOST_PROGRAMS, strict=True)
        if any(n > limit for n, limit in most) or prod(grid) > _MOST_TOGETHER:
            raise cards.CannotRunError(
                f"it takes {grid} programs (of rows and frames; of groups and channels), and cards "
                f"have at most {_MOST_PROGRAMS}"
            )
        self.name, self.device, self.grid = name, device, grid
        self.numbers, self.constants, self.table = numbers, constants, table
        self._failure = ""
        self._direct: _DirectLaunch | None = None
        self._may_be_direct = True  # until the driver says no
        self._streams: set[int] = set()  # other than the default one, which read the table

    def __call__(self, *tensors: Tensor | None) -> None:
        """Launch it; what keeps Triton from compiling it is remembered.

        Raises
        ------
        LaunchError
            If it does not compile, or the card refuses it.
        """
        direct = self._direct
        if (direct is not None and direct(tensors)) or 0 in self.grid:
            return
        if reason := self._failure or cards.failures.get(self.device):
            raise cards.LaunchError(reason)
        try:
            with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
                self._launch_by_triton(tensors)
        except Exception as error:  # Triton, its assembler, a C compiler, the driver: anything
            if isinstance(error, torch.OutOfMemoryError):
                raise
            what = (str(error).strip().splitlines() or ["no message"])[0]
            self._failure = (
                f"on {self.device} Triton could not compile or launch the kernel {self.name!r} "
                f"({type(error).__name__}: {what})"
            )
            if self.device not in cards.have_launched:  # nor will it launch another one
                cards.failures[self.device] = self._failure
            raise cards.LaunchError(self._failure) from error
        cards.have_launched.add(self.device)

    def _launch_by_triton(self, tensors: tuple[Tensor | None, ...]) -> None:
        arguments = (*tensors, *(self.table[:4] if self.table else ()), *self.numbers)
        kernel = getattr(_kernels(), self.name)
        # Fused multiply-adds are Triton's default, which it warns that it will change.
        compiled = kernel[self.grid](*arguments, **self.constants, enable_fp_fusion=True)
        if compiled is None:  # it was interpreted
            return
        if stream := torch._C._cuda_getCurrentRawStream(self.device.index):
            self.keep_for(stream)
        aligned = all(tensor is None or tensor.data_ptr() % _ALIGNMENT == 0 for tensor in tensors)
        if aligned and self._direct is None and self._may_be_direct:
            self._direct = _DirectLaunch.of(self, compiled, arguments, len(tensors))
            self._may_be_direct = self._direct is not None

    def keep_for(self, stream: int) -> None:
        """Keep the table until a stream of the caller's, or a graph, has read it.

        It was made on the default stream, which may use its memory again when no cache holds it.
        """
        if self.table is None:
            return
        if torch.cuda.is_current_stream_capturing():
            _in_graphs.append(self.table)
        if stream not in self._streams:
            for entry in self.table[:4]:
                entry.record_stream(torch.cuda.current_stream(self.device))
            self._streams.add(stream)


class _DirectLaunch:
    """What the driver needs to launch a compiled kernel, but for stream and addresses."""

    def __init__(
        self, launch: Launch, driver: Any, compiled: Any, values: list[int], n_tensors: int
    ) -> None:
        self._index, self._keep_for = launch.device.index, launch.keep_for
        self._compiled = compiled  # for as long as its function may be launched
        block = 32 * compiled.metadata.num_warps, 1, 1
        self._config = LaunchConfig(*launch.grid, *block, compiled.metadata.shared)
        # Each in eight bytes, of which the driver reads as many as the kernel declares.
        self._values = (ctypes.c_uint64 * len(values))(*values)
        self._set_addresses = partial(Struct(f"={n_tensors}Q").pack_into, self._values, 0)
        first = ctypes.addressof(self._values)
        pointers = [first + 8 * i for i in range(len(values))]
        self._pointers = (ctypes.c_void_p * len(values))(*pointers)
        self._launch = partial(
            driver.cuLaunchKernelEx, ctypes.addressof(self._config), compiled.function,
            ctypes.addressof(self._pointers), None,
        )  # fmt: skip
        self._lock = Lock()

    @classmethod
    def of(
        cls, launch: Launch, compiled: Any, arguments: tuple[Any, ...], n_tensors: int
    ) -> _DirectLaunch | None:
        """Return the launch of a compiled kernel, or None unless the driver confirms its form."""
        driver = _driver()
        if driver is None or any(getattr(compiled.metadata, name, 0) for name in _NEEDS_TRITON):
            return None
        values, sizes = [], []
        kinds = compiled.src.signature.values()
        for kind, value in zip(kinds, arguments, strict=False):
            if kind != "constexpr":  # compiled in: None, and numbers that are one
                if value is None:  # Triton 3.2 gives it an address
                    return None
                values.append(value.data_ptr() if isinstance(value, Tensor) else value % (1 << 64))
                sizes.append(4 if kind == "i32" else 8)
        values, sizes = [*values, 0, 0], [*sizes, 8, 8]  # Triton's scratch memory, of which none
        if _parameter_sizes(driver, compiled.function) != sizes:
            return None
        given = sum(tensor is not None for tensor in arguments[:n_tensors])
        return cls(launch, driver, compiled, values, given)

    def __call__(self, tensors: tuple[Tensor | None, ...]) -> bool:
        """Launch it, or return False if that is left to Triton."""
        if torch._C._cuda_getDevice() != self._index:
            with torch.cuda.device(self._index):
                return self(tensors)
        addresses = [tensor.data_ptr() for tensor in tensors if tensor is not None]
        for address in addresses:
            if address % _ALIGNMENT:
                return False
        stream = torch._C._cuda_getCurrentRawStream(self._index)
        if stream:
            self._keep_for(stream)
        with self._lock:  # backward passes have threads of their own
            self._set_addresses(*addresses)
            self._config.stream = stream
            status = self._launch()
        return bool(status == 0)  # or else Triton says what is wrong


class LaunchConfig(ctypes.Structure):
    """The driver's CUlaunchConfig."""

    _fields_ = [
        *((f"{what}_{axis}", ctypes.c_uint) for what in ("grid", "block") for axis in "xyz"),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("n_attributes", ctypes.c_uint),
    ]


@cache
def _driver() -> Any:
    """Return the CUDA driver's library, or None where it cannot say what a kernel's arguments are.

    Since CUDA 12.4 it can.
    """
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        if not hasattr(driver, "cuFuncGetParamInfo"):
            return None
        pointer, size = ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)
        driver.cuFuncGetParamInfo.argtypes = [pointer, ctypes.c_size_t, size, size]
        driver.cuLaunchKernelEx.argtypes = [pointer] * 4
        return driver
    return None


def _parameter_sizes(driver: Any, function: int) -> list[int]:
    """Return how many bytes each argument of a kernel takes, as the driver sees it."""
    sizes: list[int] = []
    offset, size = ctypes.c_size_t(), ctypes.c_size_t()
    while driver.cuFuncGetParamInfo(function, len(sizes), offset, size) == 0:
        sizes.append(size.value)
    return sizes


@cache
def _kernels() -> ModuleType:
    return importlib.import_module(f"{__package__}.kernels")
