"""Recordings to notes: a small network of harmonic layers, and MIDI files."""

from .midi import write_midi
from .notes import Note
from .transcriber import Transcriber, Transcription

__all__ = ["Note", "Transcriber", "Transcription", "write_midi"]
