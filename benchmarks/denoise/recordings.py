"""The recordings of the bench: excerpts of real sounds that Debian packages carry.

    python -m benchmarks.denoise.recordings [--cache FOLDER] [--debs FOLDER]

The packages are fetched with `apt-get download`, or taken from the folder `--debs`, and unpacked
without root and without dpkg. Only the files named here are kept. Each is checked by its SHA-256,
so that everybody's figures are about the same sounds.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from ..common.packages import cache_folder, unpack_debian

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

# Package to licence, as its copyright file says (of the files used here).
LICENCES = {
    "pocketsphinx-testdata": "BSD-2-Clause (readings from LibriVox: public domain)",
    "alsa-utils": "GPL-2",
    "fillets-ng-data-nl": "GPL-2",
    "sonic-pi-samples": "CC0 (the motors: MIT)",
}


@dataclass(frozen=True)
class Recording:
    """Files of one package, joined end to end; `start_s` and `seconds` say which part is used."""

    name: str
    kind: str  # "speech", "music" or "noise"
    source: tuple[str, str]  # package, path inside it with a place for the name
    files: tuple[str, ...]
    what: str
    start_s: float = 0.0
    seconds: float = 4.0
    together: bool = False  # play the files at once instead: babble

    @property
    def paths(self) -> list[str]:
        return [self.source[1].format(name) for name in self.files]


RECORDINGS: Sequence[Recording] = (
    Recording("librivox-a", "speech", _LIBRIVOX, ("0870",), "woman reading English", 0.2),
    Recording("librivox-b", "speech", _LIBRIVOX, ("0920",), "the same, livelier", 0.2),
    Recording("cards", "speech", _CARDS, ("005",), "man, American English, a cheap microphone"),
    Recording(
        "announcer", "speech", _ALSA, ("Front_Center", "Front_Left", "Rear_Right"), "woman, studio"
    ),
    Recording("dutch-v", "speech", _DUTCH, ("gods/nl/lod-v-silenost1",), "Dutch actor"),
    Recording("dutch-m", "speech", _DUTCH, ("library/nl/vrak-m-cteni0",), "another Dutch actor"),
    Recording("guitar", "music", _SONIC, ("guit_em9",), "guitar, chords"),
    Recording("slide-guitar", "music", _SONIC, ("guit_e_slide",), "guitar, gliding pitch"),
    Recording("piano", "music", _SONIC, ("ambi_piano",), "piano, dark"),
    Recording("choir", "music", _SONIC, ("ambi_choir",), "singing voices"),
    Recording("tabla", "music", _SONIC, ("loop_tabla",), "tuned drums"),
    Recording("bell", "music", _SONIC, ("perc_bell",), "bell, inharmonic partials"),
    Recording("motors", "music", _SONIC, ("loop_3d_printer",), "stepping motors of a 3D printer"),
    Recording("synthesiser", "music", _SONIC, ("loop_garzul",), "synthesiser with drums"),
)

NOISES: Sequence[Recording] = (
    Recording("hiss", "noise", _SONIC, ("vinyl_hiss",), "an old record's hiss and crackle"),
    Recording(
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


def load(recording: Recording, cache: Path) -> np.ndarray:
    """Return the excerpt: mono, float64, `SAMPLE_RATE`, peak `PEAK`."""
    parts = [read(cache / path) for path in recording.paths]
    if recording.together:
        shortest = min(map(len, parts))
        sound = sum(part[:shortest] / np.sqrt(np.mean(part**2)) for part in parts)
    else:
        sound = np.concatenate(parts)
    start = round(recording.start_s * SAMPLE_RATE)
    return normalised(sound[start : start + round(recording.seconds * SAMPLE_RATE)])


def read(path: Path) -> np.ndarray:
    """Read a sound file as mono at `SAMPLE_RATE`."""
    import soxr

    sound, rate = soundfile.read(path, always_2d=True)
    return soxr.resample(sound.mean(1), rate, SAMPLE_RATE)


def normalised(sound: np.ndarray) -> np.ndarray:
    """Scale to the common peak."""
    return sound * (PEAK / np.abs(sound).max())


def _good(cache: Path, path: str) -> bool:
    file = cache / path
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == SHA256[path]


def main() -> None:
    """Fetch everything, and write the excerpts if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--debs", type=Path, help="folder with the packages, instead of apt-get")
    parser.add_argument("--write", type=Path, help="folder for the excerpts as WAV files")
    arguments = parser.parse_args()
    everything = [*RECORDINGS, *NOISES]
    fetch(everything, arguments.cache, arguments.debs)
    for recording in everything:
        sound = load(recording, arguments.cache)
        print(
            f"{recording.name:14}{recording.kind:8}{len(sound) / SAMPLE_RATE:5.2f} s  "
            f"{recording.what} ({recording.source[0]}: {', '.join(recording.files)}; "
            f"{LICENCES[recording.source[0]]})"
        )
        if arguments.write:
            arguments.write.mkdir(parents=True, exist_ok=True)
            path = arguments.write / f"{recording.kind}-{recording.name}.wav"
            soundfile.write(path, sound, SAMPLE_RATE, subtype="FLOAT")


if __name__ == "__main__":
    main()
