"""What the command says while it works: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from ..optional import import_optional
from .files import PIPE
from .status import UnwritableError
from .task import Outcome

__all__ = ["Report"]

_LONG_LIST = 10  # recordings
_NAME_WIDTH = 60  # of the table of what failed
_FIRST_LINE_S, _LINES_S = 10.0, 60.0  # in a log: when the first comes, and how often


class Report:
    """Progress of all recordings together, what became of each, and the summary."""

    def __init__(self, count: int, *, quiet: bool, as_json: bool, done: str = "denoised") -> None:
        self.count, self.quiet, self.as_json, self.done = count, quiet, as_json, done
        self.outcomes: list[Outcome] = []
        self._began = time.monotonic()
        self._next_line = self._began + _FIRST_LINE_S
        self._lengths: dict[int, float] = {}  # of the recordings, seconds
        self._done: dict[int, float] = {}
        self._bar: Any = None
        # A name goes out as the bytes that it has; messages go to terminals that may know little.
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape")
        if hasattr(sys.stderr, "reconfigure"):
            sys.stderr.reconfigure(errors="backslashreplace")

    def __enter__(self) -> Report:
        return self

    def begin(self, lengths: dict[int, float]) -> None:
        """The checks are over, these recordings will be denoised."""
        self._lengths = dict(lengths)
        self._began = time.monotonic()
        self._next_line = self._began + _FIRST_LINE_S
        if not self.quiet and sys.stderr is not None and sys.stderr.isatty():
            tqdm = import_optional("tqdm", "the progress bar", "harmonic-lowering[audio]").tqdm
            self._bar = tqdm(
                total=sum(lengths.values()), unit="s", leave=False, dynamic_ncols=True,
                bar_format="{desc}{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of sound "
                "[{elapsed}<{remaining}]",
            )  # fmt: skip

    def progress(self, number: int, name: str, done_s: float, length_s: float) -> None:
        """Recording `number` is so far."""
        self._lengths[number], self._done[number] = length_s, done_s
        done, total = sum(self._done.values()), sum(self._lengths.values())
        now = time.monotonic()
        if self._bar is not None:
            self._bar.total = total
            self._bar.set_description_str(f"{name}: ", refresh=False)
            self._bar.update(done - self._bar.n)
        elif not self.quiet and now >= self._next_line:
            self._next_line = now + _LINES_S
            left = (now - self._began) * (total - done) / max(done, 1e-9)
            place = f"[{len(self.outcomes) + 1}/{self.count}] " if self.count > 1 else ""
            self.say(
                f"{place}{name}: {_clock(done_s)} of {_clock(length_s)} "
                f"({done_s / max(length_s, 1e-9):.0%}), about {_clock(left)} left"
            )

    def finished(self, number: int, outcome: Outcome) -> None:
        """Tell what became of a recording: its name on standard output, the rest on the other."""
        self.outcomes.append(outcome)
        if number in self._lengths:
            self._done[number] = self._lengths[number]
        if outcome.found and not self.quiet:
            self.say(f"{outcome.job.source}: {outcome.found}")
        for note in outcome.notes:
            self.say(note if outcome.status == "skipped" else f"note: {note}")
        if outcome.error:
            self.say(outcome.error)
        if self.as_json:
            self._out(json.dumps(outcome.report))
        elif outcome.status in ("done", "interrupted") and outcome.job.target != PIPE:
            self._out(str(outcome.target))

    def summary(self) -> None:
        """One line about all of them, if there are several; in a long list also what failed."""
        if self.count < 2:
            return
        if self.count >= _LONG_LIST:
            self._failures()
        number = {
            status: sum(outcome.status == status for outcome in self.outcomes)
            for status in ("done", "skipped", "interrupted", "failed")
        }
        words = {"done": self.done, "skipped": "skipped", "interrupted": "interrupted"}
        parts = [f"{number[status]} {word}" for status, word in words.items() if number[status]]
        if number["failed"]:
            parts.append(f"{number['failed']} of {self.count} recordings failed")
        if left := self.count - len(self.outcomes):
            parts.append(f"{left} not begun")
        noted = sum(bool(o.notes) and o.status == "done" for o in self.outcomes)
        if noted:
            parts.append(f"{noted} with notes")
        self.say(f"{', '.join(parts)}, in {_clock(time.monotonic() - self._began)}")

    def _failures(self) -> None:
        """Say again what failed, which long lists have scrolled away."""
        failed = {
            str(o.job.source): o.error.removeprefix(f"{o.job.source}: ")
            for o in self.outcomes
            if o.status == "failed"
        }
        width = min(_NAME_WIDTH, max(map(len, failed), default=0))
        for name, why in failed.items():
            self.say(f"failed  {name:<{width}}  {why}")

    def say(self, text: str) -> None:
        """Write a line to standard error, beside the bar if there is one."""
        text = " ".join(text.splitlines())
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)

    def _out(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        if sys.stdout is None:
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            reason = error.strerror or error
            raise UnwritableError(f"standard output cannot be written: {reason}") from error

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if isinstance(error, BrokenPipeError):
            self.say("stopped: whoever read standard output has closed it")
            self.summary()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
