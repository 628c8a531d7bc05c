"""The shapes that are measured: those of the Interspeech 2020 paper's experiments, and series."""

from __future__ import annotations

from dataclasses import dataclass, replace

from harmonic_lowering import FrequencyTaps

__all__ = ["ANCHORS", "ONE_VALUE", "PUBLISHED_S", "SETTINGS", "Setting", "series", "toy"]


@dataclass(frozen=True)
class Setting:
    """One layer on one input; the kernel is square and keeps the number of frames."""

    name: str
    anchor: int | tuple[int, ...]
    kernel: int
    bins: int
    frames: int
    batch: int = 16
    in_channels: int = 16
    out_channels: int = 32

    def taps(self, *, log: bool = False) -> FrequencyTaps:
        """Return where the kernel reads; the logarithmic axis has eight octaves."""
        if not log:
            return FrequencyTaps.harmonic(self.kernel, self.anchor)
        return FrequencyTaps.log_harmonic(
            self.kernel, self.anchor, bins_per_octave=self.bins_per_octave
        )

    @property
    def bins_per_octave(self) -> float:
        """Resolution of the logarithmic version of this setting."""
        return max(1.0, self.bins / 8)

    def multiplications(self, column: str, *, backward: bool) -> int:
        """Return the multiply-adds that the result needs.

        An ordinary convolution needs them at all rows and kernel rows. A tap needs its live
        output rows or the source rows that it reads, whichever are fewer, because the kernel may
        be applied before the interpolation. Each of the two gradients needs as many again.
        """
        rows = self.kernel * self.bins
        if not column.endswith("conv2d"):
            rows = 0
            taps, _ = self.taps(log=column == "log").merged()
            for tap in taps.rows(self.bins):
                used = {
                    *tap.lower,
                    *(b + 1 for b, w in zip(tap.lower, tap.weight, strict=True) if w),
                }
                rows += min(tap.stop - tap.start, len(used))
        per_row = self.batch * self.frames * self.in_channels * self.out_channels * self.kernel
        return rows * per_row * (3 if backward else 1)

    def bytes(self, itemsize: int, *, backward: bool) -> int:
        """Return the bytes that have to move if every tensor is read or written once a pass."""
        place = self.batch * self.bins * self.frames
        anchors = len(self.anchor) if isinstance(self.anchor, tuple) else 1
        weight = self.in_channels * self.out_channels * self.kernel**2 * anchors
        once = place * (self.in_channels + self.out_channels) + weight
        # backward: input, weight and the output's gradient read, two gradients written
        again = place * (2 * self.in_channels + self.out_channels) + 2 * weight
        return itemsize * (once + (again if backward else 0))


def _square(name: str, anchor: int, kernel: int, size: int) -> Setting:
    return Setting(name, anchor, kernel, size, size)


SETTINGS = {
    setting.name: setting
    for setting in (
        _square("1", 1, 7, 256),
        _square("2", 1, 5, 256),
        _square("3", 1, 3, 256),
        _square("1a", 7, 7, 256),
        _square("2a", 5, 5, 256),
        _square("3a", 3, 3, 256),
        _square("4", 1, 3, 512),
        _square("5", 1, 3, 256),
        _square("6", 1, 3, 128),
        _square("7", 1, 3, 64),
        _square("8", 1, 3, 32),
        _square("9", 1, 3, 16),
    )
}
ONE_VALUE = Setting("1x1x8x8", 1, 3, 8, 8, batch=1, in_channels=1, out_channels=1)
ANCHORS = Setting("anchors 1 to 7", tuple(range(1, 8)), 7, 256, 256, batch=4)

# Seconds for one step on a GTX 1080 Ti, read off the paper's bar charts (± 1 %):
# deformable convolution, Harmonic Lowering, its logarithmic version, Conv2d.
PUBLISHED_S = {
    "1": (0.408, 0.0747, 0.0691, 0.0546),
    "2": (0.224, 0.0501, 0.0468, 0.0212),
    "3": (0.0925, 0.0279, 0.0279, 0.011),
    "1a": (0.462, 0.0825, 0.0702, 0.0546),
    "2a": (0.247, 0.0557, 0.0468, 0.0212),
    "3a": (0.0981, 0.0323, 0.0279, 0.011),
    "4": (0.0520, 0.0270, 0.0276, 0.0213),
    "5": (0.0910, 0.0267, 0.0267, 0.0110),
    "6": (0.0465, 0.0147, 0.0140, 0.0055),
    "7": (0.0250, 0.0092, 0.0083, 0.0031),
    "8": (0.0160, 0.0072, 0.0064, 0.002),
    "9": (0.0107, 0.0070, 0.0064, 0.0025),
}

_BASE = Setting("", 1, 3, 128, 128, batch=8)
_SERIES: dict[str, tuple[int, ...]] = {
    "bins": (32, 64, 128, 256, 512),
    "frames": (32, 64, 128, 256, 512),
    "in_channels": (8, 16, 32, 64),
    "kernel": (1, 3, 5, 7, 9),
    "batch": (1, 2, 4, 8, 16),
}


def series() -> list[Setting]:
    """Return settings in which one size grows and the others stay; channels grow on both sides."""
    result = []
    for size, values in _SERIES.items():
        for value in values:
            changed = replace(_BASE, name=f"{size}={value}", **{size: value})
            if size == "in_channels":
                changed = replace(changed, out_channels=value)
            result.append(changed)
    return result


def toy(setting: Setting) -> Setting:
    """Return the setting at a size that takes no time; it tests the benchmark, not the layers."""
    return replace(
        setting,
        bins=max(16, setting.bins // 32),
        frames=max(4, setting.frames // 32),
        batch=2,
        in_channels=2,
        out_channels=4,
    )
