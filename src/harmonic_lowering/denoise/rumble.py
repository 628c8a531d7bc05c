r"""Rumble: wind, handling or turntable noise below the lowest pitch of a recording.

Rumble comes in bursts that fill a few neighbouring bins of a spectrogram at once, so it is as
predictable as a sound, and no estimate of a steady noise covers it. But pitched sound has nothing
below its fundamental. Where the spectrum falls from the bottom up and then rises, the sound begins
after the valley, and everything before it can be cut.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cut_rumble"]

_INAUDIBLE = 20.0  # Hz
_HIGHEST = 80.0  # Hz, where deep voices and guitars begin; a spectrum may fall on beyond
_FRAME_S = 0.25
_OVERLAP = 4
_RISE = 2.0  # ratio of the power where the sound begins to that of the valley
_MIN_POWER_SHARE = 0.03  # of all power; less may be part of a good recording
_SLOPE = 1.4  # the cut is complete at the edge divided by this


def cut_rumble(clean: Tensor, noisy: Tensor, sample_rate: int) -> Tensor:
    r"""Cut everything below the lowest pitch if it is strong; otherwise return `clean` itself.

    The edge is the minimum of the mean spectrum of `noisy` between 20 Hz and the frequency where
    it has risen to twice its lowest value so far; at most 80 Hz. Everything below the edge but the
    mean is removed, with a slope of half a cosine over the logarithm of the frequency and no delay.
    All channels share the edge.

    Parameters
    ----------
    clean, noisy : Tensor [shape=(C, L)]
        The sound to cut, and the recording before denoising, which determines the edge.
    sample_rate : int, Hz

    Notes
    -----
    Rumble of less than 3 % of the power stays, as does everything in recordings of less than half a
    second. A sound that is strongest at 20 Hz and falls from there, as of some engines, looks like
    rumble. Cutting before denoising would leave a hole in the spectrum that spoils the noise
    estimate beside it. Cost: O(L·log L).
    """
    size = round(_FRAME_S * sample_rate)
    if noisy.shape[1] < 2 * size or sample_rate < 8 * _HIGHEST:
        return clean
    edge = _edge(noisy, size, sample_rate)
    rumble = _below(noisy, edge, sample_rate)
    swing = noisy - noisy.mean(1, keepdim=True)
    if float(rumble.square().sum()) < _MIN_POWER_SHARE * float(swing.square().sum()):
        return clean
    return clean - _below(clean, edge, sample_rate)


def _edge(waveform: Tensor, size: int, sample_rate: int) -> float:
    """Frequency in Hz at which the sound begins."""
    per_hertz = size / sample_rate
    frames = waveform.unfold(1, size, size // _OVERLAP) * torch.hann_window(size).to(waveform)
    power = torch.fft.rfft(frames).abs().square().sum((0, 1))
    power = F.avg_pool1d(power[None], 3, 1)[0]  # bin 1 comes first
    first = math.ceil(_INAUDIBLE * per_hertz)
    power = power[first - 1 : math.ceil(1.5 * _HIGHEST * per_hertz)]
    risen = (power > _RISE * power.cummin(0).values).nonzero()
    before = power[: int(risen[0])] if len(risen) else power
    return min(_HIGHEST, (first + int(before.argmin())) / per_hertz)


def _below(waveform: Tensor, edge: float, sample_rate: int) -> Tensor:
    """Return everything below the edge, without the mean."""
    margin = round(_FRAME_S * sample_rate)  # the ends are mirrored
    padded = F.pad(waveform, (margin, margin), mode="reflect")
    frequency = torch.fft.rfftfreq(padded.shape[1], 1 / sample_rate, device=waveform.device)
    height = (frequency.clamp_min(1e-3) / edge).log() / math.log(_SLOPE) + 1  # of the slope, 0 to 1
    share = (1 + torch.cos(math.pi * height.clamp(0, 1))) / 2
    share[0] = 0
    rumble: Tensor = torch.fft.irfft(torch.fft.rfft(padded) * share.to(waveform), padded.shape[1])
    return rumble[:, margin:-margin]
