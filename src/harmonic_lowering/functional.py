"""Harmonic convolution and harmonic lowering as functions of tensors.

`frequency_tap_conv2d` is the operation; the others choose taps for it. Arguments that `conv2d`
has mean here what they mean there, with one exception: a harmonic kernel has no neighbourhood
along frequency, so there is nothing to pad and nothing to dilate on that axis. A padding or
dilation given as one int concerns time only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import engines
from .arguments import (
    IntPair,
    harmonic_taps,
    log_harmonic_taps,
    merged_taps,
    pair,
    time_only,
    time_padding,
)
from .checks import DeadTapWarning, check_input, check_weight, n_rows, warn_of_dead_taps
from .engines.lowering import read_taps
from .engines.plans import cached_on_device
from .taps import FrequencyTaps, Interpolation, Ratio, as_anchors

__all__ = [
    "DeadTapWarning",
    "frequency_tap_conv2d",
    "harmonic_conv2d",
    "harmonic_lowering",
    "log_harmonic_conv2d",
    "log_harmonic_lowering",
]


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
    engine : {"auto", "native", "blocked", "lowering", "reference"}
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

    In a graph the number of bins F is fixed: `torch.compile` compiles again for another one,
    `torch.export` and `torch.jit.trace` make a program for the one that they saw. Batch and time
    may vary.

    Examples
    --------
    >>> taps = FrequencyTaps.from_ratios([1 / 2, 1, 2])
    >>> x, w = torch.randn(4, 2, 257, 100), torch.randn(8, 2, 3, 3)
    >>> frequency_tap_conv2d(x, w, padding=1, taps=taps).shape
    torch.Size([4, 8, 257, 100])
    """
    check_input(input)
    check_weight(input, weight, bias, taps, groups)
    strides = pair("stride", stride)
    time_dilation = time_only("dilation", dilation, frequency=1)
    total = time_padding(padding, weight.shape[3], time_dilation, strides)
    if input.shape[-1] + total < time_dilation * (weight.shape[3] - 1) + 1:
        raise ValueError(
            f"the kernel spans {time_dilation * (weight.shape[3] - 1) + 1} frames but the padded "
            f"input has {input.shape[-1] + total}: give a longer input, or padding=(0, p)"
        )
    warn_of_dead_taps(taps, input.shape[-2])

    convolve = engines.engine_of_a_call(engine, input, weight, bias)
    distinct = merged_taps(taps)
    if len(distinct) < len(taps):
        (index,) = _merge_plan(taps, weight.device)
        shape = (*weight.shape[:2], len(distinct), weight.shape[3])
        weight = weight.new_zeros(shape).index_add(2, index, weight)
    batched = input if input.ndim == 4 else input.unsqueeze(0)
    if total % 2:  # "same" with an even kernel: one zero more at the end, as conv2d does it
        batched = F.pad(batched, (0, 1))
    output = convolve(batched, weight, bias, distinct, strides, total // 2, time_dilation, groups)
    return output if input.ndim == 4 else output.squeeze(0)


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
    taps = harmonic_taps(
        n_rows(weight), anchor, harmonics, origin, interpolation, rows_of_all_anchors=True
    )
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
    out_log_scale: float | None = None,
    in_log_scale: float | None = None,
    radix: float | None = None,
    shifts: Sequence[Ratio] | None = None,
    interpolation: Interpolation = "linear",
    engine: str = "auto",
) -> Tensor:
    r"""Harmonic convolution of a spectrogram with a logarithmic frequency axis.

    On the axis ``f(x) = A·log_C(B·x)`` the harmonics of every bin lie at the same distances, so
    each kernel row reads a shifted copy:

    .. math::
        Y[b, o, f, t] = \mathrm{bias}[o] + \sum_{c, k, τ} W[o, c, k, τ] \,
            \tilde X[b, c, f + A \log_C \tfrac{k}{n}, t + τ]

    Parameters
    ----------
    input, weight, bias, stride, padding, dilation, groups, anchor, anchor_weight, engine
        As in `harmonic_conv2d`.
    harmonics : sequence of float or Fraction > 0, optional
        The ratio that each kernel row reads at, instead of k / `anchor`.
    bins_per_octave : float > 0
        Resolution of a constant-Q spectrogram (A with C = 2). Or else
    out_log_scale, in_log_scale, radix : float
        A > 0, B > 0 (it cancels) and C > 1 (``None`` is e). Or else
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
    taps = log_harmonic_taps(
        n_rows(weight),
        anchor,
        harmonics,
        bins_per_octave,
        out_log_scale,
        in_log_scale,
        radix,
        shifts,
        interpolation,
        rows_of_all_anchors=True,
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
    out_log_scale: float | None = None,
    in_log_scale: float | None = None,
    radix: float | None = None,
    shifts: Sequence[Ratio] | None = None,
    interpolation: Interpolation = "linear",
) -> Tensor:
    """Stack the shifted copies of a log-frequency spectrogram as channels.

    Parameters
    ----------
    input, n_harmonics
        As in `harmonic_lowering`; `n_harmonics` is left out if `harmonics` or `shifts` is given.
    anchor, harmonics, bins_per_octave, out_log_scale, in_log_scale, radix, shifts, interpolation
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
    taps = log_harmonic_taps(
        n_harmonics,
        anchor,
        harmonics,
        bins_per_octave,
        out_log_scale,
        in_log_scale,
        radix,
        shifts,
        interpolation,
    )
    return lower(input, taps)


@cached_on_device
def _merge_plan(taps: FrequencyTaps) -> tuple[Tensor]:
    """Return, for each tap, which of the distinct taps it is."""
    return (torch.tensor(taps.merged()[1]),)


def lower(input: Tensor, taps: FrequencyTaps) -> Tensor:
    """Return the copies of `input` that `taps` reads, as channels ``k·C + c``."""
    check_input(input)
    warn_of_dead_taps(taps, input.shape[-2])
    batched = input if input.ndim == 4 else input.unsqueeze(0)
    output = read_taps(batched, taps).transpose(1, 2).flatten(1, 2)
    return output if input.ndim == 4 else output.squeeze(0)


def mix_anchors(
    weight: Tensor, anchor_weight: Tensor | None, anchor: int | Sequence[int]
) -> Tensor:
    """Scale the rows of each anchor's kernel by that anchor's weight."""
    if anchor_weight is None:
        return weight
    n_anchors = len(as_anchors(anchor))
    if anchor_weight.shape != (n_anchors,):
        raise ValueError(
            "anchor_weight must have one entry for each anchor, "
            f"got shape {tuple(anchor_weight.shape)} for {n_anchors} anchors"
        )
    scale = anchor_weight.repeat_interleave(weight.shape[2] // n_anchors)
    return weight * scale[:, None]
