"""How one figure is measured on a card: time, eager or as a CUDA graph, memory and error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from harmonic_lowering.engines.triton import cards

from ..layers.columns import build
from ..layers.measure import FORMATS, Trial, synchronise
from ..layers.peer import deform

__all__ = [
    "PRECISIONS", "CardTrial", "captured", "no_card", "no_device", "pass_of", "precision",
    "repeated", "stock_by_default",
]  # fmt: skip

# What float32 means, and the dtype of each.
PRECISIONS = {"bfloat16": "bfloat16", "tf32": "float32", "float32": "float32"}
_SAMPLE_S = 8e-3  # a sample is as many calls as take this long, so that the clock does not matter
_MOST_CALLS = 200


@dataclass(frozen=True)
class CardTrial(Trial):
    """A trial whose columns are those of this benchmark."""

    def module(self) -> nn.Module:
        """Return the column's module on the card."""
        if self.column == "deform_conv2d":
            return deform(replace(self, column="conv2d"))  # type: ignore[return-value]
        name = "auto" if self.column == "triton" else self.column
        module = build(name, self.setting)
        if self.column in ("triton", "log"):
            module.engine = "triton"  # type: ignore[assignment]
        module = module.to(self.device, getattr(torch, self.dtype))
        return module.to(memory_format=FORMATS[self.memory_format])  # type: ignore[call-overload,no-any-return]


def no_card(device: str) -> str | None:
    """Return why nothing can be measured on a device, or None."""
    if cards.is_interpreted():
        return "TRITON_INTERPRET is set: the kernels would be interpreted, not measured"
    if reason := no_device(device):
        return reason
    if torch.device(device).type != "cuda":
        return f"device {device!r} is no card: this measures NVIDIA's"
    return cards.unsupported_reason(torch.empty(0, device=device))


def no_device(device: str) -> str | None:
    """Return why a device cannot be used, or None."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        lines = str(error).splitlines() or ["it has no message"]
        return f"device {device!r} cannot be used here: {lines[0]}"
    return None


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Let float32 be multiplied in TF32 or not, and let cuDNN choose its fastest algorithm."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32 = matmul.allow_tf32 = name == "tf32"
    cudnn.benchmark = True
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


@contextmanager
def stock_by_default() -> Iterator[None]:
    """Let `auto` choose among stock engines, which are what the kernels have to beat."""
    before = cards.MEASURED_CAPABILITIES
    cards.MEASURED_CAPABILITIES = frozenset()
    try:
        yield
    finally:
        cards.MEASURED_CAPABILITIES = before


def pass_of(trial: CardTrial) -> Callable[[], object]:
    """Return a function that makes one pass and does not wait for it."""
    module = trial.module()
    input, grad = trial.tensors()
    parameters = list(module.parameters()) if isinstance(module, nn.Module) else []

    def run() -> None:
        if grad is None:
            with torch.no_grad():
                module(input)
            return
        for tensor in (input, *parameters):
            tensor.grad = None
        torch.autograd.backward(module(input), grad)

    return run


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """Return the replay of a CUDA graph that does what `run` does."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def repeated(run: Callable[[], object], device: str) -> tuple[Callable[[], object], int]:
    """Return a function of several calls that waits for the last, and how many they are.

    Calls back to back are what training does: launching the next overlaps with running this one.
    """
    for _ in range(3):  # compiles, and lets cuDNN choose
        run()
    synchronise(device)
    began = time.perf_counter()
    run()
    synchronise(device)
    calls = min(_MOST_CALLS, max(1, round(_SAMPLE_S / (time.perf_counter() - began))))

    def several() -> None:
        for _ in range(calls):
            run()
        synchronise(device)

    return several, calls
