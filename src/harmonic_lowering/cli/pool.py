"""Recordings at work in processes of their own, or the segments of a single one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.context import BaseContext

from .files import PIPE, Job
from .task import Options, Outcome, denoise_one
from .workers import Died, NowAndThen, Workers

__all__ = ["Pool", "denoise_all"]

Told = Callable[[int, str, float, float], None]


def denoise_all(
    jobs: Sequence[tuple[int, Job]],
    options: Options,
    workers: int,
    progress: Told,
    stopped: Callable[[], bool],
) -> Iterator[tuple[int, Outcome]]:
    """Denoise recordings, `workers` at a time; give each one's outcome when it is there.

    Of a single recording it is the segments that are at work at a time. Once `stopped` returns
    true, those at work write their best so far and no more are begun.
    """
    alone = workers == 1 or len(jobs) == 1
    # Ray may end a process whose machine loses the cluster, so it is never this one, unless
    # the recording comes from or goes to a pipe of this process.
    piped = any(PIPE in (job.source, job.target) for _, job in jobs)
    if piped or (alone and options.cluster is None):
        for number, job in jobs:
            if stopped():
                return
            told = _told(progress, number, job)
            yield number, denoise_one(job, replace(options, processes=workers), told, stopped)
        return
    yield from Pool(options, min(workers, len(jobs))).run(jobs, progress, stopped)


def _told(progress: Told, number: int, job: Job) -> Callable[[float, float], None]:
    return lambda done, length: progress(number, job.source.name, done, length)


class Pool:
    """Recordings, `size` at a time, each in a process with `threads` threads."""

    def __init__(
        self,
        options: Options,
        size: int,
        *,
        threads: int = 1,
        context: BaseContext | None = None,
    ) -> None:
        self._workers = Workers(_Denoise(options), size, threads=threads, context=context)

    def run(
        self, jobs: Sequence[tuple[int, Job]], progress: Told, stopped: Callable[[], bool]
    ) -> Iterator[tuple[int, Outcome]]:
        """Give each job's outcome; whatever `progress` or `stopped` raises ends all at once."""

        def hear(number: int, job: Job, word: tuple[float, float]) -> None:
            progress(number, job.source.name, *word)

        for number, job, result in self._workers.run(iter(jobs), hear, stopped):
            if isinstance(result, Died):
                why = f"{job.source}: the process at work on it ended ({result.why})"
                result = Outcome(job, "failed", why)
            yield number, result


class _Denoise:
    """What a process of a `Pool` does."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def __call__(
        self, job: Job, tell: Callable[[tuple[float, float]], None], stopped: Callable[[], bool]
    ) -> Outcome:
        now_and_then = NowAndThen()

        def progress(done: float, length: float) -> None:
            if now_and_then():
                tell((done, length))

        return denoise_one(job, self.options, progress, stopped)
