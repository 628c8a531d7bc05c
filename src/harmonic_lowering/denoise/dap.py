r"""The deep audio prior as published: a network fitted to the complex STFT itself.

.. math:: \min_θ \sum_{f,t} |f_θ(z)[f, t] − X[f, t]|²

with z fixed noise, real and imaginary part as two channels, Adam with a constant rate. The network
learns the sound sooner than the noise; what it gives after the last step is the result (Zhang et
al., ICLR 2020; Takeuchi et al., Interspeech 2020). Unlike there, every layer is told where
frequency zero lies after pooling.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from .network import SpectrogramUNet

__all__ = ["fit_spectrum"]

_NOISE_CHANNELS = 8  # of the fixed input


def fit_spectrum(
    spectrum: Tensor,
    report: Callable[[int, float, str], object],
    *,
    steps: int,
    seed: int,
    device: str,
    layer: str,
    widths: tuple[int, ...],
    learning_rate: float,
    time_limit: float | None,
) -> Tensor:
    """Fit the network to a complex spectrum (C, F, T) and return what it has learnt.

    ``report(step, loss, ended)`` is called after each step, `ended` being why it is the last or
    empty; the fit ends at once when it returns true. The other arguments are `Denoiser`'s.
    """
    began = time.monotonic()
    channels = spectrum.shape[0]
    parts = torch.cat([spectrum.real, spectrum.imag])[None].float()
    scale = parts.square().mean().sqrt()  # so that one learning rate suits every loudness
    target = (parts / scale).to(device)
    with torch.random.fork_rng(devices=[]):
        # Drawn on the CPU, so that every device starts from the same numbers.
        torch.manual_seed(seed)
        network = SpectrogramUNet(_NOISE_CHANNELS, 2 * channels, widths, layer).to(device)
        source = torch.randn(1, _NOISE_CHANNELS, *spectrum.shape[1:]).to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
    ended = ""
    for step in range(1, steps + 1):
        with torch.enable_grad():
            output = network(source)
            loss = (output - target).square().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
        optimiser.step()
        if time_limit is not None and time.monotonic() - began > time_limit:
            ended = "time"
        elif step == steps:
            ended = "steps"
        if report(step, float(loss.detach()), ended) or ended:
            break
    with torch.no_grad():
        learnt = (network(source)[0].cpu() * scale).to(spectrum.real)
    return torch.complex(learnt[:channels], learnt[channels:])
