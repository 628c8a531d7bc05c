"""Scores of a restored sound against the clean one.

SI-SDR is computed here; PESQ and STOI are standards with their own packages, imported only when
they are called.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .optional import import_optional

__all__ = ["pesq", "si_sdr", "stoi"]


def si_sdr(reference: Tensor, estimate: Tensor) -> Tensor:
    r"""Scale-invariant signal-to-distortion ratio in dB.

    .. math:: 10 \log_{10} \frac{\|αs\|²}{\|\hat s − αs\|²}, \quad α = ⟨\hat s, s⟩ / \|s\|²

    after subtracting the means of s and ŝ. Any difference but a change of loudness lowers it.

    Parameters
    ----------
    reference, estimate : Tensor [shape=(..., L)]
        Clean and restored sound, computed in float64.

    Returns
    -------
    Tensor [shape=(...)], float64
        dB; ``inf`` where the two agree, ``-inf`` where they are orthogonal, ``nan`` where one of
        them is silent or constant, so that there is nothing to compare, or holds a nan.

    References
    ----------
    Le Roux et al., "SDR - half-baked or well done?", ICASSP 2019, arXiv:1811.02508.

    Examples
    --------
    >>> clean = torch.tensor([1.0, -1.0, 1.0, -1.0])
    >>> noise = torch.tensor([1.0, 1.0, -1.0, -1.0])
    >>> round(float(si_sdr(clean, 3 * (clean + 0.1 * noise))), 3)
    20.0
    """
    if reference.shape != estimate.shape:
        raise ValueError(
            f"reference and estimate must have the same shape, got {tuple(reference.shape)} "
            f"and {tuple(estimate.shape)}"
        )
    clean = reference.double() - reference.double().mean(-1, keepdim=True)
    other = estimate.double() - estimate.double().mean(-1, keepdim=True)
    scale = (other * clean).sum(-1, keepdim=True) / clean.square().sum(-1, keepdim=True)
    target = scale * clean
    return 10 * torch.log10(target.square().sum(-1) / (other - target).square().sum(-1))


def pesq(reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
    """Wide-band PESQ (ITU-T P.862.2), 1.04 to 4.64; needs `pip install pesq`.

    Parameters
    ----------
    reference, estimate : Tensor [shape=(L,)]
    sample_rate : int
        Must be 16000: resample first.
    """
    package = import_optional("pesq", "PESQ", "pesq")
    if sample_rate != 16000:
        raise ValueError(
            f"wide-band PESQ is defined at 16000 Hz, got {sample_rate}: resample first"
        )
    return float(package.pesq(16000, _array(reference), _array(estimate), "wb"))


def stoi(reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
    """Short-time objective intelligibility of speech, 0 to 1; needs `pip install pystoi`.

    Parameters
    ----------
    reference, estimate : Tensor [shape=(L,)]
    sample_rate : int
        Any; the package resamples to 10 kHz.
    """
    package = import_optional("pystoi", "STOI", "pystoi")
    return float(package.stoi(_array(reference), _array(estimate), sample_rate))


def _array(waveform: Tensor) -> Any:
    if waveform.ndim != 1:
        raise ValueError(f"expected one channel, shape (L,), got {tuple(waveform.shape)}")
    return waveform.detach().float().cpu().numpy()
