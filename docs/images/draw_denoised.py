"""Draw docs/images/denoised.jpg: the recording of the examples with noise, denoised."""

from pathlib import Path

import torch

from harmonic_lowering.audio import AudioReader
from harmonic_lowering.denoise import Denoiser
from harmonic_lowering.metrics import si_sdr
from harmonic_lowering.plotting import plot_spectrograms

root = Path(__file__).parents[2]
with AudioReader(next((root / "examples").glob("*.wav"))) as reader:
    clean, rate = reader.read(), reader.sample_rate
noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
noisy = clean + noise * clean.norm() / noise.norm() * 10 ** (-10 / 20)
result = Denoiser()(noisy, rate)
score = {name: float(si_sdr(clean, sound)) for name, sound in
         (("before", noisy), ("after", result.waveform))}  # fmt: skip
figure = plot_spectrograms(
    {
        f"before, SI-SDR {score['before']:.1f} dB": noisy,
        f"after, SI-SDR {score['after']:.1f} dB": result.waveform,
        "what was removed": result.noise,
    },
    rate,
)
figure.savefig(root / "docs/images/denoised.jpg", dpi=75, pil_kwargs={"quality": 80})
