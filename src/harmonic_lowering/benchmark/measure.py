"""How one figure comes about: time, peak memory, error, and the machine's own limits."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from .columns import build, truth
from .settings import Setting, toy

__all__ = ["Case", "error", "interleaved", "peak_memory", "peaks", "quartiles", "step"]

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Case:
    """One column in one setting; it can travel to another process."""

    column: str
    setting: Setting
    dtype: str = "float32"
    memory_format: str = "contiguous"
    backward: bool = False
    device: str = "cpu"

    def tensors(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """Make random numbers in place, so that making them leaves no peak behind."""
        made = torch.empty(
            shape,
            dtype=getattr(torch, self.dtype),
            device=self.device,
            memory_format=FORMATS[self.memory_format],
        )
        generator = torch.Generator(self.device).manual_seed(len(shape) + shape[1])
        return made.uniform_(-1, 1, generator=generator).to(dtype or made.dtype)

    def input(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the input of the setting."""
        s = self.setting
        made = self.tensors((s.batch, s.in_channels, s.bins, s.frames), dtype)
        return made.requires_grad_(self.backward)

    def grad(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return a gradient of the output."""
        s = self.setting
        return self.tensors((s.batch, s.out_channels, s.bins, s.frames), dtype)

    def module(self) -> nn.Module:
        """Return the column's module with this dtype, format and device."""
        made = build(self.column, self.setting).to(self.device, getattr(torch, self.dtype))
        return made.to(memory_format=FORMATS[self.memory_format])  # type: ignore[call-overload,no-any-return]


def step(case: Case) -> Callable[[], None]:
    """Return a function that makes one pass and waits for it."""
    module, input = case.module(), case.input()
    grad = case.grad() if case.backward else None

    def run() -> None:
        if grad is None:
            with torch.no_grad():
                module(input)
        else:
            input.grad = None
            module.zero_grad()
            module(input).backward(grad)
        synchronise(case.device)

    return run


def synchronise(device: str) -> None:
    """Wait for what the device still has to do."""
    if torch.device(device).type != "cpu":
        torch.get_device_module(device).synchronize()


def interleaved(
    runs: Mapping[str, Callable[[], None]], seconds: float, at_least: int
) -> dict[str, list[float] | Exception]:
    """Time functions in turns, so that a disturbance meets all of them.

    Each runs once unmeasured. Then rounds follow; one that has had `at_least` measurements and its
    share of the `seconds` leaves. One that fails gives its error and leaves, too.
    """
    results: dict[str, list[float] | Exception] = {name: [] for name in runs}
    active = dict(runs)
    share = seconds / max(1, len(runs))
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for warm in (True, False):
            while active:
                for name, run in list(active.items()):
                    began = time.perf_counter()
                    try:
                        run()
                    except Exception as error:  # a peer may fail in any way; the others go on
                        results[name] = error
                        del active[name]
                        continue
                    took = time.perf_counter() - began
                    times = results[name]
                    assert isinstance(times, list)
                    if not warm:
                        times.append(took)
                        if len(times) >= at_least and sum(times) >= share or len(times) >= 1000:
                            del active[name]
                if warm:
                    break
    finally:
        if was_enabled:
            gc.enable()
    return results


def quartiles(times: list[float]) -> tuple[float, float, float]:
    """Return the first quartile, the median and the third quartile."""
    if len(times) == 1:
        return times[0], times[0], times[0]
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, middle, high


# -------------------------------------------------------------------- error


def error(case: Case) -> float:
    """Return ‖y − y₆₄‖ / ‖y₆₄‖ for one item of the batch; backward, the worst of the gradients."""
    one = replace(case, setting=replace(case.setting, batch=1))
    got = _results(one, one.module(), None)
    wanted = _expected(replace(one, column=truth(case.column)))
    # Where a column has its parameters in another shape, the input's gradient alone is compared.
    return max(
        float((a.double().cpu() - b).norm() / b.norm())
        for a, b in zip(got, wanted, strict=False)
        if a.shape == b.shape
    )


@lru_cache(maxsize=16)
def _expected(case: Case) -> tuple[Tensor, ...]:
    return tuple(t.cpu() for t in _results(case, case.module().double(), torch.float64))


def _results(case: Case, module: nn.Module, dtype: torch.dtype | None) -> tuple[Tensor, ...]:
    input = case.input(dtype).detach().requires_grad_(case.backward)
    if not case.backward:
        with torch.no_grad():
            return (module(input),)
    module(input).backward(case.grad(dtype))
    found = [input.grad, *(p.grad for p in module.parameters())]
    return tuple(t for t in found if t is not None)


# -------------------------------------------------------------------- memory


def peak_memory(case: Case) -> int:
    """Return the bytes that one pass needs at its peak, above its inputs and its results.

    On the CPU: the high-water mark of the resident memory of a process of its own, which holds
    workspaces too, whoever allocated them. On another device: its allocator's own count.
    """
    if torch.device(case.device).type != "cpu":
        return _device_peak(case)
    context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    if sys.platform != "win32":
        context.set_forkserver_preload([__name__])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(send, case, torch.get_num_threads()))
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


def _child(send: Any, case: Case, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process itself
    torch.set_num_threads(threads)
    try:
        send.send(_resident_peak(case))
    except Exception as error:
        send.send(f"{type(error).__name__}: {error}")


def _resident_peak(case: Case) -> int:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    step(replace(case, setting=toy(case.setting)))()  # code and small workspaces are there now
    module, input = case.module(), case.input()
    grad = case.grad() if case.backward else None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    results = _pass(module, input, grad)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max(0, after - before - _size(results))


def _device_peak(case: Case) -> int:
    module, input = case.module(), case.input()
    grad = case.grad() if case.backward else None
    device = torch.get_device_module(case.device)
    synchronise(case.device)
    device.reset_peak_memory_stats()
    before = device.memory_allocated()
    results = _pass(module, input, grad)
    synchronise(case.device)
    return max(0, int(device.max_memory_allocated()) - int(before) - _size(results))


def _pass(module: nn.Module, input: Tensor, grad: Tensor | None) -> list[Tensor]:
    """Make one pass and return what it gives: the output, and the gradients."""
    if grad is None:
        with torch.no_grad():
            return [module(input)]
    output = module(input)
    output.backward(grad)
    found = [output.detach(), input.grad, *(p.grad for p in module.parameters())]
    return [t for t in found if t is not None]


def _size(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


# -------------------------------------------------------------------- the machine


def peaks(dtype: str, device: str, *, size: int = 2048) -> tuple[float, float]:
    """Return multiply-adds and copied bytes a second: a square product, a copy to used memory."""
    a, b, c = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(3))
    source = torch.ones(16 * size * size, device=device)
    target = source.clone()

    def multiply() -> None:
        torch.mm(a, b, out=c)
        synchronise(device)

    def copy() -> None:
        target.copy_(source)
        synchronise(device)

    times = interleaved({"multiply": multiply, "copy": copy}, seconds=1.0, at_least=5)
    best = {}
    for name, result in times.items():
        if isinstance(result, Exception):
            raise result
        best[name] = min(result)
    return size**3 / best["multiply"], 2 * source.numel() * source.element_size() / best["copy"]
