"""Draw docs/images/lowering.png: a voice, and its copies in which the partials line up."""

from pathlib import Path

import soundfile
import torch
from matplotlib.figure import Figure

from harmonic_lowering import harmonic_lowering

root = Path(__file__).parents[2]
samples, rate = soundfile.read(next((root / "examples").glob("*.wav")), dtype="float32")
spectrum = torch.stft(
    torch.from_numpy(samples), 1024, 128, window=torch.hann_window(1024), return_complex=True
)
voice = spectrum[:64, 100:205].abs()  # up to 1 kHz
FRAME, SECOND = 87, 12  # where the voice has its 2nd harmonic in bin 12 (188 Hz)

copies = harmonic_lowering(voice[None], 3, anchor=2)
names = ("row 1: ratio 1/2, the 1st harmonic", "row 2: the input", "row 3: ratio 3/2, the 3rd")
decibels = 20 * copies.clamp_min(1e-4).log10()
figure = Figure(figsize=(11, 3.9), layout="constrained")
for axis, name, copy in zip(figure.subplots(1, 3, sharey=True), names, decibels, strict=True):
    top = float(decibels.max())
    axis.imshow(copy, origin="lower", aspect="auto", cmap="Greys", vmin=top - 60, vmax=top)
    axis.axhline(SECOND, color="C3", lw=1, alpha=0.8)
    axis.plot(FRAME, SECOND, "o", color="C0", ms=7, label="output")
    axis.set(title=name, xlabel="frame")
figure.axes[0].set_ylabel("bin")
figure.axes[-1].legend(loc="upper right")
figure.savefig(root / "docs/images/lowering.png", dpi=110)
