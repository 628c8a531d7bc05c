r"""How the learnt mask and the prior become one answer.

The prior takes noise to have a few spectra whose level may step. Where noise swells, it takes the
quiet moments for the whole, and the N(f, t) of the mask lies above its own. There the mask knows
more, so the prior is given

.. math:: N = N_p \left(\frac{N_m}{N_p}\right)^{λ}, \qquad
    λ = \sigma\left(\frac{10 \log_{10} (N_m / N_p) − d}{1.5\,\mathrm{dB}}\right),

with λ averaged over ±125 Hz and ±64 ms, because noise moves in regions and not in bins, and 0 where
the mask finds the recording clean. The mask is then fitted to the recording, see `mask_fit`. The
answer is the mean of what the prior makes of the recording and of what the mask does: their errors
differ. The mask is not trusted

- at frequencies where the power between the partials of a held note, seen in windows of half a
  second, is always far below N_m: there a deep bass fills the mask's 64 ms. Codecs leave holes, in
  which the prior finds next to no noise, but none that last so long;
- where N_m lies far below N_p, as beside a gate, which misleads the mask.

d, the slope and the shares were chosen among two to five values each, on the 42 mixtures for
choices that no score is reported on; the rest on five of those recordings behind gates and codecs,
and on synthetic notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spectral import Stft
from .estimator import Estimate
from .mask import LearntMask, MaskEstimate
from .mask_fit import fit_mask
from .noise_model import NoiseModel
from .noise_sample import NoiseSample

__all__ = ["Joined", "Learnt", "RaisedNoise"]

_EQUAL_DB, _SLOPE_DB = -1.0, 1.5  # of N: λ is 1/2; its logit rises by 1
_REACH = (8, 4)  # bins and frames on each side over which λ is averaged
_ALWAYS = 0.1  # quantile over time: noise that swells is missing now and then, not always
_MISTAKEN_DB = 6.0  # of N that is always missing: the trust in the mask is 1/2
_FITTED = 0.7  # of the fitted mask in the mask; the rest is as it was learnt
_SHARE = 0.65  # of the mask in the answer
_LACKING_DB = 4.0  # of N below the prior's: the mask misses noise
_HELD_S = 0.5  # window in which partials of deep notes are resolved
_DEEPEST_HZ = 50.0  # distance of partials that it must resolve
_VALLEY = 0.2  # quantile of the power over so many Hz: what is between partials
_BELOW = 0.5  # of a noise's mean: where that quantile of its medians over time lies
_TINY = 1e-30
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
    """What the mask says of a segment (C, L): its spectrum (C, F, T), the gain and N(f, t)."""

    mask: LearntMask
    sound: Tensor
    sample_rate: int
    spectrum: Tensor
    estimate: MaskEstimate

    @classmethod
    def of(cls, mask: LearntMask, sound: Tensor, sample_rate: int) -> Learnt:
        """Ask the mask about a segment whose samples lie within ±1."""
        spectrum = mask.transform(sample_rate)(sound)
        return cls(mask, sound, sample_rate, spectrum, mask.estimate(_power(spectrum)))

    @property
    def transform(self) -> Stft:
        """The transform that the mask is for."""
        return self.mask.transform(self.sample_rate)

    def alone(self) -> Estimate:
        """Return the mask's answer."""
        noise, gain = self.estimate.noise, self.estimate.gain
        left = (noise * gain.square()).sum() / noise.sum()
        power = float(noise.mean()) / self.transform.window_energy
        clean = self.transform.inverse(self.spectrum * gain, self.sound.shape[1])
        return Estimate(clean, power, float(left), self.steady)

    def joined(self, models: Sequence[NoiseModel | NoiseSample | None]) -> Joined:
        """Compare N with that of the prior's models of all channels (None if silent)."""
        frames = self.spectrum.shape[2]
        prior = [
            self.estimate.noise.new_zeros(self.estimate.noise.shape)
            if model is None
            else model.power(self.transform, frames).to(self.estimate.noise)
            for model in models
        ]
        return Joined(self, models, torch.stack(prior))

    @property
    def steady(self) -> bool:
        """Whether the level of the noise hardly changes."""
        level_db = 10 * self.estimate.noise.mean(0).clamp_min(1e-30).log10()
        quiet, loud = torch.quantile(level_db, torch.tensor([0.1, 0.9]))
        return float(loud - quiet) < _STEADY_DB


@dataclass(frozen=True)
class Joined:
    """What the mask and the prior's models (None for silent channels) say of the noise.

    `prior` (C, F, T) is the models' N in the mask's transform.
    """

    learnt: Learnt
    models: Sequence[NoiseModel | NoiseSample | None]
    prior: Tensor

    @cached_property
    def _missing_db(self) -> Tensor:
        """By how much the mask's N lies above the prior's (F, T)."""
        mean = self.prior.mean(0).clamp_min(_TINY)
        return 10 * (self.learnt.estimate.noise.clamp_min(_TINY) / mean).log10()

    @cached_property
    def _trust(self) -> Tensor:
        """How far the mask's N is trusted at each frequency (F, 1)."""
        known = torch.maximum(self.prior.mean(0), self._between_partials()).clamp_min(_TINY)
        above_db = 10 * (self.learnt.estimate.noise.clamp_min(_TINY) / known).log10()
        always_db = torch.quantile(above_db, _ALWAYS, 1, keepdim=True)
        return ((_MISTAKEN_DB - always_db) / _SLOPE_DB).sigmoid()

    def _between_partials(self) -> Tensor:
        """Usual power (F, 1) between the partials of a held note, however deep it is."""
        sound, transform = self.learnt.sound, self.learnt.transform
        long = Stft.for_rate(self.learnt.sample_rate, _HELD_S, overlap=2)
        if sound.shape[1] < long.n_fft:
            return torch.zeros(transform.bins, 1)
        power = long(sound).abs().square().mean(0).median(1).values
        power = power / _BELOW * transform.window_energy / long.window_energy
        reach = round(_DEEPEST_HZ / 2 * long.n_fft / self.learnt.sample_rate)
        near = F.pad(power[None], (reach, reach), mode="reflect")[0].unfold(0, 2 * reach + 1, 1)
        valleys = torch.quantile(near, _VALLEY, 1)[None, None]
        there = F.interpolate(valleys, transform.bins, mode="linear", align_corners=True)
        return there[0, 0, :, None].float()

    @property
    def raised(self) -> list[RaisedNoise | None]:
        """The prior's models with what they miss of the noise."""
        share = ((self._missing_db - _EQUAL_DB) / _SLOPE_DB).sigmoid() * self._trust
        size = [2 * reach + 1 for reach in _REACH]
        share = F.avg_pool2d(share[None], size, 1, list(_REACH), count_include_pad=False)[0]
        # Averaged, the share no longer follows where N falls off a cliff.
        by_db = (
            share * self._missing_db.clamp_min(-_LACKING_DB) * (1 - self.learnt.estimate.opening)
        )

        def raised(model: NoiseModel | NoiseSample) -> RaisedNoise:
            steady = isinstance(model, NoiseModel) and model.steady and self.learnt.steady
            return RaisedNoise(model, self.learnt.transform, by_db, steady)

        return [None if model is None else raised(model) for model in self.models]

    def fitted(self, *, steps: int, seed: int, time_limit: float | None) -> Joined:
        """Fit the mask to the recording, and ask it again."""
        learnt = self.learnt
        if not steps or not bool(self.prior.any()):
            return self
        live = torch.tensor([model is not None for model in self.models])
        noise = (self.prior / self.prior.mean(0).clamp_min(_TINY) * self._noise())[live]
        mask = fit_mask(
            learnt.mask, learnt.sound[live], learnt.sample_rate, noise, learnt.estimate.gain,
            steps=steps, seed=seed, time_limit=time_limit,
        )  # fmt: skip
        gain = mask.estimate(_power(learnt.spectrum)).gain
        gain = torch.lerp(learnt.estimate.gain, gain, _FITTED)
        return replace(self, learnt=replace(learnt, estimate=replace(learnt.estimate, gain=gain)))

    def _noise(self) -> Tensor:
        """N (F, T), the mask's but where it misses noise."""
        by_db = self._lacking * self._missing_db
        return self.learnt.estimate.noise * 10 ** (-by_db / 10)

    @cached_property
    def _lacking(self) -> Tensor:
        """How surely the mask misses noise that the prior knows of (F, T)."""
        return ((-_LACKING_DB - self._missing_db) / _SLOPE_DB).sigmoid()

    @property
    def share(self) -> Tensor:
        """How far the mask is trusted (F, T)."""
        return self._trust * (1 - self._lacking)

    def mixed(self, prior: Tensor) -> Tensor:
        """Return the mean of the prior's answer (C, L) and the mask's, as far as it is trusted."""
        learnt = self.learnt
        spectrum = learnt.transform(prior)
        own = (learnt.spectrum * learnt.estimate.gain).to(spectrum)
        share = (_SHARE * self.share).to(spectrum)
        return learnt.transform.inverse(torch.lerp(spectrum, own, share), prior.shape[1])


def _power(spectrum: Tensor) -> Tensor:
    return spectrum.abs().square().mean(0).float()
