"""Where each kernel row of a harmonic convolution reads: the geometry, exact and without tensors.

A **tap** is an affine map from an output bin ``f`` to the place on the frequency axis that one
kernel row reads:

    position_j(f) = a_j · f + b_j        (in bins)

Bin ``f`` of a spectrogram stands for the frequency ``(f + o)·Δ``, where ``o`` is the *origin*. A
kernel row at ratio ``r`` has to read the frequency ``r·(f + o)·Δ``, which is bin ``r·(f + o) − o``:

    linear frequency axis       a = r,  b = o·(r − 1)

On a logarithmic axis with ``A`` bins to the octave multiplication is a shift:

    logarithmic frequency axis  a = 1,  b = A·log_2(r)

Slopes and offsets are `fractions.Fraction`. Every float is a fraction too, so that there is one
way to compute a position and it does not round: in float32, 3/7 · 2000 is off by 6e-5 of a bin.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

from ._torch import constant_object
from .checks import (
    LARGEST_DENOMINATOR,
    Ratio,
    as_anchors,
    as_count,
    as_fraction,
    as_int,
    as_positive,
    as_ratio,
    as_sequence,
)

__all__ = [
    "FrequencyTaps",
    "Interpolation",
    "TapRows",
    "harmonic_ratios",
    "harmonic_taps",
    "log_harmonic_taps",
    "origin_after_pooling",
]

Interpolation = Literal["linear", "nearest"]

_INTERPOLATIONS = ("linear", "nearest")

# Log shifts are the product of a float and a logarithm: a result this close to a whole number is
# that number with rounding noise, and reading two rows instead of one for 1e-13 of a bin is waste.
_SHIFT_NOISE = 2.0**-40


class TapRows(NamedTuple):
    """The source rows that one tap reads, for the output rows ``start … stop − 1`` where it lives.

    Output row ``start + i`` reads ``(1 − weight[i])·X[lower[i]] + weight[i]·X[lower[i] + 1]``; a
    weight of 0 means that the position is whole and the upper row is not read at all (it may not
    exist). All other output rows are zero.
    """

    start: int
    stop: int
    lower: Sequence[int]
    weight: Sequence[float]

    @property
    def is_whole(self) -> bool:
        """Whether every position is a whole bin, so that nothing is interpolated."""
        return not any(self.weight)


@dataclass(frozen=True)
class FrequencyTaps:
    """Where the rows of a kernel read on the frequency axis.

    One object describes every kind of harmonic convolution this package offers; it is immutable,
    hashable and holds no tensors. Make it with one of the class methods.

    Parameters
    ----------
    slopes, offsets : tuple of Fraction
        ``a_j > 0`` and ``b_j`` of ``position_j(f) = a_j·f + b_j``, one for each kernel row.
    interpolation : {"linear", "nearest"}
        ``"linear"`` blends the two bins beside a position. ``"nearest"`` rounds the position,
        halves upwards, as published log-frequency models do with their shifts.

    Notes
    -----
    The input is zero outside ``0 ≤ position ≤ n_bins − 1``, both ends included. Because ``a_j`` is
    positive, the output bins at which a tap reads something are a contiguous range.

    Examples
    --------
    >>> taps = FrequencyTaps.harmonic(3, anchor=2)
    >>> [str(a) for a in taps.slopes]
    ['1/2', '1', '3/2']
    >>> [str(p) for p in taps.positions(4)[2]]
    ['0', '3/2', '3', '9/2']
    >>> taps.live_range(2, n_bins=4)
    range(0, 3)
    """

    slopes: tuple[Fraction, ...]
    offsets: tuple[Fraction, ...]
    interpolation: Interpolation = "linear"

    def __post_init__(self) -> None:
        for name in ("slopes", "offsets"):
            given = as_sequence(name, getattr(self, name), least=0)
            entries = tuple(as_fraction(f"one of {name}", entry) for entry in given)
            object.__setattr__(self, name, entries)
        if len(self.slopes) != len(self.offsets) or not self.slopes:
            raise ValueError(
                "FrequencyTaps needs as many offsets as slopes, and at least one, got "
                f"{len(self.slopes)} slopes and {len(self.offsets)} offsets"
            )
        if not all(slope > 0 for slope in self.slopes):
            raise ValueError(f"slopes must be > 0, got {[str(a) for a in self.slopes]}")
        if not isinstance(self.interpolation, str) or self.interpolation not in _INTERPOLATIONS:
            raise ValueError(
                f"interpolation must be 'linear' or 'nearest', got {self.interpolation!r}"
            )

    # Taps are keys of caches that are asked at every call, and hashing fractions is slow. The hash
    # of a string differs between processes, so it does not travel in a pickle.
    @cached_property
    def _hash(self) -> int:
        return hash((self.slopes, self.offsets, self.interpolation))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(
        self,
    ) -> tuple[type, tuple[tuple[Fraction, ...], tuple[Fraction, ...], str]]:
        return type(self), (self.slopes, self.offsets, self.interpolation)

    def __len__(self) -> int:
        """Return the number of taps, which is the number of kernel rows."""
        return len(self.slopes)

    # ---------------------------------------------------------------- constructors

    @classmethod
    def harmonic(
        cls,
        n_harmonics: int,
        anchor: int | Sequence[int] = 1,
        origin: Ratio = 0,
        interpolation: Interpolation = "linear",
    ) -> FrequencyTaps:
        """Taps at the ratios ``k/n``, k = 1 … `n_harmonics`, n the `anchor`.

        Parameters
        ----------
        n_harmonics : int >= 1
            Number of harmonics K.
        anchor : int >= 1 or sequence of int >= 1
            The harmonic that the output bin itself is. Row k = `anchor` reads the bin itself, the
            rows before it sub-harmonics. A sequence gives K taps for each anchor in turn.
        origin : int, float or Fraction
            Bin j stands for the frequency ``(j + origin)·Δ``: 0 for an STFT, 1 for one without its
            DC bin; see `origin_after_pooling` for pooled ones.
        interpolation : {"linear", "nearest"}
            See the class.

        Returns
        -------
        FrequencyTaps
            One tap a row, anchor after anchor.
        """
        return cls.from_ratios(harmonic_ratios(n_harmonics, anchor), origin, interpolation)

    @classmethod
    def from_ratios(
        cls,
        ratios: Sequence[Ratio],
        origin: Ratio = 0,
        interpolation: Interpolation = "linear",
    ) -> FrequencyTaps:
        """Taps at explicit frequency ratios on a linear axis.

        Sub-harmonics (``1/2``), tempered intervals (``2 ** (7 / 12)``), stretched partials: any
        finite ratio above 0. Other parameters as in `harmonic`.

        Examples
        --------
        >>> FrequencyTaps.from_ratios([1 / 3, 1, 3]).slopes
        (Fraction(1, 3), Fraction(1, 1), Fraction(3, 1))
        """
        slopes = tuple(as_ratio(ratio) for ratio in as_sequence("harmonics", ratios))
        o = as_fraction("origin", origin)
        return cls(slopes, tuple(o * (slope - 1) for slope in slopes), interpolation)

    @classmethod
    def log_harmonic(
        cls,
        n_harmonics: int,
        anchor: int | Sequence[int] = 1,
        *,
        bins_per_octave: float,
        interpolation: Interpolation = "linear",
    ) -> FrequencyTaps:
        """Taps at the ratios ``k/n`` on a logarithmic frequency axis: shifts.

        Parameters
        ----------
        n_harmonics, anchor, interpolation
            As in `harmonic`.
        bins_per_octave : float > 0
            Resolution of the axis, for example of a constant-Q spectrogram. On the axis
            ``A·log_C(B·x)`` it is ``A·log_C(2)``.
        """
        return cls.log_from_ratios(
            harmonic_ratios(n_harmonics, anchor),
            bins_per_octave=bins_per_octave,
            interpolation=interpolation,
        )

    @classmethod
    def log_from_ratios(
        cls,
        ratios: Sequence[Ratio],
        *,
        bins_per_octave: float,
        interpolation: Interpolation = "linear",
    ) -> FrequencyTaps:
        """Taps at explicit frequency ratios on a logarithmic axis; see `log_harmonic`.

        Examples
        --------
        HarmoF0's shifts, 48 bins to the octave and rounded:

        >>> taps = FrequencyTaps.log_from_ratios(
        ...     range(1, 13), bins_per_octave=48, interpolation="nearest"
        ... )
        >>> [rows.lower[0] - rows.start for rows in taps.rows(n_bins=200)]
        [0, 48, 76, 96, 111, 124, 135, 144, 152, 159, 166, 172]
        """
        scale = as_positive("bins_per_octave", bins_per_octave)
        shifts = []
        for ratio in as_sequence("harmonics", ratios):
            shift = scale * _log2(as_ratio(ratio))
            whole = round(shift)
            is_noise = abs(shift - whole) <= _SHIFT_NOISE * max(1.0, abs(shift))
            shifts.append(whole if is_noise else shift)
        return cls.from_shifts(shifts, interpolation)

    @classmethod
    def from_shifts(
        cls, shifts: Sequence[Ratio], interpolation: Interpolation = "linear"
    ) -> FrequencyTaps:
        """Taps at explicit distances in bins, the same at every bin (a logarithmic axis).

        Parameters
        ----------
        shifts : sequence of int, float or Fraction
            Row j reads bin ``f + shifts[j]``; negative ones look downwards.
        interpolation : {"linear", "nearest"}
            See the class.
        """
        offsets = tuple(as_fraction("a shift", s) for s in as_sequence("shifts", shifts))
        return cls((Fraction(1),) * len(offsets), offsets, interpolation)

    # ---------------------------------------------------------------- questions

    def _line(self, tap: int) -> tuple[Fraction, Fraction]:
        try:
            tap = as_int(tap)
        except TypeError:
            raise TypeError(f"tap must be an int, got {tap!r}") from None
        if not 0 <= tap < len(self):
            raise IndexError(f"tap must be in 0 … {len(self) - 1}, got {tap}")
        return self.slopes[tap], self.offsets[tap]

    def position(self, tap: int, output_bin: int) -> Fraction:
        """Return the place, in bins, that `tap` reads for `output_bin`; rounded if "nearest"."""
        slope, offset = self._line(tap)
        position = slope * output_bin + offset
        if self.interpolation == "nearest":
            return Fraction(math.floor(position + Fraction(1, 2)))
        return position

    def positions(self, n_bins: int) -> tuple[tuple[Fraction, ...], ...]:
        """Return `position` of every tap at every bin, also where it lies outside the input."""
        n_bins = as_count("n_bins", n_bins, least=0)
        return tuple(
            tuple(self.position(tap, f) for f in range(n_bins)) for tap in range(len(self))
        )

    def live_range(self, tap: int, n_bins: int) -> range:
        """Return the output bins at which `tap` reads inside an input of `n_bins` bins."""
        a, b = self._line(tap)
        n_bins = as_count("n_bins", n_bins, least=0)
        if self.interpolation == "nearest":  # 0 <= floor(a·f + b + 1/2) <= n_bins - 1
            b += Fraction(1, 2)
            stop = math.ceil((n_bins - b) / a)
        else:  # 0 <= a·f + b <= n_bins - 1
            stop = math.floor((n_bins - 1 - b) / a) + 1
        start = max(0, math.ceil(-b / a))
        return range(start, max(start, min(stop, n_bins)))

    def dead(self, n_bins: int) -> tuple[int, ...]:
        """Return the taps that read nothing at any of `n_bins` bins."""
        n_bins = as_count("n_bins", n_bins, least=0)
        return tuple(tap for tap in range(len(self)) if not self.live_range(tap, n_bins))

    def live_share(self, n_bins: int) -> float:
        """Return the share of an ordinary kernel's multiplications that read something."""
        n_bins = as_count("n_bins", n_bins, least=0)
        live = sum(len(self.live_range(tap, n_bins)) for tap in range(len(self)))
        return live / (len(self) * n_bins) if n_bins else 0.0

    def merged(self) -> tuple[FrequencyTaps, tuple[int, ...]]:
        """Return the distinct taps, and for each tap its place among them.

        Ratios repeat across anchors (1/2 = 2/4 = 3/6): what reads the same place is read once.
        """
        return _merged(self)

    def rows(self, n_bins: int, stride: int = 1) -> tuple[TapRows, ...]:
        """Return what each tap reads, for the output bins 0, `stride`, 2·`stride` and so on.

        The rows are counted in the output: output row i is bin ``i·stride`` of the input.
        """
        return _rows(self, as_count("n_bins", n_bins, least=0), as_count("stride", stride))

    @cached_property
    def text(self) -> str:
        """The taps as one line of text, from which `from_text` makes them again.

        It is how operators of compiled and exported graphs carry them.

        Examples
        --------
        >>> FrequencyTaps.harmonic(3, anchor=2, origin=1).text
        'linear 1/2,-1/2 1,0 3/2,1/2'
        """
        lines = (f"{a},{b}" for a, b in zip(self.slopes, self.offsets, strict=True))
        return " ".join((self.interpolation, *lines))

    @classmethod
    def from_text(cls, text: str) -> FrequencyTaps:
        """Return the taps that `text` describes."""
        return _from_text(text)

    def describe(self, tap: int) -> str:
        """Return where a tap reads, in words."""
        slope, offset = self._line(tap)
        at = "f" if slope == 1 else f"{_short(slope)}·f"
        return f"{at} {'-' if offset < 0 else '+'} {_short(abs(offset))}" if offset else at


def origin_after_pooling(
    origin: Ratio, factor: int, pooling: Literal["average", "stride"] = "average"
) -> Fraction:
    """Return the origin of a spectrogram whose frequency axis was pooled by `factor`.

    Bin j of the pooled axis is the mean of the bins ``j·s … j·s + s − 1``, centred at
    ``j·s + (s − 1)/2``; in units of the wider bins it stands at ``j + o'`` with
    ``o' = (o + (s − 1)/2)/s``. Keeping every s-th bin gives ``o' = o/s``.

    Parameters
    ----------
    origin : int, float or Fraction
        The origin before pooling.
    factor : int >= 1
        The pooling factor s.
    pooling : {"average", "stride"}
        ``"average"`` for average pooling (and for max pooling, whose centre is the same),
        ``"stride"`` for strided convolutions and slicing.

    Returns
    -------
    Fraction
        The origin to give to the layers behind the pooling.

    Examples
    --------
    >>> origin_after_pooling(0, 2)
    Fraction(1, 4)
    >>> origin_after_pooling(1, 2, "stride")
    Fraction(1, 2)
    """
    factor = as_count("factor", factor)
    if not isinstance(pooling, str) or pooling not in ("average", "stride"):
        raise ValueError(f"pooling must be 'average' or 'stride', got {pooling!r}")
    centre = Fraction(factor - 1, 2) if pooling == "average" else Fraction(0)
    return (as_fraction("origin", origin) + centre) / factor


# -------------------------------------------------------------------- the arguments of layers


def harmonic_ratios(n_harmonics: int, anchor: int | Sequence[int]) -> tuple[Fraction, ...]:
    """Return ``k/n`` for every anchor n and, within it, every harmonic k = 1 … `n_harmonics`."""
    n_harmonics = as_count("the number of harmonics (kernel rows)", n_harmonics)
    return tuple(Fraction(k, n) for n in as_anchors(anchor) for k in range(1, n_harmonics + 1))


@constant_object
def harmonic_taps(
    n_rows: int | None,
    anchor: int | Sequence[int],
    harmonics: Sequence[Ratio] | None,
    origin: Ratio,
    interpolation: Interpolation,
    rows_of_all_anchors: bool = False,
) -> FrequencyTaps:
    """Return the taps that a layer's arguments stand for, on a linear axis.

    `n_rows` counts the rows of one anchor's kernel, or of all anchors' together.
    """
    ratios = _ratios(n_rows, anchor, harmonics, rows_of_all_anchors)
    return FrequencyTaps.from_ratios(ratios, origin, interpolation)


@constant_object
def log_harmonic_taps(
    n_rows: int | None,
    anchor: int | Sequence[int],
    harmonics: Sequence[Ratio] | None,
    bins_per_octave: float | None,
    shifts: Sequence[Ratio] | None,
    interpolation: Interpolation,
    rows_of_all_anchors: bool = False,
) -> FrequencyTaps:
    """Return the taps that a layer's arguments stand for, on a logarithmic axis."""
    if shifts is None:
        if bins_per_octave is None:
            raise ValueError(
                "a logarithmic frequency axis needs its resolution: give bins_per_octave=, "
                "or shifts="
            )
        return FrequencyTaps.log_from_ratios(
            _ratios(n_rows, anchor, harmonics, rows_of_all_anchors),
            bins_per_octave=bins_per_octave,
            interpolation=interpolation,
        )
    if bins_per_octave is not None or harmonics is not None or as_anchors(anchor) != (1,):
        raise ValueError(
            "shifts already says where every row reads: give it without anchor, harmonics "
            "and bins_per_octave"
        )
    _check_rows("shifts", shifts, n_rows)
    return FrequencyTaps.from_shifts(shifts, interpolation)


def _ratios(
    n_rows: int | None,
    anchor: int | Sequence[int],
    harmonics: Sequence[Ratio] | None,
    rows_of_all_anchors: bool,
) -> Sequence[Ratio]:
    anchors = as_anchors(anchor)
    if harmonics is not None:
        if anchors != (1,):
            raise ValueError(
                f"give anchor or harmonics, not both, got anchors {anchors!r} and "
                f"harmonics={harmonics!r}: with an anchor n the ratios are k/n"
            )
        _check_rows("harmonics", harmonics, n_rows)
        return harmonics
    if n_rows is None:
        raise ValueError("give n_harmonics, or harmonics=")
    if rows_of_all_anchors:
        if n_rows % len(anchors):
            raise ValueError(
                f"a weight with {n_rows} rows does not divide among {len(anchors)} anchors: it "
                "needs the rows of the first anchor's kernel, then those of the second, …"
            )
        n_rows //= len(anchors)
    return harmonic_ratios(n_rows, anchors)


def _check_rows(name: str, entries: Sequence[Ratio], n_rows: int | None) -> None:
    n_entries = len(as_sequence(name, entries))
    if n_rows is not None and n_rows != n_entries:
        raise ValueError(
            f"{name} must have one entry for each kernel row, got {n_entries} entries for "
            f"{n_rows} rows: use kernel_size=({n_entries}, frames)"
        )


# -------------------------------------------------------------------- computed once


@lru_cache(maxsize=64)  # the engines keep what they make of it
def _rows(taps: FrequencyTaps, n_bins: int, stride: int) -> tuple[TapRows, ...]:
    plan = []
    for tap in range(len(taps)):
        live = taps.live_range(tap, n_bins)
        start, stop = -(-live.start // stride), -(-live.stop // stride)
        lower, weight = array("q"), array("d")
        # position = (a.num·b.den·f + b.num·a.den) / (a.den·b.den), in integers of any size
        a, b = taps.slopes[tap], taps.offsets[tap]
        if taps.interpolation == "nearest":
            b += Fraction(1, 2)
        step, base = a.numerator * b.denominator, b.numerator * a.denominator
        denominator = a.denominator * b.denominator
        for row in range(start, stop):
            whole, rest = divmod(step * row * stride + base, denominator)
            lower.append(whole)
            weight.append(0.0 if taps.interpolation == "nearest" else rest / denominator)
        plan.append(TapRows(start, max(start, stop), lower, weight))
    return tuple(plan)


@lru_cache(maxsize=512)
def _merged(taps: FrequencyTaps) -> tuple[FrequencyTaps, tuple[int, ...]]:
    distinct = dict.fromkeys(zip(taps.slopes, taps.offsets, strict=True))
    place = {pair: index for index, pair in enumerate(distinct)}
    index = tuple(place[pair] for pair in zip(taps.slopes, taps.offsets, strict=True))
    if len(distinct) == len(taps):
        return taps, index
    slopes, offsets = zip(*distinct, strict=True)
    return FrequencyTaps(slopes, offsets, taps.interpolation), index


@lru_cache(maxsize=1024)
def _from_text(text: str) -> FrequencyTaps:
    interpolation, *lines = text.split(" ")
    slopes, offsets = zip(*(map(Fraction, line.split(",")) for line in lines), strict=True)
    return FrequencyTaps(slopes, offsets, interpolation)  # type: ignore[arg-type]


def _log2(ratio: Fraction) -> float:
    # numerator and denominator apart: their logarithms are exact for powers of two
    return math.log2(ratio.numerator) - math.log2(ratio.denominator)


def _short(value: Fraction) -> str:
    text = str(value)
    is_short = value.denominator <= LARGEST_DENOMINATOR and len(text) <= 12
    return text if is_short else f"{float(value):.6g}"
