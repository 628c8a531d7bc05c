"""The prior, the mask and what is made of both, on the mixtures for choices.

    python -m research.joined [--faults] [--set NAME=VALUE ...]

Prints SI-SDR in dB (speech also PESQ) of the answer, of the prior alone, of the mask alone, and of
other shares of the mask. `--set joined._EQUAL_DB=2` gives another value to a number of a module
of `harmonic_lowering.denoise`; `--faults` takes gates and codecs instead, on five of the
recordings. Rumble is kept: one of the recordings has some that counts as sound.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.denoise.measure import heard
from benchmarks.denoise.mixtures import Made, Mixture, fetch_for, make, mixtures
from benchmarks.denoise.recordings import default_cache
from harmonic_lowering.denoise import Denoiser
from harmonic_lowering.denoise.joined import Joined
from harmonic_lowering.metrics import pesq, si_sdr

_SHARES = (0.35, 0.65, 0.8)
_FAULTS = ("gate", "mp3", "opus", "vorbis")
_OF_FAULTS = {
    "librivox-c": "speech", "cards-1": "speech", "amen": "music", "harmonics": "music",
    "mika": "music",
}  # fmt: skip


def _answers(noisy: Tensor, sample_rate: int) -> Iterator[tuple[str, Tensor]]:
    """What is made of a recording (L,): the answer, its parts, other mixtures of them."""
    seen: list[tuple[Joined, Tensor]] = []
    mixed = Joined.mixed

    def watched(joined: Joined, prior: Tensor) -> Tensor:
        seen.append((joined, prior))
        return mixed(joined, prior)

    Joined.mixed = watched  # type: ignore[method-assign]
    try:
        yield "answer", Denoiser(rumble=False)(noisy, sample_rate).waveform
    finally:
        Joined.mixed = mixed  # type: ignore[method-assign]
    ((joined, prior),) = seen
    mask = joined.learnt.alone().clean
    yield "prior", prior[0]
    yield "mask", mask[0]
    transform = joined.learnt.transform
    for share in _SHARES:
        there = torch.lerp(
            transform(prior), transform(mask), (share * joined.share).to(torch.cfloat)
        )
        yield f"{share:g}", transform.inverse(there, len(noisy))[0]


def _score(made: Made, kind: str, estimate: Tensor) -> tuple[float, float]:
    clean, found = heard(made, estimate.double().numpy())
    pair = torch.from_numpy(found), torch.from_numpy(np.asarray(clean))
    quality = float(pesq(*pair, made.sample_rate)) if kind == "speech" else float("nan")
    return float(si_sdr(*pair)), quality


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for setting in options.set:
        name, value = setting.split("=", 1)
        module, attribute = name.split(".")
        known = importlib.import_module(f"harmonic_lowering.denoise.{module}")
        if not hasattr(known, attribute):
            parser.error(f"harmonic_lowering.denoise.{module} has no {attribute}")
        setattr(known, attribute, ast.literal_eval(value))
    chosen = mixtures("choose")
    if options.faults:
        chosen = [
            Mixture("kinds", name, kind, fault, 10.0)
            for name, kind in _OF_FAULTS.items()
            for fault in _FAULTS
        ]
    fetch_for(chosen, default_cache())
    scores: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    began, seconds = time.process_time(), 0.0
    for mixture in chosen:
        made = make(mixture, default_cache())
        noisy = torch.from_numpy(np.asarray(made.noisy, np.float32))
        seconds += len(noisy) / made.sample_rate
        noise = mixture.noise if options.faults or mixture.noise == "white" else "recorded"
        row = scores.setdefault((mixture.kind, noise), {})
        for name, estimate in _answers(noisy, made.sample_rate):
            row.setdefault(name, []).append(_score(made, mixture.kind, estimate))
    names = list(next(iter(scores.values())))
    print("| sound | noise |", " | ".join(names), "|")
    print("| --- " * (2 + len(names)) + "|")
    for (kind, noise), row in sorted(scores.items()):
        means = [np.mean(row[name], 0) for name in names]
        cells = [f"{a:.2f}/{b:.3f}" if kind == "speech" else f"{a:.2f}" for a, b in means]
        print(f"| {kind} | {noise} |", " | ".join(cells), "|")
    print(f"{(time.process_time() - began) / seconds:.2f} s of work and scoring for a second")


if __name__ == "__main__":
    main()
