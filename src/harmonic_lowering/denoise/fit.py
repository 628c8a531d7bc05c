r"""The optimisation of one segment: from |X|²/N to what its surroundings say of each bin.

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
from .objective import SNR_DB, log_likelihood

__all__ = ["fit_weights"]

_HIDDEN = 0.05  # of all bins are the centre of a hidden patch
_PATCH = 3  # bins and frames of a patch: what the STFT's window smears one bin over
_NOISE_CHANNELS = 4  # fixed, beside the spectrogram: places that the network can tell apart
_WARM_UP = 8  # steps
_WINDOW = 40  # steps; the loss is compared between this many and the as many before
_PLATEAU = 0.004  # nats; improving by less in a window is none
_HURRY = 4  # times as fast through the rest of the schedule after a plateau
_SWEEP = 8  # steps take as long as asking for every bin in the end


def fit_weights(
    ratio: Tensor,
    report: Callable[[int, float, str], object],
    *,
    steps: int,
    seed: int,
    device: str,
    layer: str,
    widths: tuple[int, ...],
    learning_rate: float,
    early_stop: bool,
    time_limit: float | None,
) -> Tensor:
    """Fit the network to |X|²/N (F, T), then ask it for the weights (F, T, K) of each hidden bin.

    ``report(step, loss, ended)`` is called after each step, `ended` being why it is the last or
    empty; the fit ends at once when it returns true. The other arguments are `Denoiser`'s.
    """
    began = time.monotonic()
    random = torch.Generator().manual_seed(seed)  # on the CPU: every device draws the same numbers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SpectrogramUNet(2 + _NOISE_CHANNELS, len(SNR_DB), widths, layer).to(device)
        places = torch.randn(1, _NOISE_CHANNELS, *ratio.shape).to(device)
    target = ratio.flatten().to(device)
    seen = (ratio[None, None].to(device) + 1e-3).log().clamp(-3, 10) / 3
    hidden = max(1, round(_HIDDEN * len(target)))

    def foretell(centres: Tensor) -> Tensor:
        """Log of the weights (n, K) of n bins, hidden with what is around them."""
        shown = torch.zeros_like(seen)
        shown.view(-1)[centres] = 1
        shown = 1 - F.max_pool2d(shown, _PATCH, 1, _PATCH // 2)
        features = network.features(torch.cat([seen * shown, shown, places], 1))
        scores = network.head(features.flatten(2)[..., centres, None])  # of these bins only
        return F.log_softmax(scores[0, :, :, 0].T, 1)

    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
    losses: list[float] = []
    step, position, ended = 0, 0.0, "steps"
    while position < 1:
        step += 1
        optimiser.param_groups[0]["lr"] = learning_rate * _rate_at(step, position)
        centres = torch.randperm(len(target), generator=random)[:hidden].to(device)
        with torch.enable_grad():
            likelihood = foretell(centres) + log_likelihood(target[centres])
            loss = -likelihood.logsumexp(1).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        # Less what depends on the choice of bins only: it halves the spread from step to step.
        losses.append(float(loss.detach() - 1 - target[centres].clamp_min(1e-6).log().mean()))
        # The learning rate falls along the schedule, whose end is nearer when time is short.
        if early_stop and ended == "steps" and _levelled(losses):
            ended = "level"
        stride = (_HURRY if ended == "level" else 1) / steps
        if time_limit is not None:
            spent = time.monotonic() - began
            left = max(1.0, (time_limit - spent) * step / spent - _SWEEP)  # steps
            if (1 - position) / left > stride:
                stride, ended = (1 - position) / left, "time"
        # Sums of 1/steps miss 1 by rounding errors.
        position = 1.0 if position + stride > 1 - 1e-9 else position + stride
        if report(step, losses[-1], ended if position == 1 else ""):
            break
    weights = target.new_empty(len(target), len(SNR_DB))
    with torch.no_grad():
        for centres in torch.split(torch.randperm(len(target), generator=random), hidden):
            weights[centres] = foretell(centres.to(device)).exp()
    return weights.view(*ratio.shape, -1).cpu()


def _levelled(losses: list[float]) -> bool:
    """Say whether the loss has stopped falling."""
    if len(losses) < _WARM_UP + 2 * _WINDOW:
        return False
    before, now = losses[-2 * _WINDOW : -_WINDOW], losses[-_WINDOW:]
    return sum(before) - sum(now) < _PLATEAU * _WINDOW


def _rate_at(step: int, position: float) -> float:
    """Share of the learning rate: a short rise, then half a cosine over positions 0..1."""
    return min(1.0, step / _WARM_UP) * (1.02 + math.cos(math.pi * position)) / 2
