r"""The optimisation for one segment: from |X|²/N to what the surroundings of each bin say of it.

The network sees the noisy spectrogram with small patches masked, and predicts the signal-to-noise
ratio at their centres (noise2void, Krull et al., CVPR 2019; noise2self, Batson and Royer, ICML
2019: the ideas). Noise in a masked bin cannot be predicted from its surroundings, pitched sound
can. So the network is never rewarded for learning the noise, and its loss is a likelihood of data
it has not seen, which is what the stopping rule watches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spectral import Stft
from ..weights import read_weights
from .estimator import Report, Settings, losses_wait
from .likelihood import SNR_DB, log_likelihood
from .network import SpectrogramUNet
from .rows import Rows

__all__ = ["WIDTHS", "MaskedBins", "fit_weights", "prior_network", "shipped_start"]

_START = Path(__file__).with_name("weights") / "prior.safetensors"

WIDTHS = (16, 24, 32)  # channels of the network at each scale

_CROP_S = 1.33  # of the recording, which one step sees
_SINGLE_HZ = 8000  # the highest bin that the network sees by itself; above, 16 bins are merged
_LEARNT_RATE = 0.4  # of the learning rate, from a learnt start
_STACKED = 4  # rows of the spectrogram that are one of the network: as good, in half of the time
_PATCH = 3  # bins and frames of a masked patch: the STFT's window smears one bin over as many
_MASKED_SHARE = 0.1  # of all bins, predicted in a step
_LAST_MASKED_SHARE = 0.1  # and in each pass of the last sweep; .05 takes twice as long for .05 dB
_WEIGHT_EXPONENT = 0.75  # the network has seen the other bins of this very noise: trust it less
_WARM_UP = 8  # steps
_WINDOW = 40  # steps; the loss of one window is compared with that of the window before
_PLATEAU = 0.004  # nats; a smaller improvement from window to window is none
_PLATEAU_SPEEDUP = 4  # times as fast through the rest of the schedule after a plateau
_FORWARD = 0.35  # of a step's time is spent before the gradients
_GOLDEN = (math.sqrt(5) - 1) / 2


class MaskedBins:
    """What a network is fitted to: |X|²/N (F, T), of which it predicts masked bins.

    It sees `crop` frames at a time. The bins up to 8 kHz are rows of their own, and means of
    several are rows above; these share their weights, which are those of greatest likelihood of
    each of the bins.
    """

    def __init__(
        self, ratio: Tensor, transform: Stft, sample_rate: int, device: str = "cpu"
    ) -> None:
        single = int(_SINGLE_HZ * transform.n_fft / sample_rate) + 1
        self.rows = Rows(len(ratio), min(single, len(ratio)))
        self._device = device
        self._parts = self.rows.parts(ratio.to(device))
        rows = torch.cat([part.mean(2) for part in self._parts])
        self._logarithm = (rows + 1e-3).log().clamp(-3, 10) / 3
        self.shape = self._logarithm.shape
        self.crop = min(round(_CROP_S * sample_rate / transform.hop_length), self.shape[1])

    def predict(self, network: SpectrogramUNet, first: int, last: int, masked: Tensor) -> Tensor:
        """Log of the weights (n, K) of n rows of some frames, masked with what is around them."""
        segment = self._logarithm[None, None, :, first:last]
        visible = segment.new_zeros(segment.shape)
        visible.view(-1)[masked] = 1
        visible = 1 - F.max_pool2d(visible, _PATCH, 1, _PATCH // 2)
        return F.log_softmax(network.at(torch.cat([segment * visible, visible], 1), masked), 1)

    def loss(
        self, network: SpectrogramUNet, first: int, random: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mask some bins of the crop from frame `first` on; return how badly they are predicted.

        Also return the part of the loss that depends only on which bins are masked; without it
        the spread from step to step is half as large.
        """
        crop = self.crop
        drawn = [_sent(_draw(len(part) * crop, random), self._device) for part in self._parts]
        targets = [
            part[:, first : first + crop].flatten(0, 1)[chosen]
            for part, chosen in zip(self._parts, drawn, strict=True)
        ]
        above = (chosen + self.rows.single * crop for chosen in drawn[1:])
        predicted = self.predict(network, first, first + crop, torch.cat([drawn[0], *above]))
        scores = torch.split(predicted, [len(chosen) for chosen in drawn])
        likelihoods = [
            (score[:, None] + log_likelihood(target)).logsumexp(2).mean(1)
            for score, target in zip(scores, targets, strict=True)
        ]
        known = torch.cat([target.clamp_min(1e-6).log().mean(1) for target in targets])
        return -torch.cat(likelihoods).mean(), 1 + known.mean()

    @torch.no_grad()
    def weights(self, network: SpectrogramUNet, random: torch.Generator) -> Tensor:
        """Predict the weights (F, T, K) of each bin, masked."""
        count, frames = self.shape
        weights = self._logarithm.new_empty(count * frames, len(SNR_DB))
        order = torch.randperm(len(weights), generator=random).to(self._device)
        for masked in torch.split(order, max(1, round(_LAST_MASKED_SHARE * len(order)))):
            log_weights = self.predict(network, 0, frames, masked)
            weights[masked] = (_WEIGHT_EXPONENT * log_weights).softmax(1)
        return self.rows.split(weights.view(count, frames, -1))


def fit_weights(
    ratio: Tensor,
    transform: Stft,
    sample_rate: int,
    settings: Settings,
    report: Report,
    time_limit: float | None,
) -> Tensor:
    """Fit the network to |X|²/N (F, T), then predict the weights (F, T, K) of each masked bin.

    Each step looks at a crop: many short steps learn more in a given time than few long ones, and a
    step costs the same however long the recording is.
    """
    began = time.monotonic()
    device = settings.device
    # On the CPU, so that every device draws the same numbers.
    random = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = prior_network(settings.widths, settings.layer)
    start = shipped_start(settings.widths, settings.layer) if settings.start == "learnt" else None
    if start is not None:
        network.load_state_dict(start)
    network.to(device)
    bins = MaskedBins(ratio, transform, sample_rate, device)
    frames = bins.shape[1]

    fused = torch.device(device).type in ("cpu", "cuda")  # a quarter of the optimiser's time
    rate = settings.learning_rate * (1 if start is None else _LEARNT_RATE)
    optimiser = torch.optim.Adam(network.parameters(), lr=rate, fused=fused)
    losses: list[float] = []
    unread: list[Tensor] = []
    last_sweep = (
        _FORWARD / _LAST_MASKED_SHARE * frames / bins.crop
    )  # takes as long as so many steps
    step, position, ended = 0, 0.0, "steps"
    while position < 1:
        step += 1
        optimiser.param_groups[0]["lr"] = rate * _rate_at(step, position)
        # Multiples of the golden ratio visit all parts of the recording evenly.
        first = round(step * _GOLDEN % 1 * (frames - bins.crop))
        with torch.enable_grad():
            loss, known = bins.loss(network, first, random)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        unread.append(loss.detach() - known)
        if step == 1 or len(unread) >= losses_wait(device):
            losses += torch.stack(unread).tolist()
            unread.clear()
        # The learning rate falls along the schedule, whose end is nearer when time is short.
        if settings.early_stop and ended == "steps" and _has_plateaued(losses):
            ended = "plateau"
        stride = (_PLATEAU_SPEEDUP if ended == "plateau" else 1) / settings.steps
        if time_limit is not None:
            spent = time.monotonic() - began
            left = max(1.0, (time_limit - spent) * step / spent - last_sweep)  # steps
            if (1 - position) / left > stride:
                stride, ended = (1 - position) / left, "time"
        # Sums of 1/steps miss 1 by rounding errors.
        position = 1.0 if position + stride > 1 - 1e-9 else position + stride
        if position == 1 and unread:
            losses += torch.stack(unread).tolist()
        if report(step, losses[-1], ended if position == 1 else ""):
            break
    return bins.weights(network, random).cpu()


def prior_network(widths: Sequence[int], layer: str) -> SpectrogramUNet:
    """Return the network, with random weights."""
    return SpectrogramUNet(2, len(SNR_DB), widths, layer, stacked=_STACKED)


@cache
def shipped_start(widths: tuple[int, ...], layer: str) -> dict[str, Tensor] | None:
    """Return the weights to start from that come with the package, if they are of such a network.

    Raises
    ------
    WeightsError
        If the file is missing or damaged.
    """
    start, network = read_weights(_START, "the learnt start", "python -m research.prior_start")
    known = network["layer"], network["widths"]
    return start if known == (layer, ",".join(map(str, widths))) else None


def _draw(count: int, random: torch.Generator) -> Tensor:
    """Return the share of `count` rows and frames that a step masks."""
    return torch.randperm(count, generator=random)[: max(1, round(_MASKED_SHARE * count))]


def _sent(indices: Tensor, device: str) -> Tensor:
    """Move indices to a device; a card is not waited for, which memory that is pinned allows."""
    if torch.device(device).type == "cuda":
        indices = indices.pin_memory()
    return indices.to(device, non_blocking=True)


def _has_plateaued(losses: list[float]) -> bool:
    """Say whether the loss has stopped falling."""
    if len(losses) < _WARM_UP + 2 * _WINDOW:
        return False
    before, now = losses[-2 * _WINDOW : -_WINDOW], losses[-_WINDOW:]
    return sum(before) - sum(now) < _PLATEAU * _WINDOW


def _rate_at(step: int, position: float) -> float:
    """Share of the learning rate: a short rise, then half a cosine over positions 0..1."""
    return min(1.0, step / _WARM_UP) * (1.02 + math.cos(math.pi * position)) / 2
