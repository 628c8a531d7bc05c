"""What the arguments of this package may be: every check, and the sentence that each fails with."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from fractions import Fraction
from numbers import Rational, Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import UninitializedBuffer, UninitializedParameter

from ._torch import is_released, knows_autocast, may_be_autocasting, mixes_fake_tensors

__all__ = [
    "IntPair",
    "Ratio",
    "as_anchors",
    "as_channels",
    "as_count",
    "as_fraction",
    "as_int",
    "as_pair",
    "as_positive",
    "as_ratio",
    "as_sequence",
    "as_time",
    "check_freq_dim",
    "check_input",
    "check_kernel",
    "check_layer",
    "compute_dtype",
    "time_padding",
]

IntPair = int | tuple[int, int]
Ratio = int | float | Fraction
"""A frequency ratio. A float that is the float nearest to a fraction with a small denominator
(``1 / 3``) is read as that fraction."""

LARGEST_DENOMINATOR = 4096
_LARGEST_INT = 2**60  # so that sums of a few fit the 64 bits of a tensor's sizes


# -------------------------------------------------------------------- numbers


def as_int(value: Any) -> int:
    """Return an int, also numpy's, as Python's; raise TypeError for anything else."""
    if isinstance(value, bool):
        raise TypeError("a bool is not meant as a number")
    return operator.index(value)


def as_channels(waveform: Tensor) -> Tensor:
    """Return a waveform (L,) or (C, L) as (C, L)."""
    if waveform.ndim not in (1, 2):
        raise ValueError(f"waveform must have shape (L,) or (C, L), got {tuple(waveform.shape)}")
    return waveform if waveform.ndim == 2 else waveform[None]


def as_count(name: str, value: object, least: int = 1) -> int:
    """Return `value` if it is an int, at least `least`."""
    try:
        count = as_int(value)
    except TypeError:
        count = least - 1
    if count < least:
        raise ValueError(f"{name} must be an int >= {least}, got {value!r}")
    if count > _LARGEST_INT:
        raise ValueError(f"{name} must be at most 2**60, got {value!r}")
    return count


def as_anchors(anchor: int | Sequence[int]) -> tuple[int, ...]:
    """Return the anchors as a tuple."""
    if isinstance(anchor, Sequence) and not isinstance(anchor, (str, bytes, bytearray)):
        if not anchor:
            raise ValueError("anchor must be an int >= 1 or several of them, got an empty sequence")
        return tuple(as_count("anchor", n) for n in anchor)
    return (as_count("anchor", anchor),)


def as_sequence(name: str, values: Sequence[Ratio], least: int = 1) -> tuple[Ratio, ...]:
    """Return `values` as a tuple of at least `least` entries, in an order."""
    entries: tuple[Ratio, ...] | None = None
    if not isinstance(values, (str, bytes, bytearray, Set, Mapping)):
        with suppress(Exception):  # whatever iterating over a thing that has no entries raises
            entries = tuple(values)
    if entries is None or len(entries) < least:
        raise ValueError(f"{name} must be a sequence of at least one number, got {values!r}")
    return entries


def as_fraction(name: str, value: object) -> Fraction:
    """Return a finite number as the fraction it is; 1/3 typed as a float is meant as 1/3."""
    if isinstance(value, bool) or not isinstance(value, Real) or not _is_finite(value):
        is_tensor = hasattr(value, "item") and not isinstance(value, Real)
        hint = ": take the number out of it with .item()" if is_tensor else ""
        raise ValueError(f"{name} must be a finite number, got {value!r}{hint}")
    if isinstance(value, Rational):
        return Fraction(int(value.numerator), int(value.denominator))
    exact = Fraction(float(value))
    simple = exact.limit_denominator(LARGEST_DENOMINATOR)
    return simple if float(simple) == float(value) else exact


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


def as_ratio(value: object) -> Fraction:
    """Return a frequency ratio as a fraction, above 0."""
    ratio = as_fraction("a harmonic ratio", value)
    if ratio <= 0:
        raise ValueError(f"a harmonic ratio must be > 0, got {value!r}")
    return ratio


def as_positive(name: str, value: object) -> float:
    """Return a finite number above 0 as a float."""
    if not as_fraction(name, value) > 0:
        raise ValueError(f"{name} must be > 0, got {value!r}")
    return float(value)  # type: ignore[arg-type]  # as_fraction has checked that it is a number


# -------------------------------------------------------------------- Conv2d's arguments


def as_pair(name: str, value: IntPair, least: int = 1) -> tuple[int, int]:
    """Return an int twice, or a pair as it is; both entries at least `least`."""
    try:
        first, second = map(as_int, value if isinstance(value, (tuple, list)) else (value, value))
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} must be an int or a pair (freq, time) of ints, got {value!r}"
        ) from None
    if min(first, second) < least:
        raise ValueError(f"{name} must be >= {least}, got {value!r}")
    if max(first, second) > _LARGEST_INT:
        raise ValueError(f"{name} must be at most 2**60, got {value!r}")
    return first, second


def as_time(name: str, value: IntPair, frequency: int, least: int = 1) -> int:
    """Return the entry for time: an int means time only, a pair must have `frequency` first."""
    if not isinstance(value, (tuple, list)):
        return as_pair(name, value, least)[1]
    along_frequency, along_time = as_pair(name, value, min(least, frequency))
    if along_frequency != frequency or along_time < least:
        raise ValueError(
            f"{name} along frequency must be {frequency}, because the kernel's rows lie at "
            f"harmonics and not at neighbouring bins, and along time >= {least}; got {value!r}. "
            f"Give {name}={along_time} or {name}=({frequency}, {along_time})"
        )
    return along_time


def time_padding(
    padding: IntPair | str, kernel_frames: int, dilation: int, stride: tuple[int, int]
) -> tuple[int, int]:
    """Return the number of zeros before and after the time axis."""
    if not isinstance(padding, str):
        both = as_time("padding", padding, frequency=0, least=0)
        return both, both
    if padding == "valid":
        return 0, 0
    if padding != "same":
        raise ValueError(f"padding must be an int, (0, int), 'same' or 'valid', got {padding!r}")
    if stride != (1, 1):
        raise ValueError(f"padding='same' needs stride 1, got stride={stride}")
    total = dilation * (kernel_frames - 1)
    return total // 2, total - total // 2  # an odd zero goes after the last frame, as in conv2d


def check_layer(
    in_channels: int,
    out_channels: int,
    groups: int,
    padding_mode: str,
    dtype: torch.dtype | None,
    bias: bool = True,
    device: torch.device | str | int | None = None,
) -> None:
    """Check the arguments that only a layer has, as its constructor gets them."""
    in_channels = as_count("in_channels", in_channels)
    out_channels = as_count("out_channels", out_channels)
    groups = as_count("groups", groups)
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            f"groups must divide in_channels and out_channels, got groups={groups}, "
            f"in_channels={in_channels}, out_channels={out_channels}"
        )
    if not isinstance(padding_mode, str) or padding_mode != "zeros":
        raise ValueError(
            f"padding_mode must be 'zeros', got {padding_mode!r}: pad the time axis with "
            "torch.nn.functional.pad before the layer for another mode"
        )
    if not isinstance(bias, int) or bias not in (0, 1):
        raise TypeError(f"bias must be True or False, got {bias!r}")
    if device is not None:
        _check_device(device)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype such as torch.float32, got {dtype!r}")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(
            f"dtype must be a floating-point dtype, got {dtype}: give the real and the "
            "imaginary part of a complex spectrogram as two channels"
        )


def _check_device(device: object) -> None:
    wrong = f"device must be a torch.device, its name or its number, got {device!r}"
    is_number = isinstance(device, int) and not isinstance(device, bool)
    if not is_number and not isinstance(device, (torch.device, str)):
        raise TypeError(wrong)
    assert isinstance(device, (torch.device, str, int))
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{wrong}: {str(error).splitlines()[0]}") from error


def check_freq_dim(freq_dim: int) -> int:
    """Return which axis is frequency, counted from the last."""
    if type(freq_dim) is not int or freq_dim not in (-2, -1):
        raise ValueError(
            "freq_dim must be -2, for inputs (batch, channel, freq, time), or -1, for (batch, "
            f"channel, time, freq); got {freq_dim!r}"
        )
    return freq_dim


# -------------------------------------------------------------------- tensors

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_input(input: Tensor) -> None:
    """Check that `input` is a real spectrogram."""
    _check_tensor("input", input)
    if input.ndim not in (3, 4):
        raise ValueError(
            "input must be a spectrogram of shape (batch, channel, freq, time) or (channel, freq, "
            f"time), got {input.ndim} dimensions: {tuple(input.shape)}"
        )
    if input.dtype not in _DTYPES:
        hint = (
            "use torch.view_as_real and take the two parts as channels"
            if input.is_complex()
            else "convert it with .float()"
        )
        raise TypeError(
            "input must be of a floating-point dtype (float64, float32, float16 or bfloat16), "
            f"got {input.dtype}: {hint}"
        )
    if input.shape[-2] == 0:
        raise ValueError(f"input has no frequency bins: {tuple(input.shape)}")


def check_kernel(
    input: Tensor, weight: Tensor, bias: Tensor | None, n_taps: int, groups: int
) -> None:
    """Check that a kernel and its bias fit the input, the taps and the groups."""
    _check_tensor("weight", weight)
    if weight.ndim != 4 or weight.shape[2] != n_taps:
        raise ValueError(
            f"weight must have shape (out_channels, in_channels / groups, {n_taps}, frames): a "
            f"row for each of the {n_taps} taps, got {tuple(weight.shape)}"
        )
    if weight.shape[0] == 0 or weight.shape[1] == 0:
        raise ValueError(f"weight must have at least one channel, got {tuple(weight.shape)}")
    channels = input.shape[-3]
    if channels != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} with groups={groups} needs an input of "
            f"{weight.shape[1] * groups} channels and out_channels divisible by groups, "
            f"got an input of shape {tuple(input.shape)}"
        )
    tensors = [input, weight]
    if bias is not None:
        _check_tensor("bias", bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"bias must have shape ({weight.shape[0]},), one entry for each output channel, "
                f"got {tuple(bias.shape)}"
            )
        tensors.append(bias)
    if any(tensor.dtype != input.dtype for tensor in tensors) and (
        len({compute_dtype(tensor) for tensor in tensors}) > 1
    ):
        raise TypeError(
            f"{'input and weight' if bias is None else 'input, weight and bias'} must have the "
            f"same dtype, got {' and '.join(str(t.dtype) for t in tensors)}: convert them, or use "
            "torch.autocast (which leaves float64 as it is)"
        )
    if any(tensor.device != input.device for tensor in tensors):
        raise ValueError(
            f"{'input and weight' if bias is None else 'input, weight and bias'} must be on the "
            f"same device, got {' and '.join(str(t.device) for t in tensors)}: move them with .to()"
        )
    if mixes_fake_tensors(tensors):
        raise TypeError(
            f"{'input and weight' if bias is None else 'input, weight and bias'} must be all fake "
            "tensors or none, got both: make the layer under the same FakeTensorMode, or give the "
            "mode allow_non_fake_inputs=True"
        )


def check_weight(weight: Tensor) -> None:
    """Check what can be checked of a kernel before its taps are known."""
    _check_tensor("weight", weight)
    if weight.ndim != 4 or weight.shape[3] == 0:
        raise ValueError(
            "weight must have shape (out_channels, in_channels / groups, rows, frames) with at "
            f"least one frame, got {tuple(weight.shape)}"
        )


def check_anchor_weight(anchor_weight: Tensor, n_anchors: int) -> None:
    """Check the weights of a mixture of anchors."""
    _check_tensor("anchor_weight", anchor_weight)
    if anchor_weight.shape != (n_anchors,):
        raise ValueError(
            "anchor_weight must have one entry for each anchor, "
            f"got shape {tuple(anchor_weight.shape)} for {n_anchors} anchors"
        )


def _check_tensor(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(value).__name__}: "
            "convert it with torch.as_tensor"
        )
    if isinstance(value, (UninitializedParameter, UninitializedBuffer)):
        raise TypeError(f"{name} is not initialized yet: let the module that has it run first")
    if value.layout is not torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else str(value.layout)
        raise TypeError(
            f"{name} must be a dense tensor, got a {kind} one: convert it with .to_dense() "
            "(or torch.nested.to_padded_tensor)"
        )
    if is_released(value):
        raise ValueError(f"{name} has no memory any more: it was released (by FSDP, for example)")


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which a tensor takes part: within autocast, `conv2d`'s choice."""
    if not may_be_autocasting():
        return tensor.dtype
    device = tensor.device.type
    known = knows_autocast(device)
    if tensor.dtype == torch.float64 or not known or not torch.is_autocast_enabled(device):
        return tensor.dtype
    return torch.get_autocast_dtype(device)
