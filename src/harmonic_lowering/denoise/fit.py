r"""The optimisation of one segment: from |X|²/N to gains.

The network sees the noisy spectrogram with small patches hidden, and is asked for the signal at
their centres (noise2void, Krull et al., CVPR 2019; noise2self, Batson and Royer, ICML 2019: the
ideas). Noise in a hidden bin cannot be foretold from its surroundings, pitched sound can: so the
network is never rewarded for learning the noise, and its loss is a likelihood of data it has not
seen, which tells when to stop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .network import SpectrogramUNet
from .objective import itakura_saito, wiener_gain

__all__ = ["fit_gain"]

_HIDDEN = 0.05  # of all bins are the centre of a hidden patch
_PATCH = 3  # bins and frames of a patch: what the STFT's window smears one bin over
_NOISE_CHANNELS = 4  # fixed, beside the spectrogram: places that the network can tell apart
_WARM_UP = 8  # steps
_WINDOW = 40  # steps; the loss is compared between this many and the as many before
_PLATEAU = 0.004  # nats; improving by less in a window is none
_HURRY = 4  # times as fast through the rest of the schedule after a plateau


def fit_gain(
    ratio: Tensor,
    report: Callable[[int, float, str], object],
    *,
    steps: int,
    seed: int,
    device: str,
    layer: str,
    widths: tuple[int, ...],
    learning_rate: float,
    smoothing: float,
    early_stop: bool,
    time_limit: float | None,
) -> Tensor:
    """Fit the network to |X|²/N (F, T) and return the gains, averaged over the last steps.

    ``report(step, loss, ended)`` is called after each step, `ended` being why it is the last or
    empty; the fit ends at once when it returns true. The other arguments are `Denoiser`'s.
    """
    began = time.monotonic()
    random = torch.Generator().manual_seed(seed)  # on the CPU: every device draws the same numbers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SpectrogramUNet(2 + _NOISE_CHANNELS, 1, widths, layer).to(device)
        places = torch.randn(1, _NOISE_CHANNELS, *ratio.shape).to(device)
    target = ratio[None, None].to(device)
    seen = (target + 1e-3).log().clamp(-3, 10) / 3
    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
    gains, weights = torch.zeros_like(target), torch.zeros_like(target)
    losses: list[float] = []
    step, position, ended = 0, 0.0, "steps"
    while position < 1:
        step += 1
        optimiser.param_groups[0]["lr"] = learning_rate * _rate_at(step, position)
        centres = (torch.rand(target.shape, generator=random) < _HIDDEN).to(target)
        if not bool(centres.any()):
            centres[..., 0, 0] = 1
        hidden = F.max_pool2d(centres, _PATCH, 1, _PATCH // 2)
        with torch.enable_grad():
            log_snr = network(torch.cat([seen * (1 - hidden), 1 - hidden, places], 1))
            loss = (itakura_saito(target, log_snr) * centres).sum() / centres.sum()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        gains.mul_(smoothing).addcmul_(wiener_gain(log_snr.detach()), centres)
        weights.mul_(smoothing).add_(centres)
        losses.append(float(loss.detach()))
        # The learning rate falls along the schedule, whose end is nearer when time is short.
        if early_stop and ended == "steps" and _levelled(losses):
            ended = "level"
        stride = (_HURRY if ended == "level" else 1) / steps
        if time_limit is not None:
            spent = time.monotonic() - began
            left = max(1.0, (time_limit - spent) * step / spent)  # steps
            if (1 - position) / left > stride:
                stride, ended = (1 - position) / left, "time"
        # Sums of 1/steps miss 1 by rounding errors.
        position = 1.0 if position + stride > 1 - 1e-9 else position + stride
        if report(step, losses[-1], ended if position == 1 else ""):
            break
    # A bin that was never hidden gets the network's answer of the last step.
    last = wiener_gain(log_snr.detach())
    return ((gains + 1e-3 * last) / (weights + 1e-3))[0, 0].cpu()


def _levelled(losses: list[float]) -> bool:
    """Say whether the loss has stopped falling."""
    if len(losses) < _WARM_UP + 2 * _WINDOW:
        return False
    before, now = losses[-2 * _WINDOW : -_WINDOW], losses[-_WINDOW:]
    return sum(before) - sum(now) < _PLATEAU * _WINDOW


def _rate_at(step: int, position: float) -> float:
    """Share of the learning rate: a short rise, then half a cosine over positions 0..1."""
    return min(1.0, step / _WARM_UP) * (1.02 + math.cos(math.pi * position)) / 2
