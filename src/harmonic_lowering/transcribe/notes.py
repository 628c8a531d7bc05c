"""From probabilities of frames and onsets to notes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .network import FRAME_S, LOWEST, PITCHES

__all__ = ["Note", "NoteTracker"]

_QUIET = 2  # frames below the threshold that end a note
_NEAR = 3  # frames before a run, in which an onset belongs to it
_CERTAIN = 0.7  # probability of a pitch that needs no onset …
_LASTING = 4  # … once it has lasted so many frames
_ATTACK = round(0.2 / FRAME_S)  # frames in which a note is loudest
_SHORTEST_S = 0.06
_MARGIN = 0.1  # above the threshold of a frame, for the mean of a note: noise has weak notes


@dataclass(frozen=True)
class Note:
    """A note.

    Attributes
    ----------
    start_s, end_s : float
        Seconds from the beginning.
    pitch : int
        MIDI number; 69 is A4, 440 Hz.
    probability : float
        Mean of its frames'.
    level_db : float
        The highest near its start; only differences between notes mean something.
    bend : tuple of float
        How many semitones the sound lies above its pitch, frame by frame (24 ms).
    """

    start_s: float
    end_s: float
    pitch: int
    probability: float
    level_db: float = 0.0
    bend: tuple[float, ...] = ()


class NoteTracker:
    """Finds notes in a stream of frames.

    A note starts at a peak of its onset's probability, or where its pitch is almost certain without
    one. It lasts until the pitch is gone for two frames, or starts anew.

    Parameters
    ----------
    onset, frame : float
        Thresholds of the two probabilities.
    """

    def __init__(self, onset: float, frame: float) -> None:
        self.onset, self.frame = onset, frame
        empty = np.zeros((PITCHES, 2), np.float32)
        # Frames whose right neighbours are not known, with two neighbours on the left.
        self._ahead: tuple[np.ndarray, ...] = (empty,) * 4
        self._now = -2  # the frame that the first of them is
        self._start = np.full(PITCHES, -1.0)  # of the note that sounds, in frames; -1: none
        self._count, self._quiet, self._run, self._onset = np.zeros((4, PITCHES), int)
        self._onset -= 1000
        self._sum, self._level = np.zeros(PITCHES), np.zeros(PITCHES)
        self._sounded = np.zeros(PITCHES, bool)
        self._bend: list[list[float]] = [[] for _ in range(PITCHES)]

    def feed(
        self, frames: np.ndarray, onsets: np.ndarray, levels: np.ndarray, bends: np.ndarray
    ) -> Iterator[Note]:
        """Take the next frames, each (88, T), and yield the notes that ended in them."""
        new = (frames, onsets, levels, bends)
        known = [np.concatenate(pair, 1) for pair in zip(self._ahead, new, strict=True)]
        frames, onsets, levels, bends = known
        peaks, centres = _peaks(onsets, self.onset)
        for t in range(2, frames.shape[1] - 2):
            yield from self._step(
                self._now + t, frames[:, t], levels[:, t], bends[:, t], peaks[:, t], centres[:, t]
            )
        self._now += max(0, frames.shape[1] - 4)
        self._ahead = tuple(part[:, -4:] for part in known)

    def finish(self) -> Iterator[Note]:
        """Yield the notes that last until the end."""
        nothing = np.zeros((PITCHES, 2 + _QUIET), np.float32)
        yield from self.feed(*(nothing,) * 4)

    def _step(
        self,
        t: int,
        frame: np.ndarray,
        level: np.ndarray,
        bend: np.ndarray,
        peak: np.ndarray,
        centre: np.ndarray,
    ) -> Iterator[Note]:
        sounds = frame >= self.frame
        self._run[sounds & ~self._sounded] = t
        self._sounded = sounds
        self._quiet = np.where(sounds, 0, self._quiet + 1)
        self._onset[peak] = t
        active = self._start >= 0
        ended = active & ((self._quiet >= _QUIET) | peak)
        for pitch in np.flatnonzero(ended):
            end = t if peak[pitch] else t + 1 - self._quiet[pitch]
            note = self._note(int(pitch), float(end))
            if note is not None:
                yield note
        alone = (
            (self._start < 0) & ~peak & sounds & (frame >= _CERTAIN)
            & (t - self._run >= _LASTING) & (self._onset < self._run - _NEAR)
        )  # fmt: skip
        for pitch in np.flatnonzero(peak | alone):
            start = self._run[pitch] if alone[pitch] else t + centre[pitch]
            self._start[pitch] = max(0.0, start)
            self._sum[pitch] = self._count[pitch] = 0
            self._quiet[pitch] = -1  # an onset may come a frame before its pitch
            self._level[pitch] = -np.inf
            self._bend[pitch] = []
        active = self._start >= 0
        self._sum[active] += frame[active]
        self._count[active] += 1
        early = active & (self._count <= _ATTACK)
        self._level[early] = np.maximum(self._level[early], level[early])
        for pitch in np.flatnonzero(active):
            self._bend[pitch].append(float(bend[pitch]))

    def _note(self, pitch: int, end: float) -> Note | None:
        start_s, end_s = float(self._start[pitch]) * FRAME_S, end * FRAME_S
        self._start[pitch] = -1
        probability = float(self._sum[pitch]) / max(1, int(self._count[pitch]))
        if end_s - start_s < _SHORTEST_S or probability < self.frame + _MARGIN:
            return None
        bend = tuple(self._bend[pitch][: max(1, round((end_s - start_s) / FRAME_S))])
        level_db = float(self._level[pitch])
        return Note(start_s, end_s, pitch + LOWEST, probability, level_db, bend)


def _peaks(onsets: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return where onsets are highest within two frames, and their centres of mass."""
    around = np.pad(onsets, ((0, 0), (2, 2)))
    shifted = [around[:, i : i + onsets.shape[1]] for i in range(5)]
    before2, before, here, after, after2 = shifted
    peak = (here >= threshold) & (here > np.maximum(before, before2))
    peak &= here >= np.maximum(after, after2)
    centre = (after - before) / np.maximum(before + here + after, 1e-9)
    return peak, centre
