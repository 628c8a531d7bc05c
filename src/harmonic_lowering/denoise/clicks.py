r"""Clicks, crackle, clipped peaks and missing stretches: found, and interpolated from both sides.

A click is short, and an autoregressive model of the sound around it predicts it neither forwards
from what came before nor backwards from what comes after. An onset, which is what a drum, a string
or a consonant begins with, fails only forwards, or lasts. A click must also stand out from the
usual peaks of that error on each side, each of which lasts longer than a period of a voice, whose
glottal pulses are hard to predict as well.

What is marked is interpolated by least squares: the samples that make the prediction error
smallest. They can be any that the known ones leave open, so everything is exact but the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Repaired", "repair_clicks"]

_SHORTEST_S = 0.1  # of a recording

# Detection
_FRAME_S = 0.046  # in which one model holds
_ORDER_S = 0.0007  # of that model; it must see less than what it is to judge
_SMOOTH_S = 1e-4  # over which errors are averaged: they cross zero
_PITCH_MS = 12  # the longest period of a voice
_AROUND_MS = 40  # on each side, whose peaks are the usual ones
_NEAR_MS = 8  # on each side, whose median tells the peaks of a noise that fades, as of a drum
_PEAK_OF_NOISE = 4.0  # times its median
_RISE = 2.0  # of the level over a click; more is an onset
_RISE_S = (1e-3, 0.01)  # how far from it and how long the level is measured,
_LEVEL_S = 1e-3  # … in such pieces
_CERTAIN = 8.0  # times the usual peaks: the largest error of a click that nothing else explains
# So many times the usual peaks, so many clicks, so many in a second: then others, which exceed the
# peaks by the last number, are likely as well. Strokes on a tabla or a bass drum reach 4, two or
# three a second.
_EVIDENCE = ((4.0, 5, 4.0, 2.0), (8.0, 3, 0.0, 3.0))
_LOW = 0.7  # times the usual peaks: the others
_INAUDIBLE = 1e-5  # times the largest sample
_BRIDGE_S = 5e-4  # between parts of one click
_LONGEST_S = 6e-3  # click
_LONGEST_PERIOD_S = 0.04  # of pulses that are a note
_EVEN = 0.02  # by which share one of its periods may differ from the next
# A click reaches as far as its error exceeds such a share of its peak: the first for which it is
# no longer than a click.
_ROUGH = (0.1, 0.2, 0.4)
_FINE = (0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
_PASSES = 3

# Clipped and missing stretches
_GAP_S = (1e-3, 0.02)  # shortest and longest missing stretch
_BESIDE_S = 2e-3  # what is beside it must be sound, that is:
_LIVELY = 0.9  # share of samples that differ from the last one
_SUDDEN = 0.1  # of the level around
_PLATEAU = 3  # samples
_OVERSHOOT = 0.02  # of the level, which the slopes on both sides of a clipped peak promise
_CLIPPED_SHARE = 0.3  # of a tenth of a second; more is a square wave

# Interpolation
_QUICK_ORDER_S = 0.003
_ORDERS_S = (_QUICK_ORDER_S, 0.0116)  # of the model; gaps need long ones
_CONTEXT = 4  # times the order, on each side, to learn the model from
_SPAN_S = 0.03  # of marks that are interpolated together
_RIDGE = 1e-9  # of noise, which keeps the model stable
_ELEMENTS = 4_000_000  # of the systems that are solved at a time
_PINNED = 4  # rounds of fixing samples at the level that they must exceed


class Repaired(NamedTuple):
    """A waveform, and how many stretches of it were interpolated."""

    waveform: Tensor
    clicks: int


def repair_clicks(waveform: Tensor, sample_rate: int) -> Repaired:
    r"""Interpolate clicks and clipped or missing stretches; return the input itself without any.

    .. math:: \min_{x_u} \sum_n \Big( \sum_{k=0}^{p} a_k x_{n−k} \Big)^2, \quad a_0 = 1

    over the marked samples x_u, with an autoregressive model a of their surroundings. The others
    keep their bits. Each channel is searched alone.

    - *Clicks* of up to 6 ms, by their error of prediction from both sides.
    - *Missing stretches*: the same sample for 1 to 20 ms, amid sound.
    - *Clipped peaks*: three or more samples at the very largest or smallest value, with slopes that
      lead beyond. They are interpolated beyond that value.

    Parameters
    ----------
    waveform : Tensor [shape=(C, L)]
    sample_rate : int, Hz

    Returns
    -------
    Repaired

    Notes
    -----
    Recordings of less than 0.1 s are left alone. A click's error must be eight times the usual
    peaks; three times once a channel has three that are; twice once four in each second are four
    times. The level must not rise twofold over it. So clicks between dense drums stay.
    Smooth pulses without an edge are no clicks. Cost: O(L·log L), and O(n³) for n samples that are
    interpolated together, at most those of 30 ms.

    References
    ----------
    Janssen et al., "Adaptive interpolation of discrete-time signals that can be modeled as
    autoregressive processes", IEEE TASSP 34(2), 1986; Godsill and Rayner, "Digital Audio
    Restoration", 1998.
    """
    if waveform.shape[1] < max(64, _SHORTEST_S * sample_rate):
        return Repaired(waveform, 0)
    channels = [_repaired(channel, sample_rate) for channel in waveform]
    count = sum(channel.clicks for channel in channels)
    if count == 0:
        return Repaired(waveform, 0)
    return Repaired(torch.stack([channel.waveform for channel in channels]), count)


def _repaired(channel: Tensor, sample_rate: int) -> Repaired:
    sound = channel.double()
    gaps, side = _gaps(sound, sample_rate)
    if bool(gaps.any()):
        filled = sound
        for order_s in _ORDERS_S:
            filled = _interpolate(sound, filled, gaps, gaps, order_s, sample_rate, side)
        sound = filled
    clicks, restored = _without_clicks(sound, sample_rate)
    marks = gaps | clicks
    if not bool(marks.any()):
        return Repaired(channel, 0)
    return Repaired(torch.where(marks, restored.to(channel), channel), len(_runs(marks)))


def _without_clicks(sound: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Return marks on the clicks, and the sound without them."""
    marks = torch.zeros_like(sound, dtype=torch.bool)
    bridge = round(_BRIDGE_S * sample_rate)
    restored, prediction = sound, _Prediction(sound, sound, sample_rate)
    high = _threshold(prediction)
    # At first the clicks are in the models as well: they hide each other and blur their own ends.
    # Once most are gone, the models tell exactly where the clicks were.
    for _ in range(_PASSES):
        found = _clicks(prediction, _ROUGH, high)
        if not bool((found & ~marks).any()):
            break
        marks = _closed(marks | found, bridge)
        restored = _interpolate(sound, restored, marks, found, _QUICK_ORDER_S, sample_rate)
        prediction = _Prediction(restored, restored, sample_rate)
    for order_s in _ORDERS_S:
        if not bool(marks.any()):
            return marks, sound
        marks = _clicks(_Prediction(sound, restored, sample_rate), _FINE, high)
        restored = _interpolate(sound, restored, marks, marks, order_s, sample_rate)
    return marks, restored


# ------------------------------------------------------------------ detection


@dataclass(frozen=True)
class _Prediction:
    """How well models that are learnt from `model` predict `sound`, computed when it is asked."""

    sound: Tensor
    model: Tensor
    sample_rate: int

    @cached_property
    def error(self) -> Tensor:
        """The error at each sample."""
        return _prediction_error(self.sound, self.model, self.sample_rate)

    @cached_property
    def usual(self) -> Tensor:
        """The usual peaks of the error around each sample, those of `model`."""
        if self.model is self.sound:
            own = self.error
        else:
            own = _prediction_error(self.model, self.model, self.sample_rate)
        least = _INAUDIBLE * float(self.sound.abs().max())
        return _usual_peaks(own, self.sample_rate).clamp_min(least)

    @cached_property
    def level(self) -> Tensor:
        """The root mean square of the differences of `model` around each sample."""
        size = 2 * round(_LEVEL_S * self.sample_rate / 2) + 1
        power = F.pad(self.model.diff(), (1, 0)).square()
        return F.avg_pool1d(power[None], size, 1, size // 2, count_include_pad=False)[0].sqrt()


def _threshold(prediction: _Prediction) -> float:
    """Return how far a click must exceed the usual peaks: less where there are many."""
    seconds = len(prediction.sound) / prediction.sample_rate
    for level, least, rate, high in _EVIDENCE:
        if len(_runs(_clicks(prediction, _ROUGH, level))) >= max(least, rate * seconds):
            return high
    return _CERTAIN


def _clicks(prediction: _Prediction, shares: tuple[float, ...], high: float) -> Tensor:
    """Mark the clicks by the errors that they make and by where the level rises."""
    error, usual, sample_rate = prediction.error, prediction.usual, prediction.sample_rate
    sure = error > high * usual
    marks = torch.zeros_like(sure)
    if not bool(sure.any()):
        return marks
    longest = round(_LONGEST_S * sample_rate)
    peak = F.max_pool1d(error[None], longest // 2 * 2 + 1, 1, longest // 2)[0]
    bridge = round(_BRIDGE_S * sample_rate)
    counts = F.pad(sure.long().cumsum(0), (1, 0))
    far, long = (round(seconds * sample_rate) for seconds in _RISE_S)
    level = F.pad(prediction.level, (far + long, far + long))
    piece = max(1, round(_LEVEL_S * sample_rate))
    beside = torch.arange(far + piece // 2, far + long, piece)
    for share in shares:
        runs = _runs(_closed(error > torch.maximum(_LOW * usual, share * peak), bridge))
        start, stop = runs.unbind(1)
        before, after = (
            level[places + far + long]
            for places in (start[:, None] - beside, stop[:, None] + beside)
        )
        # Where there are many clicks, there may be others beside.
        if high < _CERTAIN:
            before, after = before.median(1).values, after.median(1).values
        else:
            before, after = before.square().mean(1).sqrt(), after.square().mean(1).sqrt()
        chosen = (stop - start <= longest) & (counts[stop] > counts[start])
        marks |= _marked(runs[chosen & (after <= _RISE * before)], len(marks))
    return _without_trains(marks, sample_rate)


def _without_trains(marks: Tensor, sample_rate: int) -> Tensor:
    """Unmark what follows in even steps: the pulses of a deep note are no clicks."""
    runs = _runs(marks)
    period = runs.double().mean(1).diff()
    even = (period.diff().abs() < _EVEN * period[1:]) & (
        period[1:] < _LONGEST_PERIOD_S * sample_rate
    )
    even = even[1:] & even[:-1]  # of three periods, each
    in_train = F.pad(even, (0, 3)) | F.pad(even, (1, 2)) | F.pad(even, (2, 1)) | F.pad(even, (3, 0))
    return _marked(runs[~in_train], len(marks)) if bool(even.any()) else marks


def _prediction_error(sound: Tensor, model: Tensor, sample_rate: int) -> Tensor:
    """Return the smaller one of the local errors forwards and backwards, of short-term models."""
    order = max(8, round(_ORDER_S * sample_rate))
    hop = round(_FRAME_S * sample_rate / 2)
    length, margin = len(sound), hop // 2
    right = (math.ceil(length / hop) + 1) * hop - margin - length
    frames, models = (_mirrored(x, margin, right).unfold(0, 2 * hop, hop) for x in (sound, model))
    response = torch.fft.rfft(_model(models, order), 2 * hop)
    spectrum = torch.fft.rfft(frames)
    smooth = 2 * round(_SMOOTH_S * sample_rate / 2) + 1
    powers = []
    for filtered in (spectrum * response, spectrum * response.conj()):
        # The frames' ends are wrong, as the filter runs in circles.
        error = torch.fft.irfft(filtered, 2 * hop)[:, margin : margin + hop].flatten()[:length]
        power = F.avg_pool1d(error.square()[None], smooth, 1, smooth // 2, count_include_pad=False)
        powers.append(power[0])
    error = torch.minimum(*powers).sqrt()
    error[:order] = error[-order:] = 0  # where nothing comes before or after
    return error


def _usual_peaks(error: Tensor, sample_rate: int) -> Tensor:
    """Return the median peak of a voice's period, before or after, whichever is larger."""
    block = max(1, round(sample_rate / 1000))
    blocks = _mirrored(error, 0, -len(error) % block).reshape(-1, block)
    half = _PITCH_MS // 2
    peaks = F.max_pool1d(blocks.amax(1)[None], 2 * half + 1, 1, half)[0]
    usual = torch.zeros_like(peaks)
    # Each side begins where the click itself does not reach.
    for level, around, beyond in (
        (peaks, _AROUND_MS, half),
        (_PEAK_OF_NOISE * blocks.median(1).values, _NEAR_MS, _NEAR_MS // 2),
    ):
        padding = around + beyond
        medians = _mirrored(level, padding, padding).unfold(0, around, 1).median(1).values
        usual = torch.maximum(usual, torch.maximum(medians[: len(usual)], medians[-len(usual) :]))
    return usual.repeat_interleave(block)[: len(error)]


def _gaps(sound: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Mark missing and clipped stretches; also say where samples must go up (1) or down (−1)."""
    side = torch.zeros_like(sound)
    for sign in (1.0, -1.0):
        side[_clipped(sign * sound, sample_rate)] = sign
    return _missing(sound, sample_rate) | (side != 0), side


def _missing(sound: Tensor, sample_rate: int) -> Tensor:
    repeats = F.pad(sound.diff() == 0, (1, 0))
    shortest, longest = (round(seconds * sample_rate) for seconds in _GAP_S)
    runs = _runs(repeats)
    runs[:, 0] -= 1  # the first one of a run repeats nothing
    size = runs[:, 1] - runs[:, 0]
    beside = max(4, round(_BESIDE_S * sample_rate))
    inside = (runs[:, 0] >= beside) & (runs[:, 1] <= len(sound) - beside)
    chosen = []
    around = 5 * longest
    for start, stop in runs[(size >= shortest) & (size <= longest + 1) & inside].tolist():
        value = sound[start]
        level = (sound[max(0, start - around) : stop + around] - value).square().mean().sqrt()
        sides = (slice(start - beside, start), slice(stop, stop + beside))
        if all(
            float((~repeats[part]).double().mean()) >= _LIVELY
            and bool((sound[part] - value).square().mean().sqrt() > _SUDDEN * level)
            for part in sides
        ):
            chosen.append((start, stop))
    return _marked(torch.tensor(chosen, dtype=torch.long).reshape(-1, 2), len(sound))


def _clipped(sound: Tensor, sample_rate: int) -> Tensor:
    none = torch.zeros_like(sound, dtype=torch.bool)
    level = sound.max()
    below = sound[sound < level]
    if not bool(level > 0) or len(below) == 0 or bool(level - below.max() > level / 64):
        return none  # or so coarse that equal samples mean nothing
    runs = _runs(sound == level)
    start, stop = runs.unbind(1)
    size = stop - start
    slopes = 2 * level - sound[(start - 1).clamp_min(0)] - sound[stop.clamp_max(len(sound) - 1)]
    inside = (start > 0) & (stop < len(sound))
    marks = _marked(
        runs[(size >= _PLATEAU) & inside & (slopes * size / 8 > _OVERSHOOT * level)], len(sound)
    )
    counts = F.pad(marks.cumsum(0), (1, 0))
    tenth = min(round(sample_rate / 10), len(sound))
    most = int((counts[tenth:] - counts[:-tenth]).max())
    return marks if most < _CLIPPED_SHARE * tenth else none


# ------------------------------------------------------------------ interpolation


def _interpolate(
    sound: Tensor, estimate: Tensor, marks: Tensor, new: Tensor, order_s: float, sample_rate: int,
    side: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Interpolate the marks near new ones, by models that are learnt from `estimate`.

    Where `side` is 1 or −1, the result is at least or at most the sample of `sound`.
    """
    order = min(round(order_s * sample_rate), len(sound) // 8)
    context = _CONTEXT * order
    groups = _groups(_runs(marks), order, round(_SPAN_S * sample_rate))
    groups = [(start, stop) for start, stop in groups if bool(new[start:stop].any())]
    if not groups:
        return estimate
    widest = max(stop - start for start, stop in groups)
    size = widest + 2 * context
    estimate = torch.where(marks, estimate, sound)
    result, limit = (_mirrored(x, context, context + widest) for x in (estimate, sound))
    sides = None if side is None else F.pad(side, (context, context + widest))
    unknown = [marks[start:stop].nonzero()[:, 0] + context for start, stop in groups]
    by_size = sorted(range(len(groups)), key=lambda group: len(unknown[group]))
    while by_size:
        # Of similar size, for what is smaller is padded.
        largest = len(unknown[by_size[-1]])
        most = max(1, _ELEMENTS // max(largest**2, 4 * size))
        batch = [group for group in by_size[-most:] if 2 * len(unknown[group]) >= largest]
        del by_size[-len(batch) :]
        starts = torch.tensor([groups[group][0] for group in batch])[:, None]
        index = torch.nn.utils.rnn.pad_sequence(
            [unknown[group] for group in batch], batch_first=True, padding_value=-1
        )
        free = index >= 0
        index = index.clamp_min(0)
        places = starts + index
        beyond = None if sides is None else (limit[places], sides[places])
        solution = _solve(result[starts + torch.arange(size)], index, free, order, beyond)
        result[places[free]] = solution[free]
    return result[context : context + len(sound)]


def _solve(
    segments: Tensor, index: Tensor, free: Tensor, order: int, beyond: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Return the samples at `index` (rows, n), where `free`, that the model of a row expects."""
    rows, size = segments.shape
    n_fft = _fast_size(size + order)
    model = torch.fft.rfft(_model(segments, order), n_fft).abs().square()
    row, column = torch.arange(rows)[:, None], torch.arange(index.shape[1])
    # The squared error is a quadratic form of the coefficients' autocorrelation at the lags of
    # the unknown samples. What is padded or pinned has a row of the identity.
    correlation = F.pad(torch.fft.irfft(model, n_fft)[:, : order + 1], (0, size - order - 1))
    lags = (index[:, :, None] - index[:, None, :]).abs()
    matrix = correlation.gather(1, lags.flatten(1)).view_as(lags)
    solution = segments.gather(1, index)
    for _ in range(1 if beyond is None else _PINNED):
        known = segments.clone()
        known[row.expand_as(index)[free], index[free]] = 0
        right = -torch.fft.irfft(torch.fft.rfft(known, n_fft) * model, n_fft).gather(1, index)
        system = torch.where(free[:, :, None] & free[:, None, :], matrix, 0.0)
        system[:, column, column] += torch.where(free, 0.0, 1.0)
        factor = torch.linalg.cholesky(system)
        solved = torch.cholesky_solve(torch.where(free, right, 0.0)[..., None], factor)[..., 0]
        solution = torch.where(free, solved, solution)
        if beyond is None:
            break
        level, side = beyond
        short = free & (side * (solution - level) < 0)
        if not bool(short.any()):
            break
        solution = torch.where(short, level, solution)
        free = free & ~short
        segments = segments.clone()
        segments[row.expand_as(index)[short], index[short]] = level[short]
    return solution


def _groups(runs: Tensor, near: int, span: int) -> list[tuple[int, int]]:
    """Join runs that are near, as long as they span no more than that."""
    groups: list[tuple[int, int]] = []
    for start, stop in runs.tolist():
        if groups and start - groups[-1][1] < near and stop - groups[-1][0] <= span:
            groups[-1] = (groups[-1][0], stop)
        else:
            groups.append((start, stop))
    return groups


def _model(frames: Tensor, order: int) -> Tensor:
    """Return the coefficients 1, a_1 … a_p of each frame's autoregressive model (Levinson)."""
    n_fft = _fast_size(frames.shape[1] + order)
    window = torch.hann_window(frames.shape[1], dtype=frames.dtype)
    power = torch.fft.rfft(frames * window, n_fft).abs().square()
    correlation = torch.fft.irfft(power, n_fft)[:, : order + 1]
    error = correlation[:, 0] * (1 + _RIDGE) + 1e-30
    flipped = correlation.flip(1)
    model = torch.zeros_like(correlation)
    model[:, 0] = 1
    for k in range(1, order + 1):
        reflection = -(model[:, :k] * flipped[:, order - k : order]).sum(1) / error
        model[:, 1 : k + 1] += reflection[:, None] * model[:, :k].flip(1)
        error = error * (1 - reflection.square())
    return model


# ------------------------------------------------------------------ stretches of samples


def _mirrored(sound: Tensor, left: int, right: int) -> Tensor:
    """Extend both ends by their mirror images, as often as it takes."""
    period = 2 * len(sound) - 2
    index = torch.arange(-left, len(sound) + right) % max(1, period)
    return sound[torch.minimum(index, period - index)]


def _runs(marks: Tensor) -> Tensor:
    """Return where each run of marks begins and ends (n, 2)."""
    edges = F.pad(marks.to(torch.int8), (1, 1)).diff()
    return torch.stack([(edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]], 1)


def _marked(runs: Tensor, length: int) -> Tensor:
    """Return marks at runs: what `_runs` takes apart."""
    edges = torch.zeros(length + 1, dtype=torch.long)
    edges[runs[:, 0]] += 1
    edges[runs[:, 1]] -= 1
    return edges[:-1].cumsum(0) > 0


def _closed(marks: Tensor, gap: int) -> Tensor:
    """Fill what separates marks by at most `gap` samples."""
    between = _runs(~marks)
    size = between[:, 1] - between[:, 0]
    inside = (between[:, 0] > 0) & (between[:, 1] < len(marks))
    return marks | _marked(between[(size <= gap) & inside], len(marks))


def _fast_size(least: int) -> int:
    return 1 << (least - 1).bit_length()
