"""What the arguments of the layers mean.

They are `Conv2d`'s, read for a kernel without neighbourhood in frequency, and the choices of taps.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .taps import (
    FrequencyTaps,
    Interpolation,
    Ratio,
    as_anchors,
    as_int,
    as_sequence,
    harmonic_ratios,
)

__all__ = [
    "IntPair",
    "harmonic_taps",
    "log_harmonic_taps",
    "merged_taps",
    "pair",
    "time_only",
    "time_padding",
]

IntPair = int | tuple[int, int]


def pair(name: str, value: IntPair, least: int = 1) -> tuple[int, int]:
    """Return an int twice, or a pair as it is; both entries at least `least`."""
    try:
        first, second = map(as_int, value if isinstance(value, (tuple, list)) else (value, value))
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} must be an int or a pair (freq, time) of ints, got {value!r}"
        ) from None
    if first < least or second < least:
        raise ValueError(f"{name} must be >= {least}, got {value!r}")
    return first, second


def time_only(name: str, value: IntPair, frequency: int, least: int = 1) -> int:
    """Return the entry for time: an int means time only, a pair must have `frequency` first."""
    if not isinstance(value, (tuple, list)):
        return pair(name, value, least)[1]
    along_frequency, along_time = pair(name, value, min(least, frequency))
    if along_frequency != frequency or along_time < least:
        raise ValueError(
            f"{name} along frequency must be {frequency}, because the kernel's rows lie at "
            f"harmonics and not at neighbouring bins, and along time >= {least}; got {value!r}. "
            f"Give {name}={along_time} or {name}=({frequency}, {along_time})"
        )
    return along_time


def time_padding(
    padding: IntPair | str, kernel_frames: int, dilation: int, stride: tuple[int, int]
) -> int:
    """Return the number of zeros added to the time axis, both sides together."""
    if not isinstance(padding, str):
        return 2 * time_only("padding", padding, frequency=0, least=0)
    if padding == "valid":
        return 0
    if padding != "same":
        raise ValueError(f"padding must be an int, (0, int), 'same' or 'valid', got {padding!r}")
    if stride != (1, 1):
        raise ValueError(f"padding='same' needs stride 1, got stride={stride}")
    return dilation * (kernel_frames - 1)


# -------------------------------------------------------------------- taps from arguments
# torch.compile cannot trace fractions, nor take an object as the constant result of a function. It
# does take strings and attributes of a global: so while it traces, a function that it need not
# trace gives taps a name, and the taps are found under it.

_named_taps = SimpleNamespace()
_numbers = itertools.count()
_FRACTION = "Fraction"


@cache
def _name(taps: FrequencyTaps) -> str:
    name = f"taps_{next(_numbers)}"  # two threads never get the same one
    setattr(_named_taps, name, taps)
    return name


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _merged_name(taps: FrequencyTaps) -> str:
    return _name(taps.merged()[0])


def merged_taps(taps: FrequencyTaps) -> FrequencyTaps:
    """Return the distinct ones of `taps`."""
    if torch.compiler.is_compiling():
        return getattr(_named_taps, _merged_name(taps))  # type: ignore[no-any-return]
    return taps.merged()[0]


def harmonic_taps(
    n_rows: int | None,
    anchor: int | Sequence[int] = 1,
    harmonics: Sequence[Ratio] | None = None,
    origin: Ratio = 0,
    interpolation: Interpolation = "linear",
    rows_of_all_anchors: bool = False,
) -> FrequencyTaps:
    """Return the taps that a layer's arguments stand for, on a linear axis.

    `n_rows` counts the rows of one anchor's kernel, or of all anchors' together.
    """
    return _linear(
        n_rows, as_anchors(anchor), harmonics, origin, interpolation, rows_of_all_anchors
    )


def log_harmonic_taps(
    n_rows: int | None,
    anchor: int | Sequence[int] = 1,
    harmonics: Sequence[Ratio] | None = None,
    bins_per_octave: float | None = None,
    out_log_scale: float | None = None,
    in_log_scale: float | None = None,
    radix: float | None = None,
    shifts: Sequence[Ratio] | None = None,
    interpolation: Interpolation = "linear",
    rows_of_all_anchors: bool = False,
) -> FrequencyTaps:
    """Return the taps that a layer's arguments stand for, on a logarithmic axis."""
    axis = (bins_per_octave, out_log_scale, in_log_scale, radix)
    return _logarithmic(
        n_rows, as_anchors(anchor), harmonics, axis, shifts, interpolation, rows_of_all_anchors
    )


def _remembered(make: Callable[..., FrequencyTaps]) -> Callable[..., FrequencyTaps]:
    """Remember the taps for each set of arguments, of which sequences are taken as tuples."""
    remember = lru_cache(maxsize=256, typed=True)(make)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def name(*arguments: Any) -> str:
        return _name(remember(*map(_revived, arguments)))

    def taps(*arguments: Any) -> FrequencyTaps:
        constants = [_constant(argument) for argument in arguments]
        if torch.compiler.is_compiling():
            return getattr(_named_taps, name(*constants))  # type: ignore[no-any-return]
        try:
            return remember(*constants)
        except TypeError:  # what cannot be hashed is no number either: let `make` say so
            return make(*constants)

    return taps


def _constant(value: Any) -> Any:
    """Return an argument as it is, a sequence as a tuple.

    An argument of a compiled function is a symbol until it is used. Each line uses it in a way that
    makes torch.compile take its value, and compile again for another one.
    """
    if isinstance(value, int):
        return operator.index(value)
    if type(value) is float:
        return float.fromhex(value.hex()) if torch.compiler.is_compiling() else value
    if isinstance(value, str):
        return value[:]
    if isinstance(value, Fraction) and torch.compiler.is_compiling():
        return _FRACTION, operator.index(value.numerator), operator.index(value.denominator)
    if isinstance(value, Iterable) and not isinstance(value, Tensor):
        return tuple([_constant(entry) for entry in value])
    return value


def _revived(constant: Any) -> Any:
    if not isinstance(constant, tuple):
        return constant
    is_fraction = constant[:1] == (_FRACTION,)
    return Fraction(*constant[1:]) if is_fraction else tuple(map(_revived, constant))


@_remembered
def _linear(
    n_rows: int | None,
    anchors: tuple[int, ...],
    harmonics: tuple[Ratio, ...] | None,
    origin: Ratio,
    interpolation: Interpolation,
    rows_of_all_anchors: bool,
) -> FrequencyTaps:
    ratios = _ratios(n_rows, anchors, harmonics, rows_of_all_anchors)
    return FrequencyTaps.from_ratios(ratios, origin, interpolation)


@_remembered
def _logarithmic(
    n_rows: int | None,
    anchors: tuple[int, ...],
    harmonics: tuple[Ratio, ...] | None,
    axis: tuple[float | None, float | None, float | None, float | None],
    shifts: tuple[Ratio, ...] | None,
    interpolation: Interpolation,
    rows_of_all_anchors: bool,
) -> FrequencyTaps:
    if shifts is not None:
        if axis != (None,) * 4 or harmonics is not None or anchors != (1,):
            raise ValueError(
                "shifts already says where every row reads: give it without anchor, harmonics, "
                "bins_per_octave, out_log_scale, in_log_scale and radix"
            )
        _check_rows("shifts", shifts, n_rows)
        return FrequencyTaps.from_shifts(shifts, interpolation)
    return FrequencyTaps.log_from_ratios(
        _ratios(n_rows, anchors, harmonics, rows_of_all_anchors),
        bins_per_octave=axis[0],
        out_log_scale=axis[1],
        in_log_scale=axis[2],
        radix=axis[3],
        interpolation=interpolation,
    )


def _ratios(
    n_rows: int | None,
    anchors: tuple[int, ...],
    harmonics: tuple[Ratio, ...] | None,
    rows_of_all_anchors: bool,
) -> tuple[Ratio, ...]:
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


def _check_rows(name: str, entries: tuple[Ratio, ...], n_rows: int | None) -> None:
    n_entries = len(as_sequence(name, entries))
    if n_rows is not None and n_rows != n_entries:
        raise ValueError(
            f"{name} must have one entry for each kernel row, got {n_entries} entries for "
            f"{n_rows} rows: use kernel_size=({n_entries}, frames)"
        )
