"""Segments cleaned on a Ray cluster; everything else happens on the machine of the command.

The command reads and writes as always; only what `SegmentMap` does is done elsewhere. A few
segments more than there are processors are under way at any time, so memory is bounded. Ray
repeats what was at work on a machine that is lost; what is finished is kept until it is written.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from .. import __version__
from ..denoise import Progress
from ..denoise.noise_sample import NoiseSample
from ..denoise.segment import Cleaned, Segment, SegmentMap
from ..optional import import_optional
from .kept import Kept, Steps, digest

__all__ = ["Cluster", "connected"]

_POLL_S = 0.2  # between two looks at whether the run was stopped
_COUNT_S = 5.0  # between two looks at how many processors there are
_CONNECT_S = 5.0
_AHEAD = 2.0  # segments under way for each processor: one at work, one ready
_PER_FILE = 4  # segments of a recording at work at a time, where there are many recordings
_MOST_FILES = 32  # recordings at a time; each takes a process of about 400 MB here
_RETRIES = 3  # of a segment whose worker dies, before its recording fails
_SETTINGS = b"\4"  # the frame of HTTP/2 with which both sides begin
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)
_STORE_BYTES = 512 * 2**20  # of the object store of a local cluster, far more than is under way

Done = tuple[Cleaned, Steps]


@dataclass(frozen=True)
class Cluster:
    """A cluster; it is handed to other processes, each of which connects by itself."""

    address: str  # host:port
    files: int  # recordings at a time, which share what is under way

    def each(self, kept: Kept | None, stopped: Callable[[], bool]) -> SegmentMap:
        """Return what cleans the segments of a recording; those in `kept` are done already."""

        def spread(
            segments: Iterator[Segment], progress: Callable[[Progress], object] | None
        ) -> Iterator[tuple[Segment, Cleaned]]:
            with _UnderWay(self, kept) as under_way:
                yield from under_way.run(segments, progress, stopped)

        return spread


class _UnderWay:
    """The segments of one recording that were read and whose results were not yet taken."""

    def __init__(self, cluster: Cluster, kept: Kept | None) -> None:
        self._cluster, self._kept = cluster, kept
        self._ray = _connect(cluster.address)
        self._clean = self._ray.remote(_clean).options(
            num_cpus=1, max_retries=_RETRIES, scheduling_strategy="SPREAD"
        )
        self._noise: dict[int, Any] = {}  # sent once for all segments
        self._at_work: dict[Any, tuple[Segment, str]] = {}
        self._done: dict[int, Done] = {}
        self._count_again, self._limit = 0.0, 0

    def run(
        self,
        segments: Iterator[Segment],
        progress: Callable[[Progress], object] | None,
        stopped: Callable[[], bool],
    ) -> Iterator[tuple[Segment, Cleaned]]:
        """Give the results in the order of the segments."""
        order: deque[Segment] = deque()
        more = True
        while True:
            while more and len(order) < self._most() and not stopped():
                if (segment := next(segments, None)) is None:
                    more = False
                else:
                    order.append(segment)
                    self._begin(segment)
            if not order and not more:
                return
            if stopped():
                yield from self._as_they_are(order, segments)
                return
            if order[0].index in self._done:
                segment = order.popleft()
                cleaned, steps = self._done.pop(segment.index)
                if progress is not None:
                    most = segment.settings.most_steps
                    for step, loss, ended in steps:
                        progress(Progress(segment.index, segment.count, step, most, loss, ended))
                yield segment, cleaned
            else:
                self._wait()

    def _begin(self, segment: Segment) -> None:
        name = digest(segment)
        if self._kept is not None and (done := self._kept.get(name)) is not None:
            self._done[segment.index] = done
            return
        # A view would take all of its storage along.
        alone, sample = replace(segment, noisy=segment.noisy.clone()), None
        if isinstance(segment.noise, NoiseSample):
            alone = replace(alone, noise=None)
            if id(segment.noise) not in self._noise:
                self._noise[id(segment.noise)] = self._ray.put(segment.noise)
            sample = self._noise[id(segment.noise)]
        reference = self._clean.remote(alone, sample, _versions())
        self._at_work[reference] = (segment, name)

    def _wait(self) -> None:
        """Take what is finished, keep it, and free the cluster of it."""
        ready, _ = self._ray.wait(list(self._at_work), timeout=_POLL_S)
        for reference in ready:
            segment, name = self._at_work.pop(reference)
            cleaned, steps = self._get(reference, segment)
            if self._kept is not None:
                self._kept.put(name, cleaned, steps)
            self._done[segment.index] = cleaned, steps

    def _get(self, reference: Any, segment: Segment) -> Done:
        errors = self._ray.exceptions
        try:
            done: Done = self._ray.get(reference)
            return done
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, ImportError):
                raise ConnectionError(
                    f"the cluster's machines cannot run it ({cause}); install harmonic-lowering "
                    f"{__version__} there"
                ) from None
            raise cause from None
        except errors.RayError as error:
            why = str(error).strip().splitlines()[0].rstrip(".")
            raise ConnectionError(
                f"segment {segment.index} of {segment.count} was lost {_RETRIES + 1} times with "
                f"the process at work on it ({why}); perhaps for lack of memory"
            ) from error

    def _as_they_are(
        self, order: deque[Segment], rest: Iterator[Segment]
    ) -> Iterator[tuple[Segment, Cleaned]]:
        """Give what is done, and the rest as it is."""
        self._cancel()
        for segments in (order, rest):
            for segment in segments:
                cleaned, _ = self._done.get(segment.index, (None, []))
                yield segment, cleaned or Cleaned(segment.noisy.clone(), untouched=True)

    def _most(self) -> int:
        """How many segments of this recording may be under way.

        Its share of the processors; machines come and go. More while some of them are idle, as
        when the other recordings are done.
        """
        if time.monotonic() >= self._count_again:
            self._count_again = time.monotonic() + _COUNT_S
            most = math.ceil(_AHEAD * self._ray.cluster_resources().get("CPU", 0))
            idle = self._limit and self._ray.available_resources().get("CPU", 0) >= 1
            self._limit = 2 * self._limit if idle else math.ceil(most / self._cluster.files)
            self._limit = max(2, min(self._limit, most))
        return self._limit

    def _cancel(self) -> None:
        for reference in self._at_work:
            with suppress(Exception):
                self._ray.cancel(reference)
        self._at_work.clear()

    def __enter__(self) -> _UnderWay:
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel()


# On the cluster


def _versions() -> tuple[str, str]:
    return __version__, torch.__version__


def _clean(segment: Segment, sample: NoiseSample | None, versions: tuple[str, str]) -> Done:
    """Clean a segment in a worker; one thread, so that the bits do not depend on the machine."""
    if versions != _versions():
        names = [f"harmonic-lowering {v[0]} with torch {v[1]}" for v in (versions, _versions())]
        raise ConnectionError(
            f"{socket.gethostname()} has {names[1]} and this machine {names[0]}; install the same"
        )
    torch.set_num_threads(1)
    steps: Steps = []

    def note(progress: Progress) -> None:
        steps.append((progress.step, progress.loss, progress.ended))

    segment = segment if sample is None else replace(segment, noise=sample)
    cleaned, _ = segment.clean(note)
    return cleaned, steps


# The connection


@contextmanager
def connected(address: str, files: int | None, count: int) -> Iterator[Cluster]:
    """Connect to a cluster, or start one on this machine for as long as the command runs.

    It will work on `count` recordings, `files` at a time, by default as many as keep it busy.

    Raises
    ------
    ValueError
        If there is no cluster at the address.
    ImportError
        If Ray is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, _own_signals():
        try:
            ray = _start(folder) if address == "local" else _connect(_reachable(address))
        except (OSError, RuntimeError, ValueError) as error:
            why = " ".join((getattr(error, "strerror", None) or str(error)).split())
            raise ValueError(f"--cluster {address}: no cluster answers there ({why})") from error
        try:
            processors = int(ray.cluster_resources().get("CPU", 0))
            if processors < 1:
                raise ValueError(f"--cluster {address}: the cluster has no processor to work with")
            # No more than keep it busy: each connects by itself, and Ray's workers are of one
            # connection. Those of another are started anew, which imports torch again.
            default = min(_MOST_FILES, math.ceil(processors / _PER_FILE))
            if address == "local":
                address = ray.get_runtime_context().gcs_address
            else:  # who reads and writes the recordings connects; this process only waits
                ray.shutdown()
            yield Cluster(address, max(1, min(files or default, count)))
        finally:
            ray.shutdown()


def _reachable(address: str) -> str:
    """Ask whether somebody who speaks HTTP/2 listens there; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise ValueError("an address is HOST:PORT, as 10.0.0.1:6379, or the word local")
    with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S) as connection:
        connection.settimeout(_CONNECT_S)
        connection.sendall(_HELLO)
        answer = connection.recv(9)
    if answer[3:4] != _SETTINGS:
        raise ConnectionError("whoever listens there is not Ray")
    return address


def _ray() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its note about GPUs
    return import_optional("ray", "--cluster", "harmonic-lowering[cluster]")


def _connect(address: str) -> Any:
    ray = _ray()
    if not ray.is_initialized():
        with _own_signals():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    return ray


def _start(folder: str) -> Any:
    ray = _ray()
    ray.init(
        address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=_STORE_BYTES, _temp_dir=folder,
    )  # fmt: skip
    return ray


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray installs a handler of its own for SIGTERM; keep ours."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
