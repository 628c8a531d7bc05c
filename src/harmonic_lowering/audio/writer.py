"""Writing a recording so that it keeps what it came with, and is whole when it appears."""

from __future__ import annotations

import functools
import io
import math
import os
import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..optional import import_optional
from . import ffmpeg
from .formats import AudioError, AudioFormat, encoder_for, soundfile
from .metadata import Metadata
from .output import Part
from .reader import _VORBIS, AudioReader

__all__ = ["AudioWriter"]

_LOUDEST_LOSSY = 100.0  # 40 dB above full scale
_DELAY = 8192  # samples by which a lossy codec of ffmpeg may make a file longer


class AudioWriter:
    """Writes a recording block by block; it appears under its name when `with` ends well.

    A rate that the codec does not take is converted. Before the file appears it is decoded to its
    end, as a full disk is not always reported.

    Parameters
    ----------
    path : path of the file
    sample_rate, channels : int >= 1
    format : AudioFormat
        As a reader gives it; a `path` of another type gets that type.
    clip : "saturate" or "error"
        What to do when a sample lies outside −1..1 and the sample format holds integers (or 40 dB
        above that, and it is lossy): hold it at the limit and warn at the end, or stop.
    metadata : Metadata, optional
        As a reader gives it: tags, chunks, speakers, dates, permissions.
    length : int
        Samples that will come, if known: beyond 4 GiB a WAV file becomes RF64.
    overwrite : bool
        Whether an existing file is replaced.

    Raises
    ------
    AudioError
        If the file type cannot hold the recording, or it cannot be written; in one sentence.

    Warns
    -----
    UserWarning
        If samples were clipped, the rate was converted, or something could not be kept.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample_rate: int,
        channels: int,
        format: AudioFormat,
        *,
        clip: str = "saturate",
        metadata: Metadata | None = None,
        length: int = 0,
        overwrite: bool = True,
    ) -> None:
        if clip not in ("saturate", "error"):
            raise ValueError(f'clip must be "saturate" or "error", got {clip!r}')
        self.path = Path(path)
        self.format, self.target_rate = format.for_path(self.path, sample_rate, channels, length)
        self.sample_rate, self.channels, self.clip = sample_rate, channels, clip
        self.metadata, self.overwrite = metadata or Metadata(), overwrite
        self.clipped = 0
        # Integers end at full scale; encoders such as LAME abort far beyond it.
        self._limit = 1.0 if self.format.depth is not None else math.inf
        if self.format.lossy:
            self._limit = _LOUDEST_LOSSY
        self._encoder = encoder_for(self.path)
        if self._encoder is not None:
            codec = self._encoder.lossy if self.format.lossy else self._encoder.lossless
            if reason := ffmpeg.missing():
                raise AudioError(f"{self.path}: writing '{self.path.suffix}' needs it: {reason}")
            if f" {codec} " not in ffmpeg.encoders():
                raise AudioError(f"{self.path}: the ffmpeg here has no encoder {codec}")
        self._written = 0
        self._filled_up = 0  # samples of a last block
        self._part: Part | None = None
        self._sink: Any = None
        self._resampler: Any = None
        if self.target_rate != sample_rate:
            soxr = import_optional("soxr", "converting the rate", "harmonic-lowering[audio]")
            self._resampler = soxr.ResampleStream(
                sample_rate, self.target_rate, channels, "float64", quality="VHQ"
            )

    def __enter__(self) -> AudioWriter:
        self._part = Part(self.path).__enter__()
        try:
            self._sink = self._open(self._part)
        except (soundfile().SoundFileError, ValueError, OSError) as error:
            self._part.__exit__()
            raise AudioError(f"{self.path}: cannot be written ({error})") from error
        except BaseException:
            self._part.__exit__()
            raise
        return self

    def name(self, path: Path) -> None:
        """Have the file appear under another name in the same folder, and replace what is there."""
        assert self._part is not None
        self.path = self._part.target = path
        self.overwrite = True

    def _open(self, part: Part) -> Any:
        if self._encoder is not None:
            target: int | Path = part.fd if os.name == "posix" else part.path
            source = self.metadata.source if self._encoder.muxer == "ipod" else None
            return ffmpeg.Encoding(
                target, self._encoder, self.format, self.target_rate, self.channels,
                channel_mask=self.metadata.channel_mask, source=source,
            )  # fmt: skip
        return soundfile().SoundFile(
            os.dup(part.fd), "w", self.target_rate, self.channels,
            self.format.subtype, self.format.endian, self.format.container,
            **_compression(self.format, self.target_rate, self.channels),
        )  # fmt: skip

    def write(self, waveform: Tensor) -> None:
        """Append a Tensor [shape=(channels, samples)]."""
        if not bool(waveform.isfinite().all()):
            raise AudioError(f"{self.path}: the result is not finite; is the input far too loud?")
        if self._limit < math.inf:
            over = int((waveform.abs() > self._limit).sum())
            if over and self.clip == "error":
                raise AudioError(
                    f"{self.path}: {over} samples are louder than {self.format.subtype} holds; "
                    'lower the input, or choose the clip policy "saturate"'
                )
            self.clipped += over
        samples = waveform.detach().cpu().T.contiguous().numpy()
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples.astype("f8"))
        self._put(samples)

    def _put(self, samples: Any) -> None:
        if self._limit < math.inf:
            samples = samples.clip(-self._limit, self._limit)
        if self.format.container == "OGG" and self.channels in _VORBIS:
            samples = samples[:, _inverse(_VORBIS[self.channels])]
        if self._encoder is not None:
            samples = samples.astype("f8" if self.format.dtype == torch.float64 else "f4")
        self._written += len(samples)
        try:
            self._sink.write(samples)
        except (soundfile().SoundFileError, OSError) as error:
            raise self._full(error) from error

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        assert self._part is not None
        try:
            if kind is not None:
                self._abort()
                return
            if self._resampler is not None:
                self._put(
                    self._resampler.resample_chunk(_empty(self.channels).astype("f8"), last=True)
                )
            sink, self._sink = self._sink, None
            try:
                sink.close()
                lost = self._describe()
            except (soundfile().SoundFileError, OSError) as error:
                raise self._full(error) from error
            lost += self._verify()
            self.metadata.stamp(self._part.fd, self._part.path)
            self._part.publish(overwrite=self.overwrite)
        finally:
            self._abort()
            self._part.__exit__()
        self._report(lost)

    def _abort(self) -> None:
        sink, self._sink = self._sink, None
        if isinstance(sink, ffmpeg.Encoding):
            sink.abort()
        elif sink is not None:
            with suppress(soundfile().SoundFileError, OSError):
                sink.close()

    def _describe(self) -> list[str]:
        """Add tags and chunks; return what was lost."""
        assert self._part is not None
        with os.fdopen(os.dup(self._part.fd), "r+b") as file:
            try:
                return self.metadata.write(file, self.format)
            except OSError:
                raise
            except Exception as error:  # tags of strange types; the sound matters more
                file.flush()
                return [f"tags ({type(error).__name__})"]

    def _verify(self) -> list[str]:
        """Decode what was written, to its end; return what it did not take."""
        assert self._part is not None
        if not self._written:
            return []
        if not os.path.lexists(self._part.path):
            raise AudioError(f"{self.path}: cannot be written, its folder is gone")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with AudioReader(self._part.path) as written:
                    length, mask = written.length, written.metadata.channel_mask
            except AudioError as error:
                raise self._full("it does not decode") from error
        most = self._written + (
            _DELAY if self._encoder is not None else _longest_block(self.format)
        )
        if not self._written <= length <= most:
            raise self._full(f"{length} of {self._written} samples are there")
        self._filled_up = 0 if self._encoder is not None else length - self._written
        wanted = self.metadata.channel_mask
        moved = wanted is not None and self.channels > 2 and mask != wanted
        return ["which speaker a channel is for"] if moved else []

    def _report(self, lost: list[str]) -> None:
        if self.clipped:
            warnings.warn(
                f"{self.path}: {self.clipped} samples were louder than {self.format.subtype} "
                "holds and were cut at full scale; lower the input to avoid it",
                stacklevel=3,
            )
        if self._filled_up:
            warnings.warn(
                f"{self.path}: {self.format.subtype} comes in whole blocks, so {self._filled_up} "
                "samples follow the sound",
                stacklevel=3,
            )
        if self.target_rate != self.sample_rate:
            warnings.warn(
                f"{self.path}: was converted from {self.sample_rate} to {self.target_rate} Hz, "
                f"which {self.format.subtype} takes",
                stacklevel=3,
            )
        if lost:
            warnings.warn(
                f"{self.path}: this file type cannot hold {', '.join(lost)} of the input; "
                "they were left out",
                stacklevel=3,
            )

    def _full(self, error: object) -> AudioError:
        return AudioError(f"{self.path}: cannot be written, is the disk full? ({error})")


def _longest_block(format: AudioFormat) -> int:
    """Samples by which a file may be longer, as its codec knows whole blocks only."""
    return 0 if format.plain or format.container in ("FLAC", "OGG") else 8192


def _compression(format: AudioFormat, sample_rate: int, channels: int) -> dict[str, Any]:
    """Settings of libsndfile that come nearest to the bit rate of the source."""
    if not format.lossy:
        return {}
    if format.bitrate is None:  # qualities that hardly anybody tells from the original
        if format.subtype == "MPEG_LAYER_III":
            return {"bitrate_mode": "VARIABLE", "compression_level": 0.2}
        return {"compression_level": 0.4} if format.subtype == "VORBIS" else {}
    if format.subtype == "MPEG_LAYER_III":
        if format.variable:  # LAME's ten qualities, by their mean rates in stereo at 44.1 kHz
            means = (245, 225, 190, 175, 165, 130, 115, 100, 85, 65)
            stereo = format.bitrate / 1000 * 2 / channels * 44100 / max(sample_rate, 22050)
            quality = min(range(10), key=lambda i: abs(means[i] - stereo))
            return {"bitrate_mode": "VARIABLE", "compression_level": quality / 10}
        low, high = (32, 320) if sample_rate >= 32000 else (8, 160 if sample_rate >= 16000 else 64)
        level = (high - format.bitrate / 1000) / (high - low)
        return {"bitrate_mode": "CONSTANT", "compression_level": min(1.0, max(0.0, level))}
    if format.subtype == "OPUS":
        level = 1 - (format.bitrate / channels - 6000) / 250_000
        return {"compression_level": min(1.0, max(0.0, level))}
    if format.subtype == "VORBIS":
        wanted = format.bitrate
        nearest = min(
            (i / 20 for i in range(21)),
            key=lambda level: abs(_vorbis_bitrate(level, sample_rate, channels) - wanted),
        )
        return {"compression_level": nearest}
    return {}


@functools.lru_cache(256)
def _vorbis_bitrate(level: float, sample_rate: int, channels: int) -> int:
    """The nominal rate that Vorbis gives itself at a level."""
    file = io.BytesIO()
    try:
        with soundfile().SoundFile(
            file, "w", sample_rate, channels, "VORBIS", format="OGG", compression_level=level
        ) as ogg:
            ogg.write(_empty(channels).repeat(1, 0))
        header = re.search(rb"\x01vorbis.{9}.{4}(.{4})", file.getvalue(), re.DOTALL)
        return int.from_bytes(header[1], "little") if header else 0
    except soundfile().SoundFileError:  # no such quality at this rate
        return -(10**9)


def _empty(channels: int) -> Any:
    return torch.empty(0, channels).numpy()


def _inverse(order: tuple[int, ...]) -> list[int]:
    return [order.index(i) for i in range(len(order))]
