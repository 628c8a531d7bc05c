"""Reading and writing recordings without losing anything about them.

Sample rate, channels, length, container and sample format survive the way in and out. A file
appears under its name only when it is complete: it is written beside its place, flushed to disk
and then renamed, so an interrupted run leaves nothing half-written.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .optional import import_optional

__all__ = ["FILE_TYPES", "AudioError", "AudioFormat", "AudioReader", "AudioWriter", "replacing"]

_FLOATING = ("FLOAT", "DOUBLE", "VORBIS", "OPUS", "MPEG_LAYER_III")
_WIDE = ("DOUBLE", "PCM_32")  # more bits than float32 holds


class AudioError(Exception):
    """A recording cannot be read or written; the text is one sentence a user can act on."""


@dataclass(frozen=True)
class AudioFormat:
    """What a file is besides its samples: container ("WAV"), sample format ("PCM_16"), order."""

    container: str
    subtype: str
    endian: str = "FILE"

    @property
    def dtype(self) -> torch.dtype:
        """The smallest real type that holds every sample exactly."""
        return torch.float64 if self.subtype in _WIDE else torch.float32

    def for_path(self, path: Path) -> AudioFormat:
        """Give the format for a file of that name: its own container, these samples if it can."""
        soundfile = _soundfile()
        suffix = path.suffix.lower().lstrip(".")
        container = _CONTAINERS.get(suffix, "")
        if suffix not in _CONTAINERS or container not in soundfile.available_formats():
            known = ", ".join(FILE_TYPES)
            raise AudioError(
                f"{path}: cannot write the file type '.{suffix}'; name it one of {known}"
            )
        if container == self.container or {container, self.container} <= _RIFF:
            return self  # WAV with a longer header is named .wav, too
        wide = self.subtype in (*_WIDE, *_FLOATING, "PCM_24")
        for subtype in ("OPUS" if suffix == "opus" else self.subtype, "PCM_24" if wide else ""):
            if subtype and soundfile.check_format(container, subtype):
                return AudioFormat(container, subtype)
        return AudioFormat(container, soundfile.default_subtype(container))


_RIFF = {"WAV", "WAVEX", "RF64"}
_CONTAINERS = {
    "wav": "WAV", "flac": "FLAC", "ogg": "OGG", "oga": "OGG", "opus": "OGG", "mp3": "MP3",
    "aiff": "AIFF", "aif": "AIFF", "au": "AU", "caf": "CAF", "w64": "W64", "rf64": "RF64",
}  # fmt: skip
FILE_TYPES = tuple(sorted(_CONTAINERS))  # suffixes that can be written


class AudioReader:
    """An open recording of which any stretch can be read.

    Parameters
    ----------
    path : path of a file that libsndfile reads (WAV, FLAC, OGG, MP3, AIFF, ...)

    Raises
    ------
    AudioError
        If there is no such file, or it is not sound, or holds no samples.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        soundfile = _soundfile()
        if self.path.is_dir():
            raise AudioError(f"{self.path}: is a folder, expected a sound file")
        if not self.path.exists():
            raise AudioError(f"{self.path}: no such file")
        try:
            self._file = soundfile.SoundFile(os.fspath(self.path))
        except (soundfile.SoundFileError, TypeError) as error:
            if not os.access(self.path, os.R_OK):
                raise AudioError(f"{self.path}: may not be read (no permission)") from error
            if self.path.stat().st_size == 0:
                raise AudioError(f"{self.path}: the file is empty (0 bytes)") from error
            self._file = self._converted(error)
        self.sample_rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        self.length: int = self._file.frames
        self.format = AudioFormat(self._file.format, self._file.subtype, self._file.endian)
        if self.length < 1:
            self.close()
            raise AudioError(f"{self.path}: holds no samples")
        if "(should be" in self._file.extra_info:  # libsndfile's log of the header
            warnings.warn(
                f"{self.path}: is shorter than its header says, it was cut off; what is there, "
                f"{self.length / self.sample_rate:.2f} s, is used",
                stacklevel=2,
            )

    def _converted(self, error: Exception) -> Any:
        """Open what ffmpeg makes of a file that libsndfile does not know (m4a, webm, ...)."""
        ffmpeg = shutil.which("ffmpeg")
        if ffmpeg is None:
            raise AudioError(
                f"{self.path}: not a sound file that can be read (WAV, FLAC, OGG, MP3, AIFF can; "
                "others when the program ffmpeg is installed, or convert them elsewhere, as with: "
                f"ffmpeg -i {self.path.name} sound.wav)"
            ) from error
        self._folder = tempfile.TemporaryDirectory()
        sound = Path(self._folder.name) / "sound.w64"  # WAV ends at 4 GiB
        told = subprocess.run(
            [ffmpeg, "-nostdin", "-v", "error", "-i", os.fspath(self.path), "-vn",
             "-c:a", "pcm_f32le", "-f", "w64", os.fspath(sound)],
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        try:
            return _soundfile().SoundFile(os.fspath(sound))
        except _soundfile().SoundFileError:
            self._folder.cleanup()
            said = (told.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
            raise AudioError(
                f"{self.path}: not a sound file that can be read, nor by ffmpeg ({said})"
            ) from error

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Read samples start..stop as a Tensor [shape=(channels, samples)] of `format.dtype`."""
        stop = self.length if stop is None else stop
        dtype = "float64" if self.format.dtype == torch.float64 else "float32"
        try:
            self._file.seek(start)
            samples = self._file.read(stop - start, dtype=dtype, always_2d=True)
        except _soundfile().SoundFileError as error:
            raise AudioError(f"{self.path}: breaks off or is damaged ({error})") from error
        if len(samples) != stop - start:
            raise AudioError(
                f"{self.path}: breaks off after {start + len(samples)} of {self.length} samples"
            )
        waveform = torch.from_numpy(samples).T
        if not waveform.isfinite().all():
            bad = int((~waveform.isfinite()).any(0).nonzero()[0]) + start
            raise AudioError(
                f"{self.path}: sample {bad} (at {bad / self.sample_rate:.3f} s) is not a finite "
                "number; cut or mend that place first"
            )
        return waveform

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        if self._folder is not None:
            self._folder.cleanup()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AudioWriter:
    """Writes a recording block by block; it appears under its name when `with` ends well.

    Parameters
    ----------
    path : path of the file
    sample_rate, channels : int >= 1
    format : AudioFormat
        As a reader gives it; a `path` of another type gets that type.
    clip : "saturate" or "error"
        What to do when a sample lies outside −1..1 and the sample format holds integers:
        hold it at the limit and warn at the end, or stop.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample_rate: int,
        channels: int,
        format: AudioFormat,
        *,
        clip: str = "saturate",
    ) -> None:
        if clip not in ("saturate", "error"):
            raise ValueError(f'clip must be "saturate" or "error", got {clip!r}')
        self.path = Path(path)
        self.format = format.for_path(self.path)
        self.sample_rate, self.channels, self.clip = sample_rate, channels, clip
        self.clipped = 0
        self._file: Any = None
        self._place: Any = None

    def __enter__(self) -> AudioWriter:
        soundfile = _soundfile()
        self._place = replacing(self.path)
        part = self._place.__enter__()
        try:
            self._file = soundfile.SoundFile(
                os.fspath(part), "w", self.sample_rate, self.channels,
                self.format.subtype, self.format.endian, self.format.container,
            )  # fmt: skip
        except (soundfile.SoundFileError, ValueError) as error:
            refusal = AudioError(
                f"{self.path}: {self.format.container} with {self.format.subtype} cannot hold "
                f"{self.channels} channels at {self.sample_rate} Hz; choose another file type, "
                "as .wav or .flac"
            )
            self._place.__exit__(type(refusal), refusal, None)
            raise refusal from error
        return self

    def write(self, waveform: Tensor) -> None:
        """Append a Tensor [shape=(channels, samples)]."""
        if self.format.subtype not in _FLOATING:
            over = int((waveform.abs() > 1).sum())
            if over and self.clip == "error":
                raise AudioError(
                    f"{self.path}: {over} samples are louder than {self.format.subtype} holds; "
                    'lower the input, or choose the clip policy "saturate"'
                )
            self.clipped += over
            waveform = waveform.clamp(-1, 1)
        try:
            self._file.write(waveform.detach().cpu().T.contiguous().numpy())
        except (_soundfile().SoundFileError, OSError) as error:
            raise AudioError(
                f"{self.path}: cannot be written, is the disk full? ({error})"
            ) from error

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        try:
            self._file.close()
        except (_soundfile().SoundFileError, OSError) as error:
            refusal = AudioError(f"{self.path}: cannot be written, is the disk full? ({error})")
            self._place.__exit__(type(refusal), refusal, None)
            raise refusal from error
        except BaseException:
            self._place.__exit__(*sys.exc_info())
            raise
        self._place.__exit__(kind, value, trace)
        if kind is None and self.clipped:
            warnings.warn(
                f"{self.path}: {self.clipped} samples were louder than {self.format.subtype} "
                "holds and were cut at full scale; lower the input to avoid it",
                stacklevel=2,
            )


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a place beside `path` to write to, which becomes `path` if all goes well.

    The file is flushed to disk before it is renamed; on any error or interruption it is removed.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    if not path.parent.is_dir():
        raise AudioError(f"{path}: there is no folder {path.parent}; make it first (mkdir -p)")
    try:
        part.touch(exist_ok=True)
    except OSError as error:
        raise AudioError(f"{path}: may not be written there ({error.strerror})") from error
    try:
        yield part
        try:
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError as error:
            raise AudioError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        part.unlink(missing_ok=True)


def _soundfile() -> Any:
    return import_optional("soundfile", "reading and writing sound", "harmonic-lowering[audio]")
