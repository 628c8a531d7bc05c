"""Add white noise to the recording in this folder, take it away again, and say how well that went.

    python examples/demo.py [FOLDER]

writes noisy.wav, denoised.wav and denoised.png to FOLDER (default: demo-output).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from harmonic_lowering.audio import AudioReader, AudioWriter
from harmonic_lowering.cli import main as command
from harmonic_lowering.cli.info import timing_table
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
    print()
    for line in timing_table():
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
