r"""Short-time Fourier transform and its exact inverse.

A thin layer over `torch.stft` and `torch.istft`. It adds three things: a recording comes back with
exactly the samples it had, window and hop are checked before the work instead of after it, and half
types are refused (their range has no room for the spectrum of quiet sounds).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Stft"]


def binary_scale(loudest: float) -> float:
    """Return the power of two by which to divide sound, so that its peak lies in 0.5 … 1.

    Squares of very loud or very quiet samples would leave the range of float32; a power of two
    changes no digit.
    """
    return 2.0 ** math.frexp(loudest)[1]


@dataclass(frozen=True)
class Stft:
    r"""Short-time Fourier transform with a Hann window and centred frames.

    .. math:: X[f, t] = \sum_{n=0}^{N-1} w[n] \, x[t·H + n − N/2] \, e^{−2πi f n / N}

    Frame t is centred on sample t·H; the ends are mirrored. The inverse divides the overlapped
    frames by the summed squares of the window, so it is exact whenever windows cover every sample.

    Parameters
    ----------
    n_fft : int >= 2, even
        Window length N in samples.
    hop_length : int >= 1
        H in samples, at most N/2 (a Hann window is zero at its end, so larger hops lose samples).

    Raises
    ------
    ValueError
        If `n_fft` is odd or `hop_length` does not fit it.

    Examples
    --------
    >>> transform = Stft(512, 128)
    >>> sound = torch.randn(2, 16000)
    >>> spectrum = transform(sound)
    >>> spectrum.shape
    torch.Size([2, 257, 126])
    >>> torch.allclose(transform.inverse(spectrum, 16000), sound, atol=1e-5)
    True
    """

    n_fft: int
    hop_length: int

    def __post_init__(self) -> None:
        if self.n_fft < 2 or self.n_fft % 2:
            raise ValueError(f"n_fft must be even and at least 2, got {self.n_fft}")
        if not 1 <= self.hop_length <= self.n_fft // 2:
            raise ValueError(
                f"hop_length must lie in 1..n_fft/2 = {self.n_fft // 2}, so that windows cover "
                f"every sample; got {self.hop_length}"
            )

    @classmethod
    def for_rate(cls, sample_rate: int, window_s: float = 0.064, overlap: int = 4) -> Stft:
        """Return the transform whose window lasts `window_s` at this rate."""
        hop_length = max(1, round(sample_rate * window_s / overlap))
        return cls(overlap * hop_length, hop_length)

    @property
    def bins(self) -> int:
        """Frequency bins, F = n_fft/2 + 1."""
        return self.n_fft // 2 + 1

    @property
    def window_energy(self) -> float:
        """Sum of the squared window, the mean power of a bin in white noise of unit variance."""
        return 3 / 8 * self.n_fft

    @property
    def shortest(self) -> int:
        """Length of the shortest sound that can be transformed (the ends are mirrored)."""
        return self.n_fft // 2 + 1

    def frames(self, length: int) -> int:
        """Frames of a sound of `length` samples, T = 1 + ceil(length / hop_length)."""
        return 1 + -(-length // self.hop_length)

    def nearest(self, other: Stft, frames: int, count: int) -> Tensor:
        """Return which of `count` frames lies nearest to each of the first `frames` of another."""
        place = torch.arange(frames) * (other.hop_length / self.hop_length)
        return place.round().long().clamp_max(count - 1)

    def __call__(self, waveform: Tensor) -> Tensor:
        """Transform a sound.

        Parameters
        ----------
        waveform : Tensor [shape=(..., L)], float32 or float64
            L must be at least `shortest`.

        Returns
        -------
        Tensor [shape=(..., n_fft/2 + 1, 1 + ceil(L / hop_length))], complex
        """
        if waveform.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"waveform must be float32 or float64, got {waveform.dtype}")
        length = waveform.shape[-1]
        if length < self.shortest:
            raise ValueError(
                f"waveform must hold at least {self.shortest} samples for n_fft {self.n_fft}, "
                f"got {length}"
            )
        # Mirrored to a whole number of hops, so that a frame is centred at or after the last
        # sample: otherwise the inverse would divide by the vanishing tail of a single window.
        whole = F.pad(waveform.reshape(-1, length), (0, -length % self.hop_length), mode="reflect")
        spectrum = torch.stft(
            whole,
            self.n_fft,
            self.hop_length,
            window=_window(self.n_fft, waveform.dtype, waveform.device),
            return_complex=True,
        )
        return spectrum.reshape(*waveform.shape[:-1], *spectrum.shape[-2:])

    def inverse(self, spectrum: Tensor, length: int) -> Tensor:
        """Return the `length` samples of a spectrum.

        Parameters
        ----------
        spectrum : Tensor [shape=(..., n_fft/2 + 1, T)], complex
        length : int
            Samples wanted; T must be ``frames(length)``.

        Returns
        -------
        Tensor [shape=(..., length)], real
        """
        if spectrum.shape[-2:] != (self.bins, self.frames(length)):
            raise ValueError(
                f"a sound of {length} samples has a spectrum of {self.bins} bins and "
                f"{self.frames(length)} frames, got {tuple(spectrum.shape[-2:])}"
            )
        flat = spectrum.reshape(-1, *spectrum.shape[-2:])
        real = torch.float64 if spectrum.dtype == torch.complex128 else torch.float32
        waveform = torch.istft(
            flat,
            self.n_fft,
            self.hop_length,
            window=_window(self.n_fft, real, spectrum.device),
            length=length,
        )
        return waveform.reshape(*spectrum.shape[:-2], length)


@lru_cache(maxsize=16)
def _window(n_fft: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.hann_window(n_fft, dtype=dtype, device=device)
