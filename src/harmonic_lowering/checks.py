"""Whether tensors fit each other and the taps: one sentence for each way in which they may not."""

from __future__ import annotations

import operator
import os
import sys
import warnings
from functools import lru_cache

import torch
from torch import Tensor

from .engines.handover import compute_dtypes
from .taps import FrequencyTaps, as_count

__all__ = ["DeadTapWarning", "check_input", "check_weight", "n_rows", "warn_of_dead_taps"]


class DeadTapWarning(UserWarning):
    """A kernel row reads nothing at any bin but 0 Hz, so its weights have nothing to learn."""


def check_input(input: Tensor) -> None:
    """Check that `input` is a real spectrogram."""
    if input.ndim not in (3, 4):
        raise ValueError(
            "input must be a spectrogram of shape (batch, channel, freq, time) or (channel, freq, "
            f"time), got {input.ndim} dimensions: {tuple(input.shape)}"
        )
    if not input.is_floating_point():
        hint = (
            "use torch.view_as_real and take the two parts as channels"
            if input.is_complex()
            else "convert it with .float()"
        )
        raise TypeError(f"input must be of a floating-point dtype, got {input.dtype}: {hint}")
    if input.shape[-2] == 0:
        raise ValueError(f"input has no frequency bins: {tuple(input.shape)}")


def n_rows(weight: Tensor) -> int:
    """Return the rows of a kernel, of which the shape is checked."""
    if weight.ndim != 4 or weight.shape[3] == 0:
        raise ValueError(
            "weight must have shape (out_channels, in_channels / groups, rows, frames) with at "
            f"least one frame, got {tuple(weight.shape)}"
        )
    return weight.shape[2]


def check_weight(
    input: Tensor, weight: Tensor, bias: Tensor | None, taps: FrequencyTaps, groups: int
) -> None:
    """Check that a kernel and its bias fit the input, the taps and the groups."""
    if n_rows(weight) != len(taps):
        raise ValueError(
            f"weight must have shape (out_channels, in_channels / groups, {len(taps)}, frames): a "
            f"row for each of the {len(taps)} taps, got {tuple(weight.shape)}"
        )
    as_count("groups", groups)
    channels = input.shape[-3]
    if channels != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} with groups={groups} needs an input of "
            f"{weight.shape[1] * groups} channels and out_channels divisible by groups, "
            f"got an input of shape {tuple(input.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must have shape ({weight.shape[0]},), one entry for each output channel, "
            f"got {tuple(bias.shape)}"
        )
    tensors = [input, weight] if bias is None else [input, weight, bias]
    if len({t.dtype for t in tensors}) > 1 and len(compute_dtypes(*tensors)) > 1:
        raise TypeError(
            f"{'input and weight' if bias is None else 'input, weight and bias'} must have the "
            f"same dtype, got {' and '.join(str(t.dtype) for t in tensors)}: convert them, or use "
            "torch.autocast (which leaves float64 as it is)"
        )


def warn_of_dead_taps(taps: FrequencyTaps, n_bins: int) -> None:
    """Warn once for each geometry of rows that have nothing to learn from."""
    if not torch.compiler.is_compiling():
        _warn_once_of_dead_taps(taps, operator.index(n_bins))  # torch.jit.trace has tensors here


@lru_cache(maxsize=512)  # which is what makes it warn once for each geometry
def _warn_once_of_dead_taps(taps: FrequencyTaps, n_bins: int) -> None:
    idle = [tap for tap in range(len(taps)) if _reads_0_hz_at_most(taps, tap, n_bins)]
    if idle:
        names = ", ".join(f"{tap} (reads bin {taps.describe(tap)})" for tap in idle)
        warnings.warn(
            f"{len(idle)} of {len(taps)} kernel rows read nothing in {n_bins} bins, or 0 Hz alone: "
            f"row {names}. Use fewer rows or a larger anchor; on a logarithmic axis, "
            "check bins_per_octave (or out_log_scale and radix) against the spectrogram's.",
            DeadTapWarning,
            stacklevel=_stacklevel_of_the_caller(),
        )


def _reads_0_hz_at_most(taps: FrequencyTaps, tap: int, n_bins: int) -> bool:
    live = taps.live_range(tap, n_bins)
    reads_bin_0_at_bin_0 = taps.slopes[tap] != 1 and taps.offsets[tap] == 0
    return not live or (live == range(1) and reads_bin_0_at_bin_0 and n_bins > 1)


def _stacklevel_of_the_caller() -> int:
    """Return the stacklevel, for the function that asks, of the first line that is not a layer's.

    A layer may be called by any number of torch's containers, hooks and transforms.
    """
    ours = tuple(os.path.dirname(file) + os.sep for file in (__file__, torch.__file__))
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(ours):
        frame, level = frame.f_back, level + 1
    return level
