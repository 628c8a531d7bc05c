"""The optimisation of one segment: from |X|²/N to gains."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .network import SpectrogramUNet
from .objective import negative_log_likelihood, wiener_gain

__all__ = ["fit_gain"]

_NOISE_CHANNELS = 8  # of the network's fixed input
_WARM_UP = 8  # steps


def fit_gain(
    ratio: Tensor,
    report: Callable[[int, float], object],
    *,
    steps: int,
    seed: int,
    device: str,
    layer: str,
    widths: tuple[int, ...],
    learning_rate: float,
    smoothing: float,
) -> Tensor:
    """Fit the network to |X|²/N (F, T) and return the gains, averaged over the last steps.

    ``report(step, loss)`` is called after each step; the fit ends early when it returns true. The
    other arguments are `Denoiser`'s.
    """
    with torch.random.fork_rng(devices=[]):
        # Drawn on the CPU, so that every device starts from the same numbers.
        torch.manual_seed(seed)
        network = SpectrogramUNet(_NOISE_CHANNELS, 1, widths, layer)
        source = torch.randn(1, _NOISE_CHANNELS, *ratio.shape)
    network = network.to(device)
    source = source.to(device)
    target = ratio[None, None].to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
    gain = torch.zeros_like(target)
    for step in range(1, steps + 1):
        optimiser.param_groups[0]["lr"] = learning_rate * _rate_at(step, steps)
        with torch.enable_grad():
            log_snr = network(source)
            loss = negative_log_likelihood(target, log_snr)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        gain.lerp_(wiener_gain(log_snr.detach()), 1 - smoothing)
        if report(step, float(loss.detach())):
            break
    # The average began at zero: divide by the weight it holds by now.
    return (gain / (1 - math.pow(smoothing, step)))[0, 0].cpu()


def _rate_at(step: int, steps: int) -> float:
    """Share of the learning rate at `step` in 1..steps: a short rise, then half a cosine."""
    return min(1.0, step / _WARM_UP) * (1.02 + math.cos(math.pi * (step - 1) / steps)) / 2
