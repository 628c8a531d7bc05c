r"""The likelihood of a noisy spectrogram, and what follows from it: the gain, and a risk.

A bin X of the noisy STFT is modelled as complex Gaussian, so |X|² is exponentially distributed with
mean N(f)·(1 + ξ(f, t)), where N is the power of the noise and ξ the signal-to-noise ratio. Fitting
powers instead of the complex STFT frees the network from phases, which have no short description.

The surroundings of a bin do not determine its ξ exactly. So the network gives a weight to each
ratio of a fixed grid; maximum likelihood fits the weights, and the bin's own power then selects
among the ratios by Bayes' rule (the idea is from blind-spot networks, Laine et al., NeurIPS 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SNR_DB", "log_likelihood", "posterior_gain", "shrinkage_risk"]

SNR_DB = tuple(range(-15, 50, 5))  # the grid of ξ
_MIN_WEIGHT = 1e-6  # no ratio is ruled out, whatever the network says

_SUBTRACTED = 2.0  # times the noise power, in the shrinkage whose risk is estimated


def log_likelihood(power_ratio: Tensor) -> Tensor:
    r"""Log-likelihood of a bin's power under each signal-to-noise ratio of the grid.

    .. math:: \log p(|X|²/N \mid ξ_k) = −\frac{|X|²/N}{1+ξ_k} − \log(1+ξ_k)

    Parameters
    ----------
    power_ratio : Tensor [shape=(...)]
        |X|²/N.

    Returns
    -------
    Tensor [shape=(..., K)]
    """
    expected = 1 + _snr(power_ratio)
    return -power_ratio[..., None] / expected - expected.log()


def posterior_gain(weights: Tensor, power_ratio: Tensor) -> Tensor:
    r"""Return the gain of least expected squared error: the posterior mean of the Wiener gain.

    .. math:: \hat S / X = \sum_k p(ξ_k \mid X) \frac{ξ_k}{1+ξ_k}, \qquad
        p(ξ_k \mid X) ∝ w_k \, p(|X|²/N \mid ξ_k)

    Parameters
    ----------
    weights : Tensor [shape=(..., K)]
        w, the prior probability of each ratio, before the bin itself is seen; they sum to 1.
    power_ratio : Tensor [shape=(...)]
        |X|²/N.

    Returns
    -------
    Tensor [shape=(...)]
        Between 0 and 1, and rising with `power_ratio`.
    """
    snr = _snr(power_ratio)
    posterior = (weights.clamp_min(_MIN_WEIGHT).log() + log_likelihood(power_ratio)).softmax(-1)
    return posterior @ (snr / (1 + snr))


def shrinkage_risk(power: Tensor, noise: Tensor) -> float:
    r"""Estimate the squared error of a simple filter, as a share of all power.

    .. math:: \hat S = \max(1 − a N/|X|², 0)\,X, \qquad
        E|\hat S − S|² = E \begin{cases} N + a² N²/|X|² & |X|² > a N \\
        |X|² − N & \text{else} \end{cases}

    with a = 2: Stein's unbiased estimate for complex Gaussian noise, which needs no clean signal.
    The sparser the sound is in a transform, the lower the risk: it chooses the STFT's window.

    Parameters
    ----------
    power : Tensor [shape=(F, T)]
        |X|².
    noise : Tensor [shape=(F, T) or (F, 1)]
        N.

    References
    ----------
    Stein, "Estimation of the mean of a multivariate normal distribution", Annals of Statistics
    1981; Donoho and Johnstone, "Adapting to unknown smoothness via wavelet shrinkage", JASA 1995.
    """
    shrunk = noise + _SUBTRACTED**2 * noise.square() / torch.maximum(power, noise)
    risk = torch.where(power > _SUBTRACTED * noise, shrunk, power - noise)
    return float(risk.sum() / power.sum())


def _snr(like: Tensor) -> Tensor:
    # Made on the device: a list of numbers would be sent there at every step.
    step = SNR_DB[1] - SNR_DB[0]
    grid = torch.arange(SNR_DB[0], SNR_DB[-1] + 1, step, dtype=like.dtype, device=like.device)
    return 10 ** (grid / 10)
