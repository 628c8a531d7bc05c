"""Differential fuzz of the layers: every call is right, or refused in one sentence of this package.

    python tests/fuzz_layers.py --calls 100000            # what `make fuzz` runs
    python tests/fuzz_layers.py --calls 100000 --first N  # goes on where a run was stopped
    python tests/fuzz_layers.py --seed N                  # one call again, in this process

A seed stands for one call. Two thirds are valid: any arguments, layouts, dtypes, engines and ways
to differentiate, compared with ``engine="reference"`` in float64, element by element, within what
rounding explains. The others have one argument that is wrong, and must raise a ValueError,
TypeError or NotImplementedError from a ``raise`` of this package.

Calls run in child processes, so that a crash or a call that does not end is a finding like others.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import linecache
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import harmonic_lowering as hl
from harmonic_lowering.engines.native import library

PACKAGE = str(Path(hl.__file__).parent)
ENGINES = ["auto", "native", "blocked", "lowering", "reference"]
DTYPES = ["float64", "float32", "bfloat16", "float16"]
LAYOUTS = [
    "contiguous",
    "channels last",
    "transposed",
    "strided",
    "expanded",
    "negative",
    "slice",
    "flipped",
]
# How a call is made and differentiated, and how often.
MODES = {
    "backward": 60, "no grad": 8, "inference": 6, "second": 8, "batched": 3, "vmap": 3,
    "func.grad": 3, "jvp": 3, "checkpoint": 2, "meta default": 6, "fake": 2, "flops": 2,
    "functionalize": 1, "compiled": 0.15,
}  # fmt: skip
RATIOS = [Fraction(1, 3), 0.5, 1, 1.5, 2 ** (7 / 12), 2, 3, 2.7, Fraction(7, 3), 1e-3, 40]
SECONDS_A_CALL = 120
BYTES_A_PROCESS = 16 << 30  # an absurd size is an error of the allocator and not of the machine


# -------------------------------------------------------------------- valid calls


@dataclass(frozen=True)
class Call:
    """A valid call, in full."""

    seed: int
    kind: str  # "harmonic", "log" or "taps"
    shape: tuple[int, int, int, int]
    out_channels: int
    rows: int
    kernel_frames: int
    stride: int | tuple[int, int]
    padding: int | tuple[int, int] | str
    dilation: int | tuple[int, int]
    groups: int
    bias: bool
    taps: dict[str, Any]
    engine: str
    dtype: str
    autocast: str | None
    layouts: tuple[str, str, str]  # of the input, the weight and the output's gradient
    mode: str
    needs: tuple[bool, bool, bool]
    through: str  # "function" or "layer"
    is_batched: bool
    threads: int
    poison: tuple[int, ...] | None = field(default=None)  # where the input is NaN


def draw(seed: int) -> Call:
    """Return the valid call that a seed stands for."""
    rng = random.Random(f"call {seed}")
    pick = rng.choice
    groups = rng.choices([1, 2, 3, 4], [12, 4, 2, 1])[0]
    channels, out_channels = (pick([1, 1, 2, 3, 4, 5, 7, 8, 16, 17]) for _ in range(2))
    rows, kernel_frames = rng.choices([1, 2, 3, 4, 5, 7], [2, 3, 5, 2, 2, 1])[0], rng.randint(1, 5)
    kind = pick(["harmonic", "harmonic", "log", "taps"])
    taps: dict[str, Any] = {"interpolation": pick(["linear", "linear", "nearest"])}
    choice = pick(["anchor", "anchors", "harmonics", "shifts", "plain"])
    if kind == "taps":
        taps["slopes"] = tuple(pick(RATIOS) for _ in range(rows))
        taps["offsets"] = tuple(pick([0, 0, 1, -2, 0.5, -1.25, 100]) for _ in range(rows))
    else:
        if choice == "harmonics":
            taps["harmonics"] = tuple(pick(RATIOS) for _ in range(rows))
        elif choice == "anchors":
            taps["anchor"] = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))
        elif choice == "anchor":
            taps["anchor"] = rng.randint(1, 6)
        if kind == "harmonic":
            taps["origin"] = pick([0, 0, 1, 0.5, Fraction(1, 3), 0.1, -0.25, 7])
        elif choice == "shifts":
            taps["shifts"] = tuple(pick([-5, -1.5, 0, 0.25, 1, 3, 6.1]) for _ in range(rows))
        else:
            taps["bins_per_octave"] = pick([1, 3, 12, 2.5])
    stride = (
        rng.choices([1, 2, 3, 9], [8, 3, 1, 1])[0],
        rng.choices([1, 2, 3, 50], [8, 4, 2, 1])[0],
    )
    dilation = rng.choices([1, 2, 3, 20], [10, 4, 2, 1])[0]
    span = dilation * (kernel_frames - 1) + 1
    padding: int | str = rng.choices([0, 1, 2, 5, 40], [5, 5, 2, 1, 0.5])[0]
    if rng.random() < 0.1:
        padding = "valid" if stride != (1, 1) or rng.random() < 0.3 else "same"
    padded = 2 * padding if isinstance(padding, int) else span - 1 if padding == "same" else 0
    frames = rng.choices(
        [rng.randint(1, 12), rng.randint(10, 70), rng.randint(200, 900)], [8, 5, 0.5]
    )[0]
    frames = max(frames, span - padded)
    bins = rng.choices([rng.randint(1, 4), rng.randint(3, 14), rng.randint(10, 45)], [2, 6, 1])[0]
    mode = rng.choices(list(MODES), list(MODES.values()))[0]
    dtype = rng.choices(DTYPES, [3, 6, 4, 2])[0]
    autocast = None
    if mode == "second":
        dtype = pick(["float64", "float64", "float32"])
    elif dtype == "float32" and rng.random() < 0.15:
        autocast = pick(["bfloat16", "float16"])
    engine = rng.choices(ENGINES, [5, 5, 5, 4, 1])[0]
    if library.unsupported_reason(torch.bfloat16, torch.float16) and engine == "native":
        engine = "auto"
    shape = (rng.choices([1, 2, 3, 0], [5, 5, 2, 0.5])[0], channels * groups, bins, frames)
    through = pick(["function", "layer"])
    poison = None
    # In half types torch's own gradients pair what is not finite with zeros, and its autocast ones.
    modes = {"backward", "no grad"}
    if autocast or (dtype in ("bfloat16", "float16") and engine != "native"):
        modes = {"no grad"}
    if rng.random() < 0.1 and mode in modes:
        poison = tuple(rng.randrange(max(1, n)) for n in shape)
    as_pairs = rng.random() < 0.5
    return Call(
        seed=seed,
        kind=kind,
        shape=shape,
        out_channels=out_channels * groups,
        rows=rows,
        kernel_frames=kernel_frames,
        stride=stride[0] if stride[0] == stride[1] and as_pairs else stride,
        padding=(0, padding) if as_pairs and isinstance(padding, int) else padding,
        dilation=(1, dilation) if as_pairs else dilation,
        groups=groups,
        bias=rng.random() < 0.7,
        taps=taps,
        engine=engine,
        dtype=dtype,
        autocast=autocast,
        layouts=tuple(rng.choices(LAYOUTS, [6, 4, 1, 1, 1, 1, 1, 1])[0] for _ in range(3)),
        mode=mode,
        needs=rng.choices([(True,) * 3, tuple(rng.random() < 0.5 for _ in range(3))], [3, 1])[0],
        through=through,
        is_batched=rng.random() < 0.9,
        threads=rng.choices([1, 2, 3, 4], [6, 2, 1, 1])[0],
        poison=poison,
    )


def with_layout(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """Return a tensor in a layout; "expanded" changes values, all others keep them."""
    if layout == "channels last" and tensor.ndim == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "strided":
        return torch.stack([tensor, torch.full_like(tensor, 7)], -1)[..., 0]
    if layout == "expanded" and tensor.shape[-1]:
        return tensor[..., :1].expand(tensor.shape)
    if layout == "negative":
        return torch._neg_view(-tensor)
    if layout == "slice":  # neither starts nor ends where its memory does
        return torch.nn.functional.pad(tensor, (1, 2, 1, 1), value=7)[..., 1:-1, 1:-2]
    if layout == "flipped":
        return (
            tensor.permute(*reversed(range(tensor.ndim)))
            .contiguous()
            .permute(*reversed(range(tensor.ndim)))
        )
    return tensor.contiguous()


FUNCTIONS = {
    "harmonic": "harmonic_conv2d", "log": "log_harmonic_conv2d", "taps": "frequency_tap_conv2d",
}  # fmt: skip


class Prepared:
    """The tensors of a call, and the call as a function of them."""

    def __init__(self, call: Call) -> None:
        self.call = call
        generator = torch.Generator().manual_seed(call.seed)
        n_anchors = len(call.taps["anchor"]) if isinstance(call.taps.get("anchor"), tuple) else 1
        shape = call.shape if call.is_batched and call.mode != "vmap" else call.shape[1:]
        self.rows = call.rows * (1 if "harmonics" in call.taps else n_anchors)
        sizes = (
            shape if call.mode != "vmap" else (2, *call.shape),
            (call.out_channels, call.shape[1] // call.groups, self.rows, call.kernel_frames),
            (call.out_channels,),
        )
        dtype = getattr(torch, call.dtype)
        x, w, b = (
            torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in sizes
        )
        if call.poison is not None and x.numel():
            x[call.poison if call.is_batched else call.poison[1:]] = math.nan
        x, w = with_layout(x, call.layouts[0]), with_layout(w, call.layouts[1])
        self.tensors = [x, w, b] if call.bias else [x, w]
        self.generator = generator
        self.given = self._given()
        self.layer = self._layer() if call.through == "layer" else None

    def _layer(self) -> torch.nn.Module:
        call = self.call
        kind = {
            "harmonic": hl.HarmonicConv2d,
            "log": hl.LogHarmonicConv2d,
            "taps": hl.FrequencyTapConv2d,
        }
        return kind[call.kind](
            call.shape[1],
            call.out_channels,
            (call.rows, call.kernel_frames),
            call.stride,
            call.padding,
            call.dilation,
            call.groups,
            call.bias,
            dtype=getattr(torch, call.dtype),
            engine=call.engine,
            **self.given,
        )

    def _given(self) -> dict[str, Any]:
        taps = self.call.taps
        if self.call.kind != "taps":
            return dict(taps)
        return {"taps": hl.FrequencyTaps(taps["slopes"], taps["offsets"], taps["interpolation"])}

    def __call__(
        self, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Make the call."""
        if self.layer is None:
            return self.function(x, w, b, self.call.engine)
        parameters = {"weight": w} if b is None else {"weight": w, "bias": b}
        return torch.func.functional_call(self.layer, parameters, (x,))

    def function(
        self, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, engine: str
    ) -> torch.Tensor:
        """Make the call as a function."""
        call = self.call
        function = getattr(hl, FUNCTIONS[call.kind])
        arguments = (call.stride, call.padding, call.dilation, call.groups)
        return function(x, w, b, *arguments, engine=engine, **self.given)

    def grad_like(self, y: torch.Tensor) -> torch.Tensor:
        """Return a gradient for an output."""
        grad = torch.randn(y.shape, generator=self.generator, dtype=torch.float64).to(y.dtype)
        return with_layout(grad, self.call.layouts[2])


def check_call(call: Call) -> str | None:
    """Make a valid call and return what is wrong with it, or None."""
    torch.set_num_threads(call.threads)
    prepared = Prepared(call)
    tensors = prepared.tensors
    before = [t.clone() for t in tensors]
    try:
        got = _results(prepared)
        if got is not None and (why := _compare(prepared, *got)):
            return why
    except Exception:
        return f"raised\n{traceback.format_exc()}"
    if not all(torch.equal(a.isnan(), t.isnan()) and torch.equal(a.nan_to_num(), t.nan_to_num())
               for a, t in zip(before, tensors, strict=True)):  # fmt: skip
        return "an argument was changed"
    return None


Results = tuple[list[torch.Tensor], list[bool], torch.Tensor | None]


def _results(prepared: Prepared) -> Results | None:
    """Make the call in its mode: the output, the gradients asked for, the output's gradient."""
    call, tensors, mode = prepared.call, prepared.tensors, prepared.call.mode
    needs = list(call.needs[: len(tensors)])
    if not any(needs):
        needs[0] = True
    with contextlib.ExitStack() as stack:
        if call.autocast:
            stack.enter_context(torch.autocast("cpu", dtype=getattr(torch, call.autocast)))
        if mode == "no grad":
            with torch.no_grad():
                return [prepared(*tensors)], [], None
        if mode == "inference":
            with torch.inference_mode():
                return [prepared(*tensors)], [], None
        if mode == "vmap":
            return (
                [
                    torch.func.vmap(lambda x: prepared(x, *tensors[1:]), randomness="same")(
                        tensors[0]
                    )
                ],
                [],
                None,
            )
        if mode == "functionalize":
            return [torch.func.functionalize(prepared)(*tensors)], [], None
        if mode == "fake":
            real = prepared(*tensors)
            with FakeTensorMode() as fake:
                layer, prepared.layer = prepared.layer, None
                shaped = prepared(*[fake.from_tensor(t) for t in tensors])
                prepared.layer = layer
            assert (shaped.shape, shaped.dtype) == (real.shape, real.dtype), (shaped, real.shape)
            return [real], [], None
        if mode == "jvp":
            tensors[0] = tensors[0].resolve_neg().contiguous()  # torch fails with other ones
            tangents = (torch.ones_like(tensors[0]),)
            y, tangent = torch.func.jvp(
                lambda x: prepared(x, *tensors[1:]), (tensors[0],), tangents
            )
            return [y, tangent], [True], None
        if mode == "func.grad":
            y = prepared(*tensors)
            grad = prepared.grad_like(y)
            of = tuple(range(len(tensors)))
            found = torch.func.grad(lambda *t: (prepared(*t) * grad).sum(), of)(*tensors)
            return [y, *found], [True] * len(tensors), grad

        leaves = [t.detach().requires_grad_(n) for t, n in zip(tensors, needs, strict=True)]
        if mode == "compiled":
            torch.compiler.reset()
            y = torch.compile(prepared.__call__, backend="aot_eager", fullgraph=True)(*leaves)
        elif mode == "checkpoint":
            y = checkpoint(prepared, *leaves, use_reentrant=False)
        elif mode == "meta default":
            with torch.device("meta"):
                y = prepared(*leaves)
        elif mode == "flops":
            with FlopCounterMode(display=False):
                y = prepared(*leaves)
        else:
            y = prepared(*leaves)
    wanted = [t for t, need in zip(leaves, needs, strict=True) if need]
    grad = prepared.grad_like(y)
    if mode == "batched":
        grads = torch.stack([grad, -2 * grad])
        found = torch.autograd.grad(y, wanted, grads, is_grads_batched=True)
        for f in found:
            assert _close(f[1], -2 * f[0], 64), "the gradients of a batch differ from each other"
        return [y, *(f[0] for f in found)], needs, grad
    if mode == "second":
        return _second(prepared, leaves, wanted, y, grad)
    context = torch.device("meta") if mode == "meta default" else contextlib.nullcontext()
    with context:
        found = torch.autograd.grad(y, wanted, grad)
    for leaf, f in zip(wanted, found, strict=True):
        assert (f.shape, f.dtype) == (leaf.shape, leaf.dtype), "a gradient is not like its tensor"
    return [y, *found], needs, grad


def _second(
    prepared: Prepared, leaves: list[torch.Tensor], wanted: list[torch.Tensor], y: torch.Tensor,
    grad: torch.Tensor,
) -> Results | None:  # fmt: skip
    """Compare derivatives of derivatives, which are not linear in anything, by their norms."""

    def second(y: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        g = grad.to(y.dtype).requires_grad_()
        first = torch.autograd.grad(y, leaves, g, create_graph=True)
        total = sum((f.pow(2).sum() for f in first), start=y.sum() * 0)
        return list(torch.autograd.grad(total, [*leaves, g], allow_unused=True))

    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in leaves]
    b = exact[2] if len(exact) > 2 else None
    reference = prepared.function(exact[0], exact[1], b, "reference")
    want = second(reference, [t for t in exact if t.requires_grad])
    for g, w in zip(second(y, wanted), want, strict=True):
        zero = torch.zeros(())
        g, w = (zero if t is None else t for t in (g, w))
        scale = w.double().norm() + grad.double().norm() ** 2 + 1
        eps = torch.finfo(y.dtype).eps
        assert (g.double() - w).norm() <= 1000 * eps * scale, "second derivatives differ"
    return None


def _compare(
    prepared: Prepared, results: list[torch.Tensor], needs: list[Any], grad: torch.Tensor | None
) -> str | None:
    """Compare with the reference in float64, within what rounding of all terms explains."""
    call = prepared.call
    dtype = getattr(torch, call.autocast or call.dtype)
    torch.set_num_threads(1)

    def reference(convert: Any) -> list[torch.Tensor]:
        leaves = [convert(t.detach().to(dtype).double()).requires_grad_() for t in prepared.tensors]
        x, w, b = (*leaves, None)[:3]
        if call.mode == "vmap":
            return [torch.stack([prepared.function(x_, w, b, "reference") for x_ in x]).detach()]
        y = prepared.function(x, w, b, "reference")
        if call.mode == "jvp":
            return [y, prepared.function(torch.ones_like(x), w, None, "reference")]
        if grad is None:
            return [y.detach()]
        wanted = [t for t, need in zip(leaves, needs, strict=True) if need]
        return [y.detach(), *torch.autograd.grad(y, wanted, convert(grad.detach().double()))]

    exact, bounds = reference(lambda t: t), reference(torch.abs)
    # Equal terms are rounded the same way each time, and errors add up.
    slack = exact[0].numel() / 8 if "expanded" in call.layouts else 0
    of = ("input's gradient", "weight's gradient", "bias's gradient")
    names = ["output", *(name for name, need in zip(of, needs, strict=False) if need)]
    for name, got, want, bound in zip(names, results, exact, bounds, strict=True):
        if got.shape != want.shape:
            return f"{name}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
        # Under vmap, conv2d does not see autocast.
        is_free = call.mode == "vmap" and call.autocast
        if name == "output" and got.dtype != dtype and not is_free:
            return f"{name}: dtype {got.dtype}, not {dtype}"
        if why := _difference(
            got.detach().double().cpu(), want, bound, torch.finfo(dtype).eps, slack
        ):
            return f"{name}: {why}"
    return None


def _difference(
    got: torch.Tensor, want: torch.Tensor, bound: torch.Tensor, eps: float, slack: float
) -> str | None:
    strange = ~torch.isfinite(want)
    if not torch.equal(~torch.isfinite(got), strange):
        where = (torch.isfinite(got) == strange).nonzero()[0].tolist()
        return f"NaN where there is none, or the reverse, first at {where}"
    got, want, bound = (t.masked_fill(strange, 0) for t in (got, want, bound))
    error = (got - want).abs()
    allowed = (16 + slack) * eps * bound.nan_to_num() + 1e-6 * (eps > 1e-8)
    if not bool((error <= allowed).all()):
        worst = (error - allowed).argmax().item()
        return (
            f"{int((error > allowed).sum())} of {error.numel()} elements are wrong, worst "
            f"{got.flatten()[worst]:.6g}, not {want.flatten()[worst]:.6g} "
            f"(allowed {allowed.flatten()[worst]:.2g})"
        )
    if error.norm() > ((4 if eps > 1e-5 else 16) + slack) * eps * bound.norm() + 1e-5 * (
        eps > 1e-8
    ):
        return f"wrong by {float(error.norm() / bound.norm()):.3g} of the norm"
    return None


def _close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    scale = b.double().norm() * torch.finfo(a.dtype).eps * tolerance + 1e-6
    return bool((a.double() - b.double()).norm() <= scale)


# -------------------------------------------------------------------- invalid calls


class _Opaque:
    """Nothing that a call could mean."""

    def __repr__(self) -> str:
        return "<opaque>"


class _Hostile:
    """Raises whatever is asked of it."""

    def __repr__(self) -> str:
        return "<hostile>"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no {name}")

    def __eq__(self, other: object) -> bool:
        raise ArithmeticError("not comparable")

    __hash__ = None


def nonsense() -> list[Any]:
    """Return values that no argument takes."""
    return [
        "2",
        b"2",
        bytearray(b"2"),
        "",
        math.nan,
        math.inf,
        -math.inf,
        1j,
        {},
        {1: 2},
        {1, 2},
        [],
        (),
        [[1]],
        ((1, 2), 3),
        (None, 1),
        ("1", 1),
        [None],
        _Opaque(),
        _Hostile(),
        object,
        len,
        ...,
        Decimal("1.5"),
        torch.tensor([1.5, 2.5, 3.5]),
        torch.tensor(1.5),
        torch.randn(2, 2),
        torch.tensor(1 + 1j),
        torch.float32,
        slice(None),
        iter(()),
        NotImplemented,
        ((1,),),
        *_numpy_nonsense(),
    ]


def _numpy_nonsense() -> list[Any]:
    try:
        import numpy as np
    except ImportError:
        return []
    return [
        np.array([1.5, math.nan]),
        np.array("a"),
        np.array([[1]]),
        np.datetime64("2020"),
        np.array(None),
    ]


NOT_INTS = [None, 1.5, 1.0, Fraction(1, 2), True, False, (True, 2), (1, True), (1.0, 1), (2, 1.0)]
TOO_LARGE = [2**63, 2**64, 2**64 + 1, 10**400, (1, 2**63), (0, 2**64)]
NEGATIVE = [-1, -(2**63), -(2**64), (0, -1)]
# What is wrong for each argument, beyond nonsense.
WRONG: dict[str, list[Any]] = {
    "stride": [*NOT_INTS, *TOO_LARGE, *NEGATIVE, 0, (0, 1), "same"],
    "padding": [*NOT_INTS, *TOO_LARGE, *NEGATIVE, "full", (1, 1), "SAME"],
    "dilation": [*NOT_INTS, *TOO_LARGE, *NEGATIVE, 0, (2, 2), (1, 0)],
    "groups": [*NOT_INTS, *TOO_LARGE, *NEGATIVE, 0, 3, (1, 1)],
    "kernel_size": [*NOT_INTS, *TOO_LARGE, *NEGATIVE, 0, (0, 1), (1, 0)],
    "in_channels": [*NOT_INTS, *TOO_LARGE, *NEGATIVE, 0, (1, 1)],
    "out_channels": [*NOT_INTS, *TOO_LARGE, *NEGATIVE, 0, (1, 1)],
    "anchor": [None, 1.5, 1.0, True, 0, -1, 2**63, 2**64, (0, 1), (1, True), (1, 2.0), (-1,)],
    "harmonics": [
        0,
        2,
        True,
        (0, 1, 2),
        (1, 2),
        (1, 2, -3),
        (1, 2, True),
        (1, 2, math.nan),
        (1, 2, "3"),
        (1, 2, 10**400),
        (1, 2, None),
    ],
    "origin": [None, True, 10**400, (1,)],
    "bins_per_octave": [True, 0, -1, 10**400, (12,)],
    "shifts": [0, True, (0, 1), (0, 1, True), (0, 1, math.inf), (0, 1, "2"), (0, 1, 10**400)],
    "interpolation": [None, 0, True, "cubic", "LINEAR", ("linear",)],
    "engine": [None, 0, True, "fast", "AUTO", ("auto",), ["auto"]],
    "dtype": [0, True, "float32", float, torch.int32, torch.complex64, torch.bool],
    "padding_mode": [None, 0, "reflect", "circular"],
    "device": [True, "processor", (0,), 1.5],
    "bias": [None, 2],
    "taps": [None, 0, True, (1, 2, 3)],
    "anchor_weight": [0, True, (1,), "1"],
    "n_harmonics": [1.5, 1.0, True, 0, -1, 2**64],
    "slopes": [None, 0, True, (1, 2), (0, 1, 1), (-1, 1, 1), (1, 1, math.nan), (1, 1, "1")],
    "offsets": [None, 0, True, (1, 2), (1, 1, math.nan), (1, 1, "1"), (1, 1, True)],
    "factor": [None, True, 1.5, 0, -1, 2**64],
    "pooling": [None, 0, "max"],
    "n_bins": [None, True, 1.5, -1, 2**64],
    "tap": [None, True, 1.5, -1, 3, 2**64],
}


def wrong_tensors(good: torch.Tensor) -> dict[str, Any]:
    """Return what cannot stand for a tensor, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = {
            "a list": good.tolist(),
            "numpy's array": good.numpy(),
            "ints": good.long(),
            "bools": good > 0,
            "complex": good.to(torch.complex64),
            "float8": good.to(torch.float8_e4m3fn),
            "quantized": torch.quantize_per_tensor(good, 0.1, 0, torch.qint8),
            "sparse": good.to_sparse(),
            "csr": good.reshape(-1, good.shape[-1]).to_sparse_csr(),
            "another dtype": good.double(),
            "another half": good.half(),
            "on meta": good.to("meta"),
            "fake": FakeTensorMode().from_tensor(good),
            "a scalar": good.flatten()[0],
            "one axis more": good[None, None],
            "one axis": good.flatten(),
            "empty": good[..., :0],
            "no first axis": good[:0] if good.ndim != 4 else good[:, :0],
            "one more": torch.cat([good, good]) if good.ndim == 1 else torch.cat([good, good], 1),
            "released": _released(good),
            "uninitialized": torch.nn.parameter.UninitializedParameter(),
        }
        if good.ndim > 1:
            tensors["nested"] = torch.nested.nested_tensor([good[0], good[0]])
            tensors["jagged"] = torch.nested.nested_tensor([good[0], good[0]], layout=torch.jagged)
        if good.ndim == 4 and torch.backends.mkldnn.is_available():
            tensors["mkldnn"] = good.to_mkldnn()
    return tensors


def _released(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose memory was given back, as sharded training does with parameters."""
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


CONV = {
    "stride": 1,
    "padding": 1,
    "dilation": 1,
    "groups": 1,
    "engine": "auto",
    "interpolation": "linear",
}
LAYER = {
    **CONV, "in_channels": 2, "out_channels": 4, "kernel_size": 3, "bias": True, "dtype": None,
    "device": None, "padding_mode": "zeros",
}  # fmt: skip
TAPS = hl.FrequencyTaps.harmonic(3)
HARMONIC = {"anchor": 1, "harmonics": None, "origin": 0}
LOG = {"anchor": 1, "harmonics": None, "bins_per_octave": 2, "shifts": None}


def _without(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in names}


# What is called, and its arguments when all are right.
TARGETS: dict[str, tuple[Any, dict[str, Any]]] = {
    "harmonic_conv2d": (hl.harmonic_conv2d, {**CONV, **HARMONIC, "anchor_weight": None}),
    "log_harmonic_conv2d": (hl.log_harmonic_conv2d, {**CONV, **LOG, "anchor_weight": None}),
    "frequency_tap_conv2d": (
        hl.frequency_tap_conv2d,
        {**_without(CONV, "interpolation"), "taps": TAPS},
    ),
    "HarmonicConv2d": (hl.HarmonicConv2d, {**LAYER, **HARMONIC}),
    "LogHarmonicConv2d": (hl.LogHarmonicConv2d, {**LAYER, **LOG}),
    "FrequencyTapConv2d": (
        hl.FrequencyTapConv2d,
        {**_without(LAYER, "interpolation"), "taps": TAPS},
    ),
    "harmonic_lowering": (
        hl.harmonic_lowering,
        {"n_harmonics": 3, "interpolation": "linear", **HARMONIC},
    ),
    "log_harmonic_lowering": (
        hl.log_harmonic_lowering,
        {"n_harmonics": 3, "interpolation": "linear", **LOG},
    ),
    "HarmonicLowering": (
        hl.HarmonicLowering,
        {"n_harmonics": 3, "interpolation": "linear", **HARMONIC},
    ),
    "LogHarmonicLowering": (
        hl.LogHarmonicLowering,
        {"n_harmonics": 3, "interpolation": "linear", **LOG},
    ),
    "FrequencyTaps": (
        hl.FrequencyTaps,
        {"slopes": (1, 1, 2), "offsets": (0, 1, 2), "interpolation": "linear"},
    ),
    "FrequencyTaps.harmonic": (
        hl.FrequencyTaps.harmonic,
        {"n_harmonics": 3, "anchor": 1, "origin": 0},
    ),
    "FrequencyTaps.rows": (TAPS.rows, {"n_bins": 9}),
    "FrequencyTaps.dead": (TAPS.dead, {"n_bins": 9}),
    "FrequencyTaps.live_share": (TAPS.live_share, {"n_bins": 9}),
    "FrequencyTaps.positions": (TAPS.positions, {"n_bins": 9}),
    "FrequencyTaps.live_range": (TAPS.live_range, {"tap": 1, "n_bins": 9}),
    "FrequencyTaps.describe": (TAPS.describe, {"tap": 1}),
    "origin_after_pooling": (
        hl.origin_after_pooling,
        {"origin": 0, "factor": 2, "pooling": "average"},
    ),
}
SETTABLE = ["stride", "padding", "dilation", "groups", "engine"]


def wrong_call(seed: int) -> tuple[str, Any]:
    """Return the invalid call that a seed stands for: in words, and as a function."""
    rng = random.Random(f"wrong {seed}")
    x, w, b = torch.randn(2, 2, 9, 8), torch.randn(4, 2, 3, 3), torch.randn(4)
    if rng.random() < 0.4:
        which = rng.randrange(3)
        given: list[Any] = [x, w, b]
        wrong = wrong_tensors(given[which])
        name = rng.choice(list(wrong)) if rng.random() < 0.8 else "nonsense"
        value = rng.choice([*nonsense(), None]) if name == "nonsense" else wrong[name]
        through = rng.choice(
            ["harmonic_conv2d", "log_harmonic_conv2d", "layer", "frequency_tap_conv2d"]
        )
        if through == "layer":
            which = 0
            wrong = wrong_tensors(x)
            name = rng.choice(list(wrong))
            value = wrong[name]
        engine = rng.choice(
            ENGINES if not library.unsupported_reason() else ["auto", "blocked", "lowering"]
        )
        if _is_fine(which, name, value):
            return f"seed {seed}: nothing wrong", None
        given[which] = value
        words = f"{through}(engine={engine!r}) with {('input', 'weight', 'bias')[which]}: {name}"
        if name == "nonsense":
            words += f" {_show(value)}"
        if through == "layer":
            kind = rng.choice([hl.HarmonicConv2d, hl.HarmonicLowering])
            layer = kind(2, 4, 3, engine=engine) if kind is hl.HarmonicConv2d else kind(3)
            if kind is hl.HarmonicLowering and name in LOWERABLE:
                return f"seed {seed}: nothing wrong", None
            return f"{kind.__name__}, {words}", lambda: layer(value)
        more = {
            "log_harmonic_conv2d": {"bins_per_octave": 2},
            "frequency_tap_conv2d": {"taps": TAPS},
        }.get(through, {})
        return words, lambda: getattr(hl, through)(*given, engine=engine, **more)
    target = rng.choice([*TARGETS, "layer"])
    if target == "layer":
        name = rng.choice(SETTABLE)
        value = _wrong_value(rng, name)
        if (
            name == "groups" and value is WRONG["groups"][-2]
        ):  # what it does not divide is refused at the call
            value = 0
        layer = hl.HarmonicConv2d(2, 4, 3)
        return f"layer.{name} = {_show(value)}", lambda: setattr(layer, name, value)
    function, arguments = TARGETS[target]
    name = rng.choice(list(arguments))
    value = _wrong_value(rng, name)
    arguments = {**arguments, name: value}
    if name == "shifts":
        arguments["bins_per_octave"] = None
    tensors = (x, w, b) if "conv2d" in target and "Conv2d" not in target else ()
    if target.endswith("_lowering"):
        tensors = (x,)
    return f"{target}({name}={_show(value)})", lambda: function(*tensors, **arguments)


LOWERABLE = (
    "another dtype",
    "another half",
    "on meta",
    "fake",
    "one more",
    "released",
    "no first axis",
    "empty",
)


def _is_fine(which: int, name: str, value: Any) -> bool:
    """Whether what looks wrong is right: no bias, an input without a batch or of no items."""
    return which == 2 and (value is None or name == "one axis")


def _wrong_value(rng: random.Random, name: str) -> Any:
    pool = WRONG[name] if rng.random() < 0.6 else nonsense()
    value = rng.choice(pool)
    while isinstance(value, torch.dtype) and name == "dtype" and value == torch.float32:
        value = rng.choice(pool)
    return value


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def check_wrong(words: str, make: Any) -> str | None:
    """Make an invalid call and return what is wrong with how it is refused, or None."""
    try:
        made = make()
    except (ValueError, TypeError, NotImplementedError, IndexError) as error:
        return _unclear(error)
    except BaseException:
        return f"raised\n{traceback.format_exc(limit=-4)}"
    return f"accepted, result {_show(made)}"


def _unclear(error: Exception) -> str | None:
    """Return why an error is not a clear one of this package, or None."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(frame.filename, frame.lineno or 0).strip()
    if not frame.filename.startswith(PACKAGE) or not line.startswith("raise"):
        return f"not raised by this package\n{''.join(traceback.format_exception(error, limit=-3))}"
    if isinstance(error, IndexError) and not str(error).startswith("tap must be"):
        return f"an IndexError: {error}"
    return None if len(str(error)) > 20 else f"says little: {error!r}"


# -------------------------------------------------------------------- runs


def run(seed: int) -> tuple[str, str, str | None]:
    """Make the call of a seed: what was expected of it, the call in words, and what is wrong."""
    if seed % 3 == 2:
        words, make = wrong_call(seed)
        if make is None:
            return "refused", words, None
        return "refused", words, check_wrong(words, make)
    call = draw(seed)
    return "right", json.dumps(asdict(call), default=str), check_call(call)


def _work(first: int, stop: int, step: int) -> None:
    """Make calls in this process, and print a line of JSON for each."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (BYTES_A_PROCESS, BYTES_A_PROCESS))
    warnings.simplefilter("ignore")
    for seed in range(first, stop, step):
        print(json.dumps([seed, *run(seed)]), flush=True)


class Run:
    """A long run: what was made of the calls, by several processes at a time."""

    def __init__(self, first: int, calls: int, jobs: int) -> None:
        self.first, self.stop, self.jobs = first, first + calls, jobs
        self.done: Counter[str] = Counter()
        self.findings: list[str] = []
        self.next = [first + job for job in range(jobs)]
        self.lock = threading.Lock()

    def find(self, seed: int, words: str, what: str) -> None:
        """Report a finding."""
        again = f"python tests/fuzz_layers.py --seed {seed}"
        with self.lock:
            self.findings.append(f"seed {seed}: {what}")
            print(f"FINDING {words}\n  {what}\n  again: {again}", flush=True)

    def job(self, number: int) -> None:
        """Make every `jobs`-th call, in one process after another."""
        while self.next[number] < self.stop:
            start = self.next[number]
            with tempfile.TemporaryFile() as stderr:
                worker = [
                    sys.executable,
                    __file__,
                    "--worker",
                    str(start),
                    str(self.stop),
                    str(self.jobs),
                ]
                environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "MALLOC_PERTURB_": "85"}
                process = subprocess.Popen(
                    worker, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
                )
                timer = threading.Timer(SECONDS_A_CALL, process.kill)
                timer.start()
                assert process.stdout is not None
                for line in process.stdout:
                    seed, kind, words, what = json.loads(line)
                    timer.cancel()
                    self.next[number] = seed + self.jobs
                    self.done[kind] += 1
                    if what:
                        self.find(seed, words, what)
                    timer = threading.Timer(SECONDS_A_CALL, process.kill)
                    timer.start()
                ended = timer.is_alive()
                timer.cancel()
                status = process.wait()
                if self.next[number] < self.stop:
                    seed = self.next[number]
                    stderr.seek(0)
                    said = stderr.read().decode(errors="replace")[-3000:]
                    how = signal.Signals(-status).name if status < 0 else f"status {status}"
                    what = f"the process died ({how})" if ended else "the call does not end"
                    words = (
                        json.dumps(asdict(draw(seed)), default=str)
                        if seed % 3 != 2
                        else wrong_call(seed)[0]
                    )
                    self.find(
                        seed,
                        words,
                        f"{what}, {(seed - start) // self.jobs} calls after its start\n{said}",
                    )
                    self.next[number] = seed + self.jobs

    def report(self) -> str:
        """Return in one line how far the run is."""
        counts = ", ".join(f"{n:,} to be {kind}" for kind, n in sorted(self.done.items()))
        done, found = sum(self.done.values()), len(self.findings)
        return f"{done:,} calls ({counts}), {found} findings, next seed {min(self.next)}"

    def __call__(self) -> int:
        """Run all jobs, saying each half minute how far they are."""
        threads = [
            threading.Thread(target=self.job, args=(n,), daemon=True) for n in range(self.jobs)
        ]
        for thread in threads:
            thread.start()
        said = time.monotonic()
        try:
            while any(thread.is_alive() for thread in threads):
                time.sleep(0.2)
                if time.monotonic() - said > 30:
                    print(self.report(), flush=True)
                    said = time.monotonic()
        except KeyboardInterrupt:
            print(f"stopped; go on with --first {min(self.next)}")
        print(self.report())
        return 1 if self.findings else 0


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--calls", type=int, default=100_000, help="how many calls (default: %(default)s)"
    )
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument(
        "--jobs", type=int, default=min(8, os.cpu_count() or 1), help="processes at a time"
    )
    parser.add_argument("--seed", type=int, help="make one call, in this process")
    parser.add_argument("--worker", type=int, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _work(*arguments.worker)
        return 0
    if arguments.seed is not None:
        faulthandler.enable()
        kind, words, what = run(arguments.seed)
        print(f"{words}\n{what or f'is {kind}'}")
        return 1 if what else 0
    print(f"{arguments.calls:,} calls from seed {arguments.first}, {arguments.jobs} processes")
    return Run(arguments.first, arguments.calls, arguments.jobs)()


if __name__ == "__main__":
    sys.exit(main())
