"""Notes as a Standard MIDI File."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ..optional import import_optional
from .notes import Note

__all__ = ["write_midi"]

_TICKS = 480  # of a quarter note
_QUARTER_S = 0.5
_LOUDEST, _RANGE_DB = 110, 40.0  # velocity of the loudest note, and decibels down to velocity 1
_BEND_RANGE = 2  # semitones, of every synthesiser that is told nothing else
_CHANNELS = tuple(channel for channel in range(16) if channel != 9)  # 9 is percussion


def write_midi(path: str | os.PathLike[str], notes: Iterable[Note], *, bends: bool = False) -> None:
    """Write notes to a MIDI file, at 120 quarters a minute.

    The loudest note has velocity 110, one of half its amplitude 93. With `bends` notes go round 15
    channels, because a bend concerns all notes of its channel.
    """
    mido = import_optional("mido", "writing MIDI", "harmonic-lowering[transcribe]")
    notes = sorted(notes, key=lambda note: (note.start_s, note.pitch))
    loudest = max((note.level_db for note in notes), default=0.0)
    events = []  # (tick, order, message): ends before starts, bends between
    for number, note in enumerate(notes):
        channel = _CHANNELS[number % len(_CHANNELS)] if bends else 0
        velocity = _velocity(note.level_db - loudest)
        start = _tick(note.start_s)
        end = max(start + 1, _tick(note.end_s))
        key = {"note": note.pitch, "channel": channel}
        events.append((start, 2, mido.Message("note_on", velocity=velocity, **key)))
        events.append((end, 0, mido.Message("note_off", velocity=0, **key)))
        if bends:
            step_s = (note.end_s - note.start_s) / max(1, len(note.bend))
            for index, semitones in enumerate(note.bend or (0.0,)):
                pitch = round(8192 * min(1.0, max(-1.0, semitones / _BEND_RANGE)))
                message = mido.Message("pitchwheel", channel=channel, pitch=min(pitch, 8191))
                events.append((_tick(note.start_s + index * step_s), 1, message))
    file, track, now = mido.MidiFile(type=0, ticks_per_beat=_TICKS), mido.MidiTrack(), 0
    file.tracks.append(track)
    track.append(mido.MetaMessage("set_tempo", tempo=round(1e6 * _QUARTER_S)))
    for tick, _, message in sorted(events, key=lambda event: event[:2]):
        track.append(message.copy(time=tick - now))
        now = tick
    file.save(os.fspath(path))


def _tick(seconds: float) -> int:
    return round(seconds / _QUARTER_S * _TICKS)


def _velocity(below_loudest_db: float) -> int:
    return max(1, round(_LOUDEST * (1 + below_loudest_db / _RANGE_DB)))
