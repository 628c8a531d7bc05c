"""Denoise one recording on the card and on the CPU: times, scores, and the published deep prior.

python -m benchmarks.gpu.denoise SOUND [--dap-steps 10000] [--output FOLDER]

White noise is added at 10 dB, the same as in benchmarks.denoise. Writes into a folder what each
method made of it, a table, and a picture of the clean, the noisy and the restored spectrograms. The
deep audio prior of the ICLR 2020 paper comes last and runs on the card only, because its 10,000
steps take long. Where the packages for scores cannot be installed, run with --no-scores, and score
the folder elsewhere with --score-only.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import soundfile
import torch

from harmonic_lowering.denoise import Denoiser, Progress
from harmonic_lowering.plotting import plot_spectrograms

from ..common.tables import markdown, read_rows, write_rows
from ..denoise.measure import score
from ..denoise.mixtures import Made, add_noise
from ..denoise.recordings import Array, default_cache, normalised, read

__all__ = ["main"]

LEVEL_DB = 10.0
_STEPS_BETWEEN_LINES = 500


@dataclass(frozen=True)
class Row:
    """One line of the table; the scores are those of benchmarks.denoise."""

    method: str
    device: str
    torch: str
    sound_s: float
    seconds: float
    si_sdr: float = math.nan
    level_change_db: float = math.nan
    pesq: float = math.nan
    stoi: float = math.nan

    @property
    def file(self) -> str:
        """Name of the restored recording."""
        return f"{self.method}-{self.device}.wav".replace(" ", "-").replace(",", "")


def main(argv: Sequence[str] | None = None) -> int:
    """Denoise, score, write and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.denoise", description=__doc__)
    add = parser.add_argument
    add("sound", type=Path, metavar="SOUND", help="a clean recording")
    add("-o", "--output", type=Path, default=Path("gpu-denoising"), metavar="FOLDER")
    add("--device", default="cuda", help="default: %(default)s")
    add("--dap-steps", type=int, default=10_000, metavar="N", help="default: %(default)s")
    add("--dap-seconds", type=float, metavar="S", help="stop it after this long")
    add("--steps", type=int, metavar="N", help="of the prior; default: as many as usual")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--no-scores", action="store_true", help="denoise only")
    part.add_argument("--score-only", action="store_true", help="score what is in the folder")
    arguments = parser.parse_args(argv)
    folder = arguments.output
    table = folder / "gpu-denoising.csv"
    try:
        made = _made(arguments.sound)
        denoisers = [] if arguments.score_only else list(_denoisers(arguments))
        folder.mkdir(parents=True, exist_ok=True)
        rows = read_rows(table, Row) if arguments.score_only else []
    except (soundfile.LibsndfileError, OSError, ValueError) as error:
        parser.error(str(error))
    if not arguments.score_only:
        rows = _run(denoisers, made, folder, table)
    if not arguments.no_scores:
        rows = _score(rows, made, folder, arguments.sound.name)
        write_rows(table, rows, Row)
    print(f"{rows[0].sound_s:.1f} s of sound, white noise at {LEVEL_DB:.0f} dB\n")
    head = ["method", "device", "seconds", "SI-SDR, dB", "PESQ", "STOI"]
    print(markdown(head, map(_line, rows)))
    print(folder)
    return 0


def _run(
    denoisers: Sequence[tuple[str, str, Denoiser]], made: Made, folder: Path, table: Path
) -> list[Row]:
    """Denoise with each, and write the results and the table of times."""
    length = made.clean.size / made.sample_rate
    rows = [Row("noisy", "", torch.__version__, length, 0.0)]
    _write(folder / rows[0].file, made.noisy, made.sample_rate)
    for name, device, denoiser in denoisers:
        seconds, restored, steps = _timed(denoiser, made)
        name = f"{name}, {steps} steps" if name == "dap" else name
        rows.append(Row(name, device, torch.__version__, length, seconds))
        _write(folder / rows[-1].file, restored, made.sample_rate)
        write_rows(table, rows, Row)
        print(f"{name} on {device}: {seconds:.1f} s", file=sys.stderr)
    return rows


def _write(path: Path, sound: Array, rate: int) -> None:
    soundfile.write(path, sound, rate, subtype="FLOAT")


def _score(rows: Sequence[Row], made: Made, folder: Path, title: str) -> list[Row]:
    """Return the rows with scores, and draw what the first device restored, which is the card."""
    scored, shown = [], {"clean": made.clean}
    for row in rows:
        restored = soundfile.read(folder / row.file)[0]
        scored.append(replace(row, **score(made, restored, is_speech=True)))
        if row.device in ("", rows[1].device):
            shown[row.method] = restored
    waveforms = {name: torch.from_numpy(sound).float() for name, sound in shown.items()}
    figure = plot_spectrograms(waveforms, made.sample_rate, title=title)
    figure.savefig(folder / "gpu-denoising.png", dpi=110)
    return scored


def _made(path: Path) -> Made:
    """Return the recording at its own rate, and noise to be added."""
    rate = soundfile.info(path).samplerate
    clean = normalised(read(path, rate))
    noise = add_noise(clean, path.stem, "white", LEVEL_DB, default_cache(), rate)
    return Made(clean, noise, rate)


def _denoisers(arguments: argparse.Namespace) -> Iterator[tuple[str, str, Denoiser]]:
    """Yield what is compared, the longest last."""
    steps = {} if arguments.steps is None else {"steps": arguments.steps}
    for device in dict.fromkeys((arguments.device, "cpu")):
        yield "fast", device, Denoiser(quality="fast", device=device)
        yield "default", device, Denoiser(device=device, **steps)
        yield "prior", device, Denoiser(start="random", device=device, **steps)
    limits = {"steps": arguments.dap_steps, "time_limit": arguments.dap_seconds}
    yield "dap", arguments.device, Denoiser(method="dap", device=arguments.device, **limits)


def _timed(denoiser: Denoiser, made: Made) -> tuple[float, Array, int]:
    """Return the seconds of a run whose kernels are compiled, its result, and its last step."""
    noisy = torch.from_numpy(made.noisy).float()
    first = denoiser if denoiser.quality == "fast" else replace(denoiser, steps=1)
    first(noisy, made.sample_rate)
    steps = [0]
    began = time.perf_counter()

    def watch(at: Progress) -> None:
        steps.append(at.step)
        if at.step % _STEPS_BETWEEN_LINES == 0:
            spent = time.perf_counter() - began
            print(f"step {at.step} after {spent:.1f} s", file=sys.stderr, flush=True)

    restored = denoiser(noisy, made.sample_rate, progress=watch)
    result = restored.waveform.cpu().double().numpy()
    return time.perf_counter() - began, result, steps[-1]


def _line(row: Row) -> list[str]:
    numbers = f"{row.seconds:.2f}", f"{row.si_sdr:.1f}", f"{row.pesq:.2f}", f"{row.stoi:.3f}"
    return [row.method, row.device, *numbers]


if __name__ == "__main__":
    sys.exit(main())
