"""Finished segments of a recording, kept beside its result until that is written.

A run that was killed goes on with them. Each has a name made of everything that it depends on, so
that one of another sound, other settings or another version is never taken; and they lie in a
hidden folder of their own, so that nobody takes them for a result.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from .. import __version__
from ..denoise.segment import Cleaned, Found, Segment
from .storage import Place, names_in, read_bytes, remove_folder, write_bytes

__all__ = ["Kept", "Steps", "digest"]

Steps = list[tuple[int, float, str]]  # number, loss and why it was the last, or empty
_PLACE = ("index", "count")  # of a segment, on which its result does not depend


def digest(segment: Segment) -> str:
    """Return a name for all that the result of a segment depends on, besides the processor."""
    found = hashlib.sha256(f"{__version__} {torch.__version__}".encode())
    for field in fields(segment):
        if field.name not in _PLACE:
            found.update(f"\0{field.name}\0".encode())
            _add(found, getattr(segment, field.name))
    return found.hexdigest()


def _add(found: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        found.update(f"{value.dtype} {tuple(value.shape)}".encode())
        found.update(value.contiguous().numpy())
    elif is_dataclass(value):
        found.update(f"{type(value).__name__}(".encode())
        for field in fields(value):
            _add(found, getattr(value, field.name))
    elif isinstance(value, (list, tuple)):
        found.update(f"{len(value)}[".encode())
        for item in value:
            _add(found, item)
    else:
        found.update(f"{value!r},".encode())


class Kept:
    """The folder of one result."""

    def __init__(self, target: Place) -> None:
        name = hashlib.sha256(target.name.encode(errors="surrogateescape")).hexdigest()[:12]
        self.folder = target.with_name(f".harmonic-lowering-{name}.segments")
        self._names = names_in(self.folder)

    def get(self, name: str) -> tuple[Cleaned, Steps] | None:
        """Return a segment that was finished before, if it is there and whole."""
        data = read_bytes(self.folder / name) if name in self._names else None
        if data is None or hashlib.sha256(data[32:]).digest() != data[:32]:
            return None
        clean, found, steps = torch.load(io.BytesIO(data[32:]), weights_only=True)
        return Cleaned(clean, None if found is None else Found(*found)), steps

    def put(self, name: str, cleaned: Cleaned, steps: Steps) -> None:
        """Keep a finished segment."""
        found = None if cleaned.found is None else tuple(cleaned.found)
        file = io.BytesIO()
        torch.save((cleaned.clean, found, steps), file)
        data = file.getvalue()
        write_bytes(self.folder / name, hashlib.sha256(data).digest() + data)
        self._names.add(name)

    def clear(self) -> None:
        """The result is written: remove them."""
        if self._names:
            remove_folder(self.folder)
