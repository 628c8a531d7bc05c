"""Reading a recording exactly, whatever its format, to its true end."""

from __future__ import annotations

import functools
import math
import os
import shutil
import stat
import tempfile
import threading
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from ..optional import import_optional
from . import ffmpeg
from .chunks import walk
from .formats import AudioError, AudioFormat, soundfile
from .metadata import Metadata

__all__ = ["AudioReader", "LengthChanged"]

_BLOCK = 1 << 17  # samples of all channels decoded at once
_MOST_CHANNELS = 1024  # libsndfile's own limit, which it does not ask of every header
_OFFSET_S = 120.0  # of the beginning, that tells a constant offset
_LARGEST = 1e30  # no sound; its square would not be a number
_LEFT_OVER = 4096  # bytes behind the last sample: room for old tags
# Order of channels in Vorbis and Opus, in terms of the order of WAV and everything else.
_VORBIS = {
    3: (0, 2, 1), 5: (0, 2, 1, 3, 4), 6: (0, 2, 1, 4, 5, 3), 7: (0, 2, 1, 5, 6, 4, 3),
    8: (0, 2, 1, 6, 7, 4, 5, 3),
}  # fmt: skip


class LengthChanged(Exception):
    """What was read so far promised another length: read again, `length` is right now."""


class _Decoder(Protocol):
    """Samples from the beginning to the end, once; `problem` says why they ended early."""

    problem: str

    def read(self, count: int) -> Tensor: ...
    def close(self) -> None: ...


@functools.lru_cache(1)
def _forward() -> Any:
    class Forward(soundfile().SoundFile):  # type: ignore[misc]
        """Reads on and on: a seek after each block, as soundfile does, upsets some codecs."""

        def seekable(self) -> bool:
            return False

    return Forward


class _Sndfile:
    """libsndfile's decoder, which ends where the header says, or before."""

    def __init__(self, path: Path, raw: dict[str, Any] | None = None) -> None:
        self.problem = ""
        self._behind: _Behind | None = None
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            if raw is None:
                # By descriptor: a name may have any bytes.
                self.file = _forward()(self._fd, closefd=False)
            else:
                layout = {key: value for key, value in raw.items() if key != "start"}
                self._behind = _Behind(self._fd, raw["start"])
                self.file = _forward()(self._behind, **layout)
        except BaseException:
            os.close(self._fd)
            raise
        self.format = AudioFormat(self.file.format, self.file.subtype, self.file.endian)
        # Only headers say more than there can be: a stream's length is not known.
        self.claimed: int = self.file.frames if self.file.frames < 2**62 else 0
        self.dtype = "float64" if self.format.dtype == torch.float64 else "float32"

    def read(self, count: int) -> Tensor:
        out = _numpy().empty((count, self.file.channels), self.dtype)
        try:
            samples = torch.from_numpy(self.file.read(out=out)).T
        except soundfile().SoundFileError as error:
            self.problem = str(error).rstrip(".")
            return torch.from_numpy(out[:0]).T
        if self.format.container == "OGG" and len(samples) in _VORBIS:
            samples = samples[list(_VORBIS[len(samples)])]
        return samples

    def seek(self, start: int) -> None:
        """Go to a sample; only where the format is plain."""
        soundfile().SoundFile.seek(self.file, start)

    def left_over(self) -> int:
        """Bytes that were not decoded."""
        return os.fstat(self._fd).st_size - os.lseek(self._fd, 0, os.SEEK_CUR)

    def close(self) -> None:
        self.file.close()
        if self._behind is not None:
            self._behind.close()
        os.close(self._fd)


class _Behind:
    """A file without its first bytes, for libsndfile."""

    def __init__(self, fd: int, start: int) -> None:
        self._file, self._start = os.fdopen(os.dup(fd), "rb"), start
        self.read, self.readinto = self._file.read, self._file.readinto
        self.close = self._file.close
        self.seek(0)

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(place + self._start * (whence == os.SEEK_SET), whence) - self._start

    def tell(self) -> int:
        return self._file.tell() - self._start

    def write(self, _: bytes) -> int:
        raise OSError("only for reading")


class AudioReader:
    """An open recording of which any stretch can be read.

    libsndfile decodes what it can, to the end that it finds; what it does not know or where more
    follows (files joined together, headers that guess) ffmpeg decodes, if it is installed. A
    stream, as a pipe, is kept in a temporary file.

    Parameters
    ----------
    path : path of a file, or of a pipe
    patience_s : float >= 0, seconds
        How long to look for the true end before `length` is taken from the header. If another
        one turns up later, `read` raises `LengthChanged`. By default `length` is final.

    Attributes
    ----------
    sample_rate, channels : int
    format : AudioFormat
    metadata : Metadata
        What `AudioWriter` needs to keep tags, chunks and dates.
    promised : int
        Length by the header; 0 if it does not say.

    Raises
    ------
    AudioError
        If there is no such file, or it is not sound; from `length` on also if it holds no samples
        or a value that is no number.

    Warns
    -----
    UserWarning
        Once, if the recording was cut off or is damaged; what can be decoded is there.

    Examples
    --------
    >>> with AudioReader("examples/amiable.wav") as reader:
    ...     reader.sample_rate, reader.length, reader.read(0, 16000).shape
    (16000, 52640, torch.Size([1, 16000]))
    """

    def __init__(self, path: str | os.PathLike[str], *, patience_s: float = math.inf) -> None:
        self.path = Path(path)
        self._spool: Any = None
        self._decoder: Any = None
        self._survey: _Survey | None = None
        self._length: int | None = None  # not looked for yet
        self._offset = torch.empty(0, 1)
        self._patience_s = patience_s
        self._note = ""
        self._window = (0, torch.empty(0, 0))  # start, and the samples from there on
        try:
            self._place = self._regular()
            self._open()
        except OSError as error:
            self.close()
            raise _refusal(self.path, error) from error
        except BaseException:
            self.close()
            raise

    @property
    def length(self) -> int:
        """Samples of each channel."""
        if self._length is None:
            self._length = self._measure()
            if self._length < 1:
                why = f" ({self._note})" if self._note else ""
                raise AudioError(f"{self.path}: holds no samples{why}")
        return self._length

    @property
    def offset(self) -> Tensor:
        """Constant offset of each channel (C, 1): the mean of the first two minutes."""
        _ = self.length
        return self._offset

    # Opening

    def _regular(self) -> Path:
        """Give a file that can be read from its start as often as need be."""
        mode = self.path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise AudioError(f"{self.path}: is a folder, expected a sound file")
        if stat.S_ISREG(mode):
            return self.path
        if not stat.S_ISFIFO(mode):
            raise AudioError(f"{self.path}: is a device, expected a sound file")
        self._spool = tempfile.NamedTemporaryFile(suffix=".sound")  # noqa: SIM115
        with self.path.open("rb") as pipe:
            shutil.copyfileobj(pipe, self._spool)
        self._spool.flush()
        return Path(self._spool.name)

    def _open(self) -> None:
        self._probe: ffmpeg.Probe | None = None
        self._raw: dict[str, Any] | None = None
        with self._place.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise AudioError(f"{self.path}: the file is empty (0 bytes)")
            self._chunks = walk(file)
            try:
                first = _Sndfile(self._place)
            except soundfile().SoundFileError as error:
                self._foreign(error)
            else:
                self._known(first)
            if not 0 < self.channels <= _MOST_CHANNELS or self.sample_rate < 1:
                raise AudioError(
                    f"{self.path}: is damaged, its header tells of {self.channels} channels at "
                    f"{self.sample_rate} Hz"
                )
            self.metadata = Metadata.read(file, self._place, self._chunks, self._probe)
            self._with_bitrate(file)
        if self._spool is not None:
            self.metadata = replace(self.metadata, times_ns=None, mode=None)  # a pipe has none

    def _foreign(self, error: Exception) -> None:
        """Open what libsndfile does not know."""
        if ffmpeg.missing():
            raise AudioError(
                f"{self.path}: not a sound file that can be read (WAV, FLAC, OGG, MP3, AIFF can; "
                "others when the program ffmpeg is installed, or convert them elsewhere, as with: "
                f"ffmpeg -i {self.path.name} sound.wav)"
            ) from error
        self._through_ffmpeg()

    def _through_ffmpeg(self) -> None:
        try:
            self._probe = ffmpeg.probe(self._place)
        except AudioError as error:
            raise AudioError(str(error).replace(str(self._place), str(self.path), 1)) from error
        self.sample_rate, self.channels = self._probe.sample_rate, self._probe.channels
        self.format = self._probe.format
        self.promised = round((self._probe.seconds or 0) * self.sample_rate)
        if self._probe.tracks > 1:
            warnings.warn(
                f"{self.path}: has {self._probe.tracks} sound tracks, the first one is used",
                stacklevel=4,
            )

    def _known(self, first: _Sndfile) -> None:
        self.format, self.promised = first.format, first.claimed
        self.sample_rate, self.channels = first.file.samplerate, first.file.channels
        first.close()
        chunks = self._chunks
        if chunks and not chunks.streamed and self.format.plain:
            # In Wave64 libsndfile takes what follows the samples for samples.
            size = self.channels * self.format.sample_bytes
            self.promised = min(self.promised, chunks.present // size)
        if not self.promised and self.format.plain and chunks and chunks.family == "RIFF":
            # A recorder that crashed wrote no size: everything that follows are samples.
            self._raw = {
                "samplerate": self.sample_rate, "channels": self.channels, "format": "RAW",
                "subtype": self.format.subtype, "endian": "LITTLE", "start": chunks.data_start,
            }  # fmt: skip
            with_size = _Sndfile(self._place, self._raw)
            self.promised = with_size.claimed
            with_size.close()

    def _with_bitrate(self, file: BinaryIO) -> None:
        """Note the bit rate of a lossy file that libsndfile reads."""
        if not self.format.lossy or self._probe is not None:
            return
        install = "harmonic-lowering[audio]"
        mp3 = import_optional("mutagen.mp3", "keeping the bit rate", install)
        mutagen = import_optional("mutagen", "keeping the bit rate", install)
        bitrate, variable = 0, self.format.subtype in ("VORBIS", "OPUS")
        file.seek(0)
        with suppress(Exception):  # mutagen's errors on damaged files are of any type
            info = mutagen.File(file).info
            bitrate = getattr(info, "bitrate", 0)
            if self.format.container == "MP3":
                variable = info.bitrate_mode == mp3.BitrateMode.VBR
        if not bitrate and self.promised:
            size = os.fstat(file.fileno()).st_size
            bitrate = round(8 * size * self.sample_rate / self.promised)
        self.format = replace(self.format, bitrate=bitrate or None, variable=variable)

    def _decode(self) -> _Decoder:
        """Begin anew at the first sample."""
        if self._probe is not None:
            return ffmpeg.Decoder(self._place, self._probe)
        return _Sndfile(self._place, self._raw)

    # Where it ends

    @property
    def _exact(self) -> bool:
        """Whether the header tells the length for certain, and any place can be read at once."""
        return self._probe is None and self.format.plain

    def _measure(self) -> int:
        # Integers in their places are all sound; of them only the offset is of interest.
        integers = self._exact and self.format.depth is not None
        wanted = round(_OFFSET_S * self.sample_rate) if integers else math.inf
        self._survey = survey = _Survey(self, wanted)
        survey.start()
        survey.far_enough.wait()  # for the offset, which must not depend on the time it takes
        survey.join(self._patience_s if self._patience_s < math.inf else None)
        if survey.is_alive() and not self._count():
            survey.join()
        self._offset = survey.offset
        if survey.is_alive():
            return self.promised
        length, self._survey = self._settled(), None
        return length

    def _count(self) -> bool:
        """Whether the length is known without decoding; a guess is no reason to begin."""
        if self._exact or (self.promised and self._claim_counts()):
            return True
        counted = ffmpeg.count_samples(self._place, self._probe) if self._probe is not None else 0
        self.promised = counted or self.promised
        return counted > 0

    def _least(self) -> float:
        """Samples that are there if nothing was cut off."""
        if self.format.container == "FFMPEG":
            timed = self._probe is not None and self._probe.timed
            return min(0.98 * self.promised, self.promised - 0.2 * self.sample_rate) if timed else 0
        return self.promised if self._claim_counts() else 0

    def _claim_counts(self) -> bool:
        """Whether the header counts samples; blocks of GSM or ADPCM, say, are longer by nature."""
        container = self.format.container
        return container in ("FLAC", "OGG") or (container == "MP3" and self._trusted_mp3())

    def _trusted_mp3(self) -> bool:
        """Whether an MP3 file says how many frames it has."""
        with self._place.open("rb") as file:
            head = file.read(10)
            size = 0
            if head[:3] == b"ID3":
                for byte in head[6:10]:
                    size = size << 7 | byte & 127
                size += 10
            file.seek(size)
            frame = file.read(512)
        return bool(self.promised) and (b"Xing" in frame or b"Info" in frame or b"VBRI" in frame)

    def _settled(self) -> int:
        """Take over what the survey found, and say once what is wrong."""
        survey = self._survey
        assert survey is not None
        if survey.error is not None:
            raise survey.error
        self._probe = survey.probe or self._probe
        length = self.promised if self._exact else survey.length
        # Behind the first of several files joined together ffmpeg finds headers, not damage.
        joined = survey.probe is not None and 0 < self.promised <= length
        problem = "" if joined else survey.problem
        if self._chunks is not None and self._chunks.cut:
            problem = problem or "its header promises more"
        elif not problem and length < self._least():
            problem = f"its header promises {self.promised / self.sample_rate:.2f} s"
        if self.format.container == "OGG" and not problem and _ogg_is_cut(self._place):
            problem = "its last page is missing"
        if problem and not self._note:
            self._note = problem
            if length:
                warnings.warn(
                    f"{self.path}: was cut off or is damaged ({problem}); the "
                    f"{length / self.sample_rate:.2f} s that can be decoded are used",
                    stacklevel=4,
                )
        return length

    # Reading

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Read samples start..stop as a Tensor [shape=(channels, samples)] of `format.dtype`.

        Fast when each stretch begins at or behind the beginning of the last one.
        """
        stop = self.length if stop is None else stop
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"there are samples 0 … {self.length}, got {start} … {stop}")
        self._check_survey()
        place, samples = self._window
        if self._decoder is None or start < place:
            self._restart()
            place, samples = 0, torch.empty(self.channels, 0, dtype=self.format.dtype)
        if self._exact and start > place + samples.shape[1]:
            self._decoder.seek(start)
            place, samples = start, samples[:, :0]
        parts, have = [samples[:, max(0, start - place) :]], place + samples.shape[1]
        while have < stop:
            block = max(1, _BLOCK // self.channels)
            part = self._decoder.read(min(block, stop - have) if self._exact else block)
            if not part.shape[1]:
                self._ended(have)
            parts.append(part[:, max(0, start - have) :])
            have += part.shape[1]
        samples = torch.cat([part for part in parts if part.shape[1]] or parts[:1], 1)
        self._window = (start, samples)
        waveform = samples[:, : stop - start].clone()
        if (bad := _not_sound(waveform)) is not None:
            raise _bad_sample(self.path, start + bad, self.sample_rate)
        return waveform

    def settle(self) -> None:
        """Wait until the true end is known; raise `LengthChanged` if it is another one."""
        if self._survey is not None:
            self._survey.join()
            self._check_survey()

    def _check_survey(self) -> None:
        if self._survey is not None and not self._survey.is_alive():
            length, other_decoder = self._settled(), self._survey.probe is not None
            self._survey = None
            if length != self._length or other_decoder:
                self._length = length
                self._restart()
                if length < 1:
                    raise AudioError(f"{self.path}: holds no samples that can be decoded")
                raise LengthChanged

    def _ended(self, have: int) -> None:
        self.settle()  # whatever ended it here ends the survey, too
        raise AudioError(
            f"{self.path}: breaks off after {have} of {self.length} samples "
            f"({self._decoder.problem or 'it changed while it was read'})"
        )

    def _restart(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
        self._decoder = self._decode()
        self._window = (0, torch.empty(self.channels, 0, dtype=self.format.dtype))

    def close(self) -> None:
        """Close the file."""
        if self._survey is not None:
            self._survey.stop.set()
            if self._survey.ident is not None:
                self._survey.join()
            self._survey = None
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None
        if self._spool is not None:
            self._spool.close()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Survey(threading.Thread):
    """Decodes once what will be denoised: its true end, its offset, and samples that are none."""

    def __init__(self, reader: AudioReader, wanted: float) -> None:
        super().__init__(name="survey", daemon=True)
        self._reader, self._wanted = reader, wanted
        self.stop, self.far_enough = threading.Event(), threading.Event()
        self.length, self.problem = 0, ""
        self.error: Exception | None = None
        self.probe: ffmpeg.Probe | None = None  # ffmpeg decodes it better
        self._sum = torch.zeros(reader.channels, dtype=torch.float64)
        self._squares = torch.zeros(reader.channels, dtype=torch.float64)
        self._counted = 0
        self.offset = torch.empty(0, 1)

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:
            self.error = error
        finally:
            self.far_enough.set()

    def _run(self) -> None:
        reader = self._reader
        self._through(reader._decode())
        more = self.problem or not self.length or not self._claim_holds()
        if not more or reader._exact or reader._probe is not None or self.stop.is_set():
            return
        # libsndfile stopped where it should not: what does ffmpeg make of it?
        if reason := ffmpeg.missing():
            self.problem = self.problem or f"more follows that only ffmpeg can decode; {reason}"
            return
        try:
            probe = ffmpeg.probe(reader._place)
        except AudioError:
            return
        if (probe.sample_rate, probe.channels) != (reader.sample_rate, reader.channels):
            return
        before = self.length, self.problem
        self.problem = ""
        self._through(ffmpeg.Decoder(reader._place, probe))
        if self.length > before[0] or (self.length == before[0] and not self.problem):
            self.probe = probe
        else:
            self.length, self.problem = before

    def _through(self, decoder: _Decoder) -> None:
        reader, span = self._reader, round(_OFFSET_S * self._reader.sample_rate)
        count = max(1, _BLOCK // reader.channels)
        self.length, self._counted = 0, 0
        self._sum, self._squares = torch.zeros_like(self._sum), torch.zeros_like(self._squares)
        try:
            while not self.stop.is_set() and self.length < self._wanted:
                block = decoder.read(count)
                if not block.shape[1]:
                    break
                if (bad := _not_sound(block)) is not None:
                    raise _bad_sample(reader.path, self.length + bad, reader.sample_rate)
                if self.length < span:
                    self._sum += block.sum(1, dtype=torch.float64)
                    self._squares += block.double().square().sum(1)
                    self._counted += block.shape[1]
                elif not self.far_enough.is_set():
                    self.offset = self._mean()
                    self.far_enough.set()
                self.length += block.shape[1]
            if not self.far_enough.is_set():
                self.offset = self._mean()
            self.problem = decoder.problem
            self._left = decoder.left_over() if isinstance(decoder, _Sndfile) else 0
        finally:
            decoder.close()

    def _claim_holds(self) -> bool:
        """Whether libsndfile decoded the file to its last byte."""
        reader = self._reader
        if reader._chunks is not None:  # the samples end where their chunk does
            return True
        if reader._claim_counts() and self.length < reader.promised:
            return False
        return self._left <= _LEFT_OVER or self._left <= _trailing_tag(reader._place)

    def _mean(self) -> Tensor:
        """Mean of each channel, where it is no accident."""
        mean = self._sum / max(1, self._counted)
        spread = (self._squares / max(1, self._counted) - mean.square()).clamp_min(0).sqrt()
        mean[mean.abs() < 0.02 * spread] = 0
        return mean[:, None].to(self._reader.format.dtype)


def _trailing_tag(path: Path) -> int:
    """Bytes of an APEv2 tag at the end of a file."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4096))
        end = file.read()
    at = end.rfind(b"APETAGEX")
    return int.from_bytes(end[at + 12 : at + 16], "little") + 4096 if at >= 0 else 0


def _ogg_is_cut(path: Path) -> bool:
    """Whether an Ogg file ends inside a page, or with one that is not marked as the last."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (1 << 17)))
        end = file.read()
    at = end.rfind(b"OggS\0")
    if at < 0 or len(end) < at + 27:
        return True
    table = end[at + 27 : at + 27 + end[at + 26]]
    return not end[at + 5] & 4 or at + 27 + len(table) + sum(table) > len(end)


def _not_sound(waveform: Tensor) -> int | None:
    """Where the first sample is that is no finite number, or larger than any sound."""
    low, high = torch.aminmax(waveform) if waveform.numel() else (torch.zeros(1), torch.zeros(1))
    if bool(low >= -_LARGEST) and bool(high <= _LARGEST):  # false for NaN
        return None
    return int((~(waveform.abs() <= _LARGEST)).any(0).nonzero()[0])


def _bad_sample(path: Path, sample: int, rate: int) -> AudioError:
    return AudioError(
        f"{path}: sample {sample} (at {sample / rate:.3f} s) is not a finite number, or none that "
        "sound has; cut or mend that place first"
    )


def _refusal(path: Path, error: OSError) -> AudioError:
    if isinstance(error, FileNotFoundError):
        return AudioError(f"{path}: no such file")
    if isinstance(error, PermissionError):
        return AudioError(f"{path}: may not be read (no permission)")
    return AudioError(f"{path}: cannot be read ({error.strerror or error})")


def _numpy() -> Any:
    return import_optional("numpy", "reading sound", "harmonic-lowering[audio]")
