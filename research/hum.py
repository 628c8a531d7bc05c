"""SI-SDR before and after the subtraction of hum and whistles alone, on recordings.

    python -m research.hum [--use choose | report] [--clean]

Choices were made on the recordings "choose", the documentation gives those "report"
(`benchmarks.denoise.recordings`). `--clean` adds sounds without hum: the recordings themselves,
held notes and chords; "untouched" means bit for bit.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.denoise.recordings import sounds_for
from harmonic_lowering.denoise.hum import subtract_hum
from harmonic_lowering.metrics import si_sdr

RATE = 16000
SNR_DB = 5.0


@dataclass(frozen=True)
class Hum:
    """Lines at the multiples of a frequency; wow and drift are relative to it."""

    frequency: float
    multiples: tuple[int, ...] = tuple(range(1, 41))
    wow: float = 0.0
    drift: float = 0.0
    begin: float = 0.0  # shares of the recording
    end: float = 1.0

    def sound(self, length: int, sample_rate: int) -> Tensor:
        """Return the hum; line k has the amplitude 1/k."""
        time = torch.arange(length).double() / sample_rate
        place = time / time[-1]
        wow = self.wow * torch.sin(2 * math.pi * 0.55 * time + 1)  # a turntable's
        drift = self.drift * (place - 0.5)
        turns = self.frequency * (1 + wow + drift).cumsum(0) / sample_rate
        lines = (torch.sin(2 * math.pi * k * turns + k * k) / k for k in self.multiples)
        present = (place >= self.begin) & (place < self.end)
        return torch.stack(list(lines)).sum(0) * present


KINDS = {
    "50 Hz, forty lines": Hum(50),
    "60 Hz, forty lines": Hum(60),
    "50.25 Hz": Hum(50.25),
    "50 Hz, wow of 0.2 %": Hum(50, wow=0.002),
    "50 Hz, begins in the first half": Hum(50, begin=0.4),
    "60 Hz, ends in the second half": Hum(60, end=0.6),
    "50 and 100 Hz": Hum(50, (1, 2)),
    "100 and 200 Hz": Hum(50, (2, 4)),
    "120 and 240 Hz": Hum(60, (2, 4)),
    "whistle, 1 kHz": Hum(1000, (1,)),
    "whistle, 1 kHz, drifts by 0.6 %": Hum(1000, (1,), drift=0.006),
    "whistle, 6.2 kHz": Hum(6234, (1,)),
}
TELEVISION = {  # at 44.1 kHz
    "whistle, 15.6 kHz": Hum(15625, (1,)),
    "whistle, 15.7 kHz, drifts by 3 Hz": Hum(15734, (1,), drift=0.0002),
}


def mixed(clean: Tensor, noise: Tensor, snr_db: float = SNR_DB) -> Tensor:
    """Return the sound with noise at a signal-to-noise ratio."""
    return (clean + noise * clean.norm() / noise.norm() * 10 ** (-snr_db / 20)).float()


def notes() -> Iterator[tuple[str, Tensor]]:
    """Held notes and chords."""
    chords = {"note": (1.0,), "chord": (1.0, 5 / 4, 3 / 2)}
    for seconds in (2, 10):
        for name, ratios in chords.items():
            for frequency in (55.0, 110.0, 220.0):
                tones = [
                    Hum(frequency * ratio, tuple(range(1, 13))).sound(seconds * RATE, RATE)
                    for ratio in ratios
                ]
                yield f"{name} of {frequency:g} Hz, {seconds} s", torch.stack(tones).sum(0).float()
        for frequency in (100, 120, 150, 200, 250, 300, 350):
            yield (
                f"tone of {frequency} Hz, {seconds} s",
                Hum(frequency, (1,)).sound(seconds * RATE, RATE).float(),
            )


def table(use: str, kinds: dict[str, Hum], sample_rate: int) -> Iterator[str]:
    """Measure all kinds of hum; the last column is processor time for a second of sound."""
    recordings = [(it.kind, torch.from_numpy(x)) for it, x in sounds_for(use, sample_rate)]
    for label, hum in kinds.items():
        before: dict[str, list[float]] = {"speech": [], "music": []}
        after: dict[str, list[float]] = {"speech": [], "music": []}
        seconds = length = 0.0
        for kind, clean in recordings:
            noisy = mixed(clean, hum.sound(len(clean), sample_rate))
            began = time.process_time()
            result = subtract_hum(noisy[None], sample_rate)[0]
            seconds += time.process_time() - began
            length += len(clean) / sample_rate
            before[kind].append(float(si_sdr(clean, noisy)))
            after[kind].append(float(si_sdr(clean, result)))
        cells = (
            f"{mean(before[kind]):.1f} → {mean(after[kind]):.1f} ({min(after[kind]):.1f})"
            for kind in ("speech", "music")
        )
        yield f"| {label} | {' | '.join(cells)} | {seconds / length:.3f} |"


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def kept(clean: Iterable[tuple[str, Tensor]]) -> Iterator[str]:
    """Say what becomes of sounds that have no hum."""
    for name, sound in clean:
        result = subtract_hum(sound[None], RATE)[0]
        same = torch.equal(result, sound)
        yield f"| {name} | {'untouched' if same else f'{float(si_sdr(sound, result)):.1f} dB'} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--use", choices=("choose", "report"), default="choose")
    parser.add_argument("--clean", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| kind | speech: mean (least) | music: mean (least) | s/s |\n| --- | --- | --- | --- |")
    for kinds, rate in ((KINDS, RATE), (TELEVISION, 44100)):
        for line in table(options.use, kinds, rate):
            print(line, flush=True)
    if options.clean:
        recordings = ((it.name, torch.from_numpy(x)) for it, x in sounds_for(options.use, RATE))
        for clean in (recordings, notes()):
            for line in kept(clean):
                print(line, flush=True)


if __name__ == "__main__":
    main()
