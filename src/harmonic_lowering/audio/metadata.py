"""What goes with a recording beside its samples, from the file that is read to the one written."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from . import chunks as chunking
from . import tags as tagging
from .chunks import Chunk, Chunks
from .ffmpeg import Probe
from .formats import AudioFormat
from .tags import Tags

__all__ = ["Metadata"]

_FAMILIES = {
    "WAV": "RIFF",
    "WAVEX": "RIFF",
    "RF64": "RIFF",
    "W64": "RIFF",
    "AIFF": "AIFF",
    "CAF": "CAF",
}
_ID3 = {"RIFF": b"id3 ", "AIFF": b"ID3 "}
_MASK = "WAVEFORMATEXTENSIBLE_CHANNEL_MASK"  # the Vorbis comment that the flac program uses
_PERMISSIONS = stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class Metadata:
    """Tags, pictures, chunks (bext, iXML, cue points ...), speakers, dates and permissions."""

    source: Path | None = None  # for chapters, if ffmpeg can read it
    tags: Tags = field(default_factory=Tags)
    chunks: tuple[Chunk, ...] = ()
    family: str = ""  # of the chunks
    too_long: tuple[str, ...] = ()
    channel_mask: int | None = None
    times_ns: tuple[int, int] | None = None
    mode: int | None = None

    @classmethod
    def read(
        cls, file: BinaryIO, source: Path, found: Chunks | None, probe: Probe | None
    ) -> Metadata:
        """Collect everything about an open file whose chunks were walked already."""
        status = os.fstat(file.fileno())
        regular = stat.S_ISREG(status.st_mode)
        tags = tagging.read(file)
        mask = probe.channel_mask if probe else None
        if found is not None:
            mask = found.channel_mask or mask
            for chunk in found.carried:
                if chunk.name in _ID3.values():
                    tags = tagging.read_id3(chunk.data)
            for chunk in found.carried:
                for key, values in (chunking.info_texts(chunk) or {}).items():
                    if key not in tags.texts:
                        tags.add(key, values)
        if probe is not None and not tags:
            for key, value in probe.tags.items():
                name = {"track": "tracknumber", "disc": "discnumber", "album_artist": "albumartist"}
                key = name.get(key, key)
                if key not in tags.texts:
                    tags.add(key, [value])
        for key, value in getattr(tags.native, "items", lambda: [])() if mask is None else []:
            if key.upper() == _MASK:
                with suppress(ValueError, IndexError):
                    mask = int(value[0], 16)
        return cls(
            source if probe else None,
            tags,
            tuple(found.carried) if found else (),
            found.family if found else "",
            tuple(found.too_long or ()) if found else (),
            mask,
            (status.st_atime_ns, status.st_mtime_ns) if regular else None,
            status.st_mode & _PERMISSIONS if regular else None,
        )

    def write(self, file: BinaryIO, format: AudioFormat) -> list[str]:
        """Give a complete file of that format all of it; return what it cannot hold."""
        family = _FAMILIES.get(format.container, "")
        lost = list(self.too_long)
        mask = self.channel_mask
        if family:
            lost += self._write_chunks(file, family)
        else:
            lost += [str(chunk) for chunk in self.chunks if not self._told_in_words(chunk)]
            tags = self.tags
            if format.container in ("FLAC", "OGG") and mask is not None:
                tags = _with_mask(tags, mask)
            if tags:
                lost += tagging.write(file, tags)
        return list(dict.fromkeys(lost))

    def _write_chunks(self, file: BinaryIO, family: str) -> list[str]:
        if family == self.family:
            carried, lost = list(self.chunks), []
        else:
            carried = []
            lost = [str(chunk) for chunk in self.chunks if not self._told_in_words(chunk)]
            if self.tags and family in _ID3:
                data = tagging.id3_bytes(self.tags)
                carried += [Chunk(_ID3[family], data)] if data else []
                if family == "RIFF" and (info := chunking.info_chunk(self.tags.texts)):
                    carried.insert(0, info)
                if self.tags.others and not tagging.is_id3(self.tags.native):
                    lost.append("tags that hold no text")
            elif self.tags.texts:
                lost.append("tags")
            if self.tags.pictures and family not in _ID3:
                lost.append("pictures")
        if carried or self.channel_mask is not None:
            chunking.append(file, carried, self.channel_mask)
        return lost

    def _told_in_words(self, chunk: Chunk) -> bool:
        return chunk.name in (*_ID3.values(), b"chan") or chunking.info_texts(chunk) is not None

    def stamp(self, fd: int, path: Path) -> None:
        """Give a written file the dates and permissions of the recording."""
        with suppress(OSError):  # a file system without them
            if self.mode is not None and hasattr(os, "fchmod"):
                os.fchmod(fd, self.mode)
            if self.times_ns is not None:
                os.utime(fd if os.utime in os.supports_fd else path, ns=self.times_ns)


def _with_mask(tags: Tags, mask: int) -> Tags:
    texts = {**tags.texts, _MASK.lower(): [f"0x{mask:04X}"]}
    native = tags.native
    known = hasattr(native, "keys") and _MASK.lower() in [str(key).lower() for key in native]
    if known:
        return tags
    return Tags(texts, tags.pictures, None, tags.blocks, tags.others)
