"""The program ffmpeg, for the file types that libsndfile cannot read or write.

A file is handed over as ``file:`` and its absolute path, so that a name is never an option or a
protocol. Only containers that hold their sound themselves are opened: a playlist, or a script
that names other files, is refused whatever its suffix. A process that stands still is ended.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from .formats import AudioError, AudioFormat, Encoder

__all__ = ["Decoder", "Encoding", "Probe", "count_samples", "missing", "probe"]

_STALLED_S = 60  # without a byte of progress
_CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,asf_o,au,avi,avr,caf,codec2,dsf,dts,dtshd,eac3,flac,flv,"
    "gsm,iff,ircam,kux,loas,matroska,webm,mlp,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpc,mpc8,mpeg,mpegts,"
    "mpegtsraw,mxf,nistsphere,nsv,nut,ogg,oma,qcp,rm,rso,sds,shn,smjpeg,sox,spdif,swf,tak,truehd,"
    "tta,voc,w64,wav,wsd,wtv,wv,xwma"
)
_SAFE = ("-protocol_whitelist", "file,pipe", "-format_whitelist", _CONTAINERS)
_LAYOUTS = {  # channel masks, as in WAVE_FORMAT_EXTENSIBLE
    "mono": 0x4, "stereo": 0x3, "2.1": 0xB, "3.0": 0x7, "3.0(back)": 0x103, "4.0": 0x107,
    "quad": 0x33, "quad(side)": 0x603, "3.1": 0xF, "5.0": 0x37, "5.0(side)": 0x607, "4.1": 0x10F,
    "5.1": 0x3F, "5.1(side)": 0x60F, "6.0": 0x707, "6.0(front)": 0x6C3, "hexagonal": 0x137,
    "6.1": 0x70F, "6.1(back)": 0x13F, "6.1(front)": 0x6CB, "7.0": 0x637, "7.0(front)": 0x6C7,
    "7.1": 0x63F, "7.1(wide)": 0xFF, "7.1(wide-side)": 0x6CF, "octagonal": 0x737,
}  # fmt: skip
_TIMED = ("mov", "asf", "matroska", "flv", "wv", "tta", "ape", "caf")
_LOSSLESS = (
    "alac",
    "flac",
    "wavpack",
    "ape",
    "tta",
    "tak",
    "shorten",
    "truehd",
    "mlp",
    "wmalossless",
)


def missing() -> str | None:
    """Say what to do where ffmpeg is not installed; None where it is."""
    return None if shutil.which("ffmpeg") else "install the program ffmpeg (apt install ffmpeg)"


@dataclass(frozen=True)
class Probe:
    """What ffprobe says about the first sound track of a file."""

    sample_rate: int
    channels: int
    format: AudioFormat
    channel_mask: int | None = None
    seconds: float | None = None
    container: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    tracks: int = 1

    @property
    def timed(self) -> bool:
        """Whether the file tells its duration, and it is no estimate."""
        return self.container in _TIMED


def probe(path: Path) -> Probe:
    """Ask ffprobe about a file; an AudioError has the reason that it gives."""
    told = _run(
        "ffprobe", "-v", "error", "-of", "json", "-show_streams", "-show_format",
        "-select_streams", "a", *_SAFE, "-i", _url(path),
    )  # fmt: skip
    try:
        found: dict[str, Any] = json.loads(told.stdout or "{}")
    except ValueError:
        found = {}
    streams = found.get("streams", [])
    if not streams and not told.stderr.strip():
        raise AudioError(f"{path}: holds no sound")
    first = streams[0] if streams else {}
    rate, channels = _int(first.get("sample_rate")), _int(first.get("channels"))
    if not rate or not channels:
        said = _reason(told.stderr, path) or "no sound track that it can decode"
        raise AudioError(f"{path}: not a sound file that can be read, nor by ffmpeg ({said})")
    whole = found.get("format", {})
    bitrate = _int(first.get("bit_rate"))
    if not bitrate and len(streams) == 1:
        bitrate = _int(whole.get("bit_rate"))
    seconds = first.get("duration") or whole.get("duration")
    tags = {**whole.get("tags", {}), **first.get("tags", {})}
    return Probe(
        rate,
        channels,
        AudioFormat("FFMPEG", _subtype(first), bitrate=bitrate or None),
        _LAYOUTS.get(first.get("channel_layout", "")),
        float(seconds) if seconds else None,
        str(whole.get("format_name", "")).split(",")[0],
        {key.lower(): str(value) for key, value in tags.items()},
        len(streams),
    )


def _subtype(stream: dict[str, Any]) -> str:
    """Name the sample format as libsndfile would; a lossy one after its codec."""
    codec = str(stream.get("codec_name", "unknown"))
    if codec.startswith("pcm_") or codec in _LOSSLESS:
        kind = str(stream.get("sample_fmt", "s16")).rstrip("p")
        bits = _int(stream.get("bits_per_raw_sample"))
        if kind in ("flt", "dbl"):
            return "FLOAT" if kind == "flt" else "DOUBLE"
        return "PCM_16" if kind in ("u8", "s16") else "PCM_24" if 16 < bits <= 24 else "PCM_32"
    return codec.upper()


def count_samples(path: Path, found: Probe) -> int:
    """Give the length that the packets of a file add up to, without decoding them; 0 if unknown.

    An hour takes a fifth of a second. Only MP4 and its relatives count in samples; elsewhere the
    end is known when all is decoded.
    """
    if found.container != "mov":
        return 0
    if not found.format.lossy:
        return round((found.seconds or 0) * found.sample_rate)
    if found.format.subtype != "AAC":
        return 0
    told = _run(
        "ffmpeg", "-nostdin", "-v", "error", *_SAFE, "-i", _url(path), "-map", "0:a:0",
        "-c", "copy", "-f", "null", "-progress", "pipe:1", "-",
    )  # fmt: skip
    ends = [line for line in told.stdout.splitlines() if line.startswith("out_time_us=")]
    return round(_int(ends[-1].split("=")[1]) * found.sample_rate / 1e6) if ends else 0


class Decoder:
    """Samples of the first sound track of a file, from its beginning to its true end."""

    def __init__(self, path: Path, found: Probe) -> None:
        self.path, self.problem = path, ""
        wide = found.format.dtype == torch.float64
        self.dtype = torch.float64 if wide else torch.float32
        self._frame = found.channels * self.dtype.itemsize
        self._channels = found.channels
        self._rest = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        sample_format = "f64le" if wide else "f32le"
        self._process = subprocess.Popen(
            [_program("ffmpeg"), "-nostdin", "-v", "error", "-threads", "1", *_SAFE,
             "-i", _url(path), "-map", "0:a:0", "-vn", "-sn", "-dn", "-c:a", f"pcm_{sample_format}",
             "-f", sample_format, "pipe:1"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip

    def read(self, count: int) -> Tensor:
        """Give the next (C, n) samples, n <= count; none at the end."""
        assert self._process.stdout is not None
        wanted = count * self._frame
        parts, size = [self._rest], len(self._rest)
        while size < wanted:
            part = _read_some(self._process.stdout, wanted - size)
            if part is None:
                self.problem = f"ffmpeg gave nothing for {_STALLED_S} s"
                self._process.kill()
                break
            if not part:
                self._finish()
                break
            parts.append(part)
            size += len(part)
        data = b"".join(parts)
        whole = len(data) - len(data) % self._frame
        self._rest = data[whole:]
        if not whole:
            return torch.empty(self._channels, 0, dtype=self.dtype)
        samples = torch.frombuffer(bytearray(data[:whole]), dtype=self.dtype)
        return samples.reshape(-1, self._channels).T

    def _finish(self) -> None:
        status = self._process.wait()
        self._errors.seek(0)
        said = _reason(self._errors.read(65536).decode(errors="replace"), self.path)
        if said or status:
            self.problem = f"ffmpeg: {said or f'exit status {status}'}"

    def close(self) -> None:
        """End the process, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()


class Encoding:
    """Takes samples and has ffmpeg write them into an open file."""

    def __init__(
        self,
        target: int | Path,
        encoder: Encoder,
        format: AudioFormat,
        sample_rate: int,
        channels: int,
        *,
        channel_mask: int | None = None,
        source: Path | None = None,
    ) -> None:
        self.sample_format = "f64le" if format.dtype == torch.float64 else "f32le"
        codec = encoder.lossy if format.lossy else encoder.lossless
        options = ["-c:a", codec]
        if format.lossy:
            options += ["-b:a", str(format.bitrate or _usual_bitrate(sample_rate, channels))]
        else:
            options += ["-sample_fmt", "s16p" if format.depth == 16 else "s32p"]
            options += ["-bits_per_raw_sample", str(format.depth)]
        known = channel_mask is not None and channel_mask.bit_count() == channels
        layout = ["-channel_layout", hex(channel_mask or 0)] if known else []
        # Chapters, as of audiobooks, come from the recording itself; tags are written later.
        chapters = [] if source is None else [*_SAFE, "-i", _url(source)]
        kept = ["-map_chapters", "-1" if source is None else "1"]
        place = f"/dev/fd/{target}" if isinstance(target, int) else str(target.absolute())
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            [_program("ffmpeg"), "-nostdin", "-v", "error", "-y", "-threads", "1",
             "-f", self.sample_format, "-ar", str(sample_rate), "-ac", str(channels), *layout,
             "-i", "pipe:0", *chapters, "-map", "0:a", "-map_metadata:g", "-1", *kept, *options,
             "-f", encoder.muxer, f"file:{place}"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._errors,
            pass_fds=[target] if isinstance(target, int) else [],
        )  # fmt: skip

    def write(self, samples: Any) -> None:
        """Append an array (n, C)."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(samples.tobytes())
        except BrokenPipeError:  # it ended: close() says why
            raise OSError(self._said() or "ffmpeg ended too early") from None

    def _said(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        return _reason(self._errors.read(65536).decode(errors="replace"), Path())

    def close(self) -> None:
        """Have the file completed; an OSError tells what went wrong."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        said = self._said()
        self._errors.close()
        if self._process.returncode:
            raise OSError(said or f"ffmpeg ended with status {self._process.returncode}")

    def abort(self) -> None:
        """End the process; what it wrote is of no use."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._errors.close()


@functools.lru_cache(1)
def encoders() -> str:
    """What ffmpeg says it can encode to."""
    return _run("ffmpeg", "-hide_banner", "-encoders").stdout


def _usual_bitrate(sample_rate: int, channels: int) -> int:
    """96 kbit/s a channel at 44.1 kHz, less at low rates; more than two share."""
    return round(min(96_000, max(24_000, 2.2 * sample_rate)) * channels)


def _read_some(stream: IO[bytes], most: int) -> bytes | None:
    """Read what is there; None if nothing comes for long."""
    if os.name == "posix" and not select.select([stream], [], [], _STALLED_S)[0]:
        return None
    return os.read(stream.fileno(), min(most, 1 << 20))


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [_program(program), *arguments], stdin=subprocess.DEVNULL, capture_output=True,
            timeout=_STALLED_S, text=True, errors="replace", check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess([], 1, "", f"no answer in {_STALLED_S} s")


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise AudioError(f"the program {name} is not installed (apt install ffmpeg)")
    return path


def _url(path: Path) -> str:
    return f"file:{path.absolute()}"


def _reason(errors: str, path: Path) -> str:
    """Give the last line that ffmpeg wrote, without the file's name and addresses in memory."""
    about_covers = ("[png @", "[mjpeg @", "[bmp @", "[gif @", "[webp @")
    lines = [
        line
        for line in errors.splitlines()
        if line.strip() and "repeated" not in line and not line.startswith(about_covers)
    ]
    said = lines[-1].strip() if lines else ""
    said = said.replace(f"{_url(path)}: ", "").replace(str(path.absolute()), path.name)
    return said.split("] ", 1)[-1][:200]


def _int(text: Any) -> int:
    try:
        return int(text)
    except (TypeError, ValueError):
        return 0
