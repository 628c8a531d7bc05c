r"""The deep audio prior as published: a network fitted to the complex STFT itself.

.. math:: \min_θ \sum_{f,t} |f_θ(z)[f, t] − X[f, t]|²

with z fixed noise, real and imaginary part as two channels, Adam with a constant rate. The network
learns the sound sooner than the noise; its output after the last step is the result (Zhang et al.,
ICLR 2020; Takeuchi et al., Interspeech 2020). Unlike there, every layer knows where frequency zero
lies after pooling.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import Tensor

from .estimator import Estimate, Report, Settings, losses_wait
from .network import SpectrogramUNet
from .noise_recording import RecordingNoise
from .noise_sample import NoiseSample

__all__ = ["DapEstimator"]

_STEPS = {"fast": 1000, "default": 5000, "best": 10000}
_NOISE_CHANNELS = 8  # of the fixed input


class DapEstimator:
    """The published method, to compare with; it is slower and worse than `PriorEstimator`."""

    def settings(self, quality: str, start: str) -> Settings:
        """Return the method's own settings; it only starts at random."""
        return Settings(
            steps=_STEPS[quality],
            starts=1,
            widths=(35, 70, 70),
            learning_rate=1e-3,
            windows_s=(0.064,),
            overlap=16,
        )

    def __call__(
        self,
        noisy: Tensor,
        sample_rate: int,
        settings: Settings,
        report: Report,
        time_limit: float | None,
        noise: NoiseSample | RecordingNoise | None,
    ) -> Estimate:
        """Estimate the clean sound of a segment (C, L)."""
        if noise is not None:
            raise ValueError('a sample of the noise is of use to method "prior" only')
        (transform,) = settings.transforms(sample_rate)
        fitted = _fit_spectrum(transform(noisy), settings, report, time_limit)
        return Estimate(transform.inverse(fitted, noisy.shape[1]))

    def listen(
        self, stretches: Iterable[tuple[float, Tensor]], sample_rate: int, settings: Settings
    ) -> None:
        """Need no estimate of the noise."""


def _fit_spectrum(
    spectrum: Tensor, settings: Settings, report: Report, time_limit: float | None
) -> Tensor:
    """Fit the network to a complex spectrum (C, F, T) and return its last output."""
    began = time.monotonic()
    channels = spectrum.shape[0]
    parts = torch.cat([spectrum.real, spectrum.imag])[None].float()
    scale = parts.square().mean().sqrt()  # so that one learning rate suits every loudness
    target = (parts / scale).to(settings.device)
    with torch.random.fork_rng(devices=[]):
        # Drawn on the CPU, so that every device starts from the same numbers.
        torch.manual_seed(settings.seed)
        network = SpectrogramUNet(_NOISE_CHANNELS, 2 * channels, settings.widths, settings.layer)
        network = network.to(settings.device)
        source = torch.randn(1, _NOISE_CHANNELS, *spectrum.shape[1:]).to(settings.device)
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    ended, last_loss, wait = "", 0.0, losses_wait(settings.device)
    for step in range(1, settings.steps + 1):
        with torch.enable_grad():
            output = network(source)
            loss = (output - target).square().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
        optimiser.step()
        if time_limit is not None and time.monotonic() - began > time_limit:
            ended = "time"
        elif step == settings.steps:
            ended = "steps"
        if ended or step % wait == 0 or step == 1:
            last_loss = float(loss.detach())
        if report(step, last_loss, ended) or ended:
            break
    with torch.no_grad():
        fitted = (network(source)[0].cpu() * scale).to(spectrum.real)
    return torch.complex(fitted[:channels], fitted[channels:])
