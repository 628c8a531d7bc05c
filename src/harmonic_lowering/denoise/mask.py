r"""A mask that a small network has learnt from synthetic sounds in synthetic noise.

The network reads the power spectrogram of a recording (64 ms windows, 16 ms hops, bins of
15.6 Hz) and gives, for each bin, the share of the amplitude that is sound, and the power N(f, t)
of the noise. It knows what the prior cannot find in one recording: how noise swells and how a
voice begins. One set of weights serves all sample rates. Up to 8 kHz each bin is a row; above,
16 bins are merged into one, so that 48 kHz costs little more than 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import as_channels
from ..spectral import Stft, binary_scale
from ..weights import WeightsError, read_weights, write_weights
from .mask_network import (
    NOISE_FRAMES,
    NOISE_ROWS,
    MaskNetwork,
    local_mean,
    mask_features,
    merge_bins,
    split_rows,
)

__all__ = ["LearntMask", "MaskEstimate", "WeightsError", "shipped_mask"]

WEIGHTS = Path(__file__).with_name("weights") / "mask.safetensors"

_WINDOW_S = 0.064
_OPENS_DB, _OPEN_DB = 20.0, 35.0  # estimated SNR from which the mask opens, and is open
_OPENING = 31  # frames on each side of a local mean, taken twice, for that SNR


@dataclass(frozen=True)
class MaskEstimate:
    """What the network says of a spectrogram.

    Attributes
    ----------
    gain : Tensor [shape=(bins, T)]
        Share of the amplitude to keep, 0 to 1.
    noise : Tensor [shape=(bins, T)]
        Power N(f, t) of the noise, in units of the input's |X|².
    opening : Tensor [shape=(T,)]
        How far the mask is opened, because the recording is clean there: 0 to 1, in `gain` already.
    """

    gain: Tensor
    noise: Tensor
    opening: Tensor


class LearntMask:
    """The trained network, applied to recordings.

    Channels share one mask, so a stereo image stays where it is. A recording that the network
    finds clean is left as it is: from an estimated signal-to-noise ratio of 20 dB on, the mask
    opens.

    Parameters
    ----------
    network : MaskNetwork
        Trained; used in evaluation mode.

    Examples
    --------
    >>> mask = LearntMask(MaskNetwork().folded())  # untrained; `LearntMask.load()` is the trained
    >>> mask.apply(torch.randn(2, 8000), 16000).shape
    torch.Size([2, 8000])
    """

    def __init__(self, network: MaskNetwork) -> None:
        self.network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def load(cls, path: str | Path | None = None) -> LearntMask:
        """Read the weights that come with the package, or those of a file.

        Raises
        ------
        WeightsError
            If the file is missing, damaged or made for another network.
        ImportError
            If safetensors is not installed.
        """
        file = WEIGHTS if path is None else Path(path)
        state, metadata = read_weights(file, "the learnt mask", "python -m research.mask.train")
        try:
            widths = [int(width) for width in metadata["widths"].split(",")]
            network = MaskNetwork(widths, metadata["layer"], normalised=False)
            network.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"the weights of the learnt mask in {file} were made for another network: "
                "use those that come with this version of harmonic-lowering"
            ) from error
        return cls(network)

    def save(self, path: str | Path, metadata: Mapping[str, str]) -> None:
        """Write the weights, with what is needed to build the network and to trust the file."""
        network = self.network.folded() if self.network.normalised else self.network
        described = {
            **metadata,
            "layer": network.layer,
            "widths": ",".join(map(str, network.widths)),
        }
        write_weights(path, network.state_dict(), described)

    @staticmethod
    def transform(sample_rate: int) -> Stft:
        """Return the transform whose power `estimate` takes."""
        return Stft.for_rate(sample_rate, _WINDOW_S)

    @torch.no_grad()
    def estimate(self, power: Tensor) -> MaskEstimate:
        """Mask and noise of one spectrogram.

        Parameters
        ----------
        power : Tensor [shape=(bins, T)], float32
            |X|² of ``transform(sample_rate)``, the mean of the channels.
        """
        rows = merge_bins(power[None])
        mask, noise = self._of_rows(rows)
        sound = (mask.square() * rows).mean(1, keepdim=True)
        # What an open mask lets through is all the noise there is, so the ratio is that of the
        # recording, not of the result.
        ratio = local_mean(sound, _OPENING) / local_mean(
            noise.mean(1, keepdim=True), _OPENING
        ).clamp_min(1e-30)
        opening = (10 * ratio.clamp_min(1e-3).log10() - _OPENS_DB) / (_OPEN_DB - _OPENS_DB)
        opening = opening.clamp(0, 1)
        mask = torch.lerp(mask, torch.ones_like(mask), opening)
        bins = power.shape[0]
        return MaskEstimate(
            split_rows(mask[0], bins), split_rows(noise[0], bins), opening.flatten()
        )

    def gain(self, power: Tensor) -> Tensor:
        """Return the share of the amplitude (bins, T), however clean a spectrogram is."""
        mask, _ = self._of_rows(merge_bins(power[None]))
        return split_rows(mask[0], power.shape[0])

    def _of_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask and noise of rows (1, rows, T)."""
        planes, level = mask_features(rows)
        mask, noise = self.network(planes.contiguous(memory_format=torch.channels_last))
        return mask, _to_rows(noise, rows.shape[1], rows.shape[2]).exp() * level

    def apply(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """Filter a recording.

        Parameters
        ----------
        waveform : Tensor [shape=(L,) or (C, L)], float32 or float64
            All of it is in memory at once; ``Denoiser(quality="fast")`` filters in segments.
        sample_rate : int >= 1, Hz

        Returns
        -------
        Tensor
            As `waveform` in shape and dtype.

        Raises
        ------
        ValueError
            If the shape is another, the recording shorter than half a window or not finite.
        """
        channels = as_channels(waveform)
        if sample_rate < 1:
            raise ValueError(f"sample_rate must be a positive number of Hz, got {sample_rate}")
        transform = self.transform(sample_rate)
        if channels.shape[1] < transform.shortest:
            raise ValueError(
                f"the recording has {channels.shape[1]} samples, fewer than the "
                f"{transform.shortest} that the learnt mask needs at {sample_rate} Hz"
            )
        if not channels.isfinite().all():
            raise ValueError("the recording holds samples that are not finite numbers")
        return self._filter(channels, transform).reshape(waveform.shape)

    def _filter(self, noisy: Tensor, transform: Stft) -> Tensor:
        loudest = float(noisy.abs().max())
        if loudest == 0:
            return noisy.clone()
        scale = binary_scale(loudest)
        spectrum = transform(noisy / scale)
        gain = self.estimate(spectrum.abs().square().mean(0).float()).gain
        return transform.inverse(spectrum * gain, noisy.shape[1]) * scale


def _to_rows(noise: Tensor, rows: int, frames: int) -> Tensor:
    """From the noise's grid (B, H', T') to (B, rows, T), linearly."""
    fine = F.interpolate(noise[:, None], scale_factor=(NOISE_ROWS, NOISE_FRAMES), mode="bilinear")
    return fine[:, 0, :rows, :frames]


@lru_cache(maxsize=1)
def shipped_mask() -> LearntMask:
    """Return the mask that comes with the package, read once."""
    return LearntMask.load()
