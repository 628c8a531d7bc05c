"""The network that transcribes, and the spectrogram that it reads."""

from __future__ import annotations

from functools import cache

from torch import Tensor, nn

from ..constant_q import VQT
from ..modules import LogHarmonicConv2d

__all__ = [
    "FRAME_S",
    "HOP",
    "LOWEST",
    "PITCHES",
    "RATE",
    "REACH",
    "TranscriptionNetwork",
    "vqt_levels",
]

RATE, HOP = 16000, 384
FRAME_S = HOP / RATE
LOWEST, PITCHES = 21, 88  # MIDI: A0 to C8
_ROWS, _FINE = 96, 3  # semitones from A0 on, and bins of each
_SHIFTS = (0, 12, 19, 24, 28, 31, 34, 36)  # harmonics 1 to 8, in semitones
_DILATIONS = (1, 2, 4, 8)  # frames
REACH = 1 + sum(_DILATIONS)  # frames on each side that a result depends on
_FLOOR_DB = -45.0  # about 70 dB below a full-scale sinusoid


@cache
def _transform() -> VQT:
    # The middle one of a semitone's three bins is in tune.
    lowest = 27.5 * 2 ** (-1 / (12 * _FINE))
    return VQT(
        sr=RATE, hop_length=HOP, fmin=lowest, n_bins=_ROWS * _FINE, bins_per_octave=12 * _FINE
    )


def vqt_levels(sound: Tensor) -> Tensor:
    """Return the level in dB of each bin of a sound at 16 kHz.

    Parameters
    ----------
    sound : Tensor [shape=(..., L)], float32

    Returns
    -------
    Tensor [shape=(..., 288, 1 + floor(L / 384))]
        Three bins a semitone from A0 on.
    """
    spectrum: Tensor = _transform()(sound)
    return 20 * spectrum.abs().clamp_min(1e-6).log10()


class _Block(nn.Module):
    """Harmonics and sub-harmonics of each pitch, then its neighbourhood in pitch and time."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        shifts = sorted({sign * shift for shift in _SHIFTS for sign in (-1, 1)})
        self.harmonic = LogHarmonicConv2d(
            channels, channels, (len(shifts), 1), shifts=shifts, bias=False
        )
        self.norm1 = nn.BatchNorm2d(channels)
        self.local = nn.Conv2d(
            channels, channels, 3, padding=(1, dilation), dilation=(1, dilation), bias=False
        )
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm1(self.harmonic(x)).relu()
        y = x + self.norm2(self.local(y))
        return y.relu()


class TranscriptionNetwork(nn.Module):
    """From levels to logits of frames and onsets.

    Four residual blocks of harmonic taps and a 3×3 convolution, at one row a semitone; reading a
    pitch's harmonics and sub-harmonics in every block is the idea of Harmonica (arXiv 2609.04640).

    Parameters
    ----------
    channels : int >= 1

    Examples
    --------
    >>> import torch
    >>> network = TranscriptionNetwork()
    >>> network(vqt_levels(torch.randn(2, 16000))).shape  # batch, (frames, onsets), pitch, time
    torch.Size([2, 2, 88, 42])
    """

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.channels = channels
        self.stem = nn.Conv2d(1, channels, (9, 3), stride=(_FINE, 1), padding=(3, 1), bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential(*(_Block(channels, dilation) for dilation in _DILATIONS))
        self.head = nn.Conv2d(channels, 2, 1)
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias, -4.0)  # most pitches are silent at most times

    def forward(self, level: Tensor) -> Tensor:
        """Return (B, 2, 88, T) for levels (B, 288, T) of `vqt_levels`."""
        x = (level[:, None] - _FLOOR_DB).clamp_min(0) / 40 - 1
        x = self.norm(self.stem(x)).relu()
        logits: Tensor = self.head(self.blocks(x))
        return logits[:, :, :PITCHES]
