"""`python -m benchmarks.formats`: what happens to files of every kind; writes docs/formats.md.

Each file comes from a real encoder, and what the package reads is compared with what ffmpeg
decodes. Nothing in the table is written by hand.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from mutagen.flac import Picture

from harmonic_lowering.audio import FILE_TYPES, AudioError, AudioReader, AudioWriter, replacing
from harmonic_lowering.audio.tags import Tags, write

PAGE = Path(__file__).parents[1] / "docs" / "formats.md"
SECONDS = 4.0
KINDS: list[tuple[str, str, Sequence[str]]] = [
    ("WAV, 16 bits", "a.wav", ()),
    ("WAV, 24 bits", "b.wav", ("-c:a", "pcm_s24le")),
    ("WAV, floating", "c.wav", ("-c:a", "pcm_f32le")),
    ("WAV, µ-law", "d.wav", ("-c:a", "pcm_mulaw")),
    ("WAV, MS ADPCM", "e.wav", ("-c:a", "adpcm_ms")),
    ("WAV, IMA ADPCM", "f.wav", ("-c:a", "adpcm_ima_wav")),
    ("WAV, GSM", "g.wav", ("-ac", "1", "-ar", "8000", "-c:a", "gsm_ms")),
    ("WAV, G.726", "h.wav", ("-ac", "1", "-ar", "8000", "-c:a", "g726")),
    ("WAV, MP3 inside", "i.wav", ("-c:a", "libmp3lame")),
    ("RF64", "a.rf64", ("-rf64", "always", "-f", "wav")),
    ("Wave64", "a.w64", ()),
    ("AIFF", "a.aiff", ("-write_id3v2", "1")),
    ("AU", "a.au", ()),
    ("CAF", "a.caf", ()),
    ("CAF, ALAC", "b.caf", ("-c:a", "alac")),
    ("FLAC", "a.flac", ()),
    ("Ogg Vorbis", "a.ogg", ("-c:a", "libvorbis", "-page_duration", "200000")),
    ("Opus", "a.opus", ("-c:a", "libopus", "-page_duration", "200000")),
    ("MP3, constant rate", "a.mp3", ("-b:a", "128k")),
    ("MP3, variable rate", "b.mp3", ("-q:a", "4")),
    ("MP3, no Xing header", "c.mp3", ("-q:a", "4", "-write_xing", "0")),
    ("M4A, AAC", "a.m4a", ("-c:a", "aac", "-movflags", "+faststart")),
    ("M4A, ALAC", "b.m4a", ("-c:a", "alac", "-movflags", "+faststart")),
    ("AAC, bare", "a.aac", ("-c:a", "aac")),
    ("WMA", "a.wma", ("-c:a", "wmav2")),
    ("WavPack", "a.wv", ()),
    ("TTA", "a.tta", ()),
    ("AC-3", "a.ac3", ()),
    ("MP2", "a.mp2", ()),
    ("Matroska, FLAC", "a.mka", ("-c:a", "flac")),
    ("WebM, Opus", "a.webm", ("-c:a", "libopus")),
    ("AVI, MP3", "a.avi", ("-c:a", "libmp3lame")),
    ("MPEG-TS, AAC", "a.ts", ("-c:a", "aac")),
]


def decoded(path: Path, channels: int) -> torch.Tensor:
    told = subprocess.run(
        ["ffmpeg", "-nostdin", "-v", "quiet", "-i", f"file:{path}", "-map", "0:a:0",
         "-f", "f32le", "pipe:1"], capture_output=True, check=False,
    )  # fmt: skip
    samples = torch.from_numpy(np.frombuffer(told.stdout, np.float32).copy())
    return samples.reshape(-1, channels).T


def copied(source: Path, target: Path) -> None:
    with AudioReader(source) as reader, AudioWriter(
        target, reader.sample_rate, reader.channels, reader.format, metadata=reader.metadata
    ) as writer:  # fmt: skip
        writer.write(reader.read())


def row(label: str, path: Path, folder: Path) -> list[str]:
    with AudioReader(path) as reader:
        expected = decoded(path, reader.channels)
        found = reader.read().float()
        length = min(found.shape[1], expected.shape[1])
        worst = float((found[:, :length] - expected[:, :length]).abs().max())
        by = "ffmpeg" if reader.format.container == "FFMPEG" else "libsndfile"
        seek = "at once" if reader.format.plain else "by decoding"
        total = reader.length
    read = "exact" if worst == 0 else f"to {worst:.0e}"
    if found.shape[1] != expected.shape[1]:
        read += f", {found.shape[1] - expected.shape[1]:+d} samples"
    kept = path.suffix[1:] in FILE_TYPES
    target = folder / f"out{path.suffix if kept else '.wav'}"
    tagged = folder / f"tagged{path.suffix}"
    tagged.write_bytes(path.read_bytes())
    if path.suffix in (".mp3", ".flac", ".ogg", ".opus", ".m4a", ".wv"):  # as a tagger would
        picture = Picture()
        picture.data, picture.mime, picture.type = b"\xff\xd8\xff" + bytes(99), "image/jpeg", 3
        with tagged.open("r+b") as file:
            write(file, Tags({"title": ["a title"]}, [picture]))
    before = _tags(tagged)
    copied(tagged, target)
    after = _tags(target)
    words = []
    if before.texts.get("title"):
        words.append("texts" if after.texts.get("title") == before.texts["title"] else "no texts")
    if before.pictures:
        same = [p.data for p in after.pictures] == [p.data for p in before.pictures]
        words.append("pictures" if same else "no pictures")
    tags = ", ".join(words) or "–"
    with AudioReader(target) as reader:
        written = reader.format.subtype.lower().replace("_", " ")
    return [label, by, read, f"{target.suffix}, {written}", tags, seek, cut(path, folder, total),
            joined(path, folder, total)]  # fmt: skip


def _tags(path: Path) -> Tags:
    with AudioReader(path) as reader:
        return reader.metadata.tags


def cut(path: Path, folder: Path, total: int) -> str:
    """Of a file cut at 60 %: the share that is read, and whether there is a note."""
    part = folder / f"cut{path.suffix}"
    part.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with AudioReader(part) as reader:
                share = reader.length / total
        except AudioError:
            return "refused"
    notes = [w for w in said if w.category is UserWarning]
    return f"{share:.0%}{', note' if notes else ''}"


def joined(path: Path, folder: Path, total: int) -> str:
    """Of two files in one: how many are read."""
    both = folder / f"joined{path.suffix}"
    both.write_bytes(path.read_bytes() * 2)
    try:
        with AudioReader(both) as reader:
            return f"{reader.length / total:.2f} of 2"
    except AudioError:
        return "refused"


def main() -> int:
    version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True)
    head = ["format", "decoder", "read", "written as", "tags kept", "seek", "cut at 60 %", "joined"]
    lines = []
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(place)
        time = np.arange(round(SECONDS * 44100)) / 44100
        sound = 0.2 * np.sin(2 * np.pi * 220 * time) * np.sin(2 * np.pi * 2 * time) ** 2
        noise = np.random.default_rng(0).normal(0, 0.02, (len(time), 2))
        soundfile.write(folder / "source.wav", sound[:, None] + noise, 44100, subtype="PCM_24")
        for label, name, options in KINDS:
            path = folder / name
            subprocess.run(
                ["ffmpeg", "-nostdin", "-v", "error", "-i", folder / "source.wav", "-metadata",
                 "title=a title", *options, path], check=True,
            )  # fmt: skip
            lines.append(row(label, path, folder))
            print(" | ".join(lines[-1]), flush=True)
    first = version.stdout.split("\n")[0].split(" Copyright")[0]
    text = f"""# Formats, measured

Made by `python -m benchmarks.formats`; do not edit. {first}, libsndfile {soundfile.__libsndfile_version__}.

Every file comes from a real encoder: {SECONDS:g} s of sound at 44.1 kHz, as a rule two channels.

- **read**: compared with what ffmpeg decodes from the same file.
- **written as**: what the command makes of it by default, and the sample format; a lossy codec keeps its bit rate.
- **tags kept**: in the file of that default. Between kinds of files texts and pictures go over, too; the tests try every pair.
- **seek**: *at once*, or by decoding from the beginning. Both read any stretch exactly.
- **cut at 60 %**: how much of a file whose last two fifths are missing is used, and whether a note says so.
- **joined**: how much is read of the same file twice in one, as some recorders and sites make them. Headers of WAV, FLAC, M4A and their kin say where the samples end; what follows does not count.

| {" | ".join(head)} |
|{" --- |" * len(head)}
"""  # noqa: E501
    text += "".join(f"| {' | '.join(line)} |\n" for line in lines)
    with replacing(PAGE) as part:
        part.write_text(text)
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
