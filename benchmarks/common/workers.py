"""Measurements in worker processes, one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any, TypeVar

import torch

__all__ = ["in_workers"]

Result = TypeVar("Result")


def in_workers(
    measure: Callable[..., Result], arguments: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[tuple[list[Result], int]]:
    """Call `measure` with each of `arguments`; yield the results as they come, and what is left.

    Started in the order of `arguments`. Whoever stops iterating ends what is running.
    """
    if not arguments:
        return
    # Read by the workers when they load numpy and torch, so before they start.
    os.environ |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    # Spawned: a fork would carry over torch's threads and this process's memory.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin)
    try:
        pending = {pool.submit(measure, *those) for those in arguments}
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield [future.result() for future in done], len(pending)
    finally:
        # A running measurement may take minutes, and its result would not be kept.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()  # even if it was killed


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
