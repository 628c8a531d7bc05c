"""Harmonic convolution for audio spectrograms: layers that take the place of `torch.nn.Conv2d`.

Kernel rows sample the harmonics of a pitch, at multiples of its frequency, instead of adjacent
bins.
"""

from contextlib import suppress

# torch imports NumPy, if it is there, from C, where an interrupt is lost: so before torch.
with suppress(ImportError):
    import numpy as _numpy  # noqa: F401

from .constant_q import CQT, VQT
from .functional import (
    DeadTapWarning,
    UpwardTapsWarning,
    frequency_tap_conv2d,
    harmonic_conv2d,
    harmonic_lowering,
    log_harmonic_conv2d,
    log_harmonic_lowering,
)
from .modules import (
    FrequencyTapConv2d,
    HarmonicConv2d,
    HarmonicLowering,
    LogHarmonicConv2d,
    LogHarmonicLowering,
)
from .plotting import plot_taps
from .replace import replace_conv2d
from .taps import FrequencyTaps, origin_after_pooling

__all__ = [
    "CQT",
    "VQT",
    "DeadTapWarning",
    "FrequencyTapConv2d",
    "FrequencyTaps",
    "HarmonicConv2d",
    "HarmonicLowering",
    "LogHarmonicConv2d",
    "LogHarmonicLowering",
    "UpwardTapsWarning",
    "frequency_tap_conv2d",
    "harmonic_conv2d",
    "harmonic_lowering",
    "log_harmonic_conv2d",
    "log_harmonic_lowering",
    "origin_after_pooling",
    "plot_taps",
    "replace_conv2d",
]
__version__ = "0.1.0"
