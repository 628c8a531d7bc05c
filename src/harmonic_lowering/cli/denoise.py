"""`harmonic-lowering denoise`: a loop over `Denoiser`."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from ..audio import AudioError, AudioReader, AudioWriter, replacing
from ..denoise import Denoiser, Progress
from ..optional import need

_PLOTTED_S = 30.0  # of the beginning of a recording; more would not be seen


def add_parser(subparsers: Any) -> None:
    """Add `denoise` to the command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "denoise",
        help="remove noise from recordings",
        description="Remove noise from recordings. A network is fitted to each one alone: "
        "no training data, no download, no sample of the noise.",
        epilog="Rate, channels, length and sample format are kept. A file that fails is reported "
        "and the others are done. Exit status: 0 all done, 1 some failed, 2 wrong usage.",
    )
    default = Denoiser()
    parser.add_argument("inputs", nargs="+", metavar="INPUT", type=Path, help="sound file")
    parser.add_argument(
        "-o", "--output", metavar="PATH",
        help="file to write, or an existing folder (default: INPUT-denoised beside each input)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="overwrite existing outputs")
    parser.add_argument(
        "--plot", action="store_true", help="draw spectrograms before and after beside the output"
    )
    parser.add_argument(
        "--steps", type=int, default=default.steps, metavar="N",
        help="steps for each ten seconds of sound (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=default.seed, help="default: %(default)s")
    parser.add_argument("--device", default=default.device, help="default: %(default)s")
    parser.add_argument(
        "--atten-lim", type=float, metavar="DB", help="attenuate by at most DB (default: no limit)"
    )
    parser.add_argument(
        "--clip", choices=("saturate", "error"), default="saturate",
        help="when a result is louder than an integer format holds (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=lambda arguments: run(arguments, parser))


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Denoise every input; the number of those that failed decides the exit status."""
    try:
        denoiser = Denoiser(
            steps=arguments.steps,
            seed=arguments.seed,
            device=arguments.device,
            atten_lim=arguments.atten_lim,
        )
        outputs = _outputs(arguments.inputs, arguments.output)
    except ValueError as error:
        parser.error(str(error))
    if arguments.plot:
        need("matplotlib.figure", "drawing pictures", "harmonic-lowering[plot]")  # not at the end
    failed = 0
    written: set[Path] = set()
    for source, target in zip(arguments.inputs, outputs, strict=True):
        try:
            if target in written:
                raise AudioError(f"{source}: another input was already written to {target}")
            _denoise_file(denoiser, source, target, arguments)
            written.add(target)
        except (AudioError, ValueError, OSError) as error:
            text = str(error)
            failed += 1
            named = text if text.startswith((str(source), str(target))) else f"{source}: {text}"
            print(named, file=sys.stderr)
    if failed and len(outputs) > 1:
        print(f"{failed} of {len(outputs)} recordings failed", file=sys.stderr)
    return 1 if failed else 0


def _outputs(inputs: list[Path], output: str | None) -> list[Path]:
    """Name the output of each input."""
    if output is None:
        return [path.with_name(f"{path.stem}-denoised{path.suffix}") for path in inputs]
    place = Path(output)
    if place.is_dir():
        return [place / path.name for path in inputs]
    if len(inputs) > 1:
        raise ValueError(
            f"--output {output}: several inputs need an existing folder; make it first "
            f"(mkdir -p {output})"
        )
    if output.endswith(os.sep) or not place.suffix:
        raise ValueError(
            f"--output {output}: no such folder; make it first (mkdir -p {output}), or name a "
            "file with its type, as .wav"
        )
    if not place.parent.is_dir():
        raise ValueError(
            f"--output {output}: there is no folder {place.parent}; make it first "
            f"(mkdir -p {place.parent})"
        )
    return [place]


def _denoise_file(
    denoiser: Denoiser, source: Path, target: Path, arguments: argparse.Namespace
) -> None:
    picture = target.with_suffix(".png")
    with AudioReader(source) as reader:
        if target.exists() and os.path.samefile(source, target):
            raise AudioError(f"{source}: the output would replace the input; name another")
        for path in [target, picture] if arguments.plot else [target]:
            if path.exists() and not arguments.force:
                raise AudioError(f"{path}: exists already; allow replacing it with --force")
        writer = AudioWriter(
            target, reader.sample_rate, reader.channels, reader.format, clip=arguments.clip
        )
        with (
            warnings.catch_warnings(record=True) as caught,
            _Bar(source.name, quiet=arguments.quiet) as bar,
        ):
            warnings.simplefilter("always")
            loudest = 0.0
            with writer:
                for block in denoiser.stream(reader.read, reader.length, reader.sample_rate, bar):
                    loudest = max(loudest, float(block.abs().max()))
                    writer.write(block)
        for warning in caught:
            print(f"note: {warning.message}", file=sys.stderr)
        if loudest == 0:
            print(f"note: {source}: is silent, there was nothing to remove", file=sys.stderr)
        if arguments.plot:
            _plot(reader, target, picture)
    print(target)


def _plot(before: AudioReader, target: Path, picture: Path) -> None:
    from ..plotting import plot_spectrograms

    shown = min(before.length, round(_PLOTTED_S * before.sample_rate))
    with AudioReader(target) as after, replacing(picture) as place:
        figure = plot_spectrograms(
            {"before": before.read(0, shown), "after": after.read(0, shown)}, before.sample_rate
        )
        figure.savefig(place, format="png", dpi=120)


class _Bar:
    """A progress bar over all steps of all segments, shown in terminals only."""

    def __init__(self, name: str, *, quiet: bool) -> None:
        self.name, self.quiet = name, quiet
        self._bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __call__(self, progress: Progress) -> None:
        if self._bar is None:
            tqdm = need("tqdm", "the progress bar", "harmonic-lowering[audio]").tqdm
            self._bar = tqdm(
                total=progress.segments * progress.steps,
                desc=self.name,
                unit="step",
                disable=True if self.quiet else None,
                leave=False,
            )
        self._bar.update((progress.segment - 1) * progress.steps + progress.step - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
