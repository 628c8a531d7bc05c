r"""Clicks, clipped peaks and missing samples: found, and interpolated from both sides."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Repaired", "repair_clicks"]

_SHORTEST_S = 0.1  # of a recording
_FRAME_S = 0.046  # over which one model of the spectrum holds, to detect
_ORDER_S = 0.0007  # of that model
_REPAIR_ORDER_S = 0.0116  # of the one that interpolates
_CONTEXT = 4  # times that order, on each side
_SPAN_S = 0.03  # of marks that are interpolated together
_PASSES = 5
_TRIM = 0.03
_TRIM_LOW = 0.35
_AFTER = 1

_SMOOTH_S = 1e-4
_PITCH_MS = 12  # the longest period of a voice: each such stretch has a peak
_AROUND_MS = 40  # on each side, whose peaks a click must exceed
_HIGH = 3.0  # times those peaks: the surest sample of a click
_LOW = 0.35  # times those peaks: its other samples
_SHARES = (0.05, 0.1, 0.2, 0.4)  # of the peak
_BRIDGE_S = 5e-4
_LONGEST_S = 6e-3
_MOST = 0.2  # share of a stretch that can be clicks

_RIDGE = 1e-9
_UNKNOWNS = 4_000_000  # elements of the systems solved at a time


class Repaired(NamedTuple):
    waveform: Tensor
    clicks: int


def repair_clicks(waveform: Tensor, sample_rate: int) -> Repaired:
    """TODO."""
    if waveform.shape[1] < _SHORTEST_S * sample_rate:
        return Repaired(waveform, 0)
    channels, count = [], 0
    for channel in waveform:
        repaired, clicks = _repaired(channel, sample_rate)
        channels.append(repaired)
        count += clicks
    if count == 0:
        return Repaired(waveform, 0)
    return Repaired(torch.stack(channels), count)


def _repaired(channel: Tensor, sample_rate: int) -> tuple[Tensor, int]:
    sound = channel.double()
    restored = sound
    marks = torch.zeros(len(sound), dtype=torch.bool)
    for _ in range(_PASSES):
        found = _clicks(restored, sample_rate)
        if not bool((found & ~marks).any()):
            break
        marks = _closed(marks | found, round(_BRIDGE_S * sample_rate))
        restored = _interpolate(sound, restored, marks, found, sample_rate)
    if not bool(marks.any()):
        return channel, 0
    if _TRIM:
        surprise = _surprise(sound, restored, sample_rate)
        usual = _usual_peaks(_surprise(restored, restored, sample_rate), sample_rate)
        reach = round(_LONGEST_S * sample_rate / 2)
        peak = F.max_pool1d(surprise[None], 2 * reach + 1, 1, reach)[0]
        trimmed = marks & (surprise > torch.maximum(_TRIM_LOW * usual, _TRIM * peak))
        trimmed = _closed(trimmed, round(_BRIDGE_S * sample_rate)) & marks
        marks = trimmed
        restored = _interpolate(sound, restored, marks, marks, sample_rate)
        for _ in range(_AFTER):
            found = _clicks(restored, sample_rate)
            if not bool((found & ~marks).any()):
                break
            marks = marks | found
            restored = _interpolate(sound, restored, marks, found, sample_rate)
    return torch.where(marks, restored.to(channel), channel), len(_runs(marks))


# ------------------------------------------------------------------ detection


def _clicks(sound: Tensor, sample_rate: int) -> Tensor:
    surprise = _surprise(sound, sound, sample_rate)
    usual = _usual_peaks(surprise, sample_rate)
    sure = surprise > _HIGH * usual
    if not bool(sure.any()):
        return sure
    reach = round(_LONGEST_S * sample_rate / 2)
    peak = F.max_pool1d(surprise[None], 2 * reach + 1, 1, reach)[0]
    bridge = round(_BRIDGE_S * sample_rate)
    marks = torch.zeros_like(sure)
    for share in _SHARES:
        possible = _closed(surprise > torch.maximum(_LOW * usual, share * peak), bridge)
        for start, stop in _runs(possible).tolist():
            if stop - start <= _LONGEST_S * sample_rate and bool(sure[start:stop].any()):
                marks[start:stop] = True
    return marks


def _surprise(sound: Tensor, model: Tensor, sample_rate: int) -> Tensor:
    order = max(8, round(_ORDER_S * sample_rate))
    hop = round(_FRAME_S * sample_rate / 2)
    length = len(sound)
    count = math.ceil(length / hop)
    size = 2 * hop
    margin = hop // 2
    right = count * hop + margin - length
    frames, models = (_padded(x, margin, right).unfold(0, size, hop) for x in (sound, model))
    n_fft = size
    coefficients = _levinson(_autocorrelation(models, order), order)[0]
    response = torch.fft.rfft(coefficients, n_fft)
    spectrum = torch.fft.rfft(frames, n_fft)
    smooth = max(1, 2 * round(_SMOOTH_S * sample_rate / 2) + 1)
    both = []
    for filtered in (spectrum * response, spectrum * response.conj()):
        error = torch.fft.irfft(filtered, n_fft)[:, margin : margin + hop].flatten()[:length]
        power = F.avg_pool1d(
            error.square()[None], smooth, 1, smooth // 2, count_include_pad=False
        )[0]
        both.append(power)
    return torch.minimum(*both).sqrt()


def _usual_peaks(surprise: Tensor, sample_rate: int) -> Tensor:
    block = max(1, round(sample_rate / 1000))
    length = len(surprise)
    peaks = F.max_pool1d(surprise[None], block, ceil_mode=True)[0]
    blocks = len(peaks)
    around = min(_AROUND_MS, blocks - 1)
    half = _PITCH_MS // 2
    peaks = F.max_pool1d(F.pad(peaks[None], (half, half), mode="replicate"), 2 * half + 1, 1)[0]
    # Left and right of each block, with the stretch that its own peak reaches left out.
    padded = F.pad(peaks[None], (around + half, around + half), mode="reflect")[0] if (
        around + half < blocks
    ) else F.pad(peaks[None], (around + half, around + half), mode="replicate")[0]
    medians = padded.unfold(0, around, 1).median(1).values
    left, right = medians[:blocks], medians[-blocks:]
    usual = torch.maximum(left, right)
    return usual.repeat_interleave(block)[:length].clamp_min(1e-12)


# ------------------------------------------------------------------ interpolation


def _interpolate(sound: Tensor, restored: Tensor, marks: Tensor, new: Tensor, sample_rate: int) -> Tensor:
    length = len(sound)
    order = min(round(_REPAIR_ORDER_S * sample_rate), length // 8)
    context = min(_CONTEXT * order, length - 1)
    span = round(_SPAN_S * sample_rate)
    groups = [g for g in _groups(_runs(marks), order, span) if bool(new[g[0]:g[1]].any())]
    starts = torch.tensor([group[0] for group in groups])
    widest = int(max(group[1] - group[0] for group in groups))
    size = widest + 2 * context
    known = _padded(torch.where(marks, torch.zeros_like(sound), sound), context, context + widest)
    current = _padded(torch.where(marks, restored, sound), context, context + widest)
    unknown = [marks[a:b].nonzero()[:, 0] + context for a, b in groups]
    most = torch.tensor([len(u) for u in unknown])
    result = current.clone()
    order_of = most.argsort()
    first = 0
    while first < len(groups):
        n = first + 1
        while n < len(groups) and (n + 1 - first) * max(
            int(most[order_of[n]]) ** 2, 4 * size
        ) <= _UNKNOWNS:
            n += 1
        batch = order_of[first:n]
        first = n
        index = torch.nn.utils.rnn.pad_sequence(
            [unknown[i] for i in batch], batch_first=True, padding_value=-1
        )
        rows = starts[batch][:, None] + torch.arange(size)
        segment, window = current[rows], known[rows]
        _solve(segment, window, index, order)
        free = index >= 0
        places = (starts[batch][:, None] + index)[free]
        result[places] = segment.gather(1, index.clamp_min(0))[free]
    return result[context : context + length]


def _solve(segment: Tensor, known: Tensor, index: Tensor, order: int) -> None:
    """Fill segment at index."""
    free = index >= 0
    index = index.clamp_min(0)
    rows, size = segment.shape
    # Marks of other groups are known by their last estimates.
    fixed = segment.scatter(1, index, torch.where(free, 0.0, segment.gather(1, index)))
    n_fft = 1 << (size + 2 * order - 1).bit_length()
    a = _levinson(_autocorrelation(segment, order), order)[0]
    response = torch.fft.rfft(a, n_fft).abs().square()
    correlation = torch.fft.irfft(response, n_fft)  # of the coefficients
    right = -torch.fft.irfft(torch.fft.rfft(fixed, n_fft) * response, n_fft).gather(1, index)
    lag = (index[:, :, None] - index[:, None, :]).abs()
    matrix = correlation[:, : order + 1]
    matrix = F.pad(matrix, (0, max(0, size - order - 1)))
    matrix = matrix.gather(1, lag.flatten(1)).view_as(lag)
    both = free[:, :, None] & free[:, None, :]
    eye = torch.eye(index.shape[1], dtype=matrix.dtype)
    matrix = torch.where(both, matrix, eye)
    right = torch.where(free, right, torch.zeros_like(right))
    factor = torch.linalg.cholesky(matrix)
    solution = torch.cholesky_solve(right[..., None], factor)[..., 0]
    segment.scatter_(1, index, torch.where(free, solution, segment.gather(1, index)))


def _groups(runs: Tensor, near: int, span: int) -> list[tuple[int, int]]:
    groups: list[tuple[int, int]] = []
    for start, stop in runs.tolist():
        if groups and start - groups[-1][1] < near and stop - groups[-1][0] <= span:
            groups[-1] = (groups[-1][0], stop)
        else:
            groups.append((start, stop))
    return groups


# ------------------------------------------------------------------ helpers


def _padded(sound: Tensor, left: int, right: int) -> Tensor:
    """Mirror the ends."""
    length = len(sound)
    index = torch.arange(-left, length + right).abs()
    index = index % (2 * length - 2)
    index = torch.where(index >= length, 2 * length - 2 - index, index)
    return sound[index]


def _autocorrelation(frames: Tensor, order: int) -> Tensor:
    size = frames.shape[-1]
    window = torch.hann_window(size, dtype=frames.dtype)
    n_fft = 1 << (size + order).bit_length()
    power = torch.fft.rfft(frames * window, n_fft).abs().square()
    correlation = torch.fft.irfft(power, n_fft)[..., : order + 1].clone()
    correlation[..., 0] = correlation[..., 0] * (1 + _RIDGE) + 1e-30
    return correlation


def _levinson(correlation: Tensor, order: int) -> tuple[Tensor, Tensor]:
    a = torch.zeros_like(correlation)
    a[:, 0] = 1
    error = correlation[:, 0].clone()
    flipped = correlation.flip(1)
    for k in range(1, order + 1):
        reflection = -(a[:, :k] * flipped[:, order - k : order]).sum(1) / error
        a[:, 1 : k + 1] += reflection[:, None] * a[:, :k].flip(1)
        error = error * (1 - reflection.square())
    return a, error


def _closed(marks: Tensor, gap: int) -> Tensor:
    """Fill gaps up to `gap`."""
    runs = _runs(~marks)
    closed = marks.clone()
    for start, stop in runs[runs[:, 1] - runs[:, 0] <= gap].tolist():
        closed[start:stop] = True
    return closed


def _runs(marks: Tensor) -> Tensor:
    """Return first and one past the last of each run of marks (n, 2)."""
    edges = F.pad(marks.to(torch.int8), (1, 1)).diff()
    return torch.stack([(edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]], 1)
