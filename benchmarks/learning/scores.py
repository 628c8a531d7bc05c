"""Pieces of music21's corpus as voices: what training plays, and no test does."""

from __future__ import annotations

import json
from pathlib import Path

from .band import Voice

__all__ = ["read_scores"]

COMPOSERS = {
    "palestrina": 15, "monteverdi": 12, "trecento": 12, "josquin": 4, "handel": 4, "corelli": 4,
    "schumann": 4, "joplin": 2, "weber": 2, "mozart": 4, "haydn": 3,
}  # fmt: skip


def read_scores(file: Path) -> list[list[Voice]]:
    """Return pieces of music21's corpus, in quarters; none is by Bach, who is the test."""
    if file.exists():
        return json.loads(file.read_text())
    from music21 import corpus

    found = []
    for composer, pieces in COMPOSERS.items():
        paths = sorted(map(str, corpus.getComposer(composer)))
        for path in paths[:: max(1, len(paths) // pieces)][:pieces]:
            try:
                parts = list(corpus.parse(path).parts)[:6]
            except Exception as error:  # a few of its files are no scores
                print(f"left out {path}: {error}")
                continue
            voices = [
                [
                    (float(event.offset), float(event.quarterLength), pitch.midi)
                    for event in part.stripTies().flatten().notes
                    for pitch in event.pitches
                    if event.quarterLength
                ]
                for part in parts
            ]
            if any(voices):
                found.append([voice for voice in voices if voice])
        print(f"{composer}: {len(found)} pieces so far", flush=True)
    file.write_text(json.dumps(found))
    return found
