r"""Fit the learnt mask to one recording, of which no clean version exists.

More noise z of the same power N(f, t) is added, and the mask of the noisier sound is to predict
the recording with as much of z taken away:

.. math:: \min_θ E_z \sum W \, \bigl| g_θ(X + αZ)\,(X + αZ) − (X − Z/α) \bigr|^2.

For Gaussian noise the two are independent given the clean sound S, so the minimum is that of
:math:`|g_θ(X + αZ)\,(X + αZ) − S|^2` (Pang et al., "Recorrupted-to-Recorrupted", CVPR 2021: the
idea). What changes in a few steps is how the mask treats this voice, this room and this microphone.
The weights W fall with the local power, so that quiet parts matter as well.

The rate and the number of steps were chosen on the mixtures for choices; twice the steps are as
good. An N that is 1.5 dB too low costs all of what the fit gains.
"""

from __future__ import annotations

import copy
import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from .mask import LearntMask

__all__ = ["fit_mask"]

_ADDED = 0.5  # α: more tells less of the recording itself, less makes Z/α loud
_RATE = 2e-4  # of Adam
_CROP_S = 2.0  # of the recording, which one step sees
_EXPONENT = 0.5  # of the local power, in W
_AROUND = (8, 4)  # bins and frames on each side of a local power
_QUIETEST = 1e-4  # of the mean power, below which W no longer rises
_APART = 2**31  # seeds of neighbouring channels
_JITTER = 1e-8  # of the channels' independence: some are copies
_GOLDEN = (math.sqrt(5) - 1) / 2


def fit_mask(
    mask: LearntMask,
    sound: Tensor,
    sample_rate: int,
    noise: Tensor,
    gain: Tensor,
    *,
    steps: int,
    seed: int,
    time_limit: float | None,
) -> LearntMask:
    """Return a mask that is fitted to a recording (C, L) whose noise has the power (C, F, T).

    `gain` (F, T) is what the mask says of it unfitted.
    """
    began = time.monotonic()
    transform = mask.transform(sample_rate)
    spectrum = transform(sound)
    power = spectrum.abs().square().mean(0, keepdim=True).float()
    size = [2 * reach + 1 for reach in _AROUND]
    local = F.avg_pool2d(power, size, 1, list(_AROUND), count_include_pad=False)
    weight = local.clamp_min(_QUIETEST * float(power.mean())) ** -_EXPONENT
    weight = weight / (weight * noise).mean().clamp_min(torch.finfo(weight.dtype).tiny)
    amplitude = (noise / transform.window_energy).sqrt()

    mixing = _mixing(spectrum * (1 - gain)).to(sound)

    fitted = LearntMask(copy.deepcopy(mask.network).requires_grad_())
    optimiser = torch.optim.Adam(fitted.network.parameters(), lr=_RATE, fused=True)
    # Of its own for each channel, so that further ones change nothing for the first.
    randoms = [
        torch.Generator().manual_seed((seed + _APART * channel) % 2**63)
        for channel in range(len(sound))
    ]
    hop, frames = transform.hop_length, spectrum.shape[2]
    crop = min(frames, 1 + round(_CROP_S * sample_rate / hop))
    for step in range(1, steps + 1):
        first = round(step * _GOLDEN % 1 * (frames - crop))
        part = slice(first, first + crop)
        drawn = [torch.randn((crop - 1) * hop, generator=random) for random in randoms]
        added = transform(mixing @ torch.stack(drawn).to(sound)) * amplitude[..., part]
        noisier = spectrum[..., part] + _ADDED * added
        target = spectrum[..., part] - added / _ADDED
        with torch.enable_grad():
            now = fitted.gain(noisier.abs().square().mean(0).float())
            error = torch.view_as_real(now * noisier - target).square().sum(-1)
            loss = (weight[..., part] * error).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if time_limit is not None and time.monotonic() - began > time_limit:
            break
    return fitted


def _mixing(noise: Tensor) -> Tensor:
    """Return the matrix that makes independent channels as alike as those of a noise (C, F, T)."""
    parts = torch.view_as_real(noise).flatten(1).double()
    covariance = parts @ parts.T
    level = covariance.diagonal().clamp_min(torch.finfo(covariance.dtype).tiny).sqrt()
    alike = covariance / level[:, None] / level
    mixing: Tensor = torch.linalg.cholesky(alike + _JITTER * torch.eye(len(alike)).to(alike))
    return mixing
