"""The import name and the two layers of the original implementation, over `harmonic_lowering`.

Code written for it goes on working: same names, same arguments, and its checkpoints load. New
code should use `harmonic_lowering.HarmonicConv2d` and `LogHarmonicConv2d`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from harmonic_lowering import HarmonicConv2d, LogHarmonicConv2d
from harmonic_lowering.checks import IntPair, as_pair, as_positive
from harmonic_lowering.modules import FrequencyTapConv2d

__all__ = ["SingleHarmonicConv2d", "SingleLogHarmonicConv2d"]


class _OriginalsNames(FrequencyTapConv2d):
    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take the original's `lowered_weight` (O, K·C, 1, K_t), whose channel is k·C + c."""
        lowered: Tensor | None = state_dict.pop(prefix + "lowered_weight", None)
        if lowered is not None:
            rows, columns = self.kernel_size
            channels = self.in_channels // self.groups
            expected = (self.out_channels, rows * channels, 1, columns)
            if tuple(lowered.shape) != expected:
                raise ValueError(
                    f"{prefix}lowered_weight must have shape {expected} "
                    "(out_channels, harmonics·in_channels, 1, frames) for this layer, "
                    f"got {tuple(lowered.shape)}"
                )
            weight = lowered.reshape(self.out_channels, rows, channels, columns)
            state_dict.update(
                {prefix + name: part for name, part in self._parts(weight.transpose(1, 2)).items()}
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _parts(self, weight: Tensor) -> dict[str, Tensor]:
        """Return what the state dict has for a weight: more than one entry if it is normalised."""
        if "weight" in self._parameters:
            return {"weight": weight}
        if not is_parametrized(self, "weight"):
            raise ValueError(
                "lowered_weight cannot be loaded into a layer whose weight is computed by a hook: "
                "load it first and normalise then, or use torch.nn.utils.parametrizations"
            )
        held: Any = self.get_submodule("parametrizations.weight")
        held.right_inverse(weight.to(self.weight))
        return {f"parametrizations.weight.{name}": part for name, part in held.state_dict().items()}


class SingleHarmonicConv2d(HarmonicConv2d, _OriginalsNames):
    """`HarmonicConv2d` under the original's name, with its order of arguments.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, anchor, stride, padding, dilation, groups, bias
        As in `HarmonicConv2d`. A dilation along frequency is accepted and means nothing.
    padding_mode : {"zero", "zeros"}
        Two spellings of the same.
    device, dtype
        As in `HarmonicConv2d`; the original has neither.

    Examples
    --------
    >>> layer = SingleHarmonicConv2d(1, 8, 7, anchor=1, padding=(0, 3))
    >>> layer(torch.randn(2, 1, 256, 64)).shape
    torch.Size([2, 8, 256, 64])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        anchor: int | Sequence[int] = 1,
        stride: IntPair = 1,
        padding: IntPair | str = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zero",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            _dilation_in_time(dilation),
            groups,
            bias,
            _zeros(padding_mode),
            device,
            dtype,
            anchor=anchor,
        )
        self._looks_up_by_default = False  # the original's taps are meant


class SingleLogHarmonicConv2d(LogHarmonicConv2d, _OriginalsNames):
    """`LogHarmonicConv2d` under the original's name, with its order of arguments.

    The frequency axis is described as ``f(x) = A·log_C(B·x)``: its octave has ``A·log_C(2)`` bins.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As in `SingleHarmonicConv2d`.
    out_log_scale : float > 0
        A.
    in_log_scale : float > 0
        B, which cancels.
    radix : float > 1, optional
        C; ``None`` is e. The defaults are the original's, 1000·ln(0.001·x): an axis of 693 bins to
        the octave, not that of a constant-Q spectrogram.
    anchor, device, dtype
        As in `LogHarmonicConv2d`.

    Examples
    --------
    >>> layer = SingleLogHarmonicConv2d(1, 8, 7, out_log_scale=12, radix=2, padding=(0, 3))
    >>> layer(torch.randn(2, 1, 84, 64)).shape
    torch.Size([2, 8, 84, 64])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        out_log_scale: float = 1000,
        in_log_scale: float = 0.001,
        radix: float | None = None,
        anchor: int | Sequence[int] = 1,
        stride: IntPair = 1,
        padding: IntPair | str = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zero",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            _dilation_in_time(dilation),
            groups,
            bias,
            _zeros(padding_mode),
            device,
            dtype,
            anchor=anchor,
            bins_per_octave=_bins_per_octave(out_log_scale, in_log_scale, radix),
        )
        self._looks_up_by_default = False  # the original's taps are meant
        self.out_log_scale, self.in_log_scale, self.radix = out_log_scale, in_log_scale, radix


def _bins_per_octave(
    out_log_scale: float, in_log_scale: float | None, radix: float | None
) -> float:
    """Return the bins that an octave has on the axis A·log_C(B·x), of which B cancels."""
    scale = as_positive("out_log_scale", out_log_scale)
    if in_log_scale is not None:
        as_positive("in_log_scale", in_log_scale)
    if radix is None:
        return scale * math.log(2)
    base = as_positive("radix", radix)
    if base <= 1:
        raise ValueError(f"radix must be > 1, got {radix!r}")
    return scale / math.log2(base)


def _dilation_in_time(dilation: IntPair) -> IntPair:
    return 1, as_pair("dilation", dilation)[1]


def _zeros(padding_mode: str) -> str:
    return "zeros" if padding_mode == "zero" else padding_mode
