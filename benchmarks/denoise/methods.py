"""The methods that the bench compares: a sound in, a sound of the same length out.

An *oracle* method is given something about the noise that a user with one recording cannot know;
a *trained* one has learned from other sounds. Both are marked.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import harmonic_lowering
from harmonic_lowering.denoise import Denoiser
from harmonic_lowering.denoise.noise_estimate import estimate_noise
from harmonic_lowering.spectral import Stft

from .recordings import SAMPLE_RATE

Sound = np.ndarray  # float64, one channel at SAMPLE_RATE


@dataclass(frozen=True)
class Method:
    """`run(noisy, noise)` returns the estimate; `noise` is for oracle methods only."""

    name: str
    what: str
    run: Callable[[Sound, Sound], Sound]
    oracle: str = ""  # what it is given about the noise
    trained: bool = False
    needs: str = ""  # package
    slow: bool = False  # by default only in a few conditions
    settings: Callable[[], str] = lambda: ""

    def missing(self) -> str:
        """Return why the method cannot run here, or an empty string."""
        try:
            self.settings()
            if self.needs:
                importlib.import_module(self.needs)
        except Exception as error:  # a package that is broken is missing
            return f"{type(error).__name__}: {error}"
        finally:
            np.seterr(all="warn")  # logmmse sets it to "raise" for the whole process
        return ""

    def version(self) -> str:
        """Return what distinguishes results of different code or settings."""
        if self.needs:
            return f"{self.needs} {importlib.metadata.version(self.needs)}"
        return f"{self.settings()} {_digest(self)}".strip()


def noisereduce(noisy: Sound, _: Sound) -> Sound:
    import noisereduce as package

    return package.reduce_noise(y=noisy, sr=SAMPLE_RATE, stationary=True)


def noisereduce_clip(noisy: Sound, noise: Sound) -> Sound:
    import noisereduce as package

    clip = noise[: 2 * SAMPLE_RATE]
    return package.reduce_noise(y=noisy, sr=SAMPLE_RATE, stationary=True, y_noise=clip)


def logmmse(noisy: Sound, _: Sound) -> Sound:
    import logmmse as package

    with np.errstate(all="ignore"):
        # It fails on float64, and returns whole frames only.
        short = package.logmmse(noisy.astype(np.float32), SAMPLE_RATE).astype(np.float64)
    return np.pad(short[: len(noisy)], (0, max(0, len(noisy) - len(short))))


def rnnoise(noisy: Sound, _: Sound) -> Sound:
    """RNNoise works at 48 kHz with 16 bits, in frames of 10 ms, and lags by two frames."""
    import soxr
    from pyrnnoise import rnnoise as package

    fast = soxr.resample(noisy, SAMPLE_RATE, package.SAMPLE_RATE).clip(-1, 1)
    size = package.FRAME_SIZE
    frames = np.pad(fast, (0, 3 * size - len(fast) % size)).reshape(-1, size)
    state = package.create()
    try:
        out = [package.process_mono_frame(state, frame)[0] for frame in frames]
    finally:
        package.destroy(state)
    sound = np.concatenate(out)[2 * size :] / 32768
    return soxr.resample(sound, package.SAMPLE_RATE, SAMPLE_RATE)[: len(noisy)]


def wiener(noisy: Sound, _: Sound) -> Sound:
    return _filtered(noisy, Stft(512, 128), None, decision_directed)


def wiener_white(noisy: Sound, noise: Sound) -> Sound:
    return _filtered(noisy, Stft(512, 128), noise, decision_directed)


def threshold(noisy: Sound, _: Sound) -> Sound:
    return _filtered(noisy, Stft(1024, 256), None, hard_threshold)


def threshold_white(noisy: Sound, noise: Sound) -> Sound:
    return _filtered(noisy, Stft(1024, 256), noise, hard_threshold)


def decision_directed(ratio: Tensor, smoothing: float = 0.98, least_db: float = -25.0) -> Tensor:
    """Wiener's gain from the decision-directed signal-to-noise ratio.

    `ratio` (F, T) is the a-posteriori ratio |X|²/N. Ephraim and Malah, "Speech enhancement using
    a minimum mean-square error short-time spectral amplitude estimator", IEEE Trans. ASSP 32(6),
    1984, DOI 10.1109/TASSP.1984.1164453; their constants.
    """
    least = 10 ** (least_db / 10)
    before = torch.ones_like(ratio[:, 0])  # of the clean power in the last frame to the noise
    gains = []
    for now in ratio.unbind(1):
        prior = smoothing * before + (1 - smoothing) * (now - 1).clamp_min(0)
        prior = prior.clamp_min(least)
        gains.append(prior / (1 + prior))
        before = gains[-1].square() * now
    return torch.stack(gains, 1)


def hard_threshold(ratio: Tensor, deviations: float = 2.5) -> Tensor:
    """Keep the bins above the noise, zero the others.

    The diagonal estimator in Yu, Mallat and Bacry, "Audio denoising by time-frequency block
    thresholding", IEEE Trans. SP 56(5), 2008, DOI 10.1109/TSP.2007.912893. They take 3σ; 2.5σ gives
    0.5 to 0.7 dB more here.
    """
    return (ratio > deviations**2).to(ratio)


def _filtered(
    noisy: Sound, transform: Stft, noise: Sound | None, gain_of: Callable[[Tensor], Tensor]
) -> Sound:
    """Filter with a gain that is a function of |X|²/N.

    N is the level of `noise`, taken as white, or without it our denoiser's own estimate, so that
    what the denoiser gains over these methods is due to the network.
    """
    spectrum = transform(torch.from_numpy(noisy))
    power = spectrum.abs().square()
    if noise is None:
        level = estimate_noise(power)[:, None]
    else:
        window = torch.hann_window(transform.n_fft, dtype=power.dtype)
        level = window.square().sum() * float(np.mean(noise**2))
    return transform.inverse(spectrum * gain_of(power / level), len(noisy)).numpy()


def _denoiser(**arguments: object) -> dict[str, object]:
    def run(noisy: Sound, _: Sound) -> Sound:
        sound = torch.from_numpy(noisy).float()
        return Denoiser(**arguments)(sound, SAMPLE_RATE).waveform.double().numpy()

    return {"run": run, "settings": lambda: repr(Denoiser(**arguments))}


METHODS = {
    method.name: method
    for method in (
        Method("noisy", "nothing done", lambda noisy, _: noisy),
        Method(
            "noisereduce", "spectral gating, stationary, defaults", noisereduce, needs="noisereduce"
        ),
        Method(
            "noisereduce-clip",
            "the same, given 2 s of the noise",
            noisereduce_clip,
            oracle="the noise",
            needs="noisereduce",
        ),
        Method(
            "logmmse",
            "log-spectral amplitude; takes the first 0.12 s for noise",
            logmmse,
            needs="logmmse",
        ),
        Method("wiener", "decision-directed Wiener filter, our noise estimate", wiener),
        Method(
            "wiener-white",
            "the same, given the level, taken as white",
            wiener_white,
            oracle="level",
        ),
        Method("threshold", "STFT hard threshold, our noise estimate", threshold),
        Method(
            "threshold-white",
            "the same, given the level, taken as white",
            threshold_white,
            oracle="level",
        ),
        Method(
            "rnnoise",
            "RNNoise, a network trained on speech and noise",
            rnnoise,
            trained=True,
            needs="pyrnnoise",
        ),
        Method("prior", "this package, default", **_denoiser()),
        Method("prior-fast", "this package, quality fast", **_denoiser(quality="fast")),
        Method("prior-best", "this package, quality best", slow=True, **_denoiser(quality="best")),
        Method(
            "prior-plain",
            "the same network with Conv2d",
            slow=True,
            **_denoiser(layer="plain"),
        ),
        Method(
            "dap",
            "complex-STFT fit as published, 1000 of its 10,000 steps",
            slow=True,
            **_denoiser(method="dap", quality="fast"),
        ),
    )
}


@cache
def _digest(method: Method) -> str:
    """Return a hash of the code that a method runs, without comments and docstrings."""
    if method.run.__name__ == "run":  # a Denoiser's
        folder = Path(harmonic_lowering.__file__).parent
        of_prior = (
            "fit.py", "hum.py", "likelihood.py", "noise_estimate.py", "noise_model.py",
            "noise_recording.py", "noise_sample.py", "prior.py", "rumble.py",
        )  # fmt: skip
        of_mask = "mask.py", "mask_network.py"
        spared = (*of_mask, *(of_prior if method.name == "dap" else ("dap.py",)))
        files = [*sorted((folder / "denoise").glob("*.py")), folder / "spectral.py"]
        sources = [file.read_text() for file in files if file.name not in spared]
    else:
        parts = [method.run, _filtered, decision_directed, hard_threshold, estimate_noise]
        sources = [textwrap.dedent(inspect.getsource(part)) for part in parts]
    return hashlib.sha256("\n".join(map(_bare, sources)).encode()).hexdigest()[:8]


def _bare(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        scope = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if scope and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree)
