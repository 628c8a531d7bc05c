"""Recorded sounds and noises from Debian packages: some to choose by, others to report on.

    python -m research.mask.recordings [--cache FOLDER] [--draw FILE]

Nothing is ever trained on them. The packages are fetched with `apt-get download` and unpacked
without root. A name is not enough to call a clip noise (one that was called surf was singing),
so the list printed says how periodic each noise is and how much it swells, and `--draw` shows
its spectrogram.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from .canvas import Array

__all__ = ["NOISES", "SOUNDS", "Recording", "fetch", "load", "periodicity", "swell_db"]

CACHE = Path.home() / ".cache" / "harmonic-lowering" / "packages"
SECONDS = 4.0

_FLARE = "flare-game/usr/share/games/flare/mods/{}"
_GLEST = "megaglest-data/usr/share/games/megaglest/tilesets/{}"
_TANKS = "btanks-data/usr/share/games/btanks/data/sounds/{}"
_PAK64 = "simutrans-pak64/usr/share/games/simutrans/pak/sound/{}"
_LMMS = "lmms-common/usr/share/lmms/samples/misc/{}"
_SPHINX = "pocketsphinx-testdata/usr/share/pocketsphinx/test/data/{}"
_LIBRIVOX = _SPHINX.format("librivox/sense_and_sensibility_01_austen_64kb-{}.wav")
_ALSA = "alsa-utils/usr/share/sounds/alsa/{}.wav"
_DUTCH = "fillets-ng-data-nl/usr/share/games/fillets-ng/sound/{}.ogg"
_SONIC = "sonic-pi-samples/usr/share/sonic-pi/samples/{}.flac"


@dataclass(frozen=True)
class Recording:
    """A file of a package; `use` is "choose" or "report", never both for one sound."""

    name: str
    kind: str  # "speech", "music" or "noise"
    use: str
    path: str  # package, then the path inside it
    start_s: float = 0.0

    @property
    def package(self) -> str:
        """Debian's name."""
        return self.path.split("/", 1)[0]


SOUNDS = (
    Recording("librivox-c", "speech", "choose", _LIBRIVOX.format("0880"), 0.2),
    Recording("librivox-d", "speech", "choose", _LIBRIVOX.format("0930"), 0.2),
    Recording("cards-1", "speech", "choose", _SPHINX.format("cards/001.wav")),
    Recording("amen", "music", "choose", _SONIC.format("loop_amen_full")),
    Recording("harmonics", "music", "choose", _SONIC.format("guit_harmonics")),
    Recording("fifths", "music", "choose", _SONIC.format("guit_e_fifths")),
    Recording("mika", "music", "choose", _SONIC.format("loop_mika")),
    Recording("librivox-a", "speech", "report", _LIBRIVOX.format("0870"), 0.2),
    Recording("librivox-b", "speech", "report", _LIBRIVOX.format("0920"), 0.2),
    Recording("cards-5", "speech", "report", _SPHINX.format("cards/005.wav")),
    Recording("dutch-v", "speech", "report", _DUTCH.format("gods/nl/lod-v-silenost1")),
    Recording("dutch-m", "speech", "report", _DUTCH.format("library/nl/vrak-m-cteni0")),
    Recording("guitar", "music", "report", _SONIC.format("guit_em9")),
    Recording("piano", "music", "report", _SONIC.format("ambi_piano")),
    Recording("choir", "music", "report", _SONIC.format("ambi_choir")),
    Recording("tabla", "music", "report", _SONIC.format("loop_tabla")),
    Recording("synthesiser", "music", "report", _SONIC.format("loop_garzul")),
)

NOISES = (
    Recording("winter wind", "noise", "choose", _GLEST.format("winter/sounds/wind.ogg")),
    Recording("jungle rain", "noise", "choose", _GLEST.format("jungle/sounds/rain.ogg")),
    Recording("city", "noise", "choose", _TANKS.format("ambient/city.ogg")),
    Recording(
        "fire",
        "noise",
        "choose",
        _FLARE.format("fantasycore/soundfx/environment/open_fire_loop.ogg"),
    ),
    Recording("night", "noise", "choose", _GLEST.format("mediterran/sounds/night.ogg")),
    Recording(
        "rain", "noise", "report", _FLARE.format("empyrean_campaign/soundfx/environment/rain.ogg")
    ),
    Recording(
        "wind", "noise", "report", _FLARE.format("fantasycore/soundfx/environment/wind_loop.ogg")
    ),
    Recording(
        "river", "noise", "report", _FLARE.format("fantasycore/soundfx/environment/river_loop.ogg")
    ),
    Recording("water", "noise", "report", _PAK64.format("Water.wav")),
    Recording("train", "noise", "report", _TANKS.format("train.ogg")),
    Recording("applause", "noise", "report", _LMMS.format("applause01.ogg")),
    Recording("crowd", "noise", "report", _LMMS.format("raving_crowd01.ogg")),
)


def fetch(recordings: Sequence[Recording], cache: Path = CACHE) -> None:
    """Have the packages of `recordings` unpacked in `cache`."""
    for package in sorted({recording.package for recording in recordings}):
        if (cache / package).is_dir():
            continue
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
            (deb,) = Path(folder).glob("*.deb")
            unpacked = Path(folder) / "unpacked"
            subprocess.run(["dpkg-deb", "-x", deb, unpacked], check=True)
            unpacked.rename(cache / package)


def load(recording: Recording, sample_rate: int = 16000, cache: Path = CACHE) -> Array:
    """Read four seconds, mono, at a root mean square of 1; a noise that is shorter is repeated."""
    sound, rate = soundfile.read(cache / recording.path, always_2d=True)
    start = round(recording.start_s * rate)
    length = round(SECONDS * rate)
    part = sound.mean(1)[start : start + length]
    if recording.kind == "noise":
        part = np.resize(part, length)
    part = soxr.resample(part, rate, sample_rate)
    part = part - part.mean()
    return (part / np.sqrt(np.mean(part**2))).astype(np.float32)


def periodicity(sound: Array) -> float:
    """Median over frames of 64 ms of the autocorrelation's peak at 70 to 600 Hz (16 kHz).

    Gaussian noise has 0.16, rain 0.1 to 0.2, a crowd 0.3 to 0.45, singing 0.8.
    """
    frames = np.lib.stride_tricks.sliding_window_view(sound, 1024)[::512]
    window = np.hanning(1024)
    frames = (frames - frames.mean(1, keepdims=True)) * window
    lags = slice(16000 // 600, 16000 // 70)
    own = np.fft.irfft(np.abs(np.fft.rfft(window, 2048)) ** 2)
    correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, 2048)) ** 2)
    correlation = correlation[correlation[:, 0] > 0]  # without digital silence
    normal = correlation[:, lags] / correlation[:, :1] * (own[0] / own[lags])
    return float(np.median(normal.max(1)))


def swell_db(sound: Array) -> float:
    """Distance between the quiet and the loud moments (5 and 95 %) of a quarter of a second."""
    frames = sound[: len(sound) // 4000 * 4000].reshape(-1, 4000)
    quiet, loud = np.percentile(10 * np.log10(np.mean(frames**2, 1) + 1e-12), [5, 95])
    return float(loud - quiet)


def main() -> None:
    """Fetch all, and say what each noise is like."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--draw", type=Path, help="write the noises' spectrograms as a picture")
    options = parser.parse_args()
    fetch([*SOUNDS, *NOISES], options.cache)
    for noise in NOISES:
        sound = load(noise, cache=options.cache)
        print(
            f"{noise.name:12} {noise.use:7} periodicity {periodicity(sound):.2f}, "
            f"swells by {swell_db(sound):4.1f} dB  {noise.path}"
        )
    if options.draw:
        _draw(options.cache, options.draw)


def _draw(cache: Path, file: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(4, 3, figsize=(14, 14), layout="constrained")
    for axis, noise in zip(axes.flat, NOISES, strict=True):
        axis.specgram(load(noise, cache=cache), NFFT=1024, noverlap=768, Fs=16000)
        axis.set_title(f"{noise.name} ({noise.use})")
    figure.savefig(file, dpi=80)


if __name__ == "__main__":
    main()
