"""`python -m benchmarks.relatives`: time published blocks beside the layers that compute the same.

Prints the Markdown tables of docs/recipes.md; needs a quiet machine. Every pair is checked for
equality before it is timed, and the two take turns. Where harmonica-amt can be imported (nothing
installs it, because it states no licence), its whole networks are timed, with random weights.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from harmonic_lowering import LogHarmonicConv2d

from ..common.machine import record
from ..common.tables import markdown
from . import blocks

BATCH, FRAMES = 8, 160
_BATCH_TALL = 2  # for 352 bins and more
_ROUNDS = 5

Call = Callable[[], object]


def medians_ms(calls: Sequence[Call], seconds: float) -> list[float]:
    """Return the median time of each call; they take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    end = time.perf_counter() + seconds
    while len(times[0]) < _ROUNDS or time.perf_counter() < end:
        for call, measured in zip(calls, times, strict=True):
            began = time.perf_counter()
            call()
            measured.append(1000 * (time.perf_counter() - began))
    return [statistics.median(measured) for measured in times]


def passes(module: nn.Module, x: Tensor) -> tuple[Call, Call]:
    """Return a forward pass, and one with backward."""

    def forward() -> None:
        with torch.no_grad():
            module(x)

    grad = torch.ones_like(module(x))
    with_grad = x.clone().requires_grad_()
    return forward, lambda: module(with_grad).backward(grad)


def both_ms(modules: Sequence[nn.Module], x: Tensor, seconds: float) -> list[str]:
    """Return "forward / with backward" for each module."""
    calls = [passes(module, x) for module in modules]
    forward, backward = (medians_ms([pair[i] for pair in calls], seconds / 2) for i in range(2))
    return [f"{a:.1f} / {b:.1f}" for a, b in zip(forward, backward, strict=True)]


def check_equal(module: nn.Module, other: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(other(x), module(x), rtol=1e-4, atol=1e-4)


def widths(channels: Sequence[int], seconds: float) -> Iterator[list[str]]:
    """Yield the rows of Harmonica's block at several widths, beside Conv2d."""
    for width in channels:
        x = torch.randn(BATCH, width, 88, FRAMES)
        block = blocks.Harmonica(width, width)
        layer = blocks.harmonica_layer(block)
        check_equal(block, layer, x)
        plain = nn.Conv2d(width, width, 3, padding=1)
        tall = nn.Conv2d(width, width, (15, 1), padding=(7, 0))
        yield [str(width), *both_ms([block, layer, plain, tall], x, seconds)]


def others(seconds: float) -> Iterator[list[str]]:
    """Yield the rows of the other models' blocks, at a width that they are published with."""
    hppnet, harmof0, stacking = blocks.HPPNet(16, 16), blocks.HarmoF0(32, 64), blocks.BasicPitch()
    for name, block, layer, shape in (
        ("HPPNet, 16 channels, 352 bins", hppnet, blocks.hppnet_layer(hppnet), (16, 352)),
        ("HarmoF0, 32 to 64 channels, 352 bins", harmof0, blocks.HarmoF0Layer(harmof0), (32, 352)),
        ("basic-pitch's stacking, 372 bins", stacking, blocks.BasicPitchLayer(), (1, 372)),
    ):
        x = torch.randn(_BATCH_TALL, *shape, FRAMES)
        check_equal(block, layer, x)
        yield [name, *both_ms([block, layer], x, seconds)]


def networks(seconds: float) -> Iterator[list[str]]:
    """Yield whole networks of harmonica-amt as published, and with layers swapped in."""
    config = importlib.import_module("harmonica.config")
    model = importlib.import_module("harmonica.model")
    omega = importlib.import_module("omegaconf").OmegaConf
    for size in ("nano", "small", "medium"):
        settings = omega.to_object(
            omega.merge(omega.structured(config.HarmonicaModelConfig), {"size": size})
        )
        network = model.HarmonicaModel(settings).eval()
        swapped = copy.deepcopy(network)
        for parent in list(swapped.modules()):
            for name, block in list(parent.named_children()):
                if isinstance(block, model.ShiftAggregate):
                    setattr(parent, name, _layer_for(block))
        cqt = network.spectrogram(torch.randn(1, 15 * network.config.cqt.sample_rate))

        def run(network: nn.Module, cqt: Tensor = cqt) -> dict[str, Tensor]:
            with torch.no_grad():
                return network.forward_spectrogram(cqt)

        for name, value in run(network).items():
            torch.testing.assert_close(run(swapped)[name], value, rtol=1e-4, atol=1e-4)
        count = sum(parameter.numel() for parameter in network.parameters())
        times = medians_ms([partial(run, network), partial(run, swapped)], seconds)
        yield [f"{size}, {count / 1000:.0f}k parameters", *(f"{ms:.0f}" for ms in times)]


def _layer_for(block: nn.Module) -> LogHarmonicConv2d:
    """Return the layer with the weights of a block of harmonica-amt: copies first, as ours."""
    parameters = dict(block.named_parameters())
    weight = next(value for value in parameters.values() if value.ndim > 1)
    bias = next((value for value in parameters.values() if value.ndim == 1), None)
    rows, outputs = len(block.offsets), len(weight)
    ours = blocks.Harmonica(weight[0].numel() // rows, outputs, tuple(block.offsets))
    with torch.no_grad():
        ours.mix.weight.copy_(weight.reshape(outputs, -1, 1, 1))
        ours.mix.bias.copy_(torch.zeros(outputs) if bias is None else bias)
    return blocks.harmonica_layer(ours)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", default="16,32,64,128", help="widths of Harmonica's block")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each row")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    channels = [int(width) for width in arguments.channels.split(",")]
    about = record()
    print(f"{about['machine']}, {about['threads']} threads, torch {about['torch']}, "
          f"{about['date']}, commit {about['commit']}\n")  # fmt: skip
    head = ["channels", "shift, concatenate, 1×1", "`LogHarmonicConv2d`, 15 taps",
            "Conv2d 3×3", "Conv2d 15×1"]  # fmt: skip
    print(f"Batch {BATCH}, 88 bins, {FRAMES} frames; ms forward / with backward, median\n")
    print(markdown(head, widths(channels, arguments.seconds)), flush=True)
    print(f"\nBatch {_BATCH_TALL}, {FRAMES} frames\n")
    print(markdown(["block", "as published", "as a layer"], others(arguments.seconds)), flush=True)
    print("\nWhole networks of harmonica-amt, 15 s of sound, ms forward, spectrogram given\n")
    try:
        print(markdown(["network", "as published", "with layers"], networks(arguments.seconds)))
    except ImportError as error:
        print(f"Not timed: {error}.")


if __name__ == "__main__":
    main()
