"""`harmonic-lowering denoise`: a loop over `Denoiser`."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ..audio import AudioError, AudioReader, AudioWriter, replacing
from ..denoise import Denoiser, Progress
from ..optional import import_optional
from .files import PIPE, Job, plan
from .status import INTERRUPTED

_PLOTTED_S = 30.0  # of the beginning of a recording; more would not be seen


def add_parser(subparsers: Any) -> None:
    """Add `denoise` to the command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "denoise",
        help="remove noise from recordings",
        description="Remove noise from recordings. A network is fitted to each one alone: "
        "no training data, no download, no sample of the noise.",
        epilog="Rate, channels, length and sample format are kept. A file that fails is reported "
        "and the others are done. Ctrl-C writes the best so far, a second one writes nothing. "
        "Exit status: 0 all done, 1 some failed, 2 wrong usage, 130 interrupted.",
    )
    default = Denoiser()
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="sound file, folder of them, or - for a pipe")
    add(
        "-o", "--output", metavar="PATH",
        help="file to write, an existing folder, a template with {stem}, {suffix}, {name} and "
        "{folder}, or - for a pipe (default: {folder}/{stem}-denoised{suffix})",
    )  # fmt: skip
    add("--noise-out", metavar="PATH", help="write what was removed, too; named as --output")
    add("--force", action="store_true", help="overwrite existing outputs")
    add("--skip-existing", action="store_true", help="pass over inputs whose output exists")
    add("--plot", action="store_true", help="draw spectrograms before and after beside the output")
    add("--json", action="store_true", help="report each recording as a line of JSON")
    add(
        "--quality", choices=("fast", "default", "best"), default=default.quality,
        help="how long to work: about 0.5, 2 or 8 s for each of sound on two cores, at 16 kHz; "
        "short recordings take more for each second (default: %(default)s)",
    )  # fmt: skip
    add(
        "--method", choices=("prior", "dap"), default=default.method,
        help="prior, or the deep audio prior as published, slower and worse (default: %(default)s)",
    )  # fmt: skip
    add(
        "--steps", type=int, metavar="N",
        help="the most steps for each ten seconds of sound (default: as --quality says)",
    )  # fmt: skip
    add("--time-limit", type=float, metavar="S", help="the most seconds for each recording")
    add(
        "--strength", type=float, default=default.strength, metavar="X",
        help="share of the noise to take away, 0 to 1 (default: %(default)s)",
    )  # fmt: skip
    add("--atten-lim", type=float, metavar="DB", help="attenuate by at most DB (default: no limit)")
    add("--keep-hum", action="store_true", help="leave steady tones at multiples of 50 or 60 Hz")
    add("--keep-rumble", action="store_true", help="leave what lies below the lowest pitch")
    add("--seed", type=int, default=default.seed, help="default: %(default)s")
    add("--device", default=default.device, help="default: %(default)s")
    add(
        "--clip", choices=("saturate", "error"), default="saturate",
        help="when a result is louder than an integer format holds (default: %(default)s)",
    )  # fmt: skip
    add("-q", "--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=lambda arguments: run(arguments, parser))


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Denoise every input; the number of those that failed decides the exit status."""
    try:
        denoiser = Denoiser(
            method=arguments.method,
            quality=arguments.quality,
            steps=arguments.steps,
            time_limit=arguments.time_limit,
            seed=arguments.seed,
            device=arguments.device,
            strength=arguments.strength,
            atten_lim=arguments.atten_lim,
            hum=not arguments.keep_hum,
            rumble=not arguments.keep_rumble,
        )
        jobs = plan(arguments.inputs, arguments.output, arguments.noise_out, plot=arguments.plot)
        if arguments.json and any(job.target == PIPE for job in jobs):
            raise ValueError("--json writes to standard output, so --output cannot be -")
    except ValueError as error:
        parser.error(str(error))
    if arguments.plot:
        import_optional(
            "matplotlib.figure", "drawing pictures", "harmonic-lowering[plot]"
        )  # not at the end
    failed = 0
    with _Stop() as stop:
        for job in jobs:
            report: dict[str, Any] = {"input": str(job.source), "output": str(job.target)}
            try:
                done = _one(denoiser, job, arguments, stop, report)
            except BrokenPipeError:  # whoever reads our output went away: not the file's fault
                raise
            except (AudioError, ValueError, OSError, MemoryError, RuntimeError) as error:
                failed += 1
                report["error"] = _sentence(error, job)
                print(report["error"], file=sys.stderr)
            else:
                if not arguments.json and job.target != PIPE:
                    print(done, flush=True)
            if arguments.json:
                print(json.dumps(report), flush=True)
            if stop.asked:
                return INTERRUPTED
    if failed and len(jobs) > 1:
        print(f"{failed} of {len(jobs)} recordings failed", file=sys.stderr)
    return 1 if failed else 0


def _sentence(error: BaseException, job: Job) -> str:
    """Say what went wrong with which file; errors that are nobody's mistake but ours go on."""
    text = str(error)
    if isinstance(error, MemoryError) or "memory" in text.lower():
        text = "not enough memory; close other programs, or cut the recording into channels"
    elif isinstance(error, RuntimeError):
        raise error
    named = text.startswith((str(job.source), *map(str, job.outputs)))
    return text if named else f"{job.source}: {text}"


def _one(
    denoiser: Denoiser,
    job: Job,
    arguments: argparse.Namespace,
    stop: _Stop,
    report: dict[str, Any],
) -> Path:
    """Denoise one recording and fill in the report; return where the result is."""
    existing = [path for path in job.outputs if path.exists()]
    if existing and arguments.skip_existing:
        print(f"{existing[0]}: exists, skipped", file=sys.stderr)
        report["skipped"] = True
        return job.target
    if existing and not arguments.force:
        raise AudioError(f"{existing[0]}: exists already; allow replacing it with --force")
    began = time.monotonic()
    with ExitStack() as stack:
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        reader = stack.enter_context(AudioReader(stack.enter_context(_source(job.source))))
        bar = stack.enter_context(_Bar(job.source.name, quiet=arguments.quiet, stop=stop))
        report |= {
            "sample_rate": reader.sample_rate, "channels": reader.channels, "length": reader.length,
        }  # fmt: skip
        with ExitStack() as writing:
            target = writing.enter_context(_target(job.target))
            layout = (reader.sample_rate, reader.channels, reader.format)
            writer = writing.enter_context(AudioWriter(target, *layout, clip=arguments.clip))
            noise = job.noise and writing.enter_context(AudioWriter(job.noise, *layout))
            loudest = 0.0
            for block in denoiser.stream(reader.read, reader.length, reader.sample_rate, bar):
                loudest = max(loudest, float(block.clean.abs().max()))
                writer.write(block.clean)
                if noise:
                    noise.write(block.noise)
        report |= {
            "steps": bar.total, "ended": "interrupted" if stop.asked else bar.ended,
            "clipped": writer.clipped, "seconds": round(time.monotonic() - began, 3),
        }  # fmt: skip
        if job.picture:
            _plot(reader, job.target, job.picture)
    for warning in caught:
        print(f"note: {warning.message}", file=sys.stderr)
    if loudest == 0:
        print(f"note: {job.source}: is silent, there was nothing to remove", file=sys.stderr)
    if stop.asked:
        print(
            f"note: {job.source}: interrupted, written with what was learnt in {bar.total} steps"
            + (f"; the last {bar.left_out} are as they were" if bar.incomplete else ""),
            file=sys.stderr,
        )
    return job.target


@contextmanager
def _source(path: Path) -> Iterator[Path]:
    """Give a file that can be read at any place, which a pipe cannot."""
    if path != PIPE:
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".sound") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield Path(file.name)


@contextmanager
def _target(path: Path) -> Iterator[Path]:
    """Give a place to write to; what belongs into a pipe goes there when it is complete."""
    if path != PIPE:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "out.wav"
        yield file
        # An error does not come here; and the writer, entered later, has closed the file by now.
        with file.open("rb") as sound:
            shutil.copyfileobj(sound, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _plot(before: AudioReader, target: Path, picture: Path) -> None:
    from ..plotting import plot_spectrograms

    shown = min(before.length, round(_PLOTTED_S * before.sample_rate))
    try:
        with AudioReader(target) as after, replacing(picture) as place:
            figure = plot_spectrograms(
                {"before": before.read(0, shown), "after": after.read(0, shown)}, before.sample_rate
            )
            figure.savefig(place, format="png", dpi=120)
    except (RuntimeError, ValueError, TypeError) as error:
        raise AudioError(
            f"{picture}: could not be drawn ({error}); {target} is complete"
        ) from error


class _Stop:
    """Turns the first Ctrl-C into a request to finish, and the second into an end."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: Any = None

    def __enter__(self) -> _Stop:
        try:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        except ValueError:  # only the main thread may; elsewhere nobody can press Ctrl-C
            self._previous = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, _: int, __: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nwriting the best so far; Ctrl-C again writes nothing", file=sys.stderr)


class _Bar:
    """A progress bar over all steps of all segments, shown in terminals only."""

    def __init__(self, name: str, *, quiet: bool, stop: _Stop) -> None:
        self.name, self.quiet, self.stop = name, quiet, stop
        self.total = 0
        self.ended = ""
        self._bar: Any = None
        self._segment, self._segments = 1, 1

    def __enter__(self) -> _Bar:
        return self

    def __call__(self, progress: Progress) -> bool:
        if self._bar is None and not self.quiet and sys.stderr.isatty():
            tqdm = import_optional("tqdm", "the progress bar", "harmonic-lowering[audio]").tqdm
            self._bar = tqdm(
                total=progress.segments * progress.steps, desc=self.name, unit="step", leave=False
            )
        if self._bar is not None:
            done = (progress.segment - 1) * progress.steps + progress.step
            self._bar.update(done - self._bar.n)
        self.total += 1
        self.ended = progress.ended or self.ended
        self._segment, self._segments = progress.segment, progress.segments
        return self.stop.asked

    @property
    def incomplete(self) -> bool:
        """Whether segments were left out."""
        return self._segment < self._segments

    @property
    def left_out(self) -> str:
        return f"{self._segments - self._segment} of {self._segments} segments"

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
