"""Add white noise to clean recordings, denoise them, print the scores before and after.

    python benchmarks/denoise_score.py RECORDING... [--snr 10] [--rate 16000] [--steps N]

SI-SDR for everything; PESQ-wb (at 16 kHz) and STOI where `pesq` and `pystoi` are installed, which
mean something for speech only. The first channel is used. No clean sound reaches the denoiser.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from harmonic_lowering.audio import AudioReader
from harmonic_lowering.denoise import Denoiser
from harmonic_lowering.metrics import pesq, si_sdr, stoi


def main() -> None:
    """Score every recording and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="+", type=Path)
    parser.add_argument("--snr", type=float, default=10.0, help="dB (default: %(default)s)")
    parser.add_argument("--rate", type=int, help="resample to this rate first (default: keep)")
    parser.add_argument("--seconds", type=float, help="use the first so many seconds only")
    for field in dataclasses.fields(Denoiser):
        if field.name in ("steps", "seed", "layer", "learning_rate"):
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=type(field.default),
                default=field.default,
            )
    arguments = parser.parse_args()
    denoiser = Denoiser(
        steps=arguments.steps,
        seed=arguments.seed,
        layer=arguments.layer,
        learning_rate=arguments.learning_rate,
    )
    print(f"white noise at {arguments.snr:g} dB, {denoiser}, {torch.get_num_threads()} threads")
    print(f"{'recording':32}{'rate':>7}{'s':>6}   {'before':24}{'after':24}{'time s':>7}")
    for path in arguments.recordings:
        with AudioReader(path) as reader:
            clean, rate = reader.read()[0].double(), reader.sample_rate
        if arguments.seconds:
            clean = clean[: round(arguments.seconds * rate)]
        if arguments.rate:
            clean, rate = resampled(clean, rate, arguments.rate), arguments.rate
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).double()
        noisy = clean + noise * clean.norm() / noise.norm() * 10 ** (-arguments.snr / 20)
        result = denoiser(noisy.float(), rate)
        print(
            f"{path.stem[-30:]:32}{rate:>7}{len(clean) / rate:>6.1f}   {scores(clean, noisy, rate)}"
            f"{scores(clean, result.waveform, rate)}{result.seconds:>7.1f}",
            flush=True,
        )


def scores(clean: Tensor, other: Tensor, rate: int) -> str:
    """Return SI-SDR, PESQ and STOI as a column of text."""
    text = f"{float(si_sdr(clean, other)):.2f} dB"
    try:
        pair = [resampled(x.double(), rate, 16000) for x in (clean, other)]
        text += f" {pesq(*pair, 16000):.2f} {stoi(*pair, 16000):.3f}"
    except ImportError:
        pass
    return f"{text:24}"


def resampled(waveform: Tensor, rate: int, new_rate: int) -> Tensor:
    """Resample by cutting or extending the spectrum of the whole recording."""
    if rate == new_rate:
        return waveform
    length = round(len(waveform) * new_rate / rate)
    spectrum = torch.fft.rfft(waveform)
    return torch.fft.irfft(spectrum[: length // 2 + 1], length) * (length / len(waveform))


if __name__ == "__main__":
    main()
