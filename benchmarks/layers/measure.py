"""How one figure is measured: time, peak memory, error, and the machine's own limits."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.memory import peak_bytes, reset_peak
from .columns import build, truth
from .settings import Setting, toy

__all__ = [
    "Trial",
    "beside_another",
    "error",
    "interleaved",
    "peak_memory",
    "peaks",
    "quartiles",
    "step",
]

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Trial:
    """One column in one setting; it can be sent to another process."""

    column: str
    setting: Setting
    dtype: str = "float32"
    memory_format: str = "contiguous"
    backward: bool = False
    device: str = "cpu"

    def tensors(self, *, constant: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return the input, and the output's gradient if there is a backward pass.

        They are filled in place, so that making them leaves no peak behind: with random numbers,
        or quickly with a `constant`.
        """
        s = self.setting
        made = []
        for seed, channels in enumerate((s.in_channels, s.out_channels)[: 1 + self.backward]):
            tensor = torch.empty(
                (s.batch, channels, s.bins, s.frames),
                dtype=getattr(torch, self.dtype),
                device=self.device,
                memory_format=FORMATS[self.memory_format],
            )
            generator = torch.Generator(self.device).manual_seed(seed)
            made.append(
                tensor.fill_(0.5) if constant else tensor.uniform_(-1, 1, generator=generator)
            )
        input, *grad = made
        return input.requires_grad_(self.backward), grad[0] if grad else None

    def module(self) -> nn.Module:
        """Return the column's module with this dtype, format and device."""
        module = build(self.column, self.setting).to(self.device, getattr(torch, self.dtype))
        module = module.to(memory_format=FORMATS[self.memory_format])  # type: ignore[call-overload]
        # Static shapes, as `Conv2d` would get them; a graph break is an error, not a slow row.
        return torch.compile(module, fullgraph=True, dynamic=False) if self.compiled else module

    @property
    def compiled(self) -> bool:
        """Whether torch.compile makes the column's module."""
        return self.column.startswith("compiled")


def step(
    module: Callable[[Tensor], Tensor], input: Tensor, grad: Tensor | None
) -> Callable[[], list[Tensor]]:
    """Return a function that makes one pass, waits for it and returns its results."""
    parameters = list(module.parameters()) if isinstance(module, nn.Module) else []
    precision = getattr(module, "float32_matmul_precision", "highest")

    def run() -> list[Tensor]:
        torch.set_float32_matmul_precision(precision)
        if grad is None:
            with torch.no_grad():
                found = [module(input)]
        else:
            for tensor in (input, *parameters):
                tensor.grad = None
            output = module(input)
            torch.autograd.backward(output, grad)
            found = [output.detach(), *(t.grad for t in (input, *parameters) if t.grad is not None)]
        synchronise(input.device)
        return found

    return run


def synchronise(device: torch.device | str) -> None:
    """Wait for what the device still has to do."""
    if torch.device(device).type != "cpu":
        torch.get_device_module(device).synchronize()


def interleaved(
    runs: Mapping[str, Callable[[], object]], seconds: float, at_least: int
) -> dict[str, list[float] | Exception]:
    """Time functions in turns, so that a disturbance affects all of them.

    Each runs once without being measured. Rounds follow; a function leaves when it has used its
    share of the `seconds` and has `at_least` measurements (two are enough if one call takes more
    than two shares), or when it fails: then its error is the result. Every round begins with
    another function, because one that frees gigabytes slows the next.
    """
    results: dict[str, list[float] | Exception] = {}
    times: dict[str, list[float]] = {name: [] for name in runs}
    share = seconds / max(1, len(runs))
    enough = {"slow": min(2, at_least), "usual": at_least}
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for first in itertools.count():
            active = [name for name in runs if name not in results]
            if not active:
                break
            first %= len(active)
            for name in active[first:] + active[:first]:
                began = time.perf_counter()
                try:
                    runs[name]()
                except Exception as error:  # a peer may fail in any way; the others go on
                    results[name] = error
                    continue
                times[name].append(time.perf_counter() - began)
                measured = times[name][1:]
                needed = enough["slow" if times[name][-1] > 2 * share else "usual"]
                if len(measured) >= needed and (sum(measured) >= share or len(measured) >= 1000):
                    results[name] = measured
    finally:
        if was_enabled:
            gc.enable()
    return results


@contextmanager
def beside_another() -> Iterator[None]:
    """Keep one core busy with another process, as somebody else's program would."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def quartiles(times: list[float]) -> tuple[float, float, float]:
    """Return the first quartile, the median and the third quartile."""
    if len(times) == 1:
        return times[0], times[0], times[0]
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, middle, high


# -------------------------------------------------------------------- error


def error(trial: Trial) -> float:
    """Return ‖y − y₆₄‖ / ‖y₆₄‖ for one item of the batch; backward, the worst of the gradients."""
    one = replace(trial, setting=replace(trial.setting, batch=1))
    input, grad = one.tensors()
    got = step(one.module(), input, grad)()
    wanted = _expected(replace(one, column=truth(trial.column)))
    # Parameters whose shape differs from the reference's are not compared.
    pairs = [(a.double().cpu(), b) for a, b in zip(got, wanted, strict=False) if a.shape == b.shape]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


@lru_cache(maxsize=4)
def _expected(trial: Trial) -> list[Tensor]:
    input, grad = trial.tensors()
    wide = input.detach().double().requires_grad_(trial.backward)
    results = step(trial.module().double(), wide, None if grad is None else grad.double())()
    return [t.cpu() for t in results]


# -------------------------------------------------------------------- memory


def peak_memory(trial: Trial) -> int:
    """Return the bytes that one pass needs at its peak, above its inputs and its results.

    On the CPU: the peak of the resident memory of a separate process, which includes workspaces,
    whoever allocated them. On another device: its allocator's own count.
    """
    if torch.device(trial.device).type != "cpu":
        return _device_peak(trial)
    context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    if sys.platform != "win32":
        context.set_forkserver_preload([__name__])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(send, trial, torch.get_num_threads()))
    process.start()
    send.close()
    try:
        answer = receive.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the measuring process died with {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        receive.close()
    if isinstance(answer, str):
        raise RuntimeError(answer)
    return int(answer)


def _child(send: Any, trial: Trial, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    torch.set_num_threads(threads)
    try:
        send.send(_resident_peak(trial))
    except Exception as error:
        send.send(f"{type(error).__name__}: {error}")


def _resident_peak(trial: Trial) -> int:
    small = replace(trial, setting=toy(trial.setting))
    step(small.module(), *small.tensors(constant=True))()  # loads code, starts threads
    run = step(trial.module(), *trial.tensors(constant=True))
    reset_peak()  # where that cannot be done, the peak so far is this fresh process's
    before = peak_bytes()
    results = run()
    return max(0, peak_bytes() - before - _size(results))


def _device_peak(trial: Trial) -> int:
    run = step(trial.module(), *trial.tensors(constant=True))
    device = torch.get_device_module(trial.device)
    synchronise(trial.device)
    device.reset_peak_memory_stats()
    before = device.memory_allocated()
    results = run()
    return max(0, int(device.max_memory_allocated()) - int(before) - _size(results))


def _size(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


# -------------------------------------------------------------------- the machine


def peaks(dtype: str, device: str, *, size: int = 2048) -> tuple[float, float]:
    """Return the multiply-adds and the copied bytes per second that this machine reaches.

    Multiply-adds: the faster of a square matrix product and a convolution of many channels, which
    come from different libraries. Bytes: a copy to memory that was used before.
    """
    kind = getattr(torch, dtype)
    a, b, c = (torch.randn(size, size, device=device).to(kind) for _ in range(3))
    channels, side = size // 8, max(8, size // 32)
    image = torch.randn(1, channels, side, side, device=device).to(kind)
    kernel = torch.randn(channels, channels, 3, 3, device=device).to(kind)
    image, kernel = (t.to(memory_format=torch.channels_last) for t in (image, kernel))
    source = torch.ones(16 * size * size, device=device)
    target = source.clone()

    def multiply() -> None:
        torch.mm(a, b, out=c)
        synchronise(device)

    def convolve() -> None:
        F.conv2d(image, kernel, padding=1)
        synchronise(device)

    def copy() -> None:
        target.copy_(source)
        synchronise(device)

    runs = {"multiply": multiply, "convolve": convolve, "copy": copy}
    best = {}
    for name, result in interleaved(runs, 1.5, 5).items():
        if isinstance(result, Exception):
            raise result
        best[name] = min(result)
    work = {"multiply": size**3, "convolve": image.numel() * channels * 9}
    multiplications = max(count / best[name] for name, count in work.items())
    return multiplications, 2 * source.numel() * source.element_size() / best["copy"]
