"""The segments of a recording, cleaned in processes of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain

from ..denoise import Progress
from ..denoise.segment import Cleaned, Segment, SegmentMap, clean_in_turn
from .kept import Steps
from .workers import Died, NowAndThen, Workers

__all__ = ["in_processes"]

_AHEAD = 2  # segments in memory for each process


def in_processes(size: int, stopped: Callable[[], bool]) -> SegmentMap:
    """Return what cleans segments in `size` processes with one thread each.

    The result has the same bits as `clean_in_turn`'s with one thread. There are two segments for
    each process in memory, however long the recording is.
    """

    def spread(
        segments: Iterator[Segment], progress: Callable[[Progress], object] | None
    ) -> Iterator[tuple[Segment, Cleaned]]:
        first = next(segments, None)
        if first is None or min(size, first.count) == 1:
            yield from clean_in_turn(chain([first] if first else [], segments), progress)
            return
        segments = chain([first], segments)
        order: deque[Segment] = deque()
        done: dict[int, Cleaned] = {}
        made: dict[int, Steps] = {}
        note = progress or (lambda _: None)

        def feed() -> Iterator[tuple[int, Segment] | None]:
            while True:
                if len(order) >= _AHEAD * size:
                    yield None
                elif (segment := next(segments, None)) is not None:
                    order.append(segment)
                    yield segment.index, _alone(segment, size)
                else:
                    return

        def hear(number: int, _: Segment, steps: Steps) -> None:
            made.setdefault(number, []).extend(steps)
            if order[0].index == number:
                tell_progress()

        def tell_progress() -> None:
            """Tell the steps of the segment that is next; those of others wait for their turn."""
            segment = order[0]
            most = segment.settings.starts * segment.settings.steps
            for step, loss, ended in made.pop(segment.index, []):
                note(Progress(segment.index, segment.count, step, most, loss, ended))

        workers = Workers(_clean, min(size, first.count))
        for index, _, result in workers.run(feed(), hear, stopped):
            if isinstance(result, Died):
                raise ChildProcessError(
                    f"the process at work on segment {index} of {first.count} ended ({result.why})"
                )
            done[index] = result
            while order and order[0].index in done:
                tell_progress()
                segment = order.popleft()
                yield segment, done.pop(segment.index)
        for segment in segments:  # it was stopped before
            yield segment, Cleaned(segment.noisy.clone(), untouched=True)

    return spread


def _alone(segment: Segment, size: int) -> Segment:
    """Return what is sent to a process: not the rest of the recording, and its share of time."""
    limit = segment.time_limit
    if limit is not None:
        limit *= segment.count / -(-segment.count // size)
    return replace(segment, noisy=segment.noisy.clone(), time_limit=limit)


def _clean(segment: Segment, tell: Callable[[Steps], None], stopped: Callable[[], bool]) -> Cleaned:
    steps: Steps = []
    now_and_then = NowAndThen()

    def note(progress: Progress) -> bool:
        steps.append((progress.step, progress.loss, progress.ended))
        if progress.ended or now_and_then():
            tell(steps)
            steps.clear()
        return stopped()

    cleaned, _ = segment.clean(note)
    tell(steps)
    return cleaned
