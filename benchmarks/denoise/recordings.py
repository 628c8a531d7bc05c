"""The recordings that denoisers are judged by: real sounds and noises that Debian packages carry.

    python -m benchmarks.denoise.recordings [--cache FOLDER] [--debs FOLDER] [--draw FILE]

The packages are fetched with `apt-get download`, or taken from the folder `--debs`, and unpacked
without root and without dpkg. Only the files named here are kept. Each is checked by its SHA-256,
so that everybody's figures are about the same sounds.

Nothing is ever trained on them. Some are for choices (of weights, of settings), the others for
figures that are reported. A name is not enough to call a clip noise (one that was called surf was
singing), so the command prints how periodic each noise is and how much it swells, and `--draw`
shows its spectrogram.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from ..common.packages import cache_folder, unpack_debian

__all__ = [
    "LICENCES", "NOISES", "SAMPLE_RATE", "SOUNDS", "Recording", "default_cache", "fetch", "load",
    "normalised", "periodicity", "read", "sounds_for", "swell_db",
]  # fmt: skip

Array = NDArray[np.floating]

SAMPLE_RATE = 16000
PEAK = 0.3  # of every excerpt, so that noise at 0 dB stays within ±1

_LIBRIVOX = (
    "pocketsphinx-testdata",
    "usr/share/pocketsphinx/test/data/librivox/sense_and_sensibility_01_austen_64kb-{}.wav",
)
_CARDS = ("pocketsphinx-testdata", "usr/share/pocketsphinx/test/data/cards/{}.wav")
_ALSA = ("alsa-utils", "usr/share/sounds/alsa/{}.wav")
_DUTCH = ("fillets-ng-data-nl", "usr/share/games/fillets-ng/sound/{}.ogg")
_SONIC = ("sonic-pi-samples", "usr/share/sonic-pi/samples/{}.flac")
_FLARE = ("flare-game", "usr/share/games/flare/mods/{}.ogg")
_GLEST = ("megaglest-data", "usr/share/games/megaglest/tilesets/{}.ogg")
_TANKS = ("btanks-data", "usr/share/games/btanks/data/sounds/{}.ogg")
_PAK64 = ("simutrans-pak64", "usr/share/games/simutrans/pak/sound/{}.wav")
_LMMS = ("lmms-common", "usr/share/lmms/samples/misc/{}.ogg")

# Package to licence, as its copyright file says (of the files used here).
LICENCES = {
    "pocketsphinx-testdata": "BSD-2-Clause (readings from LibriVox: public domain)",
    "alsa-utils": "GPL-2",
    "fillets-ng-data-nl": "GPL-2",
    "sonic-pi-samples": "CC0 (the motors: MIT)",
    "flare-game": "CC-BY-SA-3.0",
    "megaglest-data": "CC-BY-SA-3.0",
    "btanks-data": "GPL-2 with an exception for its makers",
    "simutrans-pak64": "Artistic-1.0",
    "lmms-common": "GPL-2+",
}


@dataclass(frozen=True)
class Recording:
    """Files of one package, joined end to end; `start_s` and `seconds` say which part is used."""

    name: str
    kind: str  # "speech", "music" or "noise"
    use: str  # "choose" or "report", never both for one file
    source: tuple[str, str]  # package, path inside it with a place for the name
    files: tuple[str, ...]
    what: str
    start_s: float = 0.0
    seconds: float = 4.0
    together: bool = False  # play the files at once instead: babble

    @property
    def paths(self) -> list[str]:
        return [self.source[1].format(name) for name in self.files]


def _report(name: str, kind: str, *rest: object, **more: object) -> Recording:
    return Recording(name, kind, "report", *rest, **more)  # type: ignore[arg-type]


def _choose(name: str, kind: str, *rest: object, **more: object) -> Recording:
    return Recording(name, kind, "choose", *rest, **more)  # type: ignore[arg-type]


SOUNDS: Sequence[Recording] = (
    _report("librivox-a", "speech", _LIBRIVOX, ("0870",), "woman reading English", 0.2),
    _report("librivox-b", "speech", _LIBRIVOX, ("0920",), "the same, livelier", 0.2),
    _report("cards", "speech", _CARDS, ("005",), "man, American English, a cheap microphone"),
    _report(
        "announcer", "speech", _ALSA, ("Front_Center", "Front_Left", "Rear_Right"), "woman, studio"
    ),
    _report("dutch-v", "speech", _DUTCH, ("gods/nl/lod-v-silenost1",), "Dutch actor"),
    _report("dutch-m", "speech", _DUTCH, ("library/nl/vrak-m-cteni0",), "another Dutch actor"),
    _report("guitar", "music", _SONIC, ("guit_em9",), "guitar, chords"),
    _report("slide-guitar", "music", _SONIC, ("guit_e_slide",), "guitar, gliding pitch"),
    _report("piano", "music", _SONIC, ("ambi_piano",), "piano, dark"),
    _report("choir", "music", _SONIC, ("ambi_choir",), "singing voices"),
    _report("tabla", "music", _SONIC, ("loop_tabla",), "tuned drums"),
    _report("bell", "music", _SONIC, ("perc_bell",), "bell, inharmonic partials"),
    _report("motors", "music", _SONIC, ("loop_3d_printer",), "stepping motors of a 3D printer"),
    _report("synthesiser", "music", _SONIC, ("loop_garzul",), "synthesiser with drums"),
    _report("bass", "music", _SONIC, ("bass_thick_c",), "synthesiser bass, one note of 65 Hz"),
    _report("drone", "music", _SONIC, ("ambi_drone",), "synthesiser drone at 130 Hz"),
    _report("drums", "music", _SONIC, ("loop_breakbeat",), "drum loop, cymbals"),
    _report("percussion", "music", _SONIC, ("loop_compus",), "percussion loop"),
    _choose("librivox-c", "speech", _LIBRIVOX, ("0880",), "woman reading English", 0.2),
    _choose("librivox-d", "speech", _LIBRIVOX, ("0930",), "woman reading English", 0.2),
    _choose("cards-1", "speech", _CARDS, ("001",), "man, American English"),
    _choose("amen", "music", _SONIC, ("loop_amen_full",), "drum loop"),
    _choose("harmonics", "music", _SONIC, ("guit_harmonics",), "guitar, harmonics"),
    _choose("fifths", "music", _SONIC, ("guit_e_fifths",), "guitar, fifths"),
    _choose("mika", "music", _SONIC, ("loop_mika",), "synthesiser with drums"),
)

NOISES: Sequence[Recording] = (
    _report("hiss", "noise", _SONIC, ("vinyl_hiss",), "an old record's hiss and crackle"),
    _report(
        "babble",
        "noise",
        _DUTCH,
        (
            "alibaba/nl/kni-v-prolezt",
            "gods/nl/lod-m-bohove",
            "ufo/nl/ufo-v-vpredu",
            "cellar/nl/pra-v-spatne",
            "grail/nl/gr-m-svaty1",
            "magnet/nl/pap-m-naucit",
        ),
        "six voices at once",
        together=True,
    ),
    _report("rain", "noise", _FLARE, ("empyrean_campaign/soundfx/environment/rain",), "rain"),
    _report("river", "noise", _FLARE, ("fantasycore/soundfx/environment/river_loop",), "a river"),
    _report("wind", "noise", _FLARE, ("fantasycore/soundfx/environment/wind_loop",), "wind"),
    _report("water", "noise", _PAK64, ("Water",), "waves"),
    _report("train", "noise", _TANKS, ("train",), "a train that passes"),
    _report("applause", "noise", _LMMS, ("applause01",), "applause, clapping hands"),
    _report("crowd", "noise", _LMMS, ("raving_crowd01",), "a cheering crowd"),
    _choose("winter wind", "noise", _GLEST, ("winter/sounds/wind",), "wind"),
    _choose("jungle rain", "noise", _GLEST, ("jungle/sounds/rain",), "rain"),
    _choose("city", "noise", _TANKS, ("ambient/city",), "a street"),
    _choose(
        "fire", "noise", _FLARE, ("fantasycore/soundfx/environment/open_fire_loop",), "open fire"
    ),
    _choose("night", "noise", _GLEST, ("mediterran/sounds/night",), "crickets at night"),
)

# Of the files as packaged, in the format of sha256sum, path last.
SHA256 = {
    line.split("  ")[1]: line.split("  ")[0]
    for line in Path(__file__).with_suffix(".sha256").read_text().splitlines()
}


def default_cache() -> Path:
    """Where the files are kept between runs."""
    return cache_folder("recordings")


def fetch(wanted: Iterable[Recording], cache: Path, debs: Path | None = None) -> None:
    """Put every file of `wanted` into `cache` and check it; fetch the packages that are missing."""
    missing: dict[str, list[str]] = {}
    for recording in wanted:
        for path in recording.paths:
            if not _good(cache, path):
                missing.setdefault(recording.source[0], []).append(path)
    for package, paths in missing.items():
        print(f"fetching {package} ({LICENCES[package]})", file=sys.stderr)
        unpack_debian(package, paths, cache, debs)
        for path in paths:
            if not _good(cache, path):
                raise OSError(
                    f"{path} of {package} is not the file that this bench was made with (its "
                    "SHA-256 differs): use Debian 12's package, or leave the recording out"
                )


def load(
    recording: Recording, cache: Path, sample_rate: int = SAMPLE_RATE, mono: bool = True
) -> Array:
    """Return the excerpt, float64, peak `PEAK`: of shape (L,), or else (C, L)."""
    parts = [read(cache / path, sample_rate, mono) for path in recording.paths]
    if recording.together:
        shortest = min(part.shape[-1] for part in parts)
        sound = sum(part[..., :shortest] / np.sqrt(np.mean(part**2)) for part in parts)
    else:
        sound = np.concatenate(parts, -1)
    start = round(recording.start_s * sample_rate)
    return normalised(sound[..., start : start + round(recording.seconds * sample_rate)])


def sounds_for(use: str, sample_rate: int) -> Iterator[tuple[Recording, Array]]:
    """Fetch the recordings of one use, "choose" or "report", and yield each with its samples."""
    chosen = [sound for sound in SOUNDS if sound.use == use]
    fetch(chosen, default_cache())
    for sound in chosen:
        yield sound, load(sound, default_cache(), sample_rate)


def read(path: Path, sample_rate: int = SAMPLE_RATE, mono: bool = True) -> Array:
    """Read a sound file: shape (L,), or else (C, L)."""
    import soxr

    sound, rate = soundfile.read(path, always_2d=True)
    return soxr.resample(sound.mean(1) if mono else sound, rate, sample_rate).T


def normalised(sound: Array) -> Array:
    """Scale to the common peak."""
    return sound * (PEAK / np.abs(sound).max())


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


def _good(cache: Path, path: str) -> bool:
    file = cache / path
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == SHA256[path]


def main() -> None:
    """Fetch everything, say what it is like, and write or draw it if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--debs", type=Path, help="folder with the packages, instead of apt-get")
    parser.add_argument("--write", type=Path, help="folder for the excerpts as WAV files")
    parser.add_argument("--draw", type=Path, help="write the noises' spectrograms as a picture")
    arguments = parser.parse_args()
    everything = [*SOUNDS, *NOISES]
    fetch(everything, arguments.cache, arguments.debs)
    for recording in everything:
        sound = load(recording, arguments.cache)
        noise = (
            f"periodicity {periodicity(sound):.2f}, swells by {swell_db(sound):4.1f} dB; "
            if recording.kind == "noise"
            else ""
        )
        print(
            f"{recording.name:14}{recording.kind:8}{recording.use:8}"
            f"{len(sound) / SAMPLE_RATE:5.2f} s  {noise}"
            f"{recording.what} ({recording.source[0]}: {', '.join(recording.files)}; "
            f"{LICENCES[recording.source[0]]})"
        )
        if arguments.write:
            arguments.write.mkdir(parents=True, exist_ok=True)
            path = arguments.write / f"{recording.kind}-{recording.name}.wav"
            soundfile.write(path, sound, SAMPLE_RATE, subtype="FLOAT")
    if arguments.draw:
        _draw(arguments.cache, arguments.draw)


def _draw(cache: Path, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 16), layout="constrained")
    axes = figure.subplots(5, 3)
    for axis, noise in zip(axes.flat, NOISES, strict=False):
        axis.specgram(load(noise, cache), NFFT=1024, noverlap=768, Fs=SAMPLE_RATE)
        axis.set_title(f"{noise.name} ({noise.use})")
    figure.savefig(file, dpi=80)


if __name__ == "__main__":
    main()
