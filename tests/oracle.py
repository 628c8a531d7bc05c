"""The formula of harmonic convolution in plain loops, with its adjoint, in Python's own floats.

Written from the definition and independent of the package: it shares no code with it. Each product
W·X̃ that enters an output is a sum over one or two input samples, so that the same walk over the
terms gives the output and, for a gradient G of the output, the gradients of input, weight and bias.
"""

import itertools
import math
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from hypothesis import strategies as st

from harmonic_lowering import harmonic_conv2d, log_harmonic_conv2d


@dataclass
class Case:
    """The arguments of one call, as a user writes them, and the sizes of its tensors."""

    shape: tuple[int, int, int, int]  # batch, channels for each group, bins, frames
    out_channels: int  # for each group
    rows: int  # kernel rows for each anchor
    frames: int
    stride: tuple[int, int] = (1, 1)
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = True
    taps: dict = field(default_factory=dict)
    kind: str = "harmonic"
    seed: int = 0

    @property
    def n_anchors(self):
        anchor = self.taps.get("anchor", 1)
        return len(anchor) if isinstance(anchor, tuple) else 1

    def tensors(self, dtype=torch.float64):
        generator = torch.Generator().manual_seed(self.seed)
        batch, channels, bins, frames = self.shape
        rows = self.rows * self.n_anchors
        sizes = [
            (batch, channels * self.groups, bins, frames),
            (self.out_channels * self.groups, channels, rows, self.frames),
            (self.out_channels * self.groups,),
        ]
        x, w, b = (
            torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in sizes
        )
        return x, w, (b if self.bias else None)

    def call(self, x, w, b, engine="auto"):
        function = harmonic_conv2d if self.kind == "harmonic" else log_harmonic_conv2d
        return function(
            x,
            w,
            b,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            engine=engine,
            **self.taps,
        )

    def position(self, row, f):
        """Where a kernel row reads for output bin f, from the formula."""
        anchors = self.taps.get("anchor", 1)
        anchors = anchors if isinstance(anchors, tuple) else (anchors,)
        anchor, k = anchors[row // self.rows], row % self.rows + 1
        ratio = Fraction(k, anchor)
        if "harmonics" in self.taps:
            ratio = self.taps["harmonics"][row]
        if self.kind == "harmonic":
            origin = self.taps.get("origin", 0)
            position = Fraction(ratio) * (f + Fraction(origin)) - Fraction(origin)
        elif "shifts" in self.taps:
            position = f + Fraction(self.taps["shifts"][row])
        else:
            shift = self.taps["bins_per_octave"] * math.log(ratio) / math.log(2)
            position = f + (round(shift) if abs(shift - round(shift)) < 1e-9 else Fraction(shift))
        if self.taps.get("interpolation") == "nearest":
            position = math.floor(position + Fraction(1, 2))
        return position


def solve(case, x, w, b, grad=None):
    """Return the output, and for a gradient of it those of x, w and b, as float64 tensors."""
    X, W = x.tolist(), w.tolist()
    batch, _, bins, frames = x.shape
    n_out, channels, rows, kernel_frames = w.shape
    n_f = -(-bins // case.stride[0])
    span = case.dilation * (kernel_frames - 1) + 1
    n_t = (frames + 2 * case.padding - span) // case.stride[1] + 1
    y = torch.zeros(batch, n_out, n_f, n_t, dtype=torch.float64)
    dx, dw = torch.zeros(x.shape, dtype=torch.float64), torch.zeros(w.shape, dtype=torch.float64)
    walk = itertools.product(
        range(batch), range(n_out), range(n_f), range(n_t), range(channels), range(rows)
    )
    for n, o, i, t, c, j in walk:
        position = case.position(j, i * case.stride[0])
        if not 0 <= position <= bins - 1:
            continue
        lower = math.floor(position)
        share = float(position - lower)
        samples = [(lower, 1 - share)] + ([(lower + 1, share)] if share else [])
        source = o // (n_out // case.groups) * channels + c
        for tau in range(kernel_frames):
            u = t * case.stride[1] + tau * case.dilation - case.padding
            if not 0 <= u < frames:
                continue
            for row, amount in samples:
                y[n, o, i, t] += W[o][c][j][tau] * amount * X[n][source][row][u]
                if grad is not None:
                    g = float(grad[n, o, i, t]) * amount
                    dx[n, source, row, u] += g * W[o][c][j][tau]
                    dw[o, c, j, tau] += g * X[n][source][row][u]
    if b is None:
        return y, dx, dw
    return y + b[:, None, None], dx, dw, None if grad is None else grad.sum((0, 2, 3))


RATIOS = (Fraction(1, 3), 0.5, 1, 1.5, 2 ** (7 / 12), 2, 3, 2.7, Fraction(7, 3))


@st.composite
def cases(draw, largest=9):
    """Calls with every argument, at sizes that plain loops can walk."""
    rows, frames = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["harmonic", "log"]))
    taps = {"interpolation": draw(st.sampled_from(["linear", "nearest"]))}
    choice = draw(st.sampled_from(["anchor", "anchors", "harmonics", "shifts"]))
    if choice == "harmonics":
        taps["harmonics"] = tuple(draw(st.sampled_from(RATIOS)) for _ in range(rows))
    elif choice == "anchors":
        taps["anchor"] = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    elif choice == "anchor" or kind == "harmonic":
        taps["anchor"] = draw(st.integers(1, 5))
    if kind == "harmonic":
        taps["origin"] = draw(st.sampled_from([0, 1, 0.5, Fraction(1, 3), 0.1, -0.25]))
    elif choice == "shifts":
        shift = st.one_of(st.integers(-6, 6), st.floats(-6, 6, allow_subnormal=False))
        taps["shifts"] = tuple(draw(shift) for _ in range(rows))
    else:
        taps["bins_per_octave"] = draw(st.sampled_from([1, 3, 12, 2.5]))
    dilation = draw(st.integers(1, 2))
    padding = draw(st.integers(0, 2))
    span = dilation * (frames - 1) + 1
    shape = (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, largest)),
        draw(st.integers(max(1, span - 2 * padding), 5 + span)),
    )
    return Case(
        shape,
        out_channels=draw(st.integers(1, 2)),
        rows=rows,
        frames=frames,
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=padding,
        dilation=dilation,
        groups=draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
        taps=taps,
        kind=kind,
        seed=draw(st.integers(0, 1000)),
    )


def fixed_case(**changes):
    """Return an ordinary call, with changes."""
    arguments = {
        "shape": (2, 2, 7, 6),
        "out_channels": 2,
        "rows": 3,
        "frames": 3,
        "padding": 1,
        "taps": {"anchor": 2},
        "seed": 7,
    }
    return Case(**{**arguments, **changes})


# One call for each argument that can stand alone: for the checks too slow for random search.
EVERY_ARGUMENT = {
    "plain": fixed_case(),
    "anchor 1": fixed_case(taps={"anchor": 1}),
    "anchors": fixed_case(taps={"anchor": (1, 2, 4)}),
    "ratios": fixed_case(taps={"harmonics": (Fraction(1, 3), 2 ** (7 / 12), 2)}),
    "origin": fixed_case(taps={"anchor": 2, "origin": 0.75}),
    "nearest": fixed_case(taps={"anchor": 2, "interpolation": "nearest"}),
    "stride": fixed_case(stride=(2, 3)),
    "dilation": fixed_case(dilation=2),
    "groups": fixed_case(groups=2),
    "no bias": fixed_case(bias=False),
    "log": fixed_case(kind="log", taps={"bins_per_octave": 2.5, "anchor": 2}),
    "whole shifts": fixed_case(kind="log", taps={"shifts": (-2, 0, 3)}),
    "shifts": fixed_case(kind="log", taps={"shifts": (-1.5, 0.25, 2)}),
    "no live row": fixed_case(kind="log", taps={"shifts": (9, 10, 11)}),
}
