"""Harmonic convolution and harmonic lowering as functions of tensors.

`frequency_tap_conv2d` is the operation; the others choose taps for it. Arguments that `conv2d`
has mean here what they mean there, with one exception: a harmonic kernel has no neighbourhood
along frequency, so there is nothing to pad and nothing to dilate on that axis. A padding or
dilation given as one int concerns time only.
"""

from __future__ import annotations

import operator
import os
import sys
import warnings
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from . import _torch, engines
from .checks import (
    IntPair,
    Ratio,
    as_anchors,
    check_anchor_weight,
    check_input,
    check_kernel,
    check_weight,
)
from .engines import Geometry, geometry_of
from .engines.lowering import memory_format, read_taps
from .engines.plans import cached_on_device
from .taps import FrequencyTaps, Interpolation, harmonic_taps, log_harmonic_taps

__all__ = [
    "DeadTapWarning",
    "UpwardTapsWarning",
    "frequency_tap_conv2d",
    "harmonic_conv2d",
    "harmonic_lowering",
    "log_harmonic_conv2d",
    "log_harmonic_lowering",
]


class DeadTapWarning(UserWarning):
    """A kernel row reads nothing at any bin but 0 Hz, so its weights have nothing to learn."""


class UpwardTapsWarning(UserWarning):
    """A layer that trains reads at its output bin and above, where pitch is not told apart.

    Given once, for a layer whose taps were left at the default. Naming them in ``harmonics=`` says
    that they are meant.
    """


def frequency_tap_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    *,
    taps: FrequencyTaps,
    engine: str = "auto",
) -> Tensor:
    r"""Convolve a spectrogram with a kernel whose rows read where `taps` says.

    The operation behind every layer of this package:

    .. math::
        Y[b, o, f, t] = \mathrm{bias}[o] + \sum_{c, j, τ} W[o, c, j, τ] \,
            \tilde X[b, c, a_j f + b_j, t·s + τ·d − p]

    where X̃ is X interpolated along frequency, and zero outside ``0 ≤ position ≤ F − 1``.

    Parameters
    ----------
    input : Tensor [shape=(B, C, F, T) or (C, F, T)]
        Spectrogram, of a floating-point dtype.
    weight : Tensor [shape=(O, C / groups, len(taps), K_t)]
        Kernel; its row j reads at tap j.
    bias : Tensor [shape=(O,)], optional
        Added to every output.
    stride : int or (int, int)
        Step of the output along frequency and time, as in `conv2d`.
    padding : int, (0, int), "same" or "valid"
        Zeros on both sides of the time axis, as in `conv2d`. Frequency is never padded: the
        output has as many bins as the input (before the stride).
    dilation : int or (1, int)
        Distance between the kernel's columns in time.
    groups : int
        As in `conv2d`.
    taps : FrequencyTaps
        Where the kernel's rows read.
    engine : {"auto", "native", "triton", "blocked", "lowering", "reference"}
        How to compute it; see `harmonic_lowering.engines`. All give the same result.

    Returns
    -------
    Tensor [shape=(B, O, ceil(F / stride_f), T') or (O, ceil(F / stride_f), T')]
        ``T' = floor((T + 2·padding − dilation·(K_t − 1) − 1) / stride_t) + 1``.

    Raises
    ------
    ValueError
        If a shape or an argument does not fit.
    TypeError
        If `input` is not floating-point, or the dtypes differ.

    Warns
    -----
    DeadTapWarning
        Once for each geometry, if a kernel row reads nothing at any bin, or nothing but 0 Hz.

    Notes
    -----
    Equal taps are read once and their weights summed. Gradients are the exact adjoint.

    With the native core one graph of `torch.compile` or `torch.export` serves every size. Where
    stock operations are used (other devices, ONNX, `torch.jit.trace`), the number of bins F is
    fixed in a graph; batch and time may vary. `torch.fx.symbolic_trace` traces the layers; a module
    that calls this function or `harmonic_conv2d` itself names it first,
    ``torch.fx.wrap("harmonic_conv2d")``.

    Examples
    --------
    >>> taps = FrequencyTaps.from_ratios([1 / 2, 1, 2])
    >>> x, w = torch.randn(4, 2, 257, 100), torch.randn(8, 2, 3, 3)
    >>> frequency_tap_conv2d(x, w, padding=1, taps=taps).shape
    torch.Size([4, 8, 257, 100])
    """
    check_weight(weight)
    geometry = geometry_of(taps, stride, padding, dilation, groups, weight.shape[3])
    return convolve(input, weight, bias, geometry, engine)


def harmonic_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    *,
    anchor: int | Sequence[int] = 1,
    harmonics: Sequence[Ratio] | None = None,
    anchor_weight: Tensor | None = None,
    origin: Ratio = 0,
    interpolation: Interpolation = "linear",
    engine: str = "auto",
) -> Tensor:
    r"""Harmonic convolution of a spectrogram with a linear frequency axis.

    Kernel row k = 1 … K reads the k-th harmonic of the sound whose `anchor`-th harmonic is at the
    output bin [1]_ [2]_:

    .. math::
        Y[b, o, f, t] = \mathrm{bias}[o] + \sum_{c, k, τ} W[o, c, k, τ] \,
            \tilde X[b, c, \tfrac{k}{n}(f + f_0) − f_0, t + τ]

    with n the anchor and f₀ the origin.

    Parameters
    ----------
    input, bias, stride, padding, dilation, groups, engine
        As in `frequency_tap_conv2d`.
    weight : Tensor [shape=(O, C / groups, K, K_t)]
        Kernel. With N anchors, N·K rows: the rows of the first anchor, then of the second, …
    anchor : int >= 1 or sequence of int >= 1
        Which harmonic the output bin is. A sequence mixes anchors, Σ_n w_n·(X ∗_n K_n).
    harmonics : sequence of float or Fraction > 0, optional
        The ratio that each kernel row reads at, instead of k / `anchor`.
    anchor_weight : Tensor [shape=(N,)], optional
        The w_n; all 1 if left out.
    origin : float or Fraction
        Bin j stands for the frequency (j + `origin`)·Δ: 0 for an STFT, 1 if its DC bin was
        dropped; see `origin_after_pooling`.
    interpolation : {"linear", "nearest"}
        How the input is read between bins.

    Returns
    -------
    Tensor [shape=(B, O, ceil(F / stride_f), T') or (O, ceil(F / stride_f), T')]

    Raises
    ------
    ValueError
        If a shape or an argument does not fit.
    TypeError
        If `input` is not floating-point, or the dtypes differ.

    References
    ----------
    .. [1] Z. Zhang, Y. Wang, C. Gan, J. Wu, J. B. Tenenbaum, A. Torralba, W. T. Freeman, "Deep
       Audio Priors Emerge From Harmonic Convolutional Networks", ICLR 2020.
    .. [2] H. Takeuchi, K. Kashino, Y. Ohishi, H. Saruwatari, "Harmonic Lowering for Accelerating
       Harmonic Convolution for Audio Signals", Interspeech 2020,
       doi:10.21437/Interspeech.2020-3217.

    Examples
    --------
    >>> x = torch.zeros(1, 1, 6, 1)
    >>> x[0, 0, 2] = 1                              # a partial in bin 2 …
    >>> w = torch.ones(1, 1, 2, 1)                  # … with rows at the ratios 1 and 2
    >>> harmonic_conv2d(x, w).flatten().tolist()    # is seen from bin 1 and from bin 2
    [0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    """
    check_weight(weight)
    taps = harmonic_taps(weight.shape[2], anchor, harmonics, origin, interpolation, True)
    weight = mix_anchors(weight, anchor_weight, anchor)
    return frequency_tap_conv2d(
        input, weight, bias, stride, padding, dilation, groups, taps=taps, engine=engine
    )


def log_harmonic_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    *,
    anchor: int | Sequence[int] = 1,
    harmonics: Sequence[Ratio] | None = None,
    anchor_weight: Tensor | None = None,
    bins_per_octave: float | None = None,
    shifts: Sequence[Ratio] | None = None,
    interpolation: Interpolation = "linear",
    engine: str = "auto",
) -> Tensor:
    r"""Harmonic convolution of a spectrogram with a logarithmic frequency axis.

    The harmonics of every bin lie at the same distances, so each kernel row reads a shifted copy:

    .. math::
        Y[b, o, f, t] = \mathrm{bias}[o] + \sum_{c, k, τ} W[o, c, k, τ] \,
            \tilde X[b, c, f + A \log_2 \tfrac{k}{n}, t + τ]

    with A bins to the octave.

    Parameters
    ----------
    input, weight, bias, stride, padding, dilation, groups, anchor, anchor_weight, engine
        As in `harmonic_conv2d`.
    harmonics : sequence of float or Fraction > 0, optional
        The ratio that each kernel row reads at, instead of k / `anchor`.
    bins_per_octave : float > 0
        Resolution of the frequency axis, for example of a constant-Q spectrogram. Or else
    shifts : sequence of float
        The distance in bins that each kernel row reads at.
    interpolation : {"linear", "nearest"}
        How the input is read between bins; whole shifts cost no interpolation.

    Returns
    -------
    Tensor [shape=(B, O, ceil(F / stride_f), T') or (O, ceil(F / stride_f), T')]

    Raises
    ------
    ValueError
        If a shape or an argument does not fit.
    TypeError
        If `input` is not floating-point, or the dtypes differ.

    Examples
    --------
    >>> cqt, w = torch.randn(1, 1, 84, 50), torch.randn(4, 1, 5, 3)
    >>> log_harmonic_conv2d(cqt, w, padding=1, bins_per_octave=12).shape
    torch.Size([1, 4, 84, 50])
    """
    check_weight(weight)
    taps = log_harmonic_taps(
        weight.shape[2], anchor, harmonics, bins_per_octave, shifts, interpolation, True
    )
    weight = mix_anchors(weight, anchor_weight, anchor)
    return frequency_tap_conv2d(
        input, weight, bias, stride, padding, dilation, groups, taps=taps, engine=engine
    )


def harmonic_lowering(
    input: Tensor,
    n_harmonics: int | None = None,
    *,
    anchor: int | Sequence[int] = 1,
    harmonics: Sequence[Ratio] | None = None,
    origin: Ratio = 0,
    interpolation: Interpolation = "linear",
) -> Tensor:
    """Stack the resampled copies of a spectrogram as channels, without a convolution.

    Copy k holds at bin f what lies at ``k / anchor`` times its frequency. It is the first half of
    the paper's method, and by itself a harmonic input representation (an HCQT, for example, is the
    logarithmic one).

    Parameters
    ----------
    input : Tensor [shape=(B, C, F, T) or (C, F, T)]
        Spectrogram.
    n_harmonics : int >= 1
        Number of harmonics K; left out if `harmonics` is given.
    anchor, harmonics, origin, interpolation
        As in `harmonic_conv2d`.

    Returns
    -------
    Tensor [shape=(B, K·C, F, T) or (K·C, F, T)]
        Channel ``k·C + c`` is copy k of channel c.

    Notes
    -----
    Costs K times the memory of the input. To convolve, use `harmonic_conv2d`, which need not.

    Examples
    --------
    >>> x = torch.arange(5.0).reshape(1, 1, 5, 1)
    >>> harmonic_lowering(x, 2)[0, :, :, 0]
    tensor([[0., 1., 2., 3., 4.],
            [0., 2., 4., 0., 0.]])
    """
    taps = harmonic_taps(n_harmonics, anchor, harmonics, origin, interpolation)
    return lower(input, taps)


def log_harmonic_lowering(
    input: Tensor,
    n_harmonics: int | None = None,
    *,
    anchor: int | Sequence[int] = 1,
    harmonics: Sequence[Ratio] | None = None,
    bins_per_octave: float | None = None,
    shifts: Sequence[Ratio] | None = None,
    interpolation: Interpolation = "linear",
) -> Tensor:
    """Stack the shifted copies of a log-frequency spectrogram as channels.

    Parameters
    ----------
    input, n_harmonics
        As in `harmonic_lowering`; `n_harmonics` is left out if `harmonics` or `shifts` is given.
    anchor, harmonics, bins_per_octave, shifts, interpolation
        As in `log_harmonic_conv2d`.

    Returns
    -------
    Tensor [shape=(B, K·C, F, T) or (K·C, F, T)]
        Channel ``k·C + c`` is copy k of channel c.

    Examples
    --------
    >>> x = torch.arange(4.0).reshape(1, 1, 4, 1)
    >>> log_harmonic_lowering(x, 2, bins_per_octave=1)[0, :, :, 0]
    tensor([[0., 1., 2., 3.],
            [1., 2., 3., 0.]])
    """
    taps = log_harmonic_taps(n_harmonics, anchor, harmonics, bins_per_octave, shifts, interpolation)
    return lower(input, taps)


# -------------------------------------------------------------------- shared with the modules


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    engine: str,
    freq_dim: int = -2,
) -> Tensor:
    """Convolve with arguments that are checked; the tensors are not yet.

    The last two axes of `input` and `weight` are (freq, time), or (time, freq) if `freq_dim` is -1.

    Whether tensors fit, and which engine they get, follows from their shapes and types: an eager
    call that has passed once passes again without being asked.
    """
    if freq_dim == -1:
        return _convolve_time_freq(input, weight, bias, geometry, engine)
    signature = _signature(input, weight, bias, geometry, engine) if _torch.is_eager() else None
    if signature is not None and (known := _passed.get(signature)) is not None:
        return known(input, weight, bias, geometry)
    if _torch.is_fx_proxy(input):
        return _record(input, weight, bias, geometry, engine, freq_dim)

    check_input(input)
    taps, row_taps = geometry.taps, geometry.row_taps
    check_kernel(input, weight, bias, len(row_taps or taps), geometry.groups)
    n_frames, kernel_frames = input.shape[-1], weight.shape[3]
    if sum(geometry.padding) >= 1 << 31 and prod(geometry.output_shape(input, weight)) >= 1 << 60:
        raise ValueError(
            f"the output would have the shape {geometry.output_shape(input, weight)}: "
            "give a smaller padding"
        )
    if n_frames + sum(geometry.padding) < geometry.span(kernel_frames):
        raise ValueError(
            f"the kernel spans {geometry.span(kernel_frames)} frames but the padded input has "
            f"{n_frames + sum(geometry.padding)}: give a longer input, or more padding along time"
        )
    warn_of_dead_taps(taps, input.shape[-2], row_taps)
    if row_taps is not None:
        (index,) = _row_index(row_taps, weight.device)
        shape = (*weight.shape[:2], len(taps), kernel_frames)
        weight = weight.new_zeros(shape).index_add(2, index, weight)
    batched = input if input.ndim == 4 else input.unsqueeze(0)
    convolution = engines.engine_of_a_call(engine, batched, weight, bias, taps)
    if signature is not None and row_taps is None and input.ndim == 4:
        if len(_passed) >= _MOST_SIGNATURES:
            _passed.clear()
        _passed[signature] = convolution
    output = convolution(batched, weight, bias, geometry)
    return output if input.ndim == 4 else output.squeeze(0)


def _convolve_time_freq(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, engine: str
) -> Tensor:
    if _torch.is_fx_proxy(input):
        return _record(input, weight, bias, geometry, engine, -1)
    check_input(input)
    channels = weight.shape[1] * geometry.groups
    if input.shape[-3] != channels:
        raise ValueError(
            f"a layer of {channels} input channels with freq_dim=-1 needs an input "
            f"(batch, {channels}, time, freq), got {tuple(input.shape)}"
        )
    swapped = input.transpose(-1, -2), weight.transpose(-1, -2)
    output = convolve(*swapped, bias, geometry, engine).transpose(-1, -2)
    if input.ndim == 3:
        return output.contiguous()
    return output.contiguous(memory_format=memory_format(input, weight))  # as conv2d's


def _record(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    engine: str,
    freq_dim: int,
) -> Tensor:
    """Record the call in torch.fx's graph, with arguments that it can hold."""
    arguments = (*geometry.operator_arguments, geometry.row_taps, engine, freq_dim)
    return _torch.fx_call(_convolve_recorded, input, weight, bias, *arguments)


def _convolve_recorded(
    input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any
) -> Tensor:
    *geometry, engine, freq_dim = arguments
    return convolve(input, weight, bias, _geometry_from_text(*geometry), engine, freq_dim)


_geometry_from_text = _torch.constant_object(Geometry.from_operator_arguments)


_passed: dict[tuple[object, ...], engines.Convolution] = {}
_MOST_SIGNATURES = 4096


def _signature(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, engine: str
) -> tuple[object, ...] | None:
    """Return all that decides how an eager call of ordinary tensors goes, or None for others."""
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if _torch.may_be_autocasting() or type(engine) is not str:
        return None
    key: list[object] = [geometry, engine]
    for tensor in tensors:
        if not _torch.is_plain(tensor) or tensor.layout is not torch.strided or tensor.is_nested:
            return None
        if not tensor.data_ptr():  # has no memory: of zeros, on meta, or released
            return None
        key += (tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad)
    key.append(torch.is_grad_enabled())
    return tuple(key)


@cached_on_device
def _row_index(row_taps: tuple[int, ...]) -> tuple[Tensor]:
    """Return, for each kernel row, which of the distinct taps it reads."""
    return (torch.tensor(row_taps),)


def lower(input: Tensor, taps: FrequencyTaps, freq_dim: int = -2) -> Tensor:
    """Return the copies of `input` that `taps` reads, as channels ``k·C + c``."""
    if _torch.is_fx_proxy(input):
        return _torch.fx_call(_lower_recorded, input, taps.text, freq_dim)
    check_input(input)
    if freq_dim == -1:
        return lower(input.transpose(-1, -2), taps).transpose(-1, -2).contiguous()
    warn_of_dead_taps(taps, input.shape[-2])
    batched = input if input.ndim == 4 else input.unsqueeze(0)
    output = read_taps(batched, taps).transpose(1, 2).flatten(1, 2)
    return output if input.ndim == 4 else output.squeeze(0)


def _lower_recorded(input: Tensor, taps: str, freq_dim: int) -> Tensor:
    return lower(input, _taps_from_text(taps), freq_dim)


_taps_from_text = _torch.constant_object(FrequencyTaps.from_text)


def mix_anchors(
    weight: Tensor, anchor_weight: Tensor | None, anchor: int | Sequence[int]
) -> Tensor:
    """Scale the rows of each anchor's kernel by that anchor's weight."""
    if anchor_weight is None:
        return weight
    if _torch.is_fx_proxy(weight):
        return _torch.fx_call(mix_anchors, weight, anchor_weight, as_anchors(anchor))
    n_anchors = len(as_anchors(anchor))
    check_anchor_weight(anchor_weight, n_anchors)
    scale = anchor_weight.repeat_interleave(weight.shape[2] // n_anchors)
    return weight * scale[:, None]


def warn_of_dead_taps(
    taps: FrequencyTaps, n_bins: int, row_taps: tuple[int, ...] | None = None
) -> None:
    """Warn once for each geometry of rows that have nothing to learn from."""
    if not torch.compiler.is_compiling():
        n_bins = operator.index(n_bins)  # torch.jit.trace has tensors here
        _warn_once_of_dead_taps(taps, n_bins, row_taps)


@lru_cache(maxsize=512)  # which is what makes it warn once for each geometry
def _warn_once_of_dead_taps(
    taps: FrequencyTaps, n_bins: int, row_taps: tuple[int, ...] | None
) -> None:
    dead = {tap for tap in range(len(taps)) if _reads_0_hz_at_most(taps, tap, n_bins)}
    rows = list(enumerate(row_taps or range(len(taps))))
    idle = [(row, tap) for row, tap in rows if tap in dead]
    if idle:
        names = ", ".join(f"{row} (reads bin {taps.describe(tap)})" for row, tap in idle)
        warnings.warn(
            f"{len(idle)} of {len(rows)} kernel rows read nothing in {n_bins} bins, or 0 Hz alone: "
            f"row {names}. Use fewer rows or a larger anchor; on a logarithmic axis, "
            "check bins_per_octave against the spectrogram's.",
            DeadTapWarning,
            stacklevel=_stacklevel_of_the_caller(),
        )


def hint_at_upward_taps() -> None:
    """Warn once of a layer that trains with all its taps at the bin or above it."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        _hint_once_at_upward_taps()


@lru_cache(maxsize=1)  # which is what makes it warn once
def _hint_once_at_upward_taps() -> None:
    warnings.warn(
        "with anchor=1 every kernel row reads its output bin or above, so a bin cannot tell a "
        "pitch from a harmonic of a lower one. Sub-harmonics are essential for pitch: give "
        "harmonics=(1/3, 1/2, 1, 2, 3) or a larger anchor, and alternate with 3x3 layers. If these "
        "taps are meant, name them: harmonics=(1, 2, 3). This is said once.",
        UpwardTapsWarning,
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
