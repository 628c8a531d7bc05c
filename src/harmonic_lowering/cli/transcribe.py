"""`harmonic-lowering transcribe`: a loop over `Transcriber`."""

from __future__ import annotations

import argparse
import math
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..audio import AudioReader, LengthChanged, replacing
from ..optional import import_optional
from ..plotting import plot_notes
from ..transcribe import Note, Transcriber, write_midi
from ..transcribe.network import FRAME_S, RATE, vqt_levels
from .files import PIPE, Job, plan
from .report import Report
from .storage import Address, Stage
from .task import Outcome, check_outputs, input_file, make_folders, output_file, sentence

_PLOTTED_S = 30.0


def add_parser(subparsers: Any) -> None:
    """Add `transcribe` to the command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "transcribe",
        help="write the notes of recordings as MIDI files",
        description="Write the notes that instruments or voices play in a recording as a MIDI "
        "file: starts, ends, velocities. A small network that comes with the package reads "
        "harmonics; drums are left out, and instruments are not told apart.",
        epilog="A recording without pitch gives an empty MIDI file and a note that says so. A "
        "file that fails is reported and the others are done. Exit status: 0 all done, 1 some "
        "failed, 2 wrong usage, 130 interrupted, 143 terminated.",
    )
    add = parser.add_argument
    add(
        "inputs", nargs="+", metavar="INPUT",
        help="sound file, folder (everything in and below it), or - for a pipe",
    )  # fmt: skip
    add(
        "-o", "--output", metavar="PATH",
        help="MIDI file to write, an existing folder (the input folder's structure is mirrored in "
        "it), a template with {stem}, {name}, {folder}, {ext} and {sub}, or - for a pipe (default: "
        "{folder}/{stem}.mid)",
    )  # fmt: skip
    add("--bends", action="store_true", help="write pitch bends, with notes on 15 channels")
    add(
        "--onset", type=float, default=0.4, metavar="P",
        help="probability from which a note starts; lower finds more (default: %(default)s)",
    )  # fmt: skip
    add(
        "--frame", type=float, default=0.4, metavar="P",
        help="probability from which a note goes on; lower makes longer (default: %(default)s)",
    )  # fmt: skip
    add("--force", action="store_true", help="overwrite existing outputs")
    add("--skip-existing", action="store_true", help="pass over inputs whose outputs exist")
    add(
        "--plot", action="store_true",
        help="draw the notes over the spectrogram of the first 30 s, beside the output",
    )  # fmt: skip
    add("--json", action="store_true", help="report each recording as a line of JSON")
    add("-q", "--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=lambda arguments: run(arguments, parser))


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Transcribe every input; what became of them decides the exit status."""
    try:
        wanted = plan(arguments.inputs, arguments.output, plot=arguments.plot, result=".mid")
        if arguments.json and any(job.target == PIPE for job in wanted.jobs):
            raise ValueError("--json writes to standard output, so --output cannot be -")
        for path in (path for job in wanted.jobs for path in job.outputs):
            if isinstance(path, Address):
                raise ValueError(f"{path}: notes are written to this machine only; name a --output")
        transcriber = Transcriber.load(onset=arguments.onset, frame=arguments.frame)
    except ValueError as error:
        parser.error(str(error))
    import_optional("mido", "writing MIDI", "harmonic-lowering[transcribe]")  # not at the end
    if arguments.plot:
        import_optional("matplotlib.figure", "drawing pictures", "harmonic-lowering[plot]")
    count = len(wanted.jobs) + len(wanted.refused)
    with Report(count, quiet=arguments.quiet, as_json=arguments.json, done="transcribed") as report:
        for path, reason in wanted.refused:
            report.finished(-1, Outcome.of_folder(path, reason))
        report.begin({})
        for number, job in enumerate(wanted.jobs):
            report.finished(number, _transcribe(number, job, transcriber, arguments, report))
        report.summary()
        return 1 if any(outcome.status == "failed" for outcome in report.outcomes) else 0


def _transcribe(
    number: int, job: Job, transcriber: Transcriber, arguments: argparse.Namespace, report: Report
) -> Outcome:
    """Transcribe one recording; whatever goes wrong with it is in the outcome."""
    outcome, began = Outcome(job, target=job.target), time.monotonic()
    with Stage() as stage, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if skipped := check_outputs(job, arguments.force, arguments.skip_existing):
                return skipped
            with input_file(job.source, stage) as source, AudioReader(source) as reader:
                told = partial(report.progress, number, job.source.name)
                notes = _notes(reader, transcriber, told)
                make_folders(job)
                with (
                    output_file(job.target, stage, arguments.force) as output,
                    replacing(output.file, overwrite=arguments.force) as part,
                ):
                    write_midi(part, notes, bends=arguments.bends)
                if job.picture is not None:
                    _draw(reader, notes, job, arguments.force)
                length_s = reader.length / reader.sample_rate
        except BrokenPipeError:  # whoever reads our output went away: not the file's fault
            raise
        except FileNotFoundError:
            return Outcome(job, "failed", f"{job.source}: no such file")
        except Exception as error:
            outcome.status, outcome.error = "failed", sentence(error, job, stage)
            return outcome
    said = [str(warning.message) for warning in caught if warning.category is UserWarning]
    outcome.notes = list(dict.fromkeys(map(stage.translated, said)))
    if not notes:
        outcome.notes.append(f"{job.source}: no pitch was found, so the MIDI file is empty")
    outcome.found = f"{len(notes)} notes in {length_s:.1f} s"
    outcome.facts = {
        "notes_found": len(notes), "length_s": round(length_s, 3),
        "seconds": round(time.monotonic() - began, 3),
    }  # fmt: skip
    return outcome


def _notes(
    reader: AudioReader, transcriber: Transcriber, progress: Callable[[float, float], None]
) -> list[Note]:
    while True:
        length, rate = reader.length, reader.sample_rate
        tell = partial(_tell, progress, length / rate)
        try:
            return list(transcriber.stream(reader.read, length, rate, tell))
        except LengthChanged:  # found early on: nothing of worth is lost
            continue


def _tell(progress: Callable[[float, float], None], length_s: float, done_s: float) -> None:
    progress(done_s, length_s)


def _draw(reader: AudioReader, notes: list[Note], job: Job, overwrite: bool) -> None:
    assert isinstance(job.picture, Path)
    soxr = import_optional("soxr", "a picture of notes", "harmonic-lowering[transcribe]")
    stop = min(reader.length, math.ceil(_PLOTTED_S * reader.sample_rate))
    sound = soxr.resample(reader.read(0, stop).float().mean(0).numpy(), reader.sample_rate, RATE)
    name = os.fsencode(job.source.name).decode("utf-8", "backslashreplace")
    rows = [(note.start_s, note.end_s, note.pitch) for note in notes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font has not
        figure = plot_notes(vqt_levels(torch.from_numpy(sound)), rows, FRAME_S, title=name)
        with replacing(job.picture, overwrite=overwrite) as place:
            figure.savefig(place, format="png", dpi=120)
