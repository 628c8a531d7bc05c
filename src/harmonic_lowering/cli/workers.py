"""Work in processes of its own, several pieces at a time with few threads each."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from types import FrameType
from typing import Any, TypeAlias

__all__ = ["Died", "NowAndThen", "Work", "Workers"]

_TOLD_S = 0.5  # between two words about progress

# work(item, tell, stopped) gives the result of an item in another process. `tell` sends a word
# about it, and once `stopped` returns true the best so far is wanted.
Work: TypeAlias = Callable[[Any, Callable[[Any], None], Callable[[], bool]], Any]


@dataclass(frozen=True)
class Died:
    """The result of an item whose process ended."""

    why: str


class Workers:
    """`size` processes with `threads` threads each, started by `context` (spawned by default)."""

    def __init__(
        self,
        work: Work,
        size: int,
        *,
        threads: int = 1,
        context: BaseContext | None = None,
    ) -> None:
        self._work, self._size, self._threads = work, size, threads
        self._context: Any = context or multiprocessing.get_context("spawn")
        self._at_work: dict[Connection, tuple[int, Any] | None] = {}
        self._processes: dict[Connection, Any] = {}

    def run(
        self,
        items: Iterator[tuple[int, Any] | None],
        hear: Callable[[int, Any, Any], object],
        stopped: Callable[[], bool],
    ) -> Iterator[tuple[int, Any, Any]]:
        """Give number, item and result of each item, in the order in which they are finished.

        Items are taken when there is a process for them; None says that there is none yet. Once
        `stopped` returns true no more are taken. Whatever an item, `hear`, which gets the words
        that are told, or `stopped` raises ends all at once.
        """
        told_to_stop = False
        try:
            with _environment(self._threads):
                while True:
                    if stopped() and not told_to_stop:
                        told_to_stop, items = True, iter(())
                        for connection in self._at_work:
                            _send(connection, "stop")
                    if not self._employ(items) and not any(self._at_work.values()):
                        return
                    ready = wait(list(self._at_work), timeout=0.2)
                    for connection in [c for c in self._at_work if c in ready]:
                        yield from self._hear(connection, hear)
        finally:
            self._end()

    def _employ(self, items: Iterator[tuple[int, Any] | None]) -> bool:
        """Give an item to everybody who has none; say whether there may be more."""
        while None in self._at_work.values() or len(self._at_work) < self._size:
            item = next(items, _LAST)
            if item is None or item is _LAST:
                return item is None
            free = (c for c, work in self._at_work.items() if work is None)
            connection = next(free, None) or self._start()
            self._at_work[connection] = item
            _send(connection, item)
        return True

    def _start(self) -> Connection:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there, self._work, self._threads))
        with _interrupts_ignored():  # a Ctrl-C comes to the first process only
            process.start()
        there.close()
        self._processes[here] = process
        connection: Connection = here
        return connection

    def _hear(
        self, connection: Connection, hear: Callable[[int, Any, Any], object]
    ) -> Iterator[tuple[int, Any, Any]]:
        work = self._at_work[connection]
        try:
            finished, word = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            process = self._processes.pop(connection)
            del self._at_work[connection]
            process.join()
            if work is not None:
                yield *work, Died(_why(process.exitcode))
            return
        if work is None:
            return
        if not finished:
            hear(*work, word)
            return
        if isinstance(word, Exception):
            raise word
        self._at_work[connection] = None
        yield *work, word

    def _end(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes.clear()
        self._at_work.clear()


_LAST = (-1, None)


def _send(connection: Connection, word: Any) -> None:
    # Pickled here: by itself a connection would send tensors as shared memory and open files,
    # of which there are few in containers. A process that has ended is noticed when it is heard.
    with suppress(OSError):
        connection.send_bytes(pickle.dumps(word))


def _why(status: int | None) -> str:
    why = f"exit status {status}"
    if status is not None and status < 0:
        why = f"signal {signal.Signals(-status).name}"
    return why + (", perhaps for lack of memory" if status == -9 else "")


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


def _serve(connection: Connection, work: Work, threads: int) -> None:
    """Do what comes, until nothing more comes."""
    import torch

    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides what Ctrl-C does
    signal.signal(signal.SIGTERM, _terminate)
    items: queue.Queue[Any] = queue.Queue()
    stop = threading.Event()

    def listen() -> None:
        with suppress(EOFError, OSError):
            while True:
                word = pickle.loads(connection.recv_bytes())
                if word == "stop":
                    stop.set()
                else:
                    items.put(word[1])
        # Nobody waits for the result any more.
        items.put(None)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, daemon=True).start()
    while (item := items.get()) is not None:
        try:
            result = work(item, lambda word: _send(connection, (False, word)), stop.is_set)
        except Exception as error:
            result = error
        _send(connection, (True, result))


def _terminate(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


class NowAndThen:
    """True at most every half second: how often words are told."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self) -> bool:
        """Whether it is time again."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + _TOLD_S
        return True
