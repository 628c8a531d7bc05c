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

_PATCH = 3  # bins and frames of a hidden patch: what the STFT's window smears one bin over
_HIDDEN = 0.1  # of all bins are the centre of a patch in a step
_HIDDEN_LAST = 0.05  # and in the end, when more around each may be seen
_TEMPER = 0.75  # of the weights: the network has seen the other bins of this very noise
_WARM_UP = 8  # steps
_WINDOW = 40  # steps; the loss is compared between this many and the as many before
_PLATEAU = 0.004  # nats; improving by less in a window is none
_HURRY = 4  # times as fast through the rest of the schedule after a plateau
_FORWARD = 0.35  # of a step's time is spent before the gradients
_GOLDEN = (math.sqrt(5) - 1) / 2


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
    crop: int,
    early_stop: bool,
    time_limit: float | None,
) -> Tensor:
    """Fit the network to |X|²/N (F, T), then ask it for the weights (F, T, K) of each hidden bin.

    Each step looks at `crop` frames: many short steps learn more in a given time than few long
    ones, and a step costs the same however long the recording is. ``report(step, loss, ended)`` is
    called after each step, `ended` being why it is the last or empty; the fit ends at once when it
    returns true. The other arguments are `Denoiser`'s.
    """
    began = time.monotonic()
    random = torch.Generator().manual_seed(seed)  # on the CPU: every device draws the same numbers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SpectrogramUNet(2, len(SNR_DB), widths, layer).to(device)
    ratio = ratio.to(device)
    logarithm = (ratio + 1e-3).log().clamp(-3, 10) / 3
    bins, frames = ratio.shape
    crop = min(crop, frames)

    def foretell(first: int, last: int, centres: Tensor) -> Tensor:
        """Log of the weights (n, K) of n bins of some frames, hidden with what is around them."""
        seen = logarithm[None, None, :, first:last]
        shown = seen.new_zeros(seen.shape)
        shown.view(-1)[centres] = 1
        shown = 1 - F.max_pool2d(shown, _PATCH, 1, _PATCH // 2)
        features = network.features(torch.cat([seen * shown, shown], 1))
        scores = network.head(features.flatten(2)[..., centres, None])  # of these bins only
        return F.log_softmax(scores[0, :, :, 0].T, 1)

    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
    losses: list[float] = []
    last_sweep = _FORWARD / _HIDDEN_LAST * frames / crop  # takes as long as so many steps
    step, position, ended = 0, 0.0, "steps"
    while position < 1:
        step += 1
        optimiser.param_groups[0]["lr"] = learning_rate * _rate_at(step, position)
        # Multiples of the golden ratio visit all parts of the recording evenly.
        first = round(step * _GOLDEN % 1 * (frames - crop))
        target = ratio[:, first : first + crop].flatten()
        order = torch.randperm(len(target), generator=random)
        centres = order[: max(1, round(_HIDDEN * len(target)))].to(device)
        with torch.enable_grad():
            likelihood = foretell(first, first + crop, centres) + log_likelihood(target[centres])
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
            left = max(1.0, (time_limit - spent) * step / spent - last_sweep)  # steps
            if (1 - position) / left > stride:
                stride, ended = (1 - position) / left, "time"
        # Sums of 1/steps miss 1 by rounding errors.
        position = 1.0 if position + stride > 1 - 1e-9 else position + stride
        if report(step, losses[-1], ended if position == 1 else ""):
            break
    scores = ratio.new_empty(ratio.numel(), len(SNR_DB))
    with torch.no_grad():
        order = torch.randperm(len(scores), generator=random).to(device)
        for centres in torch.split(order, max(1, round(_HIDDEN_LAST * len(scores)))):
            scores[centres] = foretell(0, frames, centres)
    return (_TEMPER * scores).softmax(1).view(bins, frames, -1).cpu()


def _levelled(losses: list[float]) -> bool:
    """Say whether the loss has stopped falling."""
    if len(losses) < _WARM_UP + 2 * _WINDOW:
        return False
    before, now = losses[-2 * _WINDOW : -_WINDOW], losses[-_WINDOW:]
    return sum(before) - sum(now) < _PLATEAU * _WINDOW


def _rate_at(step: int, position: float) -> float:
    """Share of the learning rate: a short rise, then half a cosine over positions 0..1."""
    return min(1.0, step / _WARM_UP) * (1.02 + math.cos(math.pi * position)) / 2
