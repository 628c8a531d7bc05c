"""Denoise one recording on the card and on the CPU: times, scores, and the published deep prior.

python -m benchmarks.gpu.denoise SOUND [--dap-steps 10000] [--output TABLE.csv]

White noise is added at 10 dB, from a fixed seed. Prints a table and writes it, with a picture of
the clean, the noisy and the restored spectrograms beside it. The deep audio prior of the ICLR 2020
paper comes last and runs on the card only: the CPU needs hours for its 10,000 steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
import soxr
import torch
from torch import Tensor

from harmonic_lowering.denoise import Denoiser
from harmonic_lowering.metrics import pesq, si_sdr, stoi
from harmonic_lowering.plotting import plot_spectrograms

from ..common.tables import markdown, write_rows

__all__ = ["main"]

LEVEL_DB = 10.0


@dataclass(frozen=True)
class Row:
    """One line of the table; scores that could not be computed are nan."""

    method: str
    device: str
    torch: str
    sound_s: float
    seconds: float
    si_sdr: float
    pesq: float
    stoi: float


def main(argv: Sequence[str] | None = None) -> int:
    """Denoise, score, write and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.denoise", description=__doc__)
    add = parser.add_argument
    add("sound", type=Path, metavar="SOUND", help="a clean recording")
    add("-o", "--output", type=Path, default=Path("gpu-denoising.csv"), metavar="CSV")
    add("--device", default="cuda", help="default: %(default)s")
    add("--dap-steps", type=int, default=10_000, metavar="N", help="default: %(default)s")
    add("--steps", type=int, metavar="N", help="of the prior; default: as many as usual")
    arguments = parser.parse_args(argv)
    try:
        samples, sample_rate = soundfile.read(arguments.sound, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        parser.error(str(error))
    clean = torch.from_numpy(samples).mean(1)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    noisy = clean + noise * (clean.norm() / noise.norm() * 10 ** (-LEVEL_DB / 20))
    rows = [_row("noisy", "", 0.0, clean, noisy, sample_rate)]
    shown = {"clean": clean, "noisy": noisy}
    for name, device, denoiser in _denoisers(arguments):
        try:
            seconds, restored = _timed(denoiser, noisy, sample_rate)
        except (ValueError, RuntimeError) as error:
            parser.error(str(error).splitlines()[0])
        rows.append(_row(name, device, seconds, clean, restored, sample_rate))
        write_rows(arguments.output, rows, Row)
        print(f"{name} on {device}: {seconds:.1f} s", file=sys.stderr)
        if device == arguments.device:
            shown[name] = restored
    picture = arguments.output.with_suffix(".png")
    plot_spectrograms(shown, sample_rate, title=arguments.sound.name).savefig(picture, dpi=110)
    head = ["method", "device", "seconds", "SI-SDR, dB", "PESQ", "STOI"]
    lines = [
        [
            r.method,
            r.device,
            f"{r.seconds:.2f}",
            f"{r.si_sdr:.1f}",
            f"{r.pesq:.2f}",
            f"{r.stoi:.3f}",
        ]
        for r in rows
    ]
    print(f"{rows[0].sound_s:.1f} s of sound, white noise at {LEVEL_DB:.0f} dB\n")
    print(markdown(head, lines))
    print(f"{arguments.output}, {picture}")
    return 0


def _denoisers(arguments: argparse.Namespace) -> Iterator[tuple[str, str, Denoiser]]:
    """Yield what is compared, the longest last."""
    steps = {} if arguments.steps is None else {"steps": arguments.steps}
    for device in dict.fromkeys((arguments.device, "cpu")):
        yield "fast", device, Denoiser(quality="fast", device=device)
        yield "default", device, Denoiser(device=device, **steps)
        yield "prior", device, Denoiser(start="random", device=device, **steps)
    dap = Denoiser(method="dap", steps=arguments.dap_steps, device=arguments.device)
    yield f"dap, {arguments.dap_steps} steps", arguments.device, dap


def _timed(denoiser: Denoiser, noisy: Tensor, sample_rate: int) -> tuple[float, Tensor]:
    """Return the seconds of a run whose kernels are compiled, and its result."""
    if denoiser.device != "cpu":
        first = Denoiser(method=denoiser.method, start=denoiser.start, quality=denoiser.quality,
                         steps=min(denoiser.steps or 2, 2), device=denoiser.device)  # fmt: skip
        first(noisy, sample_rate)
    began = time.perf_counter()
    restored = denoiser(noisy, sample_rate).waveform.cpu()
    return time.perf_counter() - began, restored


def _row(
    method: str, device: str, seconds: float, clean: Tensor, result: Tensor, sample_rate: int
) -> Row:
    speech = [
        torch.from_numpy(soxr.resample(sound.numpy(), sample_rate, 16000))
        for sound in (clean, result)
    ]
    return Row(
        method, device, torch.__version__, len(clean) / sample_rate, seconds,
        float(si_sdr(clean, result)), _or_nan(pesq, *speech), _or_nan(stoi, *speech),
    )  # fmt: skip


def _or_nan(score: Callable[[Tensor, Tensor, int], float], clean: Tensor, result: Tensor) -> float:
    """Return nan where a score is not installed or finds no speech."""
    try:
        return score(clean, result, 16000)
    except Exception:
        return float("nan")


if __name__ == "__main__":
    sys.exit(main())
