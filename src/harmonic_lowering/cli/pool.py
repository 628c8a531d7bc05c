"""Recordings at work in processes of their own, several at a time with one thread each."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from types import FrameType
from typing import Any

from .files import PIPE, Job
from .task import Options, Outcome, denoise_one

__all__ = ["Pool", "denoise_all"]

_TOLD_S = 0.5  # between two words about progress
Told = Callable[[int, str, float, float], None]


def denoise_all(
    jobs: Sequence[tuple[int, Job]],
    options: Options,
    workers: int,
    progress: Told,
    stopped: Callable[[], bool],
) -> Iterator[tuple[int, Outcome]]:
    """Denoise recordings, `workers` at a time; give each one's outcome when it is there.

    Once `stopped` returns true, those at work write their best so far and no more are begun.
    """
    alone = workers == 1 or len(jobs) == 1
    # Ray may end a process whose machine loses the cluster, so it is never this one, unless
    # the recording comes from or goes to a pipe of this process.
    piped = any(PIPE in (job.source, job.target) for _, job in jobs)
    if piped or (alone and options.cluster is None):
        for number, job in jobs:
            if stopped():
                return
            yield number, denoise_one(job, options, _told(progress, number, job), stopped)
        return
    yield from Pool(options, min(workers, len(jobs))).run(jobs, progress, stopped)


def _told(progress: Told, number: int, job: Job) -> Callable[[float, float], None]:
    return lambda done, length: progress(number, job.source.name, done, length)


class Pool:
    """`size` processes with `threads` threads each, started by `context` (spawned by default)."""

    def __init__(
        self,
        options: Options,
        size: int,
        *,
        threads: int = 1,
        context: BaseContext | None = None,
    ) -> None:
        self._options, self._size, self._threads = options, size, threads
        self._context: Any = context or multiprocessing.get_context("spawn")
        self._at_work: dict[Connection, tuple[int, Job] | None] = {}
        self._processes: dict[Connection, Any] = {}

    def run(
        self, jobs: Sequence[tuple[int, Job]], progress: Told, stopped: Callable[[], bool]
    ) -> Iterator[tuple[int, Outcome]]:
        """Give each job's outcome; whatever `progress` or `stopped` raises ends all at once."""
        waiting, told_to_stop = list(reversed(jobs)), False
        try:
            with _environment(self._threads):
                while waiting or any(self._at_work.values()):
                    if stopped() and not told_to_stop:
                        told_to_stop, waiting = True, []
                        for connection in self._at_work:
                            connection.send("stop")
                    self._employ(waiting)
                    ready = wait(list(self._at_work), timeout=0.2)
                    for connection in [c for c in self._at_work if c in ready]:
                        yield from self._hear(connection, progress)
        finally:
            self._end()

    def _employ(self, waiting: list[tuple[int, Job]]) -> None:
        """Give a recording to everybody who has none."""
        while waiting and len(self._at_work) < self._size:
            here, there = self._context.Pipe()
            process = self._context.Process(
                target=_serve, args=(there, self._options, self._threads)
            )
            with _interrupts_ignored():  # a Ctrl-C comes to the first process only
                process.start()
            there.close()
            self._processes[here], self._at_work[here] = process, None
        for connection, work in self._at_work.items():
            if work is None and waiting:
                number, job = waiting.pop()
                self._at_work[connection] = (number, job)
                connection.send((number, job))

    def _hear(self, connection: Connection, progress: Told) -> Iterator[tuple[int, Outcome]]:
        work = self._at_work[connection]
        try:
            number, word = connection.recv()
        except (EOFError, OSError):
            process = self._processes.pop(connection)
            del self._at_work[connection]
            process.join()
            if work is not None:
                yield work[0], Outcome(work[1], "failed", _died(work[1], process.exitcode))
            return
        if isinstance(word, Outcome):
            self._at_work[connection] = None
            yield number, word
        elif work is not None:
            progress(number, work[1].source.name, *word)

    def _end(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()


def _died(job: Job, status: int | None) -> str:
    why = f"exit status {status}"
    if status is not None and status < 0:
        why = f"signal {signal.Signals(-status).name}"
    hint = ", perhaps for lack of memory" if status == -9 else ""
    return f"{job.source}: the process at work on it ended ({why}{hint})"


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Few threads each, that wait without taking the time of the others."""
    wanted = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(connection: Connection, options: Options, threads: int) -> None:
    """Denoise what comes, until nothing more comes."""
    import torch

    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides what Ctrl-C does
    signal.signal(signal.SIGTERM, _terminate)
    work: queue.Queue[tuple[int, Job] | None] = queue.Queue()
    stop = threading.Event()

    def listen() -> None:
        with suppress(EOFError, OSError):
            while True:
                word = connection.recv()
                if word == "stop":
                    stop.set()
                else:
                    work.put(word)
        # Nobody waits for the result any more.
        work.put(None)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, daemon=True).start()
    while (item := work.get()) is not None:
        number, job = item
        outcome = denoise_one(job, options, _Teller(connection, number), stop.is_set)
        with suppress(OSError):
            connection.send((number, outcome))


class _Teller:
    """Sends progress, not too often."""

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection, self._number, self._next = connection, number, 0.0

    def __call__(self, done: float, length: float) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _TOLD_S
            with suppress(OSError):
                self._connection.send((self._number, (done, length)))


def _terminate(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)
