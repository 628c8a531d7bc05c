r"""How the learnt mask and the prior become one answer.

The prior takes noise to have a few spectra whose level may step. Where noise swells, it takes the
quiet moments for the whole, and the N(f, t) of the mask lies above its own. There the mask knows
more, so the prior is given

.. math:: N = N_p \left(\frac{N_m}{N_p}\right)^{λ}, \qquad
    λ = \sigma\left(\frac{10 \log_{10} (N_m / N_p) − d}{1.5\,\mathrm{dB}}\right),

with λ averaged over ±125 Hz and ±64 ms, because noise moves in regions and not in bins, and 0 where
the mask finds the recording clean. What the prior misses all the time is no swelling: it knows
windows of up to half a second, in which a deep bass that fills the mask's 64 ms is resolved. At
such frequencies the mask is not trusted. The answer is the mean of what the prior then makes of the
recording and of what the mask does: their errors differ.

d, the slope and the share were chosen among two or three values each, with half-trained weights, on
twenty mixtures that no score is reported on; the numbers for bass on synthetic notes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spectral import Stft
from .estimator import Estimate
from .mask import LearntMask, MaskEstimate
from .noise_model import NoiseModel
from .noise_sample import NoiseSample

__all__ = ["Learnt", "RaisedNoise"]

_EQUAL_DB, _SLOPE_DB = 2.0, 1.5  # of N: λ is 1/2; its logit rises by 1
_REACH = (8, 4)  # bins and frames on each side over which λ is averaged
_ALWAYS = 0.1  # quantile over time: noise that swells is missing now and then, not always
_MISTAKEN_DB = 6.0  # of N that is always missing: the trust in the mask is 1/2
_SHARE = 0.5  # of the mask in the answer
_STEADY_DB = 3.0  # between the quiet and the loud moments of noise that is called steady


@dataclass(frozen=True)
class RaisedNoise:
    """The prior's model of a channel's noise, raised by `by_db` (F, T) of a transform."""

    model: NoiseModel | NoiseSample
    transform: Stft
    by_db: Tensor
    steady: bool

    def power(self, transform: Stft, frames: int) -> Tensor:
        """Return N (F, T) in a transform."""
        own = self.model.power(transform, frames)
        near = self.transform.nearest(transform, frames, self.by_db.shape[1])
        rows = self.by_db.T[None, near]
        there = F.interpolate(rows, len(own), mode="linear", align_corners=True)[0].T
        return own * (10 ** (there / 10)).to(own)


@dataclass(frozen=True)
class Learnt:
    """What the mask says of a segment: its spectrum (C, F, T), the gain and N(f, t)."""

    transform: Stft
    spectrum: Tensor
    estimate: MaskEstimate

    @classmethod
    def of(cls, mask: LearntMask, sound: Tensor, sample_rate: int) -> Learnt:
        """Ask the mask about a segment (C, L) whose samples lie within ±1."""
        transform = mask.transform(sample_rate)
        spectrum = transform(sound)
        power = spectrum.abs().square().mean(0)
        return cls(transform, spectrum, mask.estimate(power.float()))

    def alone(self, length: int) -> Estimate:
        """Return the mask's answer (C, length)."""
        noise, gain = self.estimate.noise, self.estimate.gain
        left = (noise * gain.square()).sum() / noise.sum()
        power = float(noise.mean()) / self.transform.window_energy
        return Estimate(self._clean(length), power, float(left), self.steady)

    def mixed(self, prior: Tensor, trust: Tensor) -> Tensor:
        """Return the mean of the prior's answer (C, L) and the mask's, as far as it is trusted."""
        spectrum = self.transform(prior)
        share = (_SHARE * trust).to(spectrum)
        spectrum = torch.lerp(spectrum, (self.spectrum * self.estimate.gain).to(spectrum), share)
        return self.transform.inverse(spectrum, prior.shape[1])

    def raise_noise(
        self, models: Sequence[NoiseModel | NoiseSample | None]
    ) -> tuple[list[RaisedNoise | None], Tensor]:
        """Give the prior's models of all channels (None if silent) what they miss of the noise.

        Also return how far the mask is trusted at each frequency (F, 1).
        """
        frames = self.spectrum.shape[2]
        known = [model for model in models if model is not None]
        if not known:
            return [None] * len(models), torch.ones(self.transform.bins, 1)
        powers = [model.power(self.transform, frames) for model in known]
        mean = (torch.stack(powers).sum(0) / len(models)).clamp_min(1e-30)
        missing_db = 10 * (self.estimate.noise.clamp_min(1e-30) / mean).log10()
        always_db = torch.quantile(missing_db, _ALWAYS, 1, keepdim=True)
        trust = ((_MISTAKEN_DB - always_db) / _SLOPE_DB).sigmoid()
        share = ((missing_db - _EQUAL_DB) / _SLOPE_DB).sigmoid() * trust
        size = [2 * reach + 1 for reach in _REACH]
        share = F.avg_pool2d(share[None], size, 1, list(_REACH), count_include_pad=False)[0]
        by_db = share * missing_db * (1 - self.estimate.opening)

        def raised(model: NoiseModel | NoiseSample) -> RaisedNoise:
            steady = isinstance(model, NoiseModel) and model.steady and self.steady
            return RaisedNoise(model, self.transform, by_db, steady)

        return [None if model is None else raised(model) for model in models], trust

    @property
    def steady(self) -> bool:
        """Whether the level of the noise hardly changes."""
        level_db = 10 * self.estimate.noise.mean(0).clamp_min(1e-30).log10()
        quiet, loud = torch.quantile(level_db, torch.tensor([0.1, 0.9]))
        return float(loud - quiet) < _STEADY_DB

    def _clean(self, length: int) -> Tensor:
        return self.transform.inverse(self.spectrum * self.estimate.gain, length)
