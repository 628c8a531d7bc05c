"""Tags and pictures, read and written by mutagen.

Between files of one kind every tag goes over as it is. Between kinds texts and pictures do, by the
names of Vorbis comments: ID3 (MP3, and a chunk of WAV and AIFF), MP4, ASF (WMA) and APEv2.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ..optional import import_optional

__all__ = ["Tags", "id3_bytes", "is_id3", "read", "read_id3", "write"]

# Vorbis comment: ID3 frame, MP4 atom, ASF attribute
_NAMES = {
    "title": ("TIT2", "\xa9nam", "Title"), "artist": ("TPE1", "\xa9ART", "Author"),
    "album": ("TALB", "\xa9alb", "WM/AlbumTitle"), "date": ("TDRC", "\xa9day", "WM/Year"),
    "albumartist": ("TPE2", "aART", "WM/AlbumArtist"), "genre": ("TCON", "\xa9gen", "WM/Genre"),
    "composer": ("TCOM", "\xa9wrt", "WM/Composer"), "copyright": ("TCOP", "cprt", "Copyright"),
    "comment": ("COMM", "\xa9cmt", "Description"), "lyrics": ("USLT", "\xa9lyr", "WM/Lyrics"),
    "tracknumber": ("TRCK", "trkn", "WM/TrackNumber"),
    "discnumber": ("TPOS", "disk", "WM/PartOfSet"),
    "grouping": ("TIT1", "\xa9grp", "WM/ContentGroupDescription"),
    "bpm": ("TBPM", "tmpo", "WM/BeatsPerMinute"), "isrc": ("TSRC", "", "WM/ISRC"),
    "organization": ("TPUB", "", "WM/Publisher"), "conductor": ("TPE3", "", "WM/Conductor"),
    "lyricist": ("TEXT", "", "WM/Writer"), "language": ("TLAN", "", "WM/Language"),
    "encoded-by": ("TENC", "\xa9too", "WM/EncodedBy"),
}  # fmt: skip
_ID3 = {frame: key for key, (frame, _, _) in _NAMES.items()} | {"TYER": "date"}
_MP4 = {atom: key for key, (_, atom, _) in _NAMES.items() if atom}
_ASF = {name: key for key, (_, _, name) in _NAMES.items()}
# What the encoder that made the source said about itself and its stream.
_STALE = {"encoder", "encoder_options", "waveformatextensible_channel_mask", "creation_time",
          "major_brand", "minor_version", "compatible_brands", "handler_name", "vendor_id",
          "duration", "encoded_by", "iTunSMPB", "itunsmpb"}  # fmt: skip
_FREEFORM = "----:com.apple.iTunes:"


@dataclass
class Tags:
    """Texts by the names of Vorbis comments, pictures, and the tags as they came (`native`)."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    pictures: list[Any] = field(default_factory=list)  # mutagen.flac.Picture
    native: Any = None  # mutagen's tags
    blocks: list[Any] = field(default_factory=list)  # of a FLAC file, beside its tags
    others: int = 0  # frames that have no text, as chapters and private data
    has_id3v1: bool = False

    def __bool__(self) -> bool:
        return bool(self.texts or self.pictures or self.native or self.blocks)

    def add(self, key: str, values: Iterable[str]) -> None:
        """Add texts, but those that say nothing about the recording."""
        kept = [value for value in values if value and not value.startswith(("Lavf", "Lavc"))]
        if kept and key.lower() not in _STALE:
            known = self.texts.setdefault(key.lower(), [])
            known += [value for value in kept if value not in known]


def read(file: BinaryIO) -> Tags:
    """Read the tags of a file that mutagen knows; empty ones for any other."""
    mutagen = _mutagen()
    file.seek(0)
    try:
        found = mutagen.File(file)
    except Exception:  # damaged tags raise whatever their bytes led to
        return Tags()
    kind = type(found).__name__
    if found is None or kind in ("WAVE", "AIFF"):  # their chunks are carried as they are
        return Tags()
    if kind in ("MP3", "TrueAudio", "AAC", "AC3") or found.tags is None:
        tags = Tags() if found.tags is None else _from_id3(found.tags)
        if kind == "MP3":  # as it is stored, not translated to ID3v2.4
            file.seek(0)
            tags.native = _id3(file)
            file.seek(-128, io.SEEK_END)
            tags.has_id3v1 = file.read(3) == b"TAG"
        return _with_blocks(tags, found)
    tags = Tags(native=found.tags)
    try:
        _READERS.get(type(found.tags).__name__, _from_comments)(tags, found.tags)
    except Exception:  # a tag of a strange type: the others came over
        tags.others += 1
    return _with_blocks(tags, found)


def _with_blocks(tags: Tags, found: Any) -> Tags:
    if type(found).__name__ == "FLAC":
        # A picture, a cue sheet and data of applications; mutagen handles the rest itself.
        tags.blocks = [block for block in found.metadata_blocks if block.code in (2, 5, 6)]
        tags.pictures += found.pictures
    return tags


def _id3(file: BinaryIO) -> Any:
    mutagen = _mutagen()
    try:
        return mutagen.id3.ID3(file, translate=False)
    except Exception:
        return None


def read_id3(data: bytes) -> Tags:
    """Read the ID3 tag of a chunk."""
    try:
        return _from_id3(_mutagen().id3.ID3(io.BytesIO(data)))
    except Exception:
        return Tags()


def _from_id3(id3: Any) -> Tags:
    tags = Tags(native=id3)
    for frame in id3.values():
        name = frame.FrameID
        if name == "APIC":
            tags.pictures.append(_picture(frame.data, frame.mime, frame.type, frame.desc))
        elif name in ("COMM", "USLT"):
            text = frame.text if isinstance(frame.text, list) else [frame.text]
            plain = not frame.desc or name == "USLT"
            tags.add(_ID3[name] if plain else f"comment:{frame.desc}", map(str, text))
        elif name == "TXXX":
            tags.add(frame.desc, map(str, frame.text))
        elif name == "TCON":
            tags.add("genre", frame.genres)
        elif name[0] == "T" and hasattr(frame, "text") and name != "TSSE":
            tags.add(_ID3.get(name, name.lower()), map(str, frame.text))
        elif name != "TSSE":
            tags.others += 1
    return tags


def _from_comments(tags: Tags, comments: Any) -> None:
    for key, value in comments:
        if key.lower() == "metadata_block_picture":
            import base64

            tags.pictures.append(_mutagen().flac.Picture(base64.b64decode(value)))
        else:
            tags.add(key, [value])


def _from_mp4(tags: Tags, atoms: Any) -> None:
    for key, values in atoms.items():
        if key == "covr":
            for cover in values:
                mime = "image/png" if cover.imageformat == cover.FORMAT_PNG else "image/jpeg"
                tags.pictures.append(_picture(bytes(cover), mime))
        elif key in ("trkn", "disk"):
            tags.add(_MP4[key], (f"{n}/{total}" if total else f"{n}" for n, total in values))
        elif key == "\xa9too":
            continue
        elif key.startswith("----:"):
            tags.add(key.rsplit(":", 1)[1], (bytes(v).decode("utf-8", "replace") for v in values))
        elif isinstance(values, list) and all(isinstance(v, (str, int)) for v in values):
            tags.add(_MP4.get(key, key.strip("\xa9")), map(str, values))
        else:
            tags.others += 1


def _from_asf(tags: Tags, attributes: Any) -> None:
    for key, value in attributes:
        if key == "WM/Picture":
            kind, size = struct.unpack("<BI", value.value[:5])
            start = len(value.value) - size
            mime, text, _ = value.value[5:start].decode("utf-16-le").split("\0")
            tags.pictures.append(_picture(value.value[start:], mime, kind, text))
        elif key not in ("WM/EncodingSettings", "WMFSDKVersion", "WMFSDKNeeded", "IsVBR"):
            tags.add(_ASF.get(key, key), [str(value)])


def _from_ape(tags: Tags, items: Any) -> None:
    for key, value in items.items():
        if key.lower().startswith("cover art") and value.kind == 1:
            data = value.value.split(b"\0", 1)[-1]
            mime = "image/png" if data[:4] == b"\x89PNG" else "image/jpeg"
            tags.pictures.append(_picture(data, mime))
        elif value.kind == 0:
            name = {"track": "tracknumber", "year": "date", "disc": "discnumber"}.get(key.lower())
            tags.add(name or key, list(value))
        else:
            tags.others += 1


_READERS = {"MP4Tags": _from_mp4, "ASFTags": _from_asf, "APEv2": _from_ape}


def write(file: BinaryIO, tags: Tags) -> list[str]:
    """Give a complete file its tags; return what it cannot hold, in words."""
    mutagen = _mutagen()
    file.seek(0)
    target = mutagen.File(file)
    if target is None or type(target).__name__ in ("AAC", "AC3"):
        return ["tags"] if tags.texts else []
    kind = type(target).__name__
    if kind == "MP3":
        _save_id3(_as_id3(tags), file, v1=2 if tags.has_id3v1 else 1)
        return _others(tags, is_id3(tags.native))
    if target.tags is None:
        target.add_tags()
    same = type(tags.native) is type(target.tags)
    if kind == "FLAC":
        comments, same = _comments(tags), bool(tags.blocks) or same
        _set_comments(target.tags, comments)
        target.clear_pictures()
        for block in tags.blocks:
            if block.code != 6:
                target.metadata_blocks.append(block)
        for picture in tags.pictures:
            target.add_picture(picture)
    elif kind.startswith("Ogg"):
        import base64

        comments = _comments(tags)
        comments += [
            ("metadata_block_picture", base64.b64encode(picture.write()).decode())
            for picture in tags.pictures
        ]
        _set_comments(target.tags, comments)
        same = same or _is_vorbis(tags.native)
    elif same:
        target.tags.clear()
        for key in dict.fromkeys(tags.native.keys()):
            target.tags[key] = tags.native[key]
    elif kind == "MP4":
        _to_mp4(tags, target.tags)
    else:
        _to_ape(tags, target.tags)
    file.seek(0)
    target.save(file)
    return _others(tags, same)


def _others(tags: Tags, same: bool) -> list[str]:
    return ["tags that hold no text"] if tags.others and not same else []


def _comments(tags: Tags) -> list[tuple[str, str]]:
    """Vorbis comments: in the order and letter case of the source if it has such."""
    native = tags.native
    if _is_vorbis(native):
        skipped = {"metadata_block_picture", "encoder", "encoder_options"}
        return [(key, value) for key, value in native if key.lower() not in skipped]
    return [(key.upper(), value) for key, values in tags.texts.items() for value in values]


def _set_comments(target: Any, comments: list[tuple[str, str]]) -> None:
    del target[:]
    for key, value in comments:
        valid = "".join(c for c in key if " " <= c <= "}" and c != "=") or "COMMENT"
        target.append((valid, value))


def _is_vorbis(native: Any) -> bool:
    return hasattr(native, "vendor")


def is_id3(native: Any) -> bool:
    """Whether tags are those of an ID3 tag."""
    return hasattr(native, "getall") and hasattr(native, "setall")


def _as_id3(tags: Tags) -> Any:
    id3 = _mutagen().id3
    if is_id3(tags.native):
        return tags.native
    made = id3.ID3()
    for key, values in tags.texts.items():
        name = _NAMES.get(key, ("",))[0]
        if name in ("COMM", "USLT"):
            made.add(getattr(id3, name)(3, lang="und", desc="", text="\n".join(values)))
        elif name:
            made.add(getattr(id3, name)(3, text=values))
        elif len(key) == 4 and key.upper() in id3.Frames and key.startswith("t"):
            made.add(id3.Frames[key.upper()](3, text=values))
        else:
            made.add(id3.TXXX(3, desc=key, text=values))
    for picture in tags.pictures:
        made.add(id3.APIC(3, picture.mime, picture.type, picture.desc, picture.data))
    return made


def _save_id3(made: Any, file: BinaryIO, v1: int = 1) -> None:
    """Save an ID3 tag in the version that it came in."""
    old = made.version < (2, 4, 0)
    file.seek(0)
    made.save(file, v1=v1, v2_version=3 if old else 4)


def id3_bytes(tags: Tags) -> bytes:
    """The ID3 tag that a chunk of WAV or AIFF holds; empty without tags."""
    made = _as_id3(tags)
    file = io.BytesIO()
    if made:
        made.save(file, v1=0, padding=lambda _: 0)
    return file.getvalue()


def _to_mp4(tags: Tags, atoms: Any) -> None:
    mp4 = _mutagen().mp4
    for key, values in tags.texts.items():
        atom = _NAMES.get(key, ("", ""))[1]
        numbers = [_numbers(value) for value in values]
        if atom in ("trkn", "disk") and all(numbers):
            atoms[atom] = numbers
        elif atom == "tmpo" and values[0].isdigit():
            atoms[atom] = [int(values[0])]
        elif atom and atom not in ("trkn", "disk", "tmpo"):
            atoms[atom] = values
        else:
            name = key.upper() if key in _NAMES else key
            atoms[_FREEFORM + name] = [value.encode() for value in values]
    covers = []
    for picture in tags.pictures:
        png = picture.data[:4] == b"\x89PNG"
        form = mp4.MP4Cover.FORMAT_PNG if png else mp4.MP4Cover.FORMAT_JPEG
        covers.append(mp4.MP4Cover(picture.data, form))
    if covers:
        atoms["covr"] = covers


def _to_ape(tags: Tags, items: Any) -> None:
    ape = _mutagen().apev2
    for key, values in tags.texts.items():
        name = {"tracknumber": "Track", "date": "Year", "discnumber": "Disc"}.get(key, key)
        items[name] = values
    for picture in tags.pictures[:1]:
        file = b"cover.png" if picture.data[:4] == b"\x89PNG" else b"cover.jpg"
        items["Cover Art (Front)"] = ape.APEValue(file + b"\0" + picture.data, ape.BINARY)


def _numbers(text: str) -> tuple[int, int] | None:
    number, _, total = text.partition("/")
    if not number.strip().isdigit() or (total.strip() and not total.strip().isdigit()):
        return None
    numbers = int(number), int(total or 0)
    return numbers if max(numbers) < 65536 else None


def _picture(data: bytes, mime: str, kind: int = 3, text: str = "") -> Any:
    picture = _mutagen().flac.Picture()
    picture.data, picture.mime, picture.type, picture.desc = data, mime, int(kind), text
    return picture


def _mutagen() -> Any:
    install = "harmonic-lowering[audio]"
    for part in ("flac", "id3", "mp4", "asf", "apev2", "wave"):
        import_optional(f"mutagen.{part}", "keeping tags", install)
    return import_optional("mutagen", "keeping tags", install)
