"""Recordings to notes, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checks import as_channels
from ..optional import import_optional
from ..weights import WeightsError, read_weights, write_weights
from .network import FRAME_S, HOP, PITCHES, RATE, REACH, TranscriptionNetwork, vqt_levels
from .notes import Note, NoteTracker

__all__ = ["Transcriber", "Transcription"]

WEIGHTS = Path(__file__).with_name("weights") / "transcription.safetensors"

_BLOCK = 1000  # frames at a time, 24 s
_CONTEXT = REACH + 8  # frames, with the transform's windows
_READ_S = 10.0
_LOUD = 0.95  # quantile of the loudness of seconds that stands for full scale: a click is rarer
_OVERTONES = (0, 12, 19, 24)  # semitones, of which a note's level is the mean


@dataclass(frozen=True)
class Transcription:
    """The notes of a recording of `length_s` seconds, by their start."""

    notes: tuple[Note, ...]
    length_s: float


class Transcriber:
    """Finds the notes that instruments or voices play in a recording.

    A small network of harmonic layers reads a variable-Q spectrogram from A0 to C8. It knows
    neither which instrument plays nor how many, and leaves out percussion.

    Parameters
    ----------
    network : TranscriptionNetwork
        Trained; used in evaluation mode.
    onset, frame : float in (0, 1)
        Probability from which a note starts, and from which it goes on.

    Examples
    --------
    >>> time = torch.arange(32000) / 16000
    >>> sound = sum((440 * k * 2 * torch.pi * time).sin() / k for k in range(1, 6))
    >>> [note.pitch for note in Transcriber.load()(sound, 16000).notes]
    [69]
    """

    def __init__(
        self, network: TranscriptionNetwork, *, onset: float = 0.4, frame: float = 0.4
    ) -> None:
        for name, value in (("onset", onset), ("frame", frame)):
            if not 0 < value < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {value!r}")
        self.network, self.onset, self.frame = network.eval(), onset, frame

    @classmethod
    def load(cls, path: str | Path | None = None, **thresholds: float) -> Transcriber:
        """Read the weights that come with the package, or those of a file.

        Raises
        ------
        WeightsError
            If the file is missing, damaged or made for another network.
        ImportError
            If safetensors is not installed.
        """
        state, metadata = read_weights(WEIGHTS if path is None else Path(path), "transcription")
        try:
            network = TranscriptionNetwork(int(metadata["channels"]))
            network.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise WeightsError(
                "the weights for transcription were made for another network: use those that come "
                "with this version of harmonic-lowering"
            ) from error
        return cls(network, **thresholds)

    def save(self, path: str | Path, metadata: dict[str, str]) -> None:
        """Write the weights, with what is needed to build the network and to trust the file."""
        channels = str(self.network.channels)
        write_weights(path, self.network.state_dict(), {**metadata, "channels": channels})

    def __call__(self, waveform: Tensor, sample_rate: int) -> Transcription:
        """Transcribe a recording that is in memory.

        Parameters
        ----------
        waveform : Tensor [shape=(L,) or (C, L)], floating-point
            Channels are averaged.
        sample_rate : int >= 1, Hz
        """
        channels = as_channels(waveform)
        notes = self.stream(
            lambda start, stop: channels[:, start:stop], channels.shape[1], sample_rate
        )
        ordered = sorted(notes, key=lambda note: (note.start_s, note.pitch))
        return Transcription(tuple(ordered), channels.shape[1] / sample_rate)

    def stream(
        self,
        read: Callable[[int, int], Tensor],
        length: int,
        sample_rate: int,
        progress: Callable[[float], object] | None = None,
    ) -> Iterator[Note]:
        """Transcribe a recording of any length in bounded memory; it is read twice.

        Parameters
        ----------
        read : callable
            ``read(start, stop)`` returns samples start..stop, a Tensor [shape=(C, stop − start)].
        length : int >= 1
            Samples of the recording.
        sample_rate : int >= 1, Hz
        progress : callable, optional
            Told the seconds that are done.

        Yields
        ------
        Note
            In the order of their ends.
        """
        if sample_rate < 1:
            raise ValueError(f"sample_rate must be a positive number of Hz, got {sample_rate}")
        if length < 1:
            raise ValueError("the recording has no samples")
        offset, loud = _offset_and_loudness(read, length, sample_rate)
        if loud == 0:
            return
        blocks = ((block - offset) / loud for block in _mono(read, length, sample_rate))
        sound = _resampled(blocks, sample_rate)
        tracker = NoteTracker(self.onset, self.frame)
        end_s, done = length / sample_rate, 0
        for frames, onsets, levels, bends in self._blocks(sound):
            yield from tracker.feed(frames, onsets, levels, bends)
            done += frames.shape[1]
            if progress is not None:
                progress(min(done * FRAME_S, end_s))
        yield from tracker.finish()

    @torch.no_grad()
    def _blocks(self, sound: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield probabilities of frames and onsets, levels and bends, each (88, n)."""
        held, start, done = np.empty(0, np.float32), 0, 0  # start: the frame of the first sample
        for piece in chain(sound, (None,)):
            if piece is not None:
                held = np.concatenate([held, piece])
            while True:
                needed = (done + _BLOCK + _CONTEXT - start) * HOP
                if piece is not None and len(held) < needed:
                    break
                count = min(_BLOCK, start + 1 + len(held) // HOP - done)
                if count <= 0:
                    break
                first = max(0, done - _CONTEXT)
                segment = torch.from_numpy(held[(first - start) * HOP : needed])
                level = vqt_levels(segment)
                inner = slice(done - first, done - first + count)
                probabilities = self.network(level[None])[0].sigmoid()
                yield tuple(
                    part[..., inner].numpy() for part in (*probabilities, *_described(level))
                )
                done += count
                keep = max(0, done - _CONTEXT)
                held, start = held[(keep - start) * HOP :], keep


def _described(level: Tensor) -> tuple[Tensor, Tensor]:
    """Return the level of each pitch with its overtones in dB, and how many semitones it is off."""
    rows = level.reshape(-1, 3, level.shape[-1]).amax(1)
    rows = torch.cat([rows, rows.new_full((24, rows.shape[1]), -200)])
    power = torch.stack([10 ** (rows[by : by + PITCHES] / 10) for by in _OVERTONES]).mean(0)
    # The vertex of a parabola through the highest of the five bins around a pitch.
    padded = torch.nn.functional.pad(level, (0, 0, 3, 3), value=-200)
    around = padded.unfold(0, 7, 3)[:PITCHES].clamp_min(-100)  # (88, T, 7), the pitch is entry 4
    place = around[..., 2:7].argmax(-1, keepdim=True) + 2
    place = place.clamp(1, 5)
    below, at, above = (around.gather(-1, place + by)[..., 0] for by in (-1, 0, 1))
    curvature = (below - 2 * at + above).clamp_max(-1e-3)
    vertex = (0.5 * (below - above) / curvature).clamp(-0.5, 0.5)
    return 10 * power.log10(), (place[..., 0] - 4 + vertex) / 3


def _offset_and_loudness(
    read: Callable[[int, int], Tensor], length: int, sample_rate: int
) -> tuple[float, float]:
    """Return the constant offset, and how far loud seconds reach from their middle."""
    total, reaches = 0.0, []
    for block in _mono(read, length, sample_rate, 1.0):
        if not np.isfinite(block).all():
            raise ValueError("the recording holds samples that are not finite numbers")
        total += float(block.sum(dtype=np.float64))
        reaches.append((float(block.max()) - float(block.min())) / 2)
    audible = [reach for reach in reaches if reach > 1e-3 * max(reaches)]
    return total / length, float(np.quantile(audible, _LOUD)) if audible else 0.0


def _mono(
    read: Callable[[int, int], Tensor], length: int, sample_rate: int, seconds: float = _READ_S
) -> Iterator[np.ndarray]:
    step = max(1, round(seconds * sample_rate))
    for start in range(0, length, step):
        block = read(start, min(length, start + step))
        yield block.to(torch.float64).mean(0).to(torch.float32).numpy()


def _resampled(blocks: Iterable[np.ndarray], sample_rate: int) -> Iterator[np.ndarray]:
    if sample_rate == RATE:
        yield from blocks
        return
    soxr = import_optional("soxr", "transcription", "harmonic-lowering[transcribe]")
    stream = soxr.ResampleStream(sample_rate, RATE, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)
