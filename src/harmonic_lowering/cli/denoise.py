"""`harmonic-lowering denoise`: a loop over `Denoiser`."""

from __future__ import annotations

import argparse
import math
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from ..audio import AudioError, AudioReader
from ..denoise import Denoiser
from ..optional import import_optional
from .cluster import connected
from .files import PIPE, Plan, plan
from .pool import denoise_all
from .report import Report
from .status import INTERRUPTED
from .task import Needs, Options, Outcome, check


def add_parser(subparsers: Any) -> None:
    """Add `denoise` to the command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "denoise",
        help="remove noise from recordings",
        description="Remove noise from recordings. A network is fitted to each one alone: "
        "no training data, no download, and no sample of the noise unless you have one.",
        epilog="Rate, channels, length, sample format, tags, pictures, chunks, dates and "
        "permissions are kept where the file type of the output has them; a note says what it has "
        "not. A file that fails is reported and the others are done. Ctrl-C writes the best so far "
        "as NAME.partial.SUFFIX, a second one writes nothing. A name that begins with a dash goes "
        "behind --. Exit status: 0 all done, 1 some failed, 2 wrong usage, 130 interrupted, "
        "143 terminated.",
    )
    default = Denoiser()
    add = parser.add_argument
    add(
        "inputs", nargs="+", metavar="INPUT",
        help="sound file, folder (everything in and below it), or - for a pipe; also in other "
        "storage, as s3://bucket/folder",
    )  # fmt: skip
    add(
        "-o", "--output", metavar="PATH",
        help="file to write, an existing folder (the input folder's structure is mirrored in it), "
        "a template with {stem}, {suffix}, {name}, {folder}, {ext} (the input's own extension) and "
        "{sub} (its place below the input folder), or - for a pipe (default: "
        "{folder}/{stem}-denoised{suffix})",
    )  # fmt: skip
    sample = parser.add_mutually_exclusive_group()
    sample.add_argument("--noise", metavar="FILE", type=Path, help="a recording of the noise alone")
    sample.add_argument(
        "--noise-from", metavar="A-B", type=_seconds,
        help="where the recording holds the noise alone, in seconds from its beginning: 0.5-2",
    )  # fmt: skip
    add("--noise-out", metavar="PATH", help="also write what was removed; named as --output")
    add("--force", action="store_true", help="overwrite existing outputs")
    add(
        "--skip-existing", action="store_true",
        help="pass over inputs all of whose outputs exist, to go on with an interrupted list",
    )  # fmt: skip
    add(
        "--plot", action="store_true",
        help="draw spectrograms of before, after and what was removed beside the output",
    )  # fmt: skip
    add("--json", action="store_true", help="report each recording as a line of JSON")
    add(
        "--jobs", type=int, metavar="N",
        help="recordings at a time, or stretches of a single long one, each with one thread "
        "(default: 1, with all threads; on a cluster as many as keep it busy)",
    )  # fmt: skip
    add(
        "--quality", choices=("fast", "default", "best"), default=default.quality,
        help="how long to work: about 0.06, 0.5 or 2 s for each of sound on one thread, at 16 kHz; "
        "two to three times that for 44.1 kHz stereo (default: %(default)s)",
    )  # fmt: skip
    add(
        "--start", choices=("learnt", "random"), default=default.start,
        help="learnt: mask and start were learnt from synthetic sounds; with --quality fast the "
        "mask is all there is. random: nothing but this recording is used (default: %(default)s)",
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
    add(
        "--channels", choices=("linked", "separate"), default="linked",
        help="linked: all channels share a gain, so a stereo image stays; separate: each is "
        "denoised alone, for one microphone each (default: %(default)s)",
    )  # fmt: skip
    add(
        "--declick", action=argparse.BooleanOptionalAction, default=default.declick,
        help="repair clicks, clipped peaks, and stretches of up to 20 ms that are missing "
        "(default: %(default)s)",
    )  # fmt: skip
    add("--keep-hum", action="store_true", help="leave mains hum and steady whistles")
    add("--keep-rumble", action="store_true", help="leave what lies below the lowest pitch")
    add(
        "--remove-dc", action="store_true",
        help="also remove a constant offset, which is otherwise put back",
    )  # fmt: skip
    add("--seed", type=int, default=default.seed, help="default: %(default)s")
    add("--device", default=default.device, help="default: %(default)s")
    add(
        "--clip", choices=("saturate", "error"), default="saturate",
        help="when a result is louder than an integer format holds (default: %(default)s)",
    )  # fmt: skip
    add(
        "--cluster", metavar="ADDRESS",
        help="have the machines of a Ray cluster do the work: host:port of its head, or local to "
        "use all processors of this one",
    )  # fmt: skip
    add("-q", "--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=lambda arguments: run(arguments, parser))


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Denoise every input; what became of them decides the exit status."""
    try:
        options = _options(arguments)
        if arguments.jobs is not None and arguments.jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {arguments.jobs}")
        wanted = plan(
            arguments.inputs, arguments.output, arguments.noise_out,
            plot=arguments.plot, sample=options.noise,
        )  # fmt: skip
        if options.noise is not None:
            _check_noise(options.noise)
        if arguments.cluster is not None and arguments.device != "cpu":
            raise ValueError("--cluster works on processors, so --device must be cpu")
        if arguments.json and any(job.target == PIPE for job in wanted.jobs):
            raise ValueError("--json writes to standard output, so --output cannot be -")
    except ValueError as error:
        parser.error(str(error))
    if arguments.plot:
        import_optional(
            "matplotlib.figure", "drawing pictures", "harmonic-lowering[plot]"
        )  # not at the end
    count = len(wanted.jobs) + len(wanted.refused)
    with ExitStack() as stack:
        stop = stack.enter_context(_Stop())
        workers = arguments.jobs or 1
        if arguments.cluster is not None:
            try:
                cluster = stack.enter_context(
                    connected(arguments.cluster, arguments.jobs, len(wanted.jobs))
                )
            except ValueError as error:
                parser.error(str(error))
            options, workers = replace(options, cluster=cluster), cluster.files
        report = Report(count, quiet=arguments.quiet, as_json=arguments.json)
        with report:
            _work(wanted, options, workers, report, stop)
            report.summary()
    if stop.asked:
        return INTERRUPTED
    return 1 if any(outcome.status == "failed" for outcome in report.outcomes) else 0


def _options(arguments: argparse.Namespace) -> Options:
    return Options(
        Denoiser(
            method=arguments.method,
            quality=arguments.quality,
            steps=arguments.steps,
            time_limit=arguments.time_limit,
            seed=arguments.seed,
            start=arguments.start,
            device=arguments.device,
            strength=arguments.strength,
            atten_lim=arguments.atten_lim,
            declick=arguments.declick,
            hum=not arguments.keep_hum,
            rumble=not arguments.keep_rumble,
        ),
        force=arguments.force,
        skip_existing=arguments.skip_existing,
        clip=arguments.clip,
        separate=arguments.channels == "separate",
        remove_dc=arguments.remove_dc,
        noise=arguments.noise,
        noise_from=arguments.noise_from,
    )


def _check_noise(path: Path) -> None:
    """Find out before any work, and once, that a sample of the noise cannot be read."""
    try:
        with AudioReader(path):
            pass
    except FileNotFoundError as error:
        raise ValueError(f"--noise {path}: no such file") from error
    except (AudioError, OSError) as error:
        raise ValueError(f"--noise {error}") from error


def _seconds(text: str) -> tuple[float, float]:
    try:
        start, stop = (float(part) for part in text.split("-"))
    except ValueError:
        start = stop = math.nan
    if not 0 <= start < stop < math.inf:
        raise argparse.ArgumentTypeError(
            f"must be two numbers of seconds, the smaller one first, such as 0.5-2; got {text!r}"
        )
    return start, stop


def _work(wanted: Plan, options: Options, workers: int, report: Report, stop: _Stop) -> None:
    """Check everything, tell what will not be done, and do the rest."""
    for path, reason in wanted.refused:
        report.finished(-1, Outcome.of_folder(path, reason))
    needs, lengths = Needs(), {}
    for number, job in enumerate(wanted.jobs):
        outcome, length = check(job, options, needs)
        if outcome is None:
            lengths[number] = length
        else:
            report.finished(number, outcome)
        if stop.asked:
            return
    report.begin(lengths)
    jobs = [(number, wanted.jobs[number]) for number in lengths]
    for number, outcome in denoise_all(jobs, options, workers, report.progress, stop.is_asked):
        report.finished(number, outcome)


class _Stop:
    """Turns the first Ctrl-C into a request to finish, and the second into an end."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: Any = None

    def is_asked(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self.asked

    def __enter__(self) -> _Stop:
        try:
            if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # in the background of a shell
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
