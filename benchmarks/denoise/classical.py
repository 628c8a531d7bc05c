"""Classical filters, written from their papers: functions of |X|²/N in an STFT.

N is the denoiser's own estimate of the noise, so that what the denoiser gains over these methods
is due to its network, or it is that of the true noise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harmonic_lowering.denoise.noise_estimate import estimate_noise
from harmonic_lowering.spectral import Stft

from .recordings import Array

__all__ = [
    "block_threshold", "threshold", "threshold_white", "wiener", "wiener_told", "wiener_white",
]  # fmt: skip

_WIENER_S, _THRESHOLD_S, _BLOCK_S = 0.032, 0.064, 0.05

# Of block thresholding: a macroblock has 16 bins and 8 frames. Noise alone leaves a block of B bins
# with a probability of 0.1 %: quantiles of χ² with B degrees of freedom, over B.
_HEIGHTS, _WIDTHS = (16, 8, 4, 2, 1), (8, 4, 2)
_LEVELS = {2: 6.91, 4: 4.62, 8: 3.27, 16: 2.45, 32: 1.95, 64: 1.64, 128: 1.42}


def wiener(noisy: Array, noise: Array, sample_rate: int) -> Array:
    return _filtered(noisy, None, _transform(sample_rate, _WIENER_S), decision_directed)


def wiener_white(noisy: Array, noise: Array, sample_rate: int) -> Array:
    transform = _transform(sample_rate, _WIENER_S)
    return _filtered(noisy, _white(noise, transform), transform, decision_directed)


def wiener_told(noisy: Array, noise: Array, sample_rate: int) -> Array:
    transform = _transform(sample_rate, _WIENER_S)
    told = transform(torch.from_numpy(noise)).abs().square().mean(1, keepdim=True)
    return _filtered(noisy, told, transform, decision_directed)


def threshold(noisy: Array, noise: Array, sample_rate: int) -> Array:
    return _filtered(noisy, None, _transform(sample_rate, _THRESHOLD_S), hard_threshold)


def threshold_white(noisy: Array, noise: Array, sample_rate: int) -> Array:
    transform = _transform(sample_rate, _THRESHOLD_S)
    return _filtered(noisy, _white(noise, transform), transform, hard_threshold)


def block_threshold(noisy: Array, noise: Array, sample_rate: int) -> Array:
    return _filtered(noisy, None, Stft.for_rate(sample_rate, _BLOCK_S, 2), block_attenuation)


def decision_directed(ratio: Tensor, smoothing: float = 0.98, least_db: float = -25.0) -> Tensor:
    """Wiener's gain from the decision-directed signal-to-noise ratio.

    `ratio` (F, T) is the a-posteriori ratio |X|²/N. Ephraim and Malah, "Speech enhancement using
    a minimum mean-square error short-time spectral amplitude estimator", IEEE Trans. ASSP 32(6),
    1984, DOI 10.1109/TASSP.1984.1164453; their constants.
    """
    least = 10 ** (least_db / 10)
    before = torch.ones_like(ratio[:, 0])  # of the clean power in the last frame to the noise
    gains = []
    for now in ratio.unbind(1):
        prior = smoothing * before + (1 - smoothing) * (now - 1).clamp_min(0)
        prior = prior.clamp_min(least)
        gains.append(prior / (1 + prior))
        before = gains[-1].square() * now
    return torch.stack(gains, 1)


def hard_threshold(ratio: Tensor, deviations: float = 2.5) -> Tensor:
    """Keep the bins above the noise, zero the others.

    The diagonal estimator that Yu, Mallat and Bacry compare with (below). They take 3σ; 2.5σ gives
    0.5 to 0.7 dB more here.
    """
    return (ratio > deviations**2).to(ratio)


def block_attenuation(ratio: Tensor) -> Tensor:
    """Attenuate blocks of bins, in each macroblock those of the shape with the least risk.

    A block of B bins with the mean ratio r has the gain (1 − λ(B)/r)₊; its risk is Stein's
    unbiased estimate. Yu, Mallat and Bacry, "Audio denoising by time-frequency block
    thresholding", IEEE Trans. SP 56(5), 2008, DOI 10.1109/TSP.2007.912893; windows, blocks and
    the probability are theirs.
    """
    height, width = _HEIGHTS[0], _WIDTHS[0]
    bins, frames = ratio.shape
    padded = F.pad(ratio[None, None], (0, -frames % width, 0, -bins % height), mode="replicate")
    least = torch.full_like(F.avg_pool2d(padded, (height, width)), torch.inf)
    gain = torch.zeros_like(padded)
    for shape in [(h, w) for h in _HEIGHTS for w in _WIDTHS]:
        size = shape[0] * shape[1]
        level = _LEVELS[size]
        mean = F.avg_pool2d(padded, shape)
        kept = size + size * (level**2 - 2 * level * (size - 2) / size) / mean
        risk = torch.where(mean > level, kept, size * (mean - 1))
        blocks = height // shape[0], width // shape[1]
        risk = F.avg_pool2d(risk, blocks) * blocks[0] * blocks[1]
        attenuation = (1 - level / mean).clamp_min(0)
        better = _repeat(risk < least, (height, width))
        gain = torch.where(better, _repeat(attenuation, shape), gain)
        least = torch.minimum(risk, least)
    return gain[0, 0, :bins, :frames]


def _repeat(blocks: Tensor, shape: tuple[int, int]) -> Tensor:
    return blocks.repeat_interleave(shape[0], 2).repeat_interleave(shape[1], 3)


def _transform(sample_rate: int, window_s: float) -> Stft:
    return Stft.for_rate(sample_rate, window_s)


def _white(noise: Array, transform: Stft) -> Tensor:
    """Power in each bin of white noise as loud as this."""
    return torch.tensor(transform.window_energy * float(np.mean(noise**2)))


def _filtered(
    noisy: Array, level: Tensor | None, transform: Stft, gain_of: Callable[[Tensor], Tensor]
) -> Array:
    """Filter with a gain that is a function of |X|²/N; by default N is estimated."""
    spectrum = transform(torch.from_numpy(noisy))
    power = spectrum.abs().square()
    if level is None:
        level = estimate_noise(power)[:, None]
    return transform.inverse(spectrum * gain_of(power / level), len(noisy)).numpy()
