"""Draw docs/images/anchors.png: where the rows of some kernels read, over the output bin."""

from pathlib import Path

from matplotlib.figure import Figure

from harmonic_lowering import FrequencyTaps

BINS = 129
KERNELS = {
    "Conv2d, 3 rows": FrequencyTaps.from_shifts((-1, 0, 1)),
    "anchor 1": FrequencyTaps.harmonic(3, anchor=1),
    "anchor 2": FrequencyTaps.harmonic(3, anchor=2),
    "anchor 3": FrequencyTaps.harmonic(3, anchor=3),
    "1/3, 1/2, 1, 2, 3": FrequencyTaps.from_ratios((1 / 3, 1 / 2, 1, 2, 3)),
}

figure = Figure(figsize=(11, 2.9), layout="constrained")
for axis, (name, taps) in zip(
    figure.subplots(1, len(KERNELS), sharey=True), KERNELS.items(), strict=True
):
    for tap in range(len(taps)):
        live = taps.live_range(tap, BINS)
        axis.plot(live, [float(taps.position(tap, f)) for f in live], color="C3", lw=1.8)
    share = f"{taps.live_share(BINS):.0%} of the multiplications"
    axis.set(title=name, xlabel=f"output bin\n{share}", xlim=(0, BINS - 1), ylim=(0, BINS - 1))
    axis.set_xticks([0, 64, 128])
    axis.set_yticks([0, 64, 128])
    axis.grid(alpha=0.3)
figure.axes[0].set_ylabel("bin that is read")
figure.savefig(Path(__file__).with_name("anchors.png"), dpi=110)
