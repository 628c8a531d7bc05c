"""What an engine is given beside the tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .._torch import constant_object
from ..checks import IntPair, as_count, as_pair, as_time, time_padding
from ..taps import FrequencyTaps

__all__ = ["Geometry", "geometry_of"]


@dataclass(frozen=True)
class Geometry:
    """The arguments of a convolution that are not tensors, checked and in one form.

    Parameters
    ----------
    taps : FrequencyTaps
        Where the kernel's rows read, each tap once.
    stride : (int, int)
        Step of the output along frequency and time.
    padding : (int, int)
        Zeros before and after the time axis.
    dilation : int
        Distance between the kernel's columns in time.
    groups : int
        As in `conv2d`.
    row_taps : tuple of int, optional
        For each row of the caller's kernel, which of the taps it reads, where rows share taps. The
        caller sums their weights; engines get one row a tap.
    """

    taps: FrequencyTaps
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    groups: int = 1
    row_taps: tuple[int, ...] | None = None
    taps_text: str = field(init=False, repr=False, compare=False, default="")
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "taps_text", self.taps.text)  # compilers cannot make it
        # A key of caches that are asked at every call.
        key = (self.taps, self.stride, self.padding, self.dilation, self.groups, self.row_taps)
        object.__setattr__(self, "_hash", hash(key))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[object, ...]:  # hashes differ between processes
        return type(self), (
            self.taps, self.stride, self.padding, self.dilation, self.groups, self.row_taps,
        )  # fmt: skip

    @property
    def operator_arguments(
        self,
    ) -> tuple[str, tuple[int, int], tuple[int, int], int, int]:
        """The same as numbers and text, as torch's operators take them."""
        return self.taps_text, self.stride, self.padding, self.dilation, self.groups

    @classmethod
    def from_operator_arguments(
        cls,
        taps: str,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: int,
        groups: int,
        row_taps: tuple[int, ...] | None = None,
    ) -> Geometry:
        """Return the geometry that `operator_arguments` describe."""
        along_frequency, along_time = stride
        before, after = padding
        return cls(
            FrequencyTaps.from_text(taps),
            (along_frequency, along_time),
            (before, after),
            dilation,
            groups,
            row_taps,
        )

    def span(self, kernel_frames: int) -> int:
        """Return the number of frames that a kernel covers."""
        return self.dilation * (kernel_frames - 1) + 1

    def output_bins(self, n_bins: int) -> int:
        """Return F' of the output for F bins."""
        return -(-n_bins // self.stride[0])

    def output_frames(self, n_frames: int, kernel_frames: int) -> int:
        """Return T' of the output for T frames."""
        return (n_frames + sum(self.padding) - self.span(kernel_frames)) // self.stride[1] + 1

    def output_shape(self, input: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
        """Return (B, O, F', T')."""
        batch, _, n_bins, n_frames = input.shape
        return (
            batch,
            weight.shape[0],
            self.output_bins(n_bins),
            self.output_frames(n_frames, weight.shape[3]),
        )


@constant_object
def geometry_of(
    taps: FrequencyTaps,
    stride: IntPair,
    padding: IntPair | str,
    dilation: IntPair,
    groups: int,
    kernel_frames: int,
) -> Geometry:
    """Check the arguments that `conv2d` also has, and return them with the distinct taps."""
    if not isinstance(taps, FrequencyTaps):
        raise TypeError(f"taps must be FrequencyTaps, got {taps!r}")
    strides = as_pair("stride", stride)
    frames = as_time("dilation", dilation, frequency=1)
    distinct, row_taps = taps.merged()
    return Geometry(
        distinct,
        strides,
        time_padding(padding, kernel_frames, frames, strides),
        frames,
        as_count("groups", groups),
        row_taps if len(distinct) < len(taps) else None,
    )
