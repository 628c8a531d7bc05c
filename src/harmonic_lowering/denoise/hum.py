r"""Mains hum: steady tones at the multiples of 50 or 60 Hz, found and subtracted.

Hum is as harmonic as any music, so the network would keep it. It differs from music in that its
pitch is the mains frequency and in that it never pauses, swells or glides. A tone of constant
frequency is two numbers (here four: its amplitude may drift linearly), which a few seconds
determine far better than any filter of spectrogram bins could: least squares removes the tone and
leaves everything else in those bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["subtract_hum"]

_MAINS = (50.0, 60.0)  # Hz
_DRIFT = 0.2  # Hz; grids hold their frequency closer than this
_HIGHEST = 2500.0  # Hz
_SHORTEST_S = 1.0  # below, 50 Hz cannot be told from a voice
_PIECES = 6  # of the recording, over which a line must stay the same
_STEADY = 0.35  # largest deviation of a line's pieces, relative to their mean
_STANDS_OUT = 10.0  # smallest ratio of a line's power to that of the frequencies around it
_MIN_LINES = 3  # such lines make a hum
_BLOCK = 1 << 14  # samples


def subtract_hum(waveform: Tensor, sample_rate: int) -> Tensor:
    r"""Subtract mains hum from each channel if there is any; otherwise return the input itself.

    .. math:: \min_{a,b,c,d} \sum_n \Big( x[n] − \sum_k (a_k + b_k n) \cos k ω n
        + (c_k + d_k n) \sin k ω n \Big)^2

    over all multiples k of ω up to 2.5 kHz, with ω near 2π·50 or 2π·60 Hz where they are strongest.
    A channel has hum if three of them stand out from their surroundings and are steady. All others
    are then subtracted as well: they lie under the sound, and a line that is absent costs little.

    Parameters
    ----------
    waveform : Tensor [shape=(C, L)]
    sample_rate : int, Hz

    Notes
    -----
    A note held at exactly the mains frequency for the whole recording is mistaken for hum. The
    lines must last from beginning to end. Cost: O(L·K²) for K lines.
    """
    if waveform.shape[1] < _SHORTEST_S * sample_rate:
        return waveform
    cleaned = [_without_hum(channel, sample_rate) for channel in waveform]
    if all(clean is channel for clean, channel in zip(cleaned, waveform, strict=True)):
        return waveform
    return torch.stack(cleaned)


def _without_hum(channel: Tensor, sample_rate: int) -> Tensor:
    fundamental, lines = _lines(channel.double(), sample_rate)
    if len(lines) == 0:
        return channel
    omega = 2 * math.pi * fundamental / sample_rate * lines
    length = len(channel)
    normal = torch.zeros(4 * len(lines), 4 * len(lines), dtype=torch.float64)
    right = torch.zeros(4 * len(lines), dtype=torch.float64)
    blocks = [(start, min(length, start + _BLOCK)) for start in range(0, length, _BLOCK)]
    for start, stop in blocks:
        tones = _tones(omega, start, stop, length)
        normal += tones.T @ tones
        right += tones.T @ channel[start:stop].double()
    amplitude = torch.linalg.lstsq(normal, right[:, None]).solution[:, 0]
    clean = channel.clone()
    for start, stop in blocks:
        clean[start:stop] -= (_tones(omega, start, stop, length) @ amplitude).to(clean)
    return clean


def _tones(omega: Tensor, start: int, stop: int, length: int) -> Tensor:
    """Return cosines and sines of samples start..stop, constant and rising linearly (n, 4K)."""
    time = torch.arange(start, stop, dtype=torch.float64)[:, None]
    waves = torch.cat([torch.cos(omega * time), torch.sin(omega * time)], 1)
    return torch.cat([waves, waves * (2 * time / length - 1)], 1)


def _lines(channel: Tensor, sample_rate: int) -> tuple[float, Tensor]:
    """Return the hum's fundamental in Hz and its multiples, none if there is no hum."""
    best = (0.0, torch.empty(0))
    highest = min(_HIGHEST, 0.45 * sample_rate)
    length = len(channel)
    padded = 4 * length
    spectrum = torch.fft.rfft(channel * torch.hann_window(length).to(channel), padded)
    power = spectrum[: math.ceil((highest + 30) * padded / sample_rate)].abs().square()
    if not float(power.max()) > 0:
        return best
    grid = max(1, round(0.25 * _DRIFT * length / sample_rate * 40))
    strongest = 0.0
    for mains in _MAINS:
        multiples = torch.arange(1, int(highest / mains) + 1, dtype=torch.float64)
        around = _around(power, multiples * mains * padded / sample_rate, padded / sample_rate)
        for step in range(-grid, grid + 1):
            fundamental = mains + _DRIFT * step / grid
            place = (multiples * fundamental * padded / sample_rate).round().long()
            ratio = power[place.clamp_max(len(power) - 1)] / around
            score = float(ratio.clamp_min(1).log().sum())
            if score > strongest:
                strongest = score
                best = (fundamental, multiples[ratio > _STANDS_OUT])
    fundamental, lines = best
    steady = [line for line in lines.tolist() if _steady(channel, line * fundamental / sample_rate)]
    if len(steady) < _MIN_LINES:
        return fundamental, torch.empty(0)
    return fundamental, torch.arange(1, int(highest / fundamental) + 1, dtype=torch.float64)


def _around(power: Tensor, places: Tensor, per_hertz: float) -> Tensor:
    """Return the median power 5 to 20 Hz from each place."""
    near = torch.arange(round(5 * per_hertz), round(20 * per_hertz))
    offsets = torch.cat([-near, near])
    index = (places.round().long()[:, None] + offsets).abs().clamp_max(len(power) - 1)
    floor = 1e-20 * power.max()
    return power[index].median(1).values.clamp_min(floor)


def _steady(channel: Tensor, frequency: float) -> bool:
    """Say whether a tone's complex amplitude is about the same in all pieces of the recording."""
    size = len(channel) // _PIECES
    time = torch.arange(_PIECES * size, dtype=torch.float64)
    baseband = channel[: _PIECES * size] * torch.polar(
        torch.ones_like(time), -2 * math.pi * frequency * time
    )
    window = torch.hann_window(size).to(channel)
    pieces = (baseband.reshape(_PIECES, size) * window).sum(1)
    mean = pieces.mean()
    return float((pieces - mean).abs().square().mean().sqrt()) < _STEADY * float(mean.abs())
