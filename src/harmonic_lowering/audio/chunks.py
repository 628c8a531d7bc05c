"""The chunks of WAV, RF64, Wave64, AIFF and CAF files: what lies beside the samples.

Every one of these formats is a list of named chunks. libsndfile reads and writes those with the
samples; the others (bext, iXML, cue points, markers, INFO ...) are copied here byte for byte.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

__all__ = ["Chunk", "Chunks", "append", "info_chunk", "info_texts", "walk"]

_LONGEST = 64 << 20  # of one chunk, bytes; longer ones are not carried
_MOST = 4096  # chunks of one file
_GUID = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # Wave64: a name and these bytes
_LIST = bytes.fromhex("2f91cf11a5d628db04c10000")  # but for "riff" and "list"
_UNKNOWN = (0, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 0x7FFFFFFFFFFFFFFF)  # sizes of streams

# Those that hold the samples, that libsndfile writes, or that a change of the samples makes wrong.
_OWN = {
    b"fmt ", b"data", b"fact", b"ds64", b"PEAK", b"JUNK", b"junk", b"PAD ", b"FLLR", b"levl",
    b"slnt", b"MD5 ", b"COMM", b"SSND", b"FVER", b"desc", b"pakt", b"kuki", b"free", b"peak",
    b"ovvw",
}  # fmt: skip


@dataclass(frozen=True)
class Chunk:
    """A name of four bytes and what it holds."""

    name: bytes
    data: bytes

    def __str__(self) -> str:
        name = self.name.decode("latin-1").strip()
        return f"LIST {self.data[:4].decode('latin-1')}" if name == "LIST" else name


@dataclass
class Chunks:
    """What a walk over a file finds."""

    family: str  # "RIFF", "AIFF", "CAF": those with one namespace; or "AU"
    carried: list[Chunk]
    channel_mask: int | None = None
    too_long: list[str] | None = None
    data_start: int = 0
    data_size: int = 0  # as the header says
    present: int = 0  # bytes of it that are there

    @property
    def streamed(self) -> bool:
        """Whether the length of the samples was not known when the header was written."""
        size = self.data_size
        return size == 0 or size >= 2**62 or size >> 16 in (0x7FFF, 0xFFFF)

    @property
    def cut(self) -> bool:
        """Whether samples that the header promises are not there."""
        return self.present < self.data_size and not self.streamed


@dataclass(frozen=True)
class _Layout:
    kind: str
    family: str
    order: str  # of bytes
    head: int  # bytes of the file's header
    align: int

    def header(self, raw: bytes) -> tuple[bytes, int, int]:
        """Name and size of a chunk, and the bytes of its header."""
        if self.kind == "W64":
            name, size = raw[:4], struct.unpack("<Q", raw[16:24])[0]
            return (b"LIST" if name == b"list" else name), max(0, size - 24), 24
        if self.kind == "CAF":
            size = struct.unpack(">q", raw[4:12])[0]
            return raw[:4], 0xFFFFFFFFFFFFFFFF if size < 0 else size, 12
        return raw[:4], struct.unpack(self.order + "I", raw[4:8])[0], 8

    def make(self, chunk: Chunk) -> bytes:
        size = len(chunk.data)
        if self.kind == "W64":
            name = b"list" + _LIST if chunk.name == b"LIST" else chunk.name + _GUID
            raw = name + struct.pack("<Q", size + 24) + chunk.data
        elif self.kind == "CAF":
            raw = chunk.name + struct.pack(">q", size) + chunk.data
        else:
            raw = chunk.name + struct.pack(self.order + "I", size) + chunk.data
        return raw + bytes(-len(raw) % self.align)


def _layout(head: bytes) -> _Layout | None:
    if head[:4] in (b"RIFF", b"RF64", b"BW64", b"RIFX") and head[8:12] == b"WAVE":
        kind = "RF64" if head[:4] in (b"RF64", b"BW64") else "RIFF"
        return _Layout(kind, "RIFF", ">" if head[:4] == b"RIFX" else "<", 12, 2)
    if head[:4] == b"riff" and head[24:28] == b"wave":
        return _Layout("W64", "RIFF", "<", 40, 8)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _Layout("AIFF", "AIFF", ">", 12, 2)
    return _Layout("CAF", "CAF", ">", 8, 1) if head[:4] == b"caff" else None


def walk(file: BinaryIO) -> Chunks | None:
    """Read all chunks but the samples; None if the file is of another kind."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(40)
    if head[:4] == b".snd" and len(head) >= 24:  # no chunks, but a size
        start, size = struct.unpack(">II", head[4:12])
        return Chunks("AU", [], None, [], start, size, min(size, max(0, end - start)))
    layout = _layout(head)
    if layout is None:
        return None
    found = Chunks(layout.family, [], too_long=[])
    long_data = 0
    for name, place, size in _headers(file, layout, end):
        there = min(size, end - place)
        if name == b"ds64":
            file.seek(place + 8)
            long_data = int.from_bytes(file.read(8), "little")
        elif name in (b"data", b"SSND") and not found.data_start:
            extra = {"AIFF": 8, "CAF": 4}.get(layout.kind, 0)
            found.data_start = place + extra
            found.data_size = long_data or (size if size in _UNKNOWN else max(0, size - extra))
            found.present = min(found.data_size or end, max(0, end - found.data_start))
        elif name in (b"fmt ", b"chan"):
            file.seek(place)
            fmt = file.read(min(there, 40))
            found.channel_mask = _mask(fmt, layout)
            if name == b"chan" and there == size <= 40:
                found.carried.append(Chunk(name, fmt))
        elif name not in _OWN and there == size:
            if size > _LONGEST:
                found.too_long = [*(found.too_long or []), name.decode("latin-1").strip()]
            else:
                file.seek(place)
                found.carried.append(Chunk(name, file.read(size)))
    return found


def _headers(file: BinaryIO, layout: _Layout, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Give name, place and size of one chunk after the other, up to samples without a size."""
    place, long_data = layout.head, 0
    for _ in range(_MOST):
        file.seek(place)
        raw = file.read(24)
        if len(raw) < 8 or (layout.kind == "CAF" and len(raw) < 12):
            return
        if layout.kind == "W64" and len(raw) < 24:
            return
        name, size, length = layout.header(raw)
        yield name, place + length, size
        if name == b"ds64":
            long_data = int.from_bytes(raw[16:24], "little")
        if name == b"data" and long_data:
            size = long_data
        elif name in (b"data", b"SSND") and (size in _UNKNOWN):
            return
        place += length + size
        place += -place % layout.align if layout.kind == "W64" else size % layout.align
        if place >= end:
            return


def _mask(fmt: bytes, layout: _Layout) -> int | None:
    """Which speakers the channels belong to, if the file says so."""
    if layout.kind == "CAF":  # layout tag "use the bitmap"
        known = len(fmt) >= 8 and int.from_bytes(fmt[:4], "big") == 1 << 16
        return int.from_bytes(fmt[4:8], "big") if known else None
    tag = struct.unpack(layout.order + "H", fmt[:2])[0] if len(fmt) >= 24 else 0
    return struct.unpack(layout.order + "I", fmt[20:24])[0] if tag == 0xFFFE else None


def append(file: BinaryIO, chunks: Sequence[Chunk], channel_mask: int | None) -> None:
    """Add chunks behind the samples of a complete file, and say which speakers are meant."""
    file.seek(0)
    layout = _layout(file.read(40))
    assert layout is not None, "libsndfile wrote another kind of file"
    end = file.seek(0, os.SEEK_END)
    if channel_mask is not None and layout.family == "RIFF":
        for name, place, _ in _headers(file, layout, end):
            file.seek(place)
            if name == b"fmt " and _mask(file.read(40), layout) is not None:
                file.seek(place + 20)
                file.write(struct.pack(layout.order + "I", channel_mask))
            if name == b"data":
                break
    end = file.seek(0, os.SEEK_END)
    file.write(bytes(-end % layout.align))
    for chunk in chunks:
        file.write(layout.make(chunk))
    size = file.tell()
    if layout.kind == "W64":
        file.seek(16)
        file.write(struct.pack("<Q", size))
    elif layout.kind == "RF64":
        file.seek(20)
        file.write(struct.pack("<Q", size - 8))
    elif layout.kind != "CAF":
        if size - 8 > 0xFFFFFFFF:
            raise OSError("tags and chunks make it longer than 4 GiB; name it .rf64 or .w64")
        file.seek(4)
        file.write(struct.pack(layout.order + "I", size - 8))
    file.flush()


# Texts in chunks: LIST INFO of WAV, NAME and others of AIFF, info of CAF

INFO = {
    "title": "INAM", "artist": "IART", "album": "IPRD", "date": "ICRD", "genre": "IGNR",
    "comment": "ICMT", "copyright": "ICOP", "tracknumber": "ITRK", "composer": "IMUS",
    "language": "ILNG", "software": "ISFT", "engineer": "IENG", "keywords": "IKEY",
    "subject": "ISBJ", "source": "ISRC", "technician": "ITCH", "medium": "IMED",
    "archival location": "IARL", "commissioned": "ICMS",
}  # fmt: skip
_TEXTS = {b"NAME": "title", b"AUTH": "artist", b"(c) ": "copyright", b"ANNO": "comment"}


def info_texts(chunk: Chunk) -> dict[str, list[str]] | None:
    """What a chunk says in words, by the names of Vorbis comments; None if it holds no texts."""
    if chunk.name in _TEXTS:
        return {_TEXTS[chunk.name]: [_text(chunk.data)]}
    found: dict[str, list[str]] = {}
    if chunk.name == b"LIST" and chunk.data[:4] == b"INFO":
        names = {value: key for key, value in reversed(INFO.items())}
        place = 4
        while place + 8 <= len(chunk.data):
            name = chunk.data[place : place + 4].decode("latin-1")
            size = int.from_bytes(chunk.data[place + 4 : place + 8], "little")
            text = _text(chunk.data[place + 8 : place + 8 + size])
            if text:
                found.setdefault(names.get(name, name.lower()), []).append(text)
            place += 8 + size + size % 2
        return found
    if chunk.name == b"info":
        parts = chunk.data[4:].split(b"\0")
        for key, value in zip(parts[::2], parts[1::2], strict=False):
            found.setdefault(_text(key).lower(), []).append(_text(value))
        return found
    return None


def info_chunk(texts: dict[str, list[str]]) -> Chunk | None:
    """Make LIST INFO of those texts that it has names for."""
    data = b""
    for key, values in texts.items():
        name = INFO.get(key) or (key.upper() if len(key) == 4 and key.startswith("i") else None)
        if name:
            text = "; ".join(values).encode() + b"\0"
            data += name.encode() + len(text).to_bytes(4, "little") + text + bytes(len(text) % 2)
    return Chunk(b"LIST", b"INFO" + data) if data else None


def _text(data: bytes) -> str:
    data = data.split(b"\0")[0]
    try:
        return data.decode().strip()
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace").strip()
