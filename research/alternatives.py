"""Compare ways to make the fast engine: the same slabs packed by different means, and C++.

    python -m research.alternatives [--settings 1,3,3a,9] [--batch 16] [--seconds 10]

prints a Markdown table: forward passes ÷ Conv2d, channels last, float32, timed in turns. Each way
is first checked against the engine `lowering`. One that cannot run here shows its error, and the
others go on: `torch.compile` needs a C++ compiler at its first call, `numba` must be installed.

A finished experiment: it uses private names of the engine `blocked` as they were at commit
4355f0e, where its figures were measured, and is not kept working when they change.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._inductor import config as inductor

from benchmarks.common import machine
from benchmarks.layers.measure import Trial, interleaved, quartiles, step
from benchmarks.layers.settings import SETTINGS, Setting
from harmonic_lowering import harmonic_conv2d
from harmonic_lowering.engines import blocked
from harmonic_lowering.engines.native import library

# rows (B, F + 1, T, C), lower (K', N), upper (K', N), blend (K', N) → slab (B, N, T, K'·C)
Pack = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def pack_stock(rows: Tensor, lower: Tensor, upper: Tensor, blend: Tensor) -> Tensor:
    weight = blend[..., None, None]
    read = rows[:, lower] * (1 - weight) + rows[:, upper] * weight
    return read.permute(0, 2, 3, 1, 4).flatten(3)


def pack_compiled() -> Pack:
    inductor.force_disable_caches = True  # so that the first call shows what compiling takes
    return torch.compile(pack_stock, dynamic=True)


def pack_numba() -> Pack:
    import numba

    @numba.njit(parallel=True, fastmath=False)
    def fill(rows, lower, upper, blend, slab):  # type: ignore[no-untyped-def]
        batch, _, frames, channels = rows.shape
        n_taps, n_rows = lower.shape
        for n in numba.prange(n_rows):
            for b in range(batch):
                for t in range(frames):
                    for k in range(n_taps):
                        weight = blend[k, n]
                        below, above = rows[b, lower[k, n], t], rows[b, upper[k, n], t]
                        for c in range(channels):
                            slab[b, n, t, k * channels + c] = (
                                below[c] * (1 - weight) + above[c] * weight
                            )

    kept: dict[tuple[int, ...], Tensor] = {}  # used again: fresh memory costs page faults

    def pack(rows: Tensor, lower: Tensor, upper: Tensor, blend: Tensor) -> Tensor:
        shape = (rows.shape[0], lower.shape[1], rows.shape[2], lower.shape[0] * rows.shape[3])
        slab = kept[shape] if shape in kept else kept.setdefault(shape, torch.empty(shape))
        numba.set_num_threads(torch.get_num_threads())
        fill(rows.numpy(), lower.numpy(), upper.numpy(), blend.numpy(), slab.numpy())
        return slab

    return pack


def packed_already() -> Pack:
    """Pack once and hand out the same slab ever after: no way of packing can be faster."""
    kept: dict[tuple[int, ...], Tensor] = {}

    def pack(rows: Tensor, lower: Tensor, upper: Tensor, blend: Tensor) -> Tensor:
        key = (rows.shape[0], lower.data_ptr())
        return (
            kept[key]
            if key in kept
            else kept.setdefault(key, pack_stock(rows, lower, upper, blend))
        )

    return pack


class Slabs:
    """The engine `blocked`, forward only, with the packing step as an argument."""

    def __init__(self, setting: Setting, like: torch.nn.Conv2d, pack: Pack) -> None:
        self.setting, self.like, self.pack = setting, like, pack
        taps, bins = setting.taps(), setting.bins
        self.layout = blocked.layout(taps, bins, 1)
        cpu = torch.device("cpu")

        def plan(tap: int, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
            lower, upper, blend = blocked.read_plan(taps, cpu, bins, 1, tap, start, stop)
            above = torch.full_like(lower, bins) if upper is None else upper
            return lower, above, blend.flatten().float()

        self.plans = [
            tuple(map(torch.stack, zip(*(plan(t, b.start, b.stop) for t in b.taps), strict=True)))
            for b in self.layout.bands
        ]
        live = taps.rows(bins, 1)
        self.late = [
            (live[tap].start, live[tap].stop, plan(tap, live[tap].start, live[tap].stop))
            for tap, _, _ in self.layout.convolved_first
        ]

    def convolve(self, slab: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        pad = (0, self.setting.kernel // 2)
        return F.conv2d(slab.permute(0, 3, 1, 2), kernel, bias, padding=pad)

    def __call__(self, input: Tensor) -> Tensor:
        weight, bias = self.like.weight, self.like.bias
        shape = (input.shape[0], weight.shape[0], *input.shape[2:])
        output = torch.empty(shape, memory_format=torch.channels_last)
        for items in blocked._steps(input, weight):
            rows = F.pad(input[items].permute(0, 2, 3, 1), (0, 0, 0, 0, 0, 1))
            result = output[items]
            for band, plan in zip(self.layout.bands, self.plans, strict=True):
                kernel = weight[:, :, list(band.taps)].transpose(1, 2).flatten(1, 2).unsqueeze(2)
                slab = self.pack(rows, *plan)
                result[:, :, band.start : band.stop] = self.convolve(slab, kernel, bias)
            for (tap, begin, end), (start, stop, (lower, upper, blend)) in zip(
                self.layout.convolved_first, self.late, strict=True
            ):
                kernel = weight[:, :, tap].unsqueeze(2)
                done = F.pad(self.convolve(rows[:, begin:end], kernel, None), (0, 0, 0, 1))
                above = (upper - begin).clamp(max=end - begin)
                share = blend[:, None]
                result[:, :, start:stop] += done[:, :, lower - begin] * (1 - share)
                result[:, :, start:stop] += done[:, :, above] * share
        return output


def ways(setting: Setting, like: torch.nn.Conv2d) -> dict[str, Callable[[], Callable]]:
    """Return what makes each way ready, by name."""
    pad = setting.kernel // 2

    def engine(name: str) -> Callable[[Tensor], Tensor]:
        if name == "native" and (why := library.unsupported_reason()):
            raise RuntimeError(why)
        return lambda x: harmonic_conv2d(
            x, like.weight, like.bias, padding=pad, anchor=setting.anchor, engine=name
        )

    return {
        "Conv2d": lambda: like,
        "the paper's tensor, stock operations (`lowering`)": lambda: engine("lowering"),
        "slabs, stock operations (`blocked`)": lambda: engine("blocked"),
        "slabs packed by torch.compile": lambda: Slabs(setting, like, pack_compiled()),
        "slabs packed by numba": lambda: Slabs(setting, like, pack_numba()),
        "slabs packed already (what packing cannot beat)": lambda: Slabs(
            setting, like, packed_already()
        ),
        "C++ core (`native`)": lambda: engine("native"),
    }


def measure(setting: Setting, seconds: float) -> tuple[dict[str, str], dict[str, float]]:
    """Return the figure (or the error) of each way, and the seconds of its first call."""
    trial = Trial("conv2d", setting, memory_format="channels_last")
    like, (input, _) = trial.module(), trial.tensors()
    small, first, runs, shown = input[:1], {}, {}, {}
    with torch.no_grad():
        expected = harmonic_conv2d(
            small, like.weight, like.bias, padding=setting.kernel // 2, anchor=setting.anchor
        )
        for name, make in ways(setting, like).items():
            began = time.perf_counter()
            try:
                way = make()
                got = way(small)
                first[name] = time.perf_counter() - began
                if name != "Conv2d":
                    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
                runs[name] = step(way, input, None)
            except Exception as error:  # a way that cannot run here; the others go on
                shown[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    times = interleaved(runs, seconds, 5)
    base = times["Conv2d"]
    for name, found in times.items():
        if isinstance(found, Exception) or isinstance(base, Exception):
            shown[name] = f"{type(found).__name__}: {found}".splitlines()[0]
        elif name == "Conv2d":
            shown[name] = f"{1e3 * quartiles(found)[1]:.3g} ms"
        else:
            low, middle, high = (value / quartiles(base)[1] for value in quartiles(found))
            shown[name] = f"{middle:.2f} ± {(high - low) / 2:.2f}"
    return shown, first


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--settings", default="1,3,3a,9")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each setting")
    arguments = parser.parse_args()
    names = arguments.settings.split(",")

    table, first = {}, {}
    for name in names:
        setting = replace(SETTINGS[name], batch=arguments.batch)
        table[name], began = measure(setting, arguments.seconds)
        first = first or began
    where = machine.record()
    print(f"{where['machine']}, {where['threads']} threads, torch {where['torch']}, ", end="")
    print(f"batch {arguments.batch}, commit {where['commit']}, {where['date']}.\n")
    print("| way | " + " | ".join(f"Setting {name}" for name in names) + " | first call |")
    print("| --- " * (len(names) + 2) + "|")
    for way in first:
        began = f"{first[way]:.2g} s" if way in first else ""
        print(f"| {way} | " + " | ".join(table[name][way] for name in names) + f" | {began} |")


if __name__ == "__main__":
    main()
