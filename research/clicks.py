"""Clicks in recordings that no choice was made on: repaired here, and by ffmpeg's `adeclick`.

    python -m research.clicks [--seconds S] [--rates 16000 44100]

Twenty clicks a second of 0.5 to 2.5 ms and of any size, at 10 dB (speech) and 13 dB (music). A
*burst* is noise that falls off, a *pulse* a few half waves with an edge. Each line has the
SI-SDR of the clean recording repaired, then for each kind of click that of the input and the gain
of both programs, then what the repair does to the recording in white noise of 10 dB.
"""

from __future__ import annotations

import argparse
import subprocess

import numpy as np
import torch

from benchmarks.denoise.recordings import sounds_for
from harmonic_lowering.denoise.clicks import repair_clicks
from harmonic_lowering.metrics import si_sdr

from .mask.canvas import Array

SHAPES = ("burst", "pulse")


def clicks(shape: str, length: int, rate: int, random: np.random.Generator) -> Array:
    track = np.zeros(length)
    for _ in range(round(20 * length / rate)):
        width = max(2, round(random.uniform(5e-4, 2.5e-3) * rate))
        start = random.integers(0, length - width)
        time = np.arange(width) / width
        if shape == "burst":
            click = random.standard_normal(width) * np.exp(-3 * time)
        else:
            wave = np.cos(np.pi * random.uniform(1, 6) * time) * random.choice([-1, 1])
            click = np.exp(-4 * time) * wave
        click *= np.exp(random.normal(0, 0.7)) / np.sqrt(np.mean(click**2))
        track[start : start + width] += click
    return track


def at(decibels: float, sound: Array, noise: Array) -> Array:
    power = np.mean(np.square(sound, dtype=float)) / np.mean(np.square(noise))
    return sound + noise * np.sqrt(power) * 10 ** (-decibels / 20)


def repaired(sound: Array, rate: int) -> Array:
    return repair_clicks(torch.from_numpy(sound)[None], rate).waveform[0].numpy()


def adeclick(sound: Array, rate: int) -> Array:
    layout = ["-f", "f64le", "-ar", str(rate), "-ac", "1"]
    command = ["ffmpeg", "-v", "error", *layout, "-i", "-", "-af", "adeclick", *layout, "-"]
    done = subprocess.run(command, input=sound.tobytes(), capture_output=True, check=True)
    return np.resize(np.frombuffer(done.stdout), len(sound))


def score(clean: Array, sound: Array) -> float:
    return float(si_sdr(torch.from_numpy(clean), torch.from_numpy(sound.copy())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rates", type=int, nargs="+", default=[16000, 44100])
    parser.add_argument("--use", choices=("choose", "report"), default="report")
    options = parser.parse_args()
    for rate in options.rates:
        for recording, whole in sounds_for(options.use, rate):
            clean = whole[: round(options.seconds * rate)]
            random = np.random.default_rng(0)
            line = f"{rate} {recording.kind} {recording.name:12}"
            line += f" clean {score(clean, repaired(clean, rate)):5.1f}"
            line += f"/{score(clean, adeclick(clean, rate)):5.1f}"
            for shape in SHAPES:
                level = 10 if recording.kind == "speech" else 13
                noisy = at(level, clean, clicks(shape, len(clean), rate, random))
                before = score(clean, noisy)
                gains = [score(clean, f(noisy, rate)) - before for f in (repaired, adeclick)]
                line += f"  {shape} {before:.1f} {gains[0]:+5.1f}/{gains[1]:+5.1f}"
            hissing = at(10, clean, random.standard_normal(len(clean)))
            lost = score(clean, repaired(hissing, rate)) - score(clean, hissing)
            print(f"{line}  in noise {lost:+.2f}", flush=True)


if __name__ == "__main__":
    main()
