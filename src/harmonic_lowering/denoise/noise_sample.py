"""A sample of the noise, which the user gives."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spectral import Stft

__all__ = ["NoiseSample"]

_MIN_SAMPLE_S = 0.1
_ENOUGH_FRAMES = 64  # overlapping; with fewer, neighbouring bins are averaged
_FRAME_S = 0.064  # in which a period is looked for


@dataclass(frozen=True)
class NoiseSample:
    """A sample (C, L) of the noise at its own rate, taken as steady noise in a recording.

    With one channel it holds for every channel of the recording.
    """

    waveform: Tensor
    sample_rate: int
    recording_rate: int

    def __post_init__(self) -> None:
        if self.waveform.ndim != 2 or not self.waveform.is_floating_point():
            raise ValueError(
                "a sample of the noise must be a real Tensor of shape (L,) or (C, L), got "
                f"{self.waveform.dtype} {tuple(self.waveform.shape)}"
            )
        seconds = self.waveform.shape[1] / self.sample_rate
        if seconds < _MIN_SAMPLE_S:
            raise ValueError(
                f"a sample of the noise must last {_MIN_SAMPLE_S} s or longer, got {seconds:.3f} s"
            )
        if not bool(self.waveform.isfinite().all()):
            raise ValueError("the sample of the noise holds numbers that are not finite")
        if not bool(self.waveform.any()):
            raise ValueError("the sample of the noise is silent")
        if self.sample_rate < self.recording_rate:
            raise ValueError(
                f"the sample of the noise has {self.sample_rate} Hz and the recording "
                f"{self.recording_rate} Hz: it says nothing about the frequencies between; "
                "take a sample of at least the recording's rate"
            )

    def channel(self, index: int) -> NoiseSample:
        """Return the sample for one channel of the recording."""
        index = index if len(self.waveform) > 1 else 0
        return replace(self, waveform=self.waveform[index : index + 1])

    def scaled(self, factor: float) -> NoiseSample:
        """Return the sample for a recording that was multiplied by a factor."""
        return replace(self, waveform=self.waveform * factor)

    def power(self, transform: Stft, frames: int) -> Tensor:
        """Return N (F, T) in a transform of the recording."""
        own = Stft.for_rate(self.sample_rate, transform.n_fft / self.recording_rate)
        power = own(self.waveform).abs().square().mean((0, 2)) / own.window_energy
        width = 2 * (_ENOUGH_FRAMES // (2 * own.frames(self.waveform.shape[1]))) + 1
        smooth = F.avg_pool1d(power[None], width, 1, width // 2, count_include_pad=False)[0]
        bins = torch.arange(transform.bins) * (own.n_fft / self.sample_rate)
        place = (bins * (self.recording_rate / transform.n_fft)).clamp_max(own.bins - 1)
        below = place.floor().long().clamp_max(own.bins - 2)
        density = torch.lerp(smooth[below], smooth[below + 1], (place - below).to(smooth))
        per_hertz = self.recording_rate / self.sample_rate
        return (density * per_hertz * transform.window_energy)[:, None].expand(-1, frames)

    def periodicity(self) -> float:
        """Return how periodic the sample is: about 0.2 for noise, above 0.5 for voices and music.

        It is the median over frames of 64 ms of the autocorrelation's peak at 70 to 600 Hz.
        """
        size = round(_FRAME_S * self.sample_rate)
        frames = self.waveform.mean(0).unfold(0, size, size // 2)
        frames = (frames - frames.mean(1, keepdim=True)) * torch.hann_window(size).to(frames)
        correlation = torch.fft.irfft(torch.fft.rfft(frames, 2 * size).abs().square())
        window = torch.hann_window(size).to(frames)
        taper = torch.fft.irfft(torch.fft.rfft(window, 2 * size).abs().square())
        first, last = round(self.sample_rate / 600), round(self.sample_rate / 70)
        energy = correlation[:, :1].clamp_min(torch.finfo(frames.dtype).tiny)
        peaks = (correlation / energy / (taper / taper[0]))[:, first : last + 1].amax(1)
        return float(peaks.median())
