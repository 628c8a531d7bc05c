"""What a sound file is besides its samples, and which files can hold them."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..optional import import_optional

__all__ = ["FILE_TYPES", "AudioError", "AudioFormat", "Encoder"]


class AudioError(Exception):
    """A recording cannot be read or written; the text is one sentence a user can act on."""


@dataclass(frozen=True)
class Encoder:
    """How ffmpeg writes a file type that libsndfile does not."""

    muxer: str
    lossy: str  # its codec, or nothing
    lossless: str  # its codec, of 16 or 24 bits
    rates: tuple[int, ...]  # of the lossy codec, Hz


_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_MP4 = Encoder("ipod", "aac", "alac", _AAC_RATES)
# Not ADTS (.aac) and WMA: they lose or add samples at both ends.
_ENCODERS = {"m4a": _MP4, "m4b": _MP4, "wv": Encoder("wv", "", "wavpack", ())}
_CONTAINERS = {
    "wav": "WAV", "wave": "WAV", "bwf": "WAV", "flac": "FLAC", "ogg": "OGG", "oga": "OGG",
    "opus": "OGG", "mp3": "MP3", "aiff": "AIFF", "aif": "AIFF", "aifc": "AIFF", "au": "AU",
    "snd": "AU", "caf": "CAF", "w64": "W64", "rf64": "RF64",
}  # fmt: skip
FILE_TYPES = tuple(sorted((*_CONTAINERS, *_ENCODERS)))  # suffixes that can be written

_RIFF = {"WAV", "WAVEX", "RF64"}
_LARGEST_RIFF = 2**32 - 2**20  # bytes of samples; the rest is for what describes them
_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 192000)
# Bits of the integers that a sample format holds; of what it decodes to, if it is compressed.
_DEPTHS = {
    "PCM_S8": 8, "PCM_U8": 8, "DPCM_8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32,
    "ALAC_16": 16, "ALAC_20": 20, "ALAC_24": 24, "ALAC_32": 32, "ULAW": 16, "ALAW": 16,
    "IMA_ADPCM": 16, "MS_ADPCM": 16, "VOX_ADPCM": 16, "GSM610": 16, "G721_32": 16, "G723_24": 16,
    "G723_40": 16, "NMS_ADPCM_16": 16, "NMS_ADPCM_24": 16, "NMS_ADPCM_32": 16, "DPCM_16": 16,
    "DWVW_12": 16, "DWVW_16": 16, "DWVW_24": 24,
}  # fmt: skip
_PLAIN = ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")
_PACKED = ("OGG", "MP3", "FLAC")  # containers of one codec each


@dataclass(frozen=True)
class AudioFormat:
    """What a file is besides its samples: container ("WAV"), sample format ("PCM_16"), order.

    `bitrate` (bits per second) and `variable` (whether it varies) are those of a lossy codec.
    A file that ffmpeg decodes has the name of its codec as the sample format, if it is lossy.
    """

    container: str
    subtype: str
    endian: str = "FILE"
    bitrate: int | None = None
    variable: bool = False

    @property
    def depth(self) -> int | None:
        """Bits of its integers; None if it is floating or decodes to floating samples."""
        return _DEPTHS.get(self.subtype)

    @property
    def lossy(self) -> bool:
        """Whether a codec such as MP3, AAC or Vorbis made it, which has a bit rate."""
        return self.depth is None and self.subtype not in ("FLOAT", "DOUBLE")

    @property
    def plain(self) -> bool:
        """Whether each sample has a place of its own, so that any can be read at once."""
        return self.subtype in _PLAIN and self.container not in (*_PACKED, "FFMPEG")

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample; only where the format is plain."""
        if self.subtype in ("ULAW", "ALAW"):
            return 1
        return 8 if self.subtype == "DOUBLE" else (self.depth or 32) // 8

    @property
    def dtype(self) -> torch.dtype:
        """The smallest real type that holds every sample exactly."""
        wide = self.subtype == "DOUBLE" or (self.depth or 0) > 24
        return torch.float64 if wide else torch.float32

    def for_path(
        self, path: Path, sample_rate: int, channels: int, length: int = 0
    ) -> tuple[AudioFormat, int]:
        """Choose the format of a file of that name, and the sample rate that it can hold.

        The sample format is kept where the file type has it, else the best that it has is taken;
        the rate is kept where the codec takes it, else it is the next higher that it takes.
        """
        suffix = path.suffix.lower().lstrip(".")
        if suffix in _ENCODERS:
            return self._encoded(_ENCODERS[suffix], sample_rate)
        container = _CONTAINERS.get(suffix, "")
        if container not in soundfile().available_formats():
            raise AudioError(
                f"{path}: cannot write the file type '{path.suffix}'; name it one of "
                f"{', '.join(FILE_TYPES)}"
            )
        if container == "WAV" and self.container in _RIFF:  # with a longer header also named .wav
            container = self.container
        same = container == self.container or {container, self.container} <= _RIFF
        subtypes = list(self._subtypes(container, suffix, same))
        for rate in _rates(sample_rate):
            for subtype in subtypes:
                endian = self.endian if same else "FILE"
                if not _can_write(container, subtype, endian, rate, channels):
                    continue
                target = AudioFormat(container, subtype, endian)
                if target.lossy and self.lossy:
                    target = replace(target, bitrate=self.bitrate, variable=self.variable)
                return target._large(length * channels), rate
        raise AudioError(
            f"{path}: {container} with {subtypes[0]} cannot hold {channels} channels at "
            f"{sample_rate} Hz; choose another file type, as .wav or .flac"
        )

    def _subtypes(self, container: str, suffix: str, same: bool) -> Iterator[str]:
        """Give the sample formats to try, the best first."""
        if suffix == "opus":
            yield "OPUS"
            return
        if same or not self.lossy:
            yield self.subtype
        if self.subtype == "DOUBLE":
            yield "FLOAT"
        if self.depth == 8:
            yield from ("PCM_U8", "PCM_S8")
        if self.depth is None or self.depth > 24:
            yield "PCM_24"
        elif self.depth > 16:
            yield from ("PCM_24", "PCM_32")
        yield from ("PCM_16", soundfile().default_subtype(container))

    def _large(self, samples: int) -> AudioFormat:
        """RF64 in the place of WAV where the samples do not fit into 4 GiB."""
        large = samples * self.sample_bytes > _LARGEST_RIFF
        if self.container in ("WAV", "WAVEX") and self.plain and large:
            return replace(self, container="RF64", endian="FILE")
        return self

    def _encoded(self, encoder: Encoder, sample_rate: int) -> tuple[AudioFormat, int]:
        if encoder.lossless and (not self.lossy or not encoder.lossy):
            deep = self.depth is None or self.depth > 16
            return AudioFormat("FFMPEG", "PCM_24" if deep else "PCM_16"), sample_rate
        rate = next((r for r in encoder.rates if r >= sample_rate), encoder.rates[-1])
        bitrate = self.bitrate if self.lossy else None
        return AudioFormat("FFMPEG", encoder.lossy.upper(), bitrate=bitrate), rate


def encoder_for(path: Path) -> Encoder | None:
    """How ffmpeg writes a file of that name; None if libsndfile does."""
    return _ENCODERS.get(path.suffix.lower().lstrip("."))


def _rates(sample_rate: int) -> list[int]:
    above = [rate for rate in _RATES if rate > sample_rate]
    return [sample_rate, *above, *(r for r in reversed(_RATES) if r < sample_rate)]


@functools.lru_cache(1024)
def _can_write(container: str, subtype: str, endian: str, sample_rate: int, channels: int) -> bool:
    """Whether libsndfile opens such a file; its table of formats knows no rates and channels."""
    if not soundfile().check_format(container, subtype, endian):
        return False
    if subtype == "VORBIS" and sample_rate > _RATES[-1]:  # libsndfile crashes above 200 kHz
        return False
    try:
        with soundfile().SoundFile(
            io.BytesIO(), "w", sample_rate, channels, subtype, endian, container
        ):
            return True
    except (soundfile().SoundFileError, ValueError):
        return False


def soundfile() -> Any:
    """Give the library soundfile, or say how to install it."""
    return import_optional("soundfile", "reading and writing sound", "harmonic-lowering[audio]")
