"""What a visitor brought: files in a private folder, what a browser can play of them, results."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from pathlib import Path

import torch

from ..audio import AudioError, AudioFormat, AudioReader, AudioWriter
from ..cli.files import plan
from ..cli.pool import Pool
from ..cli.task import Needs, Options, Outcome, check

__all__ = ["Cancelled", "Limits", "Line", "Recording", "Session", "Track", "Visitors", "workers"]

_COLUMNS = 1000  # of a drawn waveform
_BLOCK_S = 30.0  # of sound read at once for a preview
_PREVIEW = AudioFormat("FLAC", "PCM_16")  # every browser plays it, and nothing is heard missing


class Cancelled(Exception):
    """The visitor asked to stop, or left."""


@dataclass(frozen=True)
class Limits:
    """How much a visitor may ask for.

    Attributes
    ----------
    size_mb, minutes : float
        Largest and longest recording.
    recordings : int
        Recordings of one visitor.
    jobs, waiting : int
        Visitors whose recordings are denoised at once, and how many more may wait.
    """

    size_mb: float = 500.0
    minutes: float = 60.0
    recordings: int = 50
    jobs: int = 1
    waiting: int = 8


@dataclass(frozen=True)
class Track:
    """A sound to listen to, and the loudest sample of each column of its waveform."""

    label: str
    path: Path
    peaks: list[float]


class Recording:
    """A file in a folder of its own, beside everything that is made of it."""

    def __init__(self, source: Path, limits: Limits) -> None:
        removed, self._previews = source.parent / "removed", source.parent / "previews"
        removed.mkdir()
        self._previews.mkdir()
        self.name = source.name
        self.job = plan([str(source)], None, str(removed), plot=True).jobs[0]
        with AudioReader(source) as reader:
            for length in (reader.promised, reader.length):  # the first one costs nothing
                if length > 60 * limits.minutes * reader.sample_rate:
                    raise AudioError(
                        f"{source}: lasts {length / reader.sample_rate / 60:.1f} minutes, more "
                        f"than the {limits.minutes:g} that this page takes; the command "
                        "harmonic-lowering denoise takes any length"
                    )
            self.seconds = reader.length / reader.sample_rate
            self.about = (
                f"{self.seconds:.1f} s, {reader.sample_rate / 1000:g} kHz, "
                f"{reader.channels} channel{'s' * (reader.channels > 1)}"
            )
        self.numbers: tuple[float | None, float | None] = (None, None)  # as they were typed
        self.state = ""  # or "waiting", "working", "cancelled"; then the outcome tells
        self.done_s = 0.0
        self.outcome: Outcome | None = None
        self.runs = 0
        self._tracks: dict[str, Track] = {}
        self._preparing = threading.Lock()

    def public(self, text: str) -> str:
        """Leave out of a sentence where on this machine the file lies."""
        return text.replace(f"{self.job.source.parent}{os.sep}", "")

    def noise_from(self) -> tuple[float, float] | None:
        """Where the noise is alone, in seconds; raise ValueError if the numbers make no sense."""
        first, last = self.numbers
        if first is None and last is None:
            return None
        if first is None or last is None or not 0 <= first < last <= self.seconds:
            raise ValueError(
                f"{self.name}: the noise alone must begin before it ends, both between 0 and "
                f"{self.seconds:.3f} s; got {first} and {last}"
            )
        return float(first), float(last)

    def tracks(self) -> list[Track]:
        """What there is to listen to."""
        sounds = {"Before": self.job.source}
        if self.outcome is not None and self.outcome.status == "done" and self.job.noise:
            sounds |= {"After": self.outcome.target, "Removed": self.job.noise}
        with self._preparing:
            for label, path in sounds.items():
                if label not in self._tracks:
                    preview = self._previews / f"{label.lower()}-{self.runs}.flac"
                    self._tracks[label] = Track(label, preview, _preview(path, preview))
            return [self._tracks[label] for label in sounds]

    def denoise(self, options: Options, threads: int, stopped: Callable[[], bool]) -> None:
        """Denoise it in a process of its own; raise `Cancelled` as soon as `stopped` is true."""

        def check_stop() -> bool:
            if stopped():
                raise Cancelled
            return False

        def progress(_: int, __: str, done_s: float, ___: float) -> None:
            self.done_s = done_s

        with self._preparing:
            self.outcome, self.done_s, self.state = None, 0.0, "working"
            self.runs += 1
            for label in ("After", "Removed"):
                if label in self._tracks:
                    self._tracks.pop(label).path.unlink(missing_ok=True)
        outcome, _ = check(self.job, options, Needs())
        if outcome is None:
            pool = Pool(options, 1, threads=threads, context=workers())
            (outcome,) = (done for _, done in pool.run([(0, self.job)], progress, check_stop))
        self.outcome, self.state = outcome, ""
        self.tracks()


def _preview(source: Path, target: Path) -> list[float]:
    """Write what a browser plays of a recording; return the peaks of its waveform."""
    with AudioReader(source) as reader:
        length, columns = reader.length, min(_COLUMNS, reader.length)
        peaks = torch.zeros(columns, dtype=reader.format.dtype)
        channels = reader.channels if reader.channels <= 2 else 1
        block = round(_BLOCK_S * reader.sample_rate)
        with AudioWriter(target, reader.sample_rate, channels, _PREVIEW, length=length) as writer:
            for start in range(0, length, block):
                waveform = reader.read(start, min(start + block, length))
                column = torch.arange(start, start + waveform.shape[1]) * columns // length
                peaks.scatter_reduce_(0, column, waveform.abs().amax(0), "amax")
                writer.write(waveform if channels > 1 else waveform.mean(0, keepdim=True))
    return [round(float(peak), 4) for peak in peaks]


def workers() -> BaseContext | None:
    """How processes start that denoise: on Linux at once, from one that has imported everything."""
    if sys.platform != "linux":  # elsewhere a fork of a process with threads is not safe
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harmonic_lowering.cli.task", "soundfile", "matplotlib.figure"])
    return context


@dataclass
class Session:
    """One visitor's page, from its first upload until it is closed."""

    folder: Path
    recordings: list[Recording] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # sentences about the last upload
    uploads: list[Path] = field(default_factory=list)  # as gradio named them
    selected: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    busy: threading.Lock = field(default_factory=threading.Lock)  # held while it is denoised
    ahead: int = 0  # visitors to be served before

    def add(self, upload: Path, limits: Limits) -> None:
        """Take a file over; what cannot be used is deleted, and a sentence says why."""
        folder = self.folder / secrets.token_hex(4)
        folder.mkdir(0o700)
        source = folder / upload.name
        try:
            if len(self.recordings) >= limits.recordings:
                raise AudioError(f"{upload.name}: this page holds {limits.recordings} recordings")
            self.uploads.append(upload)
            os.link(upload, source)  # another visitor's upload of the same sound has the same name
            if source.stat().st_size > 1e6 * limits.size_mb:
                raise AudioError(f"{upload.name}: is larger than {limits.size_mb:g} MB")
            self.recordings.append(Recording(source, limits))
        except (AudioError, ValueError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            upload.unlink(missing_ok=True)
            self.refused.append(str(error).replace(f"{folder}{os.sep}", ""))

    def end(self) -> None:
        """Stop what is at work and delete all files."""
        self.stop.set()
        with self.busy:
            shutil.rmtree(self.folder, ignore_errors=True)
            for upload in self.uploads:
                upload.unlink(missing_ok=True)


class Visitors:
    """All sessions, each in a folder with a name that nobody guesses."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def session(self, key: str) -> Session:
        """Give a visitor's session."""
        with self._lock:
            if key not in self._sessions:
                folder = self._folder / secrets.token_hex(16)
                folder.mkdir(0o700)
                self._sessions[key] = Session(folder)
            return self._sessions[key]

    def end(self, key: str) -> None:
        """A visitor left."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.end()

    def end_all(self) -> None:
        """The page closes."""
        for key in list(self._sessions):
            self.end(key)


class Line:
    """Whose turn it is: the first few work, the others wait, and no more than that may come."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._line: list[object] = []
        self._lock = threading.Lock()

    @contextmanager
    def place(self) -> Iterator[Callable[[], int]]:
        """Stand in line; the function that it gives tells how many must end before it is our turn.

        Raises
        ------
        AudioError
            If too many wait already.
        """
        ticket = object()
        with self._lock:
            if len(self._line) >= self._limits.jobs + self._limits.waiting:
                raise AudioError(
                    f"{len(self._line)} visitors are being served or wait already; try again in a "
                    "few minutes"
                )
            self._line.append(ticket)

        def before() -> int:
            with self._lock:
                return max(0, self._line.index(ticket) + 1 - self._limits.jobs)

        try:
            yield before
        finally:
            with self._lock:
                self._line.remove(ticket)
