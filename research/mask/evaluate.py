"""Score a mask on synthetic sounds it has not seen, or on recordings.

    python -m research.mask.evaluate [WEIGHTS] [--on synthetic | choose | report]
        [--against fast] [--csv FILE]

`synthetic` and `choose` are for choices, `report` is for what is published. Rows are noises,
columns speech and music: SI-SDR in dB (speech also PESQ and STOI where they are installed) of the
noisy sound, of the mask's result and, with `--against`, of a `Denoiser` of that quality.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.denoise import mixtures as bench
from benchmarks.denoise.recordings import default_cache
from harmonic_lowering.denoise import Denoiser
from harmonic_lowering.denoise.mask import LearntMask
from harmonic_lowering.denoise.mask_network import NOISE_FRAMES, NOISE_ROWS, merge_bins
from harmonic_lowering.metrics import pesq, si_sdr, stoi

from .canvas import Canvas
from .examples import NOISES, draw_example

__all__ = ["Mixture", "Score", "measure", "noise_error", "recorded", "synthetic"]

_HELD_OUT = 2**31  # first number of seeds that no run of training draws
_PER_KIND = 6


@dataclass(frozen=True)
class Mixture:
    """A sound in noise; a clean one where the noise is called "none"."""

    name: str
    kind: str
    noise: str
    clean: Tensor
    noisy: Tensor
    power: Tensor | None = None


@dataclass(frozen=True)
class Score:
    """What a method made of a mixture; nan where a score does not apply."""

    noise: str
    kind: str
    sound: str
    method: str
    si_sdr: float
    pesq: float = math.nan
    stoi: float = math.nan
    noise_mean_db: float = math.nan  # error of N(f, t)
    noise_rms_db: float = math.nan


Method = Callable[[Tensor], Tensor]


def synthetic(snr_db: float) -> Iterator[Mixture]:
    """Sounds and noises of the generator, with seeds of their own."""
    canvas = Canvas(16000)
    for noise in NOISES:
        for kind in ("speech", "music"):
            for index in range(_PER_KIND):
                seed = (_HELD_OUT, zlib.crc32(f"{noise} {kind}".encode()), index)
                example = draw_example(np.random.default_rng(seed), canvas, kind, noise, snr_db)
                clean = torch.from_numpy(example.sound)
                noisy = clean + torch.from_numpy(example.noise.waveform)
                power = torch.from_numpy(example.noise.power)
                yield Mixture(f"{kind} {index}", kind, noise, clean, noisy, power)
                if noise == "white":
                    yield Mixture(f"{kind} {index}", kind, "none", clean, clean)


def recorded(use: str, snr_db: float, cache: Path) -> Iterator[Mixture]:
    """Recorded sounds in recorded and in white noise, those of the bench's parts."""
    part = bench.mixtures("choose" if use == "choose" else "real")
    bench.fetch_for(part, cache)
    noises = dict.fromkeys(["white", *(one.noise for one in part)])
    for name, kind in {one.recording: one.kind for one in part}.items():
        clean = bench.sound(name, cache)
        for noise in ("none", *noises):
            noisy = clean + bench.add_noise(clean, name, noise, snr_db, cache)
            pair = (torch.from_numpy(wave).float() for wave in (clean, noisy))
            yield Mixture(name, kind, noise, *pair)


def measure(
    mixtures: Iterable[Mixture], methods: Mapping[str, Method], mask: LearntMask | None = None
) -> list[Score]:
    """Score every method on every mixture, and the noise that `mask` finds where it is known."""
    scores = []
    for mixture in mixtures:
        for method, run in methods.items():
            if mixture.noise == "none" and method == "noisy":
                continue
            result = run(mixture.noisy)
            quality = intelligibility = mean = rms = math.nan
            if mixture.kind == "speech" and mixture.noise != "none":
                quality = _or_nan(pesq, mixture.clean, result)
                intelligibility = _or_nan(stoi, mixture.clean, result)
            if mixture.power is not None and method == "mask" and mask is not None:
                mean, rms = noise_error(mask, mixture.noisy, mixture.power)
            scores.append(
                Score(
                    mixture.noise,
                    mixture.kind,
                    mixture.name,
                    method,
                    float(si_sdr(mixture.clean, result)),
                    quality,
                    intelligibility,
                    mean,
                    rms,
                )
            )
    return scores


def _or_nan(metric: Callable[[Tensor, Tensor, int], float], clean: Tensor, result: Tensor) -> float:
    try:
        return metric(clean, result, 16000)
    except ImportError:
        raise
    except Exception as error:  # the metrics' packages raise kinds of their own
        print(f"no {metric.__name__}: {error}")
        return math.nan


def noise_error(mask: LearntMask, noisy: Tensor, truth: Tensor) -> tuple[float, float]:
    """Mean and root mean square of N(f, t) against the truth at 16 kHz, in dB, where noise is."""
    noise = mask.estimate(mask.transform(16000)(noisy).abs().square()).noise
    noise = F.avg_pool2d(merge_bins(noise)[None], (NOISE_ROWS, NOISE_FRAMES), ceil_mode=True)[0]
    audible = truth > 1e-4 * truth.mean()
    error = 10 * torch.log10(noise[audible] / truth[audible])
    return float(error.mean()), float(error.square().mean().sqrt())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, nargs="?", help="by default those of the package")
    parser.add_argument("--on", choices=("synthetic", "choose", "report"), default="synthetic")
    parser.add_argument("--snr-db", type=float, default=7.5)
    parser.add_argument("--against", choices=("fast", "default", "best"))
    parser.add_argument("--csv", type=Path, help="write each mixture's scores")
    parser.add_argument("--cache", type=Path, default=default_cache())
    options = parser.parse_args()
    torch.set_num_threads(1)
    mask = LearntMask.load(options.weights)
    methods: dict[str, Method] = {
        "noisy": lambda noisy: noisy,
        "mask": lambda noisy: mask.apply(noisy, 16000),
    }
    if options.against:
        denoiser = Denoiser(quality=options.against)
        methods[options.against] = lambda noisy: denoiser(noisy, 16000).waveform
    mixtures = (
        synthetic(options.snr_db)
        if options.on == "synthetic"
        else recorded(options.on, options.snr_db, options.cache)
    )
    scores = measure(mixtures, methods, mask)
    if options.csv:
        write(options.csv, scores)
    _print(scores, list(methods))


def write(path: Path, scores: Sequence[Score]) -> None:
    """Write scores as a table."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in dataclasses.fields(Score)])
        writer.writerows(dataclasses.astuple(score) for score in scores)


def _print(scores: Sequence[Score], methods: Sequence[str]) -> None:
    print("| noise | method | speech: SI-SDR/PESQ/STOI | music | least gain | N: mean, rms dB |")
    print("| --- | --- | --- | --- | --- | --- |")
    noises = list(dict.fromkeys(score.noise for score in scores))
    moving = [noise for noise in noises if noise not in ("none", "white", "still")]
    before = {(s.noise, s.kind, s.sound): s.si_sdr for s in scores if s.method == "noisy"}
    for name, members in [*((noise, [noise]) for noise in noises), ("all that move", moving)]:
        for method in methods:
            own = [s for s in scores if s.noise in members and s.method == method]
            if not own:
                continue
            speech = [s for s in own if s.kind == "speech"]
            cells = "/".join(
                f"{value:.{digits}f}"
                for value, digits in (
                    (_mean(s.si_sdr for s in speech), 1),
                    (_mean(s.pesq for s in speech), 2),
                    (_mean(s.stoi for s in speech), 3),
                )
                if not math.isnan(value)
            )
            music = _mean(s.si_sdr for s in own if s.kind == "music")
            least = min(s.si_sdr - before.get((s.noise, s.kind, s.sound), 0.0) for s in own)
            mean, rms = _mean(s.noise_mean_db for s in own), _mean(s.noise_rms_db for s in own)
            error = "" if math.isnan(mean) else f"{mean:+.1f}, {rms:.1f}"
            print(f"| {name} | {method} | {cells} | {music:.1f} | {least:+.1f} | {error} |")


def _mean(values: Iterable[float]) -> float:
    """Mean of what is a number; nan if nothing is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


if __name__ == "__main__":
    main()
