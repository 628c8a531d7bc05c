r"""Hum and whistles: steady tones that are no part of the sound, found and subtracted.

Hum is as harmonic as any music, so the network would keep it. It differs from music in that it
never swells or decays, in that its pitch is near the mains frequency, where no note is, and a
whistle in that it has no overtones and lasts while everything else comes and goes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .lines import Baseband, Lines, extend, track

__all__ = ["subtract_hum"]

_SHORTEST_S = 1.0  # of a recording with hum, and of the hum in it
_MAINS = (50.0, 60.0)  # Hz
_TOLERANCE = 0.012  # relative; the nearest notes are 2 % away
_LOW = 6  # the first multiples, of which hum has at least two
_TRACKED = 10  # multiples by which hum is found
_HIGHEST = 4000.0  # Hz, of its lines
_SUPPORT = 0.3  # least share of the time in which a line of a hum is visible
_SOLE_SUPPORT = 0.8  # … if there is only one
_DISSENT = 0.35  # largest share of that time in which it is not as steady as hum
_CALM_DISSENT = 0.1  # … as hum that could be a note, and whistles
_HUM_CHANGE = 0.35  # of the amplitude, from the middle to an end, of hum that begins or ends
_NEVER = 0.8  # … in which no line of a hum is unsteady
_BENEATH = 100.0  # … but for one that lasts under a note: power of its amplitude over its variance
_BENEATH_CHANGE = 0.2  # … and how its amplitude changes
_TOWERS = 4.0  # ratio of a line's amplitude to its neighbours', which only low lines of hum have
_LONG = 0.6  # share of the recording that is long

_BAND = 40.0  # Hz; distance from zero and the highest frequency at which whistles are found
_WHISTLE_S = 2.5  # length of a recording; notes may last through shorter ones
_WHISTLE_SUPPORT = 0.5
_WHISTLE_CHANGE = 0.2  # of the amplitude, from the middle to an end
_STANDS_OUT = 10.0  # ratio of a peak's power to that beside it
_ALIKE = 0.002  # relative difference of frequencies that are the same
_MOST_PARTIALS = 6  # ratio of frequencies beyond which lines have nothing to do with each other
_MOST_TRIED = 8
_MOST_WHISTLES = 2  # more lasting lines are a chord

_PIECE_S = 0.1
_SWING = 2.0  # ratio of the power of loud pieces of a sound to that of quiet ones
_AUDIBLE = 1e-6  # power of a tone relative to all
_LEAST_REST = 1e-3  # power of the loud pieces, relative to a tone that may be noise


def subtract_hum(waveform: Tensor, sample_rate: int) -> Tensor:
    r"""Subtract hum and whistles from each channel; return the input itself if there are none.

    .. math:: \hat h(t) = \sum_n \operatorname{Re} (a_n + b_n t) e^{i n θ(t)},
        \qquad t_0 ≤ t < t_1

    with one slowly varying phase θ for all lines, estimated by all of them together. The amplitudes
    are found by reweighted least squares, in which moments with other sound near a line count for
    little; a line that may be chance is left alone.

    *Hum* has at least two steady lines among the first six multiples of about 50, 60, 100 or 120
    Hz (within 1.2 %). It may begin and end anywhere, and its frequency may drift. A *whistle* is a
    single line of any frequency without overtones that lasts as steadily as its surroundings let it
    be seen from beginning to end, while the rest of the sound changes its level.

    Parameters
    ----------
    waveform : Tensor [shape=(C, L)]
    sample_rate : int, Hz

    Returns
    -------
    Tensor [shape=(C, L)]

    Notes
    -----
    A held note differs from hum by its pitch, by decaying, or by overtones that are no multiples of
    the mains frequency. What cannot be told apart: a pure tone that is held through the whole
    recording while other sound comes and goes is taken for a whistle, and a note of 50 or 60 Hz
    with steady overtones, or of 100 or 120 Hz beside other sound, for hum. What stays: whistles
    that pause, that have overtones, of which there are three or more, or in recordings of less than
    2.5 seconds; hum whose first six lines lie under other sound nearly all the time; tones in
    steady noise alone, but for hum of 50 or 60 Hz. Recordings of less than a second are returned as
    they are. Cost: O(L·log L), O(L·K) for K lines that are found, and a share in O(L³) that counts
    beyond a minute or so.

    References
    ----------
    P. H. C. Eilers, "A perfect smoother", Anal. Chem. 2003, on smoothing by differences;
    P. J. Huber, "Robust Statistics", 1981, on reweighted least squares.
    """
    if waveform.shape[1] < _SHORTEST_S * sample_rate or sample_rate < 4 * _LOW * max(_MAINS):
        return waveform
    found = [_hum_and_whistles(channel, sample_rate) for channel in waveform]
    if all(hum is None for hum in found):
        return waveform
    pairs = zip(waveform, found, strict=True)
    return torch.stack([one if hum is None else one - hum.to(one) for one, hum in pairs])


def _hum_and_whistles(channel: Tensor, sample_rate: int) -> Tensor | None:
    """Return the sum of all steady tones that are noise, or None."""
    rest = channel.double()
    if not bool(rest.any()):
        return None
    baseband = Baseband(rest, sample_rate)
    found = False
    for mains in _MAINS:
        hum = _hum(rest, baseband, mains, sample_rate)
        if hum is not None:
            found, rest = True, rest - hum
            baseband = Baseband(rest, sample_rate)
    for whistle in _whistles(rest, baseband, sample_rate):
        found, rest = True, rest - whistle
    return channel.double() - rest if found else None


def _hum(channel: Tensor, baseband: Baseband, mains: float, sample_rate: int) -> Tensor | None:
    """Return the hum of one mains frequency, or None."""
    lines = track(baseband, torch.arange(1, _TRACKED + 1).double(), mains)
    change = math.inf if lines.whole else _HUM_CHANGE
    steady = lines.steady(_SUPPORT, _DISSENT, change)
    low = [int(multiple) for multiple in steady if multiple <= _LOW]
    if math.gcd(*low) not in (1, 2):
        return None
    if abs(lines.frequency / mains - 1) > _TOLERANCE or lines.seconds < _SHORTEST_S:
        return None
    sole = len(low) == 1
    if sole and not (lines.whole and low[0] in lines.steady(_SOLE_SUPPORT, _DISSENT)):
        return None
    if not (lines.whole or low[0] == 1):  # the end of a long note?
        calm = lines.steady(_SUPPORT, _CALM_DISSENT)
        if not (_is_long(lines) and all(multiple in calm for multiple in low)):
            return None
    highest = min(_HIGHEST, sample_rate / 2 - _BAND)
    multiples = torch.arange(1, int(highest / lines.frequency) + 1).double()
    lines = extend(lines, baseband, multiples)
    hum = lines.without(_notes(lines)).signal(len(channel), sample_rate)
    if (sole or low[0] > 1) and not _swings(channel - hum, hum, sample_rate):
        return None
    return hum


def _notes(lines: Lines) -> Tensor:
    """Say which lines belong to notes: they come and go, or tower above the lines beside them."""
    amplitude = lines.fit.amplitude.abs()
    beside = F.pad(amplitude, (2, 2)).unfold(0, 5, 1)[:, [0, 1, 3, 4]].max(1).values
    towers = (lines.multiples > _LOW) & (amplitude > _TOWERS * beside)
    lasts = lines.fit.certainty > _BENEATH
    lasts &= lines.fit.slope.abs() < _BENEATH_CHANGE * amplitude
    return towers | (lines.fit.dissent > _NEVER) & ~lasts


def _is_long(lines: Lines) -> bool:
    """Say whether the lines last for most of the recording, up to one of its ends."""
    at_an_end = lines.begin == 0 or lines.end == len(lines.times)
    return at_an_end and lines.seconds > _LONG * float(lines.times[-1])


def _swings(rest: Tensor, tone: Tensor, sample_rate: int) -> bool:
    """Say whether a tone is audible beside other sound: alone, it may be all the sound there is."""
    size = round(_PIECE_S * sample_rate)
    power = rest[: len(rest) // size * size].reshape(-1, size).square().mean(1)
    if float(tone.square().mean()) < _AUDIBLE * float(rest.square().mean()):
        return False
    quiet, loud = power.quantile(torch.tensor([0.1, 0.9]).double()).tolist()
    return bool(loud > _SWING * quiet and loud > _LEAST_REST * float(tone.square().mean()))


def _whistles(channel: Tensor, baseband: Baseband, sample_rate: int) -> list[Tensor]:
    """Return the lines without overtones that last from beginning to end."""
    if len(channel) < _WHISTLE_S * sample_rate:
        return []
    one = torch.ones(1).double()
    lines = [track(baseband, one, frequency) for frequency in _peaks(channel, sample_rate)]
    inaudible = _AUDIBLE * float(channel.square().mean())
    lines = [
        line
        for line in lines
        if len(line.steady(_SUPPORT, _DISSENT))
        and float(line.fit.amplitude.abs().square()) / 2 > inaudible
    ]
    if sum(line.whole for line in lines) > _MOST_WHISTLES:
        return []
    whistles = [
        line.signal(len(channel), sample_rate)
        for line in lines
        if line.whole
        and len(line.steady(_WHISTLE_SUPPORT, _CALM_DISSENT))
        and float(line.fit.slope.abs() / line.fit.amplitude.abs()) < _WHISTLE_CHANGE
        and not any(_are_partials(line.frequency, other.frequency) for other in lines)
    ]
    if not whistles:
        return []
    tones = torch.stack(whistles).sum(0)
    return whistles if _swings(channel - tones, tones, sample_rate) else []


def _are_partials(first: float, second: float) -> bool:
    """Say whether two different frequencies may belong to one note: 2:1, 3:2, 4:3, 5:3 …."""
    ratio = max(first, second) / min(first, second)
    nearest = [abs(ratio * part / round(ratio * part) - 1) for part in (1, 2, 3)]
    return 1 + _ALIKE < ratio < _MOST_PARTIALS and min(nearest) < _ALIKE


def _peaks(channel: Tensor, sample_rate: int) -> list[float]:
    """Return the frequencies in Hz of the highest peaks that last."""
    size = 2 ** round(math.log2(sample_rate / 2))
    window = torch.hann_window(size).double()
    power = torch.fft.rfft(channel.unfold(0, size, size // 2) * window).abs().square()
    near = F.max_pool1d(power, 5, 1, 2)
    inner, outer = (F.avg_pool1d(power, width, 1, width // 2) for width in (11, 25))
    beside = ((25 * outer - 11 * inner) / 14).clamp_min(1e-12 * float(power.max()) + 1e-300)
    lasting = (near / beside > _STANDS_OUT).double().mean(0)
    height = (power / beside).clamp_min(1e-12).log().mean(0)
    is_peak = height == F.max_pool1d(height[None], 11, 1, 5)[0]
    margin = math.ceil(_BAND * size / sample_rate)
    is_peak[:margin] = is_peak[-margin:] = False
    places = (is_peak & (lasting > _SUPPORT)).nonzero()[:, 0]
    highest = places[height[places].argsort(descending=True)]
    return [place * sample_rate / size for place in highest[:_MOST_TRIED].tolist()]
