"""One recording: what is checked before the work, the work itself, and what is told about it."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..audio import AudioError, AudioReader, AudioWriter, LengthChanged, replacing
from ..audio.output import Part
from ..denoise import Denoiser, Progress, Stream, Summary
from ..denoise.segment import SegmentMap
from .cluster import Cluster
from .files import PIPE, Job
from .kept import Kept
from .spread import in_processes
from .storage import Address, Place, Stage, exists, fetch, send

__all__ = [
    "Needs", "Options", "Outcome", "check", "check_outputs", "denoise_one", "input_file",
    "make_folders", "output_file", "sentence",
]  # fmt: skip

_PLOTTED_S = 30.0  # of the beginning of a recording; more would not be seen
_SAMPLE_S = 60.0  # of a recording of the noise; more would not be more exact
_PATIENCE_S = 0.5  # for a long file's true end; then the work begins, and starts anew if need be


@dataclass(frozen=True)
class Options:
    """What holds for every recording."""

    denoiser: Denoiser
    force: bool = False
    skip_existing: bool = False
    clip: str = "saturate"
    separate: bool = False
    remove_dc: bool = False
    noise: Path | None = None  # a file with the noise alone
    noise_from: tuple[float, float] | None = None  # or where the recording holds it, in seconds
    cluster: Cluster | None = None  # that cleans the segments
    processes: int = 1  # or so many processes here


@dataclass
class Outcome:
    """What became of one recording."""

    job: Job
    status: str = "done"  # or "skipped", "interrupted", "failed"
    error: str = ""
    notes: list[str] = field(default_factory=list)
    target: Place = PIPE
    found: str = ""  # what was found and done, in words
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_folder(cls, path: Place, reason: str) -> Outcome:
        """A folder could not be searched."""
        return cls(Job(path, path), "failed", f"{path}: {reason}")

    @property
    def report(self) -> dict[str, Any]:
        """One line of JSON."""
        told = {"input": str(self.job.source), "output": str(self.target), "status": self.status}
        if self.status in ("failed", "skipped"):
            told["output"] = str(self.job.target)
        return {
            **told,
            **self.facts,
            "notes": self.notes,
            **({"error": self.error} if self.error else {}),
        }


@dataclass
class Needs:
    """Space that the checked recordings will take, by the device of their outputs."""

    bytes_on: dict[int, int] = field(default_factory=dict)


# Before the work


def check(job: Job, options: Options, needs: Needs) -> tuple[Outcome | None, float]:
    """Find out what will fail or can be skipped; give that outcome, or the length in seconds.

    Headers are read, outputs are opened for writing and removed again.
    """
    try:
        if skipped := check_outputs(job, options.force, options.skip_existing):
            return skipped, 0.0
        if isinstance(job.source, Address) or job.source == PIPE:  # read once, for the work
            return None, 0.0
        if stat.S_ISFIFO(job.source.stat().st_mode):
            return None, 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once, when the work begins
            with AudioReader(job.source) as reader:
                _sample_of_the_noise(reader, options)
                for sound in {job.target, job.noise or job.target} - {PIPE}:
                    _check_target(sound, reader, needs)
                return None, reader.promised / reader.sample_rate
    except FileNotFoundError:
        return Outcome(job, "failed", f"{job.source}: no such file"), 0.0
    except Exception as error:
        return Outcome(job, "failed", sentence(error, job, Stage())), 0.0


def check_outputs(job: Job, force: bool, skip_existing: bool) -> Outcome | None:
    """Give the outcome of a recording whose outputs are all there and may be skipped.

    Raises
    ------
    AudioError, OSError
        If an output exists that may not be replaced, or cannot be written.
    """
    existing = [path for path in job.outputs if exists(path)]
    if existing and skip_existing and len(existing) == len(job.outputs):
        return Outcome(job, "skipped", notes=[f"{existing[0]}: exists, skipped"])
    if existing and not force:
        missing = [path for path in job.outputs if path not in existing]
        but = f", but not {missing[0]}" if skip_existing and missing else ""
        raise AudioError(f"{existing[0]}: exists already{but}; allow replacing it with --force")
    for path in job.outputs:
        _check_folder(path, job)
    return None


def make_folders(job: Job) -> None:
    """Make the folders of the outputs, where that is allowed; other storage needs none."""
    for path in job.outputs if job.makes_folder else []:
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)


def _check_folder(path: Place, job: Job) -> None:
    if isinstance(path, Address):
        return
    folder = path.parent
    while job.makes_folder and not folder.exists():
        folder = folder.parent
    with Part(folder / path.name):
        pass


def _check_target(path: Place, reader: AudioReader, needs: Needs) -> None:
    layout = (reader.sample_rate, reader.channels, reader.format)
    writer = AudioWriter(path, *layout, length=reader.promised)
    if not writer.format.plain or isinstance(path, Address):
        return
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    size = reader.promised * reader.channels * writer.format.sample_bytes
    device = folder.stat().st_dev
    needed = needs.bytes_on.get(device, 0) + size
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise AudioError(
            f"{path}: needs {size / 1e6:.1f} MB, and {max(0, free - needed + size) / 1e6:.1f} MB "
            "are free on its disk"
        )
    needs.bytes_on[device] = needed


# The work


def denoise_one(
    job: Job,
    options: Options,
    progress: Callable[[float, float], None],
    stopped: Callable[[], bool],
) -> Outcome:
    """Denoise one recording; whatever goes wrong with it is in the outcome.

    `progress` is told the seconds of sound that are done and those of the whole recording. Once
    `stopped` returns true, the best so far is written under the name of a partial result.
    """
    outcome = Outcome(job, target=job.target)
    began = time.monotonic()
    with Stage() as stage, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            _denoise(job, options, stage, progress, stopped, outcome)
        except BrokenPipeError:  # whoever reads our output went away: not the file's fault
            raise
        except Exception as error:
            outcome.status, outcome.error = "failed", sentence(error, job, stage)
    outcome.facts["seconds"] = round(time.monotonic() - began, 3)
    said = [str(warning.message) for warning in caught if warning.category is UserWarning]
    notes = [stage.translated(note) for note in (*said, *outcome.notes)]
    outcome.notes = list(dict.fromkeys(notes))
    return outcome


def _denoise(
    job: Job,
    options: Options,
    stage: Stage,
    progress: Callable[[float, float], None],
    stopped: Callable[[], bool],
    outcome: Outcome,
) -> None:
    with (
        input_file(job.source, stage) as source,
        AudioReader(source, patience_s=_PATIENCE_S) as reader,
    ):
        while True:
            try:
                _attempt(reader, job, options, stage, progress, stopped, outcome)
            except LengthChanged:  # found early on: nothing of worth is lost
                continue
            return


def _attempt(
    reader: AudioReader,
    job: Job,
    options: Options,
    stage: Stage,
    progress: Callable[[float, float], None],
    stopped: Callable[[], bool],
    outcome: Outcome,
) -> None:
    kept = Kept(job.target) if options.cluster is not None and job.target != PIPE else None
    run = _Run(reader, options, kept, progress, stopped)
    beginning = _Beginning(reader.sample_rate) if job.picture else None
    make_folders(job)
    with ExitStack() as writing:
        target = writing.enter_context(output_file(job.target, stage, options.force))
        layout = (reader.sample_rate, reader.channels, reader.format)
        keywords: dict[str, Any] = {
            "metadata": reader.metadata, "length": reader.length, "overwrite": options.force,
        }  # fmt: skip
        writer = writing.enter_context(
            AudioWriter(target.file, *layout, clip=options.clip, **keywords)
        )
        noise = None
        if job.noise is not None:
            removal = writing.enter_context(output_file(job.noise, stage, options.force))
            noise = writing.enter_context(AudioWriter(removal.file, *layout, **keywords))
        loudest = 0.0
        for clean, removed in run.blocks():
            loudest = max(loudest, float(clean.abs().max()))
            writer.write(clean)
            if noise is not None:
                noise.write(removed)
            if beginning is not None:
                beginning.add(clean, removed)
        reader.settle()
        names = job.partial() if run.asked_to_stop else job
        if names is not job:
            target.rename(names.target, writer)
            if noise is not None and names.noise is not None:
                removal.rename(names.noise, noise)
    if kept is not None and names is job:
        kept.clear()
    outcome.target = names.target
    if run.asked_to_stop:
        outcome.status = "interrupted"
        outcome.notes.append(
            f"{job.source}: interrupted, written with what was learnt in {run.steps} steps"
            f"{run.left_out}; it is no whole result, so it is named {names.target.name}"
        )
    outcome.found = "; ".join(filter(None, map(_in_words, run.summaries)))
    outcome.notes += [f"{job.source}: {s.warning}" for s in run.summaries if s.warning]
    summaries = [asdict(summary) for summary in run.summaries]
    outcome.facts["noise"] = summaries if options.separate else summaries[0]
    outcome.facts.update(
        sample_rate=reader.sample_rate, channels=reader.channels, length=reader.length,
        steps=run.steps, ended="interrupted" if run.asked_to_stop else run.ended,
        clipped=writer.clipped,
    )  # fmt: skip
    if loudest == 0:
        outcome.notes.append(f"{job.source}: is silent, there was nothing to remove")
    if beginning is not None and names.picture is not None:
        _plot(beginning, job, names, stage, options.force or names is not job)


class _Run:
    """The denoiser at work on one recording, and how far it is."""

    def __init__(
        self,
        reader: AudioReader,
        options: Options,
        kept: Kept | None,
        progress: Callable[[float, float], None],
        stopped: Callable[[], bool],
    ) -> None:
        self._reader, self._options, self._kept = reader, options, kept
        self._progress, self._stopped = progress, stopped
        self.steps, self.ended = 0, ""
        self.asked_to_stop = False
        self._streams: list[Stream] = []  # one, or one a channel
        self.summaries: list[Summary] = []  # one, or one a channel
        self._places: dict[int, Progress] = {}
        self._segments = 1
        self._noise, self._noise_rate = _sample_of_the_noise(reader, options)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give one clean stretch after the other, and what was removed from it.

        The offset is taken off before and put back to the clean sound, or it counts as removed.
        """
        offset = self._reader.offset
        groups: Sequence[slice] = [slice(None)]
        if self._options.separate:
            groups = [slice(c, c + 1) for c in range(self._reader.channels)]
        streams = [self._stream(number, group) for number, group in enumerate(groups)]
        for parts in zip(*streams, strict=True):
            clean = torch.cat([part[0] for part in parts])
            removed = torch.cat([part[1] for part in parts])
            if self._options.remove_dc:
                yield clean, removed + offset
            else:
                yield clean + offset, removed

    def _stream(self, number: int, channels: slice) -> Iterator[tuple[Tensor, Tensor]]:
        reader = self._reader

        def read(start: int, stop: int) -> Tensor:
            return (reader.read(start, stop) - reader.offset)[channels]

        noise = self._noise
        stream = self._options.denoiser.stream(
            read,
            reader.length,
            reader.sample_rate,
            lambda progress: self._step(number, progress),
            noise=noise[channels] if noise is not None and len(noise) > 1 else noise,
            noise_rate=self._noise_rate,
            each=self._segment_map(),
        )
        self._streams.append(stream)
        yield from stream
        self.summaries.append(stream.summary)

    def _segment_map(self) -> SegmentMap:
        options = self._options
        if options.cluster is not None:
            return options.cluster.each(self._kept, self._is_stopped)
        streams = self._reader.channels if options.separate else 1  # they share the processes
        return in_processes(max(1, options.processes // streams), self._is_stopped)

    def _step(self, number: int, progress: Progress) -> bool:
        self.steps += 1
        self.ended = progress.ended or self.ended
        self._places[number], self._segments = progress, progress.segments
        streams = self._reader.channels if self._options.separate else 1
        done = sum((p.segment - 1 + p.step / p.steps) / p.segments for p in self._places.values())
        seconds = self._reader.length / self._reader.sample_rate
        self._progress(seconds * done / streams, seconds)
        return self._is_stopped()

    def _is_stopped(self) -> bool:
        self.asked_to_stop = self.asked_to_stop or self._stopped()
        return self.asked_to_stop

    @property
    def left_out(self) -> str:
        """In words, what was not worked at."""
        rest = max(stream.untouched for stream in self._streams)
        whole = max(rest, self._segments)  # before the first step nobody has counted them
        return f"; {rest} of {whole} segments are as they were" if rest else ""


def _sample_of_the_noise(reader: AudioReader, options: Options) -> tuple[Tensor | None, int | None]:
    """Return the sample of the noise that the options name, and its rate."""
    if options.noise is not None:
        with AudioReader(options.noise) as sample:
            stop = min(sample.length, round(_SAMPLE_S * sample.sample_rate))
            if sample.channels not in (1, reader.channels):
                raise AudioError(
                    f"{options.noise}: a sample of the noise must have one channel or as many as "
                    f"the recording, got {sample.channels} for {reader.channels}"
                )
            return sample.read(0, stop) - sample.offset, sample.sample_rate
    if options.noise_from is None:
        return None, None
    start, stop = (round(seconds * reader.sample_rate) for seconds in options.noise_from)
    if stop > reader.length:
        first, last = options.noise_from
        raise AudioError(
            f"--noise-from {first:g}-{last:g} lies outside the recording, which lasts "
            f"{reader.length / reader.sample_rate:g} s"
        )
    return reader.read(start, stop) - reader.offset, reader.sample_rate


def _in_words(summary: Summary) -> str:
    repaired = f"{summary.clicks} clicks or gaps repaired" if summary.clicks else ""
    if summary.noise_dbfs is None or summary.snr_db is None:
        return repaired
    steady = {True: ", steady", False: ", changing", None: ""}[summary.steady]
    removed = "" if summary.removed_db is None else f", reduced by {summary.removed_db:.0f} dB"
    noise = f"noise {summary.noise_dbfs:.0f} dBFS, SNR {summary.snr_db:.0f} dB{steady}{removed}"
    return ", ".join(filter(None, [noise, repaired]))


@contextmanager
def input_file(source: Place, stage: Stage) -> Iterator[Path]:
    """Give a file that can be read more than once, which standard input cannot."""
    if isinstance(source, Address):
        file = stage.local(source)
        fetch(source, file)
        yield file
        return
    if source != PIPE:
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stdin"
        with file.open("wb") as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
        if not file.stat().st_size:
            raise AudioError("standard input is empty")
        yield file


@dataclass
class _Outlet:
    """A file that is written here, and the place where it goes when it is complete."""

    place: Place
    file: Path
    overwrite: bool

    def rename(self, place: Place, writer: AudioWriter) -> None:
        """Have it go to another place in the same folder, and replace what is there."""
        if isinstance(place, Address):
            self.place, self.overwrite = place, True
        elif place != PIPE:
            writer.name(place)


@contextmanager
def output_file(place: Place, stage: Stage, overwrite: bool) -> Iterator[_Outlet]:
    """Give a file to write to; what belongs elsewhere goes there when it is complete."""
    # An error does not come behind a yield; and the writer, entered later, has closed the file.
    if isinstance(place, Address):
        outlet = _Outlet(place, stage.local(place), overwrite)
        yield outlet
        assert isinstance(outlet.place, Address)
        send(outlet.file, outlet.place, overwrite=outlet.overwrite)
        outlet.file.unlink()
        return
    if place != PIPE:
        yield _Outlet(place, place, overwrite)
        return
    if sys.stdout is None:
        raise AudioError("standard output is closed, and --output is -")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "out.wav"
        yield _Outlet(place, file, overwrite)
        with file.open("rb") as sound:
            shutil.copyfileobj(sound, sys.stdout.buffer)
        sys.stdout.buffer.flush()


class _Beginning:
    """What the picture draws."""

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._wanted = round(_PLOTTED_S * sample_rate)

    def add(self, clean: Tensor, removed: Tensor) -> None:
        if self._wanted > 0:
            self._parts.append((clean[:, : self._wanted], removed[:, : self._wanted]))
            self._wanted -= clean.shape[1]

    def waveforms(self) -> dict[str, Tensor]:
        clean, removed = (torch.cat(parts, 1) for parts in zip(*self._parts, strict=True))
        return {"before": clean + removed, "after": clean, "removed": removed}


def _plot(beginning: _Beginning, job: Job, names: Job, stage: Stage, overwrite: bool) -> None:
    from ..plotting import plot_spectrograms

    assert names.picture is not None
    try:
        name = os.fsencode(job.source.name).decode("utf-8", "backslashreplace")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # letters that the font has not
            figure = plot_spectrograms(beginning.waveforms(), beginning.sample_rate, title=name)
            with (
                output_file(names.picture, stage, overwrite) as outlet,
                replacing(outlet.file, overwrite=overwrite) as part,
            ):
                figure.savefig(part, format="png", dpi=120)
    except (RuntimeError, ValueError, TypeError) as error:
        raise AudioError(
            f"{names.picture}: could not be drawn ({error}); {names.target} is complete"
        ) from error


def sentence(error: Exception, job: Job, stage: Stage) -> str:
    """Say in one line what went wrong with which file."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    lacks_memory = isinstance(error, RuntimeError) and "memory" in text.lower()
    if isinstance(error, MemoryError) or lacks_memory:
        text = "not enough memory; close other programs, or cut the recording into channels"
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror + (f" ({os.fsdecode(error.filename)})" if error.filename else "")
    elif not isinstance(error, (AudioError, ValueError, OSError, ImportError)):
        # Nobody's mistake but ours: the place helps whoever mends it.
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}"
        text = f"an error inside the program, please report it: {where}: {text}"
    text = stage.translated(text)
    named = text.startswith((str(job.source), *map(str, job.outputs)))
    return text if named else f"{job.source}: {text}"
