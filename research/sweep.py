"""Score settings of the denoiser on the mixtures of the log: python -m research.sweep SETTINGS...

    python -m research.sweep default steps=100,early_stop=False layer=plain --sound LJ037-0171.wav

prints a row for each of the settings, which are `Denoiser`'s arguments: mean SI-SDR in dB over all
mixtures, then of speech alone (SI-SDR, PESQ-wb, STOI), then of music alone, processor seconds for
one second of sound, and the mean number of steps. One seed, one thread.
"""

from __future__ import annotations

import argparse
import ast
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.common.tables import markdown
from benchmarks.denoise.mixtures import NOISES, add_noise
from benchmarks.denoise.recordings import NOISES as RECORDED
from benchmarks.denoise.recordings import (
    SAMPLE_RATE,
    SOUNDS,
    default_cache,
    fetch,
    load,
    normalised,
    read,
)
from harmonic_lowering.denoise import Denoiser
from harmonic_lowering.metrics import pesq, si_sdr, stoi


class Mixture(NamedTuple):
    """A recording, a noise, and the signal-to-noise ratio in dB."""

    recording: str
    noise: str
    level_db: float

    @classmethod
    def parse(cls, text: str) -> Mixture:
        """Read recording:noise:dB."""
        recording, noise, level = text.split(":")
        if noise not in NOISES:
            raise ValueError(f"there is no noise {noise!r}; choose from {', '.join(NOISES)}")
        return cls(recording, noise, float(level))


_FIFTEEN = (
    "librivox-a:white:10 cards:white:5 announcer:pink:5 librivox-b:pink:0 dutch-v:hiss:10 "
    "dutch-m:hum:5 LJ037-0171:white:10 guitar:white:5 choir:pink:5 bell:pink:0 motors:hiss:5 "
    "motors:white:10 slide-guitar:hiss:10 piano:hum:10 tabla:white:0"
)
_EIGHT = (
    "LJ037-0171:white:10 librivox-a:white:10 announcer:pink:5 choir:pink:5 cards:white:5 "
    "guitar:white:5 bell:pink:0 slide-guitar:hiss:10"
)
SETS = {name: text.split() for name, text in (("fifteen", _FIFTEEN), ("eight", _EIGHT))}


def settings_of(text: str) -> dict[str, Any]:
    """Read name=value,name=value; "default" is no settings."""
    if text == "default":
        return {}
    pairs = (pair.partition("=") for pair in text.split(","))
    return {name: _value(value) for name, _, value in pairs}


def _value(text: str) -> Any:
    if "/" in text:  # widths: 8/16/24/32
        return tuple(map(int, text.split("/")))
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def score(settings: dict[str, Any], clean: np.ndarray, noise: np.ndarray, speech: bool) -> list:
    """Return SI-SDR, PESQ, STOI (of speech), seconds for a second of sound, and steps."""
    denoiser, steps = Denoiser(**settings), []
    began = time.process_time()
    result = denoiser(
        torch.from_numpy(clean + noise).float(), SAMPLE_RATE, lambda p: steps.append(p.step) and 0
    )
    seconds = (time.process_time() - began) * SAMPLE_RATE / len(clean)
    pair = torch.from_numpy(clean), result.waveform.double()
    scores = [score(*pair, SAMPLE_RATE) for score in (pesq, stoi)] if speech else [None, None]
    return [float(si_sdr(*pair)), *scores, seconds, steps[-1]]


def main(argv: Sequence[str] | None = None) -> int:
    """Score the settings and print a table."""
    parser = argparse.ArgumentParser(prog="python -m research.sweep", description=__doc__)
    add = parser.add_argument
    add("settings", nargs="+", metavar="SETTINGS", help='"default", or as steps=100,layer=plain')
    add(
        "--mixtures", nargs="+", default=["eight"], metavar="SET",
        help=f"{', '.join(SETS)}, or recording:noise:dB (default: eight)",
    )  # fmt: skip
    add("--sound", type=Path, nargs="+", default=[], help="more speech, 4 s of it (LJ037-0171.wav)")
    add("--cache", type=Path, default=default_cache(), help="folder of the recordings")
    add("--debs", type=Path, help="folder with the Debian packages, instead of apt-get")
    arguments = parser.parse_args(argv)
    sounds = {path.stem: path for path in arguments.sound}
    known = {one.name: one for one in (*SOUNDS, *RECORDED)}
    try:
        chosen = [
            Mixture.parse(text) for name in arguments.mixtures for text in SETS.get(name, [name])
        ]
        every = [(text, settings_of(text)) for text in arguments.settings]
        for _, settings in every:
            Denoiser(**settings)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    for one in {m.recording for m in chosen} - {*known, *sounds}:
        if set(arguments.mixtures) - set(SETS):
            parser.error(f"there is no recording {one!r}; name its file with --sound")
        print(f"left out: {one}, whose file was not named with --sound", file=sys.stderr)
    chosen = [m for m in chosen if m.recording in known or m.recording in sounds]
    names = {name for m in chosen for name in (m.recording, m.noise)}
    fetch([known[name] for name in names if name in known], arguments.cache, arguments.debs)

    torch.set_num_threads(1)
    lines = []
    for text, settings in every:
        rows = []
        for m in chosen:
            clean = (
                normalised(read(sounds[m.recording])[: 4 * SAMPLE_RATE])
                if m.recording in sounds
                else load(known[m.recording], arguments.cache)
            )
            speech = m.recording in sounds or known[m.recording].kind == "speech"
            noise = add_noise(clean, m.recording, m.noise, m.level_db, arguments.cache)
            rows.append((speech, *score(settings, clean, noise, speech)))
            print(f"{text}  {':'.join(map(str, m))}  {rows[-1][1]:.2f} dB", file=sys.stderr)
        talk, music = ([row for row in rows if row[0] is kind] for kind in (True, False))
        lines.append(
            [
                text,
                _mean(rows, 1, 2),
                *(_mean(talk, column, digits) for column, digits in ((1, 2), (2, 3), (3, 4))),
                _mean(music, 1, 2),
                _mean(rows, 4, 2),
                _mean(rows, 5, 0),
            ]
        )
    head = ["settings", "all", "speech", "PESQ", "STOI", "music", "s/s", "steps"]
    print(markdown(head, lines))
    return 0


def _mean(rows: list[tuple], column: int, digits: int) -> str:
    return f"{fmean(row[column] for row in rows):.{digits}f}" if rows else ""


if __name__ == "__main__":
    sys.exit(main())
