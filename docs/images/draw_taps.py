"""Draw docs/images/taps.png: an ordinary and a harmonic kernel on a voice."""

from pathlib import Path

import soundfile
import torch
from matplotlib.figure import Figure

from harmonic_lowering import FrequencyTaps
from harmonic_lowering.plotting import plot_taps

root = Path(__file__).parents[2]
samples, rate = soundfile.read(next((root / "examples").glob("*.wav")), dtype="float32")
spectrum = torch.stft(
    torch.from_numpy(samples), 1024, 128, window=torch.hann_window(1024), return_complex=True
)
voice = spectrum[:64, 100:205]  # up to 1 kHz

figure = Figure(figsize=(11, 4.2), layout="constrained")
left, right = figure.subplots(1, 2, sharey=True)
place = {"output_bin": 12, "output_frame": 87}  # the 2nd harmonic of 94 Hz
plot_taps(FrequencyTaps.from_shifts(range(-3, 4)), voice, ax=left, **place)
plot_taps(FrequencyTaps.harmonic(7, anchor=2), voice, ax=right, **place)
left.set_title("Conv2d, 7 × 3: neighbouring bins")
right.set_title("HarmonicConv2d, 7 × 3, anchor 2: harmonics")
right.set_ylabel("")
figure.savefig(root / "docs/images/taps.png", dpi=110)
