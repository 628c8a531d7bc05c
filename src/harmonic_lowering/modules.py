"""The layers: `torch.nn.Conv2d` with kernel rows at harmonics. Thin over `functional`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import engines
from .checks import IntPair, Ratio, as_anchors, as_pair, as_sequence, check_freq_dim, check_layer
from .engines import Geometry, geometry_of
from .functional import convolve, hint_at_upward_taps, lower, mix_anchors
from .taps import FrequencyTaps, Interpolation, harmonic_taps, log_harmonic_taps

__all__ = [
    "FrequencyTapConv2d",
    "HarmonicConv2d",
    "HarmonicLowering",
    "LogHarmonicConv2d",
    "LogHarmonicLowering",
]


class _NotScriptable:
    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse torch.jit.script, which asks every module for a form that it can compile."""
        raise NotImplementedError(
            f"torch.jit.script cannot compile a {type(self).__name__}: use torch.export.export, "
            "torch.jit.trace or torch.compile"
        )


class FrequencyTapConv2d(_NotScriptable, nn.Conv2d):
    """Same as `torch.nn.Conv2d`, but the kernel's rows read where `taps` says.

    The layer behind `HarmonicConv2d` and `LogHarmonicConv2d`, for taps of your own; as a function
    it is `frequency_tap_conv2d`. It is a `Conv2d`, so initialisers, optimisers and
    reparametrisations that look for one find one.

    Parameters
    ----------
    in_channels, out_channels, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        As in `HarmonicConv2d`.
    kernel_size : int or (int, int)
        Number of rows, which must be ``len(taps)``, and of frames K_t.
    taps : FrequencyTaps
        Where the kernel's rows read.
    freq_dim, engine
        As in `HarmonicConv2d`.

    Raises
    ------
    ValueError
        If an argument does not fit; at the call, if the input's shape does not.
    TypeError
        At the call, if the input is not a floating-point tensor.

    Notes
    -----
    `stride`, `padding`, `dilation`, `groups` and `engine` may be changed afterwards, as Conv2d's.
    What chooses the taps is read-only.

    Examples
    --------
    A row at the bin itself, one an octave above it, and one 3 bins below:

    >>> from harmonic_lowering import FrequencyTaps
    >>> taps = FrequencyTaps(slopes=(1, 2, 1), offsets=(0, 0, -3))
    >>> layer = FrequencyTapConv2d(2, 16, kernel_size=3, padding=1, taps=taps)
    >>> layer(torch.randn(8, 2, 257, 100)).shape
    torch.Size([8, 16, 257, 100])
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    taps: FrequencyTaps
    _geometry: Geometry

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair | str = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        taps: FrequencyTaps,
        freq_dim: int = -2,
        engine: str = "auto",
    ) -> None:
        check_layer(in_channels, out_channels, groups, padding_mode, dtype, bias, device)
        engines.check_name(engine)
        size = as_pair("kernel_size", kernel_size)
        rows = size[check_freq_dim(freq_dim)]
        arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        geometry = _geometry_of(taps, arguments, size, freq_dim)
        if rows != len(taps):
            suggested = _in_order((len(taps), size[-3 - freq_dim]), freq_dim)
            raise ValueError(
                f"kernel_size must have one row for each of the {len(taps)} taps, got {rows} rows: "
                f"use kernel_size={suggested}"
            )
        super().__init__(
            in_channels,
            out_channels,
            size,
            bias=bias,
            device=device,
            dtype=dtype,
            **_conv2d_arguments(geometry, padding, freq_dim),
        )
        self.taps = taps
        self.engine = engine
        self.freq_dim = freq_dim
        self._geometry = geometry

    freq_dim: int = -2

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, and let the layer compute accordingly or refuse."""
        if "_geometry" in self.__dict__:  # after construction
            if name in _TAPS:
                raise AttributeError(
                    f"{name} is read-only, because it decides what the weights mean: build a new "
                    "layer, and carry the weights over with load_state_dict if they fit"
                )
            if name == "engine":
                engines.check_name(value)
            if name in _GEOMETRY:
                arguments = {key: getattr(self, key) for key in _GEOMETRY} | {name: value}
                geometry = _geometry_of(self.taps, arguments, self.kernel_size, self.freq_dim)
                self.__dict__["_geometry"] = geometry
                value = _conv2d_arguments(geometry, arguments["padding"], self.freq_dim)[name]
        super().__setattr__(name, value)

    def engine_for(self, input: Tensor) -> engines.Choice:
        """Return the engine that this layer would use for `input`, and why."""
        weight = self.weight
        if self.freq_dim == -1:
            input, weight = input.transpose(-1, -2), weight.transpose(-1, -2)
        return engines.choose(self.engine, input, weight, self.bias, self.taps)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve(input, weight, bias, self._geometry, self.engine, self.freq_dim)

    def extra_repr(self) -> str:
        """Return Conv2d's line, and what is not the default of this layer."""
        text: str = super().extra_repr()  # type: ignore[no-untyped-call]
        for name, default in self._shown.items():
            value = getattr(self, name)
            if value != default:
                is_tuple = isinstance(value, tuple)
                shown = f"({', '.join(map(str, value))})" if is_tuple else str(value)
                text += f", {name}={shown}"
        return text

    _shown: ClassVar[dict[str, Any]] = {"freq_dim": -2, "engine": "auto"}


_GEOMETRY = ("stride", "padding", "dilation", "groups")
_TAPS = {
    "taps", "kernel_size", "padding_mode", "anchor", "harmonics", "origin", "interpolation",
    "bins_per_octave", "shifts", "freq_dim",
}  # fmt: skip


def _in_order(pair: Any, freq_dim: int) -> Any:
    """Turn a pair (freq, time) into the order of the axes, or back."""
    return pair[::-1] if freq_dim == -1 and isinstance(pair, (tuple, list)) else pair


@contextmanager
def _pairs_in_order(freq_dim: int) -> Iterator[None]:
    """Say in errors, which speak of (freq, time), how the caller orders pairs."""
    try:
        yield
    except ValueError as error:
        if freq_dim == -2:
            raise
        raise ValueError(
            f"{error} (pairs as (freq, time); with freq_dim=-1 give them as (time, freq))"
        ) from error


def _geometry_of(
    taps: FrequencyTaps, arguments: dict[str, Any], kernel_size: tuple[int, int], freq_dim: int
) -> Geometry:
    """Check Conv2d's arguments, whose pairs are in the order of the axes."""
    in_order = {name: _in_order(value, freq_dim) for name, value in arguments.items()}
    with _pairs_in_order(freq_dim):
        return geometry_of(taps, *in_order.values(), kernel_size[-3 - freq_dim])


def _conv2d_arguments(geometry: Geometry, padding: IntPair | str, freq_dim: int) -> dict[str, Any]:
    """Return the arguments as Conv2d stores them."""
    pairs = {
        "stride": geometry.stride,
        "padding": padding if isinstance(padding, str) else (0, geometry.padding[0]),
        "dilation": (1, geometry.dilation),
        "groups": geometry.groups,
    }
    return {name: _in_order(pair, freq_dim) for name, pair in pairs.items()}


class _AnchoredConv2d(FrequencyTapConv2d):
    """What `HarmonicConv2d` and `LogHarmonicConv2d` share: one anchor, or a mixture of several.

    With several anchors `kernel_size` is that of one anchor's kernel, and the weight has the rows
    of all of them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        *arguments: Any,
        taps: FrequencyTaps,
        anchor: int | Sequence[int],
        freq_dim: int,
        engine: str,
        **choices: Any,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            _in_order((len(taps), kernel_size[-3 - freq_dim]), freq_dim),
            *arguments,
            taps=taps,
            freq_dim=freq_dim,
            engine=engine,
        )
        anchors = as_anchors(anchor)
        is_mixture = isinstance(anchor, Sequence)
        choices["anchor"] = anchors if is_mixture else anchors[0]
        self.__dict__.update(kernel_size=kernel_size, **choices)
        named = choices.get("harmonics") is not None or choices.get("shifts") is not None
        self._looks_up_by_default = anchors == (1,) and len(taps) > 1 and not named
        # w_n of Σ_n w_n·(X ∗_n K_n). It starts at 1: the initialisation of the weight has already
        # counted the rows of all anchors.
        mixture = torch.ones(len(anchors), device=self.weight.device, dtype=self.weight.dtype)
        self.anchor_weight = nn.Parameter(mixture) if is_mixture else None

    anchor: int | tuple[int, ...]
    anchor_weight: nn.Parameter | None
    _looks_up_by_default: bool = False

    def reset_parameters(self) -> None:
        """Initialise as `Conv2d` does, and the weights of the anchors with 1."""
        super().reset_parameters()
        # Conv2d's constructor comes here too, before the anchors' weights exist.
        anchor_weight = getattr(self, "anchor_weight", None)
        if anchor_weight is not None:
            nn.init.ones_(anchor_weight)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._looks_up_by_default and self.training:
            hint_at_upward_taps()
        if self.anchor_weight is not None:
            if self.freq_dim == -1:  # the rows of its kernel are columns
                weight = weight.transpose(-1, -2)
            weight = mix_anchors(weight, self.anchor_weight, self.anchor)
            if self.freq_dim == -1:
                weight = weight.transpose(-1, -2)
        return super()._conv_forward(input, weight, bias)


class HarmonicConv2d(_AnchoredConv2d):
    r"""Same as `torch.nn.Conv2d`, but the kernel's rows read harmonics of a linear-frequency input.

    Kernel row k = 1 … K sees the k-th harmonic of a sound whose `anchor`-th harmonic lies at the
    output bin, where Conv2d's row sees a neighbouring bin:

    .. math::
        Y[b, o, f, t] = \mathrm{bias}[o] + \sum_{c, k, τ} W[o, c, k, τ] \,
            \tilde X[b, c, \tfrac{k}{n}(f + f_0) − f_0, t + τ]

    Parameters
    ----------
    in_channels, out_channels : int >= 1
        As in `Conv2d`.
    kernel_size : int or (int, int)
        Number of harmonics K, and of frames K_t.
    stride : int or (int, int)
        Step of the output along frequency and time.
    padding : int, (0, int), "same" or "valid"
        Zeros on both sides of the time axis. The frequency axis is never padded: the output has
        as many bins as the input, as `Conv2d` gives with ``padding=(K − 1) // 2``.
    dilation : int or (1, int)
        Distance between the kernel's columns in time.
    groups, bias, device, dtype
        As in `Conv2d`.
    padding_mode : {"zeros"}
        There is no other.
    anchor : int >= 1 or sequence of int >= 1
        Which harmonic the output bin is. Anchor 1 looks upwards only and sees nothing in the
        upper part of the spectrum but the bin itself; ``anchor=K`` looks downwards only; values
        between, or ``harmonics=``, look both ways, which networks that find pitch need (see Notes).
        A sequence of N anchors mixes them with learnt weights, Σ_n w_n·(X ∗_n K_n): the weight has
        N·K rows, anchor after anchor, and the w_n are the parameter `anchor_weight`.
    harmonics : sequence of float or Fraction > 0, optional
        The ratio that each kernel row reads at, instead of k / `anchor`: ``(1/3, 1/2, 1, 2, 3)``.
    origin : float or Fraction
        Bin j stands for the frequency (j + `origin`)·Δ: 0 for an STFT, 1 if its DC bin was
        dropped; `origin_after_pooling` tells what it is behind a pooling or a stride.
    interpolation : {"linear", "nearest"}
        How the input is read between bins.
    freq_dim : {-2, -1}
        Which axis of the input is frequency: -2 for (batch, channel, freq, time), -1 for (batch,
        channel, time, freq). Pairs and the weight are in the order of the input's axes, as
        Conv2d's, so with -1 ``kernel_size=(K_t, K)`` and ``padding=(int, 0)``.
    engine : {"auto", "native", "triton", "blocked", "lowering", "reference"}
        How to compute it. All give the same result; `engine_for` tells which one is used.

    Attributes
    ----------
    weight : Parameter [shape=(out_channels, in_channels / groups, K, K_t)]
        Named, shaped and initialised as Conv2d's; (…, K_t, K) if `freq_dim` is -1.
    bias : Parameter [shape=(out_channels,)] or None
    anchor_weight : Parameter [shape=(N,)] or None
    taps : FrequencyTaps
        Where the rows read.

    Raises
    ------
    ValueError
        If an argument does not fit; at the call, if the input's shape does not.
    TypeError
        At the call, if the input is not floating-point.

    Warns
    -----
    UpwardTapsWarning
        Once, when a layer of ``anchor=1`` trains and `harmonics` was left out.

    Notes
    -----
    Taps for pitch: read sub-harmonics as well as harmonics, ``harmonics=(1/3, 1/2, 1, 2, 3, 4)``,
    and alternate with 3×3 `Conv2d` layers. A bin that reads nothing below itself cannot tell a
    pitch from a harmonic of a lower one: in polyphonic music networks that look upwards only lose
    most of what harmonic taps gain (``make bench-learning``).

    Input (B, C, F, T) or (C, F, T), output (B, O, ceil(F / stride_f), T') with Conv2d's T'; the
    last two axes the other way round if `freq_dim` is -1.
    Of the multiplications of a `Conv2d` of the same shape the share Σ_k min(1, n/k) / K reads
    something; the rest is zero by definition.

    One compiled or exported graph serves every size with the native core. With stock operations
    (other devices, ONNX, `torch.jit.trace`) the number of bins F is fixed in it.

    Not for log-frequency (constant-Q, mel) spectrograms: see `LogHarmonicConv2d` for constant-Q.
    On a mel axis harmonics are neither proportional nor equidistant.

    References
    ----------
    H. Takeuchi, K. Kashino, Y. Ohishi, H. Saruwatari, "Harmonic Lowering for Accelerating Harmonic
    Convolution for Audio Signals", Interspeech 2020, doi:10.21437/Interspeech.2020-3217.

    Examples
    --------
    >>> layer = HarmonicConv2d(2, 16, kernel_size=3, padding=1, anchor=2)
    >>> layer(torch.randn(8, 2, 257, 100)).shape
    torch.Size([8, 16, 257, 100])
    >>> layer
    HarmonicConv2d(2, 16, kernel_size=(3, 3), stride=(1, 1), padding=(0, 1), anchor=2)
    """

    _shown: ClassVar[dict[str, Any]] = {
        "anchor": 1,
        "harmonics": None,
        "origin": 0,
        "interpolation": "linear",
        "freq_dim": -2,
        "engine": "auto",
    }

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair | str = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        anchor: int | Sequence[int] = 1,
        harmonics: Sequence[Ratio] | None = None,
        origin: Ratio = 0,
        interpolation: Interpolation = "linear",
        freq_dim: int = -2,
        engine: str = "auto",
    ) -> None:
        size = as_pair("kernel_size", kernel_size)
        rows = size[check_freq_dim(freq_dim)]
        if harmonics is not None:
            harmonics = as_sequence("harmonics", harmonics)
        with _pairs_in_order(freq_dim):
            taps = harmonic_taps(rows, anchor, harmonics, origin, interpolation)
        super().__init__(
            in_channels,
            out_channels,
            size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
            taps=taps,
            freq_dim=freq_dim,
            engine=engine,
            anchor=anchor,
            harmonics=harmonics,
            origin=origin,
            interpolation=interpolation,
        )

    harmonics: tuple[Ratio, ...] | None
    origin: Ratio
    interpolation: Interpolation


class LogHarmonicConv2d(_AnchoredConv2d):
    r"""Same as `torch.nn.Conv2d`, but the kernel's rows read harmonics of a log-frequency input.

    Harmonics lie at the same distances from every bin, so each kernel row reads a shifted copy of
    the input:

    .. math::
        Y[b, o, f, t] = \mathrm{bias}[o] + \sum_{c, k, τ} W[o, c, k, τ] \,
            \tilde X[b, c, f + A \log_2 \tfrac{k}{n}, t + τ]

    with A bins to the octave. One of `bins_per_octave` and `shifts` is needed.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As in `HarmonicConv2d`.
    device, dtype, anchor, harmonics, freq_dim, engine
        As in `HarmonicConv2d`.
    bins_per_octave : float > 0
        Resolution of the frequency axis, for example of a constant-Q spectrogram.
    shifts : sequence of float
        The distance in bins that each kernel row reads at.
    interpolation : {"linear", "nearest"}
        How the input is read between bins. ``"nearest"`` rounds the shifts, as published
        log-frequency models do; whole shifts cost no interpolation.

    Raises
    ------
    ValueError
        If an argument does not fit; at the call, if the input's shape does not.
    TypeError
        At the call, if the input is not floating-point.

    Warns
    -----
    UpwardTapsWarning
        Once, when a layer of ``anchor=1`` trains and neither `harmonics` nor `shifts` was given;
        for which taps to choose see the Notes of `HarmonicConv2d`.

    Examples
    --------
    >>> layer = LogHarmonicConv2d(1, 16, kernel_size=(5, 3), padding="same",
    ...                           harmonics=(1/3, 1/2, 1, 2, 3), bins_per_octave=36)
    >>> layer(torch.randn(1, 1, 264, 100)).shape
    torch.Size([1, 16, 264, 100])
    >>> [layer.taps.describe(row) for row in range(5)]
    ['f - 57.0587', 'f - 36', 'f', 'f + 36', 'f + 57.0587']
    """

    _shown: ClassVar[dict[str, Any]] = {
        "anchor": 1,
        "harmonics": None,
        "bins_per_octave": None,
        "shifts": None,
        "interpolation": "linear",
        "freq_dim": -2,
        "engine": "auto",
    }

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair | str = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        anchor: int | Sequence[int] = 1,
        harmonics: Sequence[Ratio] | None = None,
        bins_per_octave: float | None = None,
        shifts: Sequence[Ratio] | None = None,
        interpolation: Interpolation = "linear",
        freq_dim: int = -2,
        engine: str = "auto",
    ) -> None:
        size = as_pair("kernel_size", kernel_size)
        rows = size[check_freq_dim(freq_dim)]
        if harmonics is not None:
            harmonics = as_sequence("harmonics", harmonics)
        if shifts is not None:
            shifts = as_sequence("shifts", shifts)
        with _pairs_in_order(freq_dim):
            taps = log_harmonic_taps(
                rows, anchor, harmonics, bins_per_octave, shifts, interpolation
            )
        super().__init__(
            in_channels,
            out_channels,
            size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
            taps=taps,
            freq_dim=freq_dim,
            engine=engine,
            anchor=anchor,
            harmonics=harmonics,
            bins_per_octave=bins_per_octave,
            shifts=shifts,
            interpolation=interpolation,
        )

    harmonics: tuple[Ratio, ...] | None
    bins_per_octave: float | None
    shifts: tuple[Ratio, ...] | None
    interpolation: Interpolation


class _Lowering(_NotScriptable, nn.Module):
    def __init__(self, taps: FrequencyTaps, freq_dim: int) -> None:
        super().__init__()
        self.taps = taps
        self.freq_dim = check_freq_dim(freq_dim)

    freq_dim: int = -2

    def forward(self, input: Tensor) -> Tensor:
        """Return (B, K·C, F, T) for (B, C, F, T), or the same without B."""
        return lower(input, self.taps, self.freq_dim)

    def extra_repr(self) -> str:
        """Return where the copies read."""
        text = ", ".join(self.taps.describe(tap) for tap in range(len(self.taps)))
        return text if self.freq_dim == -2 else f"{text}, freq_dim={self.freq_dim}"


class HarmonicLowering(_Lowering):
    """Stack the copies of a spectrogram that a harmonic kernel reads, as channels ``k·C + c``.

    Parameters
    ----------
    n_harmonics, anchor, harmonics, origin, interpolation
        As in `harmonic_lowering`, which this is as a module.
    freq_dim : {-2, -1}
        Which axis of the input is frequency; see `HarmonicConv2d`.

    Examples
    --------
    >>> HarmonicLowering(5)(torch.randn(4, 2, 257, 100)).shape
    torch.Size([4, 10, 257, 100])
    """

    def __init__(
        self,
        n_harmonics: int | None = None,
        *,
        anchor: int | Sequence[int] = 1,
        harmonics: Sequence[Ratio] | None = None,
        origin: Ratio = 0,
        interpolation: Interpolation = "linear",
        freq_dim: int = -2,
    ) -> None:
        taps = harmonic_taps(n_harmonics, anchor, harmonics, origin, interpolation)
        super().__init__(taps, freq_dim)


class LogHarmonicLowering(_Lowering):
    """Stack the shifted copies of a log-frequency spectrogram as channels ``k·C + c``.

    Parameters
    ----------
    n_harmonics, anchor, harmonics, bins_per_octave, shifts
        As in `log_harmonic_lowering`, which this is as a module.
    interpolation : {"linear", "nearest"}
        As there.
    freq_dim : {-2, -1}
        Which axis of the input is frequency; see `HarmonicConv2d`.

    Examples
    --------
    basic-pitch's harmonic stacking, without its crop to 264 bins:

    >>> stack = LogHarmonicLowering(
    ...     harmonics=(0.5, 1, 2, 3, 4, 5, 6, 7), bins_per_octave=36, interpolation="nearest"
    ... )
    >>> [int(shift) for shift in (stack.taps.position(row, 0) for row in range(8))]
    [-36, 0, 36, 57, 72, 84, 93, 101]
    """

    def __init__(
        self,
        n_harmonics: int | None = None,
        *,
        anchor: int | Sequence[int] = 1,
        harmonics: Sequence[Ratio] | None = None,
        bins_per_octave: float | None = None,
        shifts: Sequence[Ratio] | None = None,
        interpolation: Interpolation = "linear",
        freq_dim: int = -2,
    ) -> None:
        taps = log_harmonic_taps(
            n_harmonics, anchor, harmonics, bins_per_octave, shifts, interpolation
        )
        super().__init__(taps, freq_dim)
