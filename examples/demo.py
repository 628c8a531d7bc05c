"""Add white noise to the recording in this folder, take it away again, and say how well that went.

    python examples/demo.py [FOLDER]

writes noisy.wav, denoised.wav and denoised.png to FOLDER (default: demo-output).
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch

from harmonic_lowering import HarmonicConv2d
from harmonic_lowering.audio import AudioReader, AudioWriter
from harmonic_lowering.cli import main as command
from harmonic_lowering.metrics import si_sdr

SNR_DB = 10.0


def main() -> int:
    """Run the demonstration and return the exit status."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output")
    folder.mkdir(parents=True, exist_ok=True)
    noisy, denoised = folder / "noisy.wav", folder / "denoised.wav"

    with AudioReader(Path(__file__).with_name("amiable.wav")) as reader:
        clean, rate, kind = reader.read(), reader.sample_rate, reader.format
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    noise *= clean.norm() / noise.norm() * 10 ** (-SNR_DB / 20)
    with AudioWriter(noisy, rate, len(clean), kind) as writer:
        writer.write(clean + noise)

    seconds = clean.shape[-1] / rate
    print(f"Denoising {seconds:.1f} s of speech in white noise at {SNR_DB:.0f} dB ...", flush=True)
    began = time.monotonic()
    status = command(["denoise", str(noisy), "-o", str(denoised), "--plot", "--force"])
    if status:
        return status
    took = time.monotonic() - began

    scores = {}
    for path in (noisy, denoised):
        with AudioReader(path) as reader:
            scores[path] = float(si_sdr(clean, reader.read()))
    print(f"\nSI-SDR before    {scores[noisy]:6.2f} dB   {noisy}")
    print(f"SI-SDR after     {scores[denoised]:6.2f} dB   {denoised}   ({took:.0f} s)")
    print(f"Picture          {'':9}   {denoised.with_suffix('.png')}")
    time_layers()
    return 0


def time_layers() -> None:
    """Print the layer's time beside Conv2d's, forward and backward."""
    print(
        f"\nOne layer, 2 spectrograms of 256 x 256, 16 to 32 channels, float32, "
        f"{torch.get_num_threads()} threads;\nmilliseconds forward and backward, median of 7"
    )
    print(f"{'kernel':>8}{'anchor':>8}{'HarmonicConv2d':>16}{'Conv2d':>10}{'ratio':>8}")
    input = torch.randn(2, 16, 256, 256, requires_grad=True)
    for kernel, anchor in ((3, 1), (3, 3), (5, 1), (7, 1)):
        padding = kernel // 2
        ours = HarmonicConv2d(16, 32, kernel, padding=padding, anchor=anchor)
        plain = torch.nn.Conv2d(16, 32, kernel, padding=padding)
        times = [_median_ms(layer, input) for layer in (ours, plain)]
        print(
            f"{f'{kernel} x {kernel}':>8}{anchor:>8}{times[0]:>16.1f}{times[1]:>10.1f}"
            f"{times[0] / times[1]:>8.2f}"
        )


def _median_ms(layer: torch.nn.Module, input: torch.Tensor, runs: int = 7) -> float:
    layer(input).sum().backward()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        layer(input).sum().backward()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
