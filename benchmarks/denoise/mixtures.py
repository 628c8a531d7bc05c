"""What the methods are given: recordings in noise, and the kinds of recording that trouble them.

A mixture is named by five values and made anew from them, the same on every machine (those that a
codec has been through depend on the release of ffmpeg).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import faults
from .recordings import NOISES as RECORDED
from .recordings import SAMPLE_RATE, SOUNDS, Array, Recording, fetch, load, normalised, read

__all__ = [
    "CLEAN", "FAULTS", "KEPT", "NOISES", "PARTS", "SWELLING", "Made", "Mixture", "add_noise",
    "fetch_for", "is_for_slow", "make", "mixtures", "reference", "sound",
]  # fmt: skip

NOISES = {
    "white": "the same power at all frequencies",
    "pink": "−3 dB per octave, above 20 Hz",
    "hum": "50 Hz and its multiples up to 2 kHz, falling as 1/k, over pink noise 20 dB lower",
    **{noise.name: noise.what for noise in RECORDED},
}
CLEAN = "none"  # no noise added: does a method leave a clean recording unchanged?
SAW = "saw"  # the recording that is none

# Recordings in white noise, then damaged; each is compared with the same one undamaged.
FAULTS = {
    "leader": "half a second of dither of one 16-bit step before the recording",
    "gate": "the quietest fifth of the sound gated to dither",
    "fade": "the last 1.5 s fade to −60 dB",
    "step": "the second half 12 dB lower",
    "mp3": "encoded as MP3 at 32 kbit/s and decoded, by ffmpeg",
    "opus": "the same, Opus at 24 kbit/s",
    "vorbis": "the same, Vorbis of quality 1",
}
# Sustained and struck sounds that may be taken for noise, in white noise.
KEPT = {
    "bass": "a sustained bass",
    "bass under speech": "speech with a sustained bass as loud",
    "drone": "a drone",
    "drums": "drum loops",
}
_UNDAMAGED = {"gate": "no gate", "fade": "no fade"}  # scored where those are
_FAULT_DB, _CLICKS_DB = 10.0, 10.0
_STEREO_RATE = 44100

PARTS = {
    "steady": "steady noise at 0, 5 and 10 dB",
    "real": "recorded noise at 5 and 10 dB",
    "kinds": "recordings that trouble denoisers",
    "clean": "clean recordings",
    "stereo": "two channels at 44.1 kHz, noise at 10 dB",
    "choose": "for choices, with recordings of their own: white and recorded noise at 7.5 dB",
}
_FEW = ("librivox-a", "guitar")  # for methods that take long
_SUSTAINED = (SAW, "bass", "drone", "drums", "percussion")
_OF_PART: Mapping[str, tuple[str, ...]] = {  # the others take every recording that is reported
    "real": (
        "librivox-a", "librivox-b", "cards", "dutch-v", "dutch-m",
        "guitar", "piano", "choir", "tabla", "synthesiser",
    ),
    "faults": ("librivox-a", "dutch-v", "guitar", "tabla"),
    "stereo": ("announcer", "dutch-v", "guitar", "piano", "synthesiser"),
}  # fmt: skip
_REAL_NOISES = ("rain", "river", "wind", "water", "train", "applause", "crowd")
SWELLING = ("wind", "water", "train", "applause", "crowd")  # by 3 dB and more
_KINDS = {one.name: one.kind for one in SOUNDS} | {SAW: "music"}


@dataclass(frozen=True)
class Mixture:
    """A recording, what was added or done to it, and the signal-to-noise ratio in dB."""

    part: str
    recording: str
    kind: str  # "speech" or "music"
    noise: str  # or the fault
    level_db: float


@dataclass(frozen=True)
class Made:
    """The waveforms of a mixture, float64, shape (L,) or (C, L): `noisy` is `clean` + `noise`.

    Where a `gain` was applied, it is undone before scoring; what it made inaudible is not scored.
    """

    clean: Array
    noise: Array
    sample_rate: int = SAMPLE_RATE
    gain: Array | None = None

    @property
    def noisy(self) -> Array:
        return self.clean + self.noise


def mixtures(part: str, sounds: Iterable[str] = ()) -> list[Mixture]:
    """Return the mixtures of a part; `sounds` are further recordings of speech, by name."""
    return list(dict.fromkeys(_mixtures(part, dict.fromkeys(sounds, "speech"))))


def _mixtures(part: str, sounds: Mapping[str, str]) -> Iterator[Mixture]:
    everything = {n: k for n, k in _KINDS.items() if n not in _SUSTAINED and n not in _CHOOSE}
    everything = {**sounds, **everything}
    if part == "steady":
        yield from _product(part, everything, ("white", "pink", "hum", "hiss"), (0.0, 5.0, 10.0))
    elif part == "clean":
        yield from _product(part, {**everything, **_some(_SUSTAINED)}, (CLEAN,), (float("inf"),))
    elif part == "kinds":
        of = _some(_OF_PART["faults"])
        for one in _product(part, of, FAULTS, (_FAULT_DB,)):
            yield from (reference(one), one)
        yield from _product(part, of, ("clicks",), (_CLICKS_DB,))
        yield from _product(part, _some((SAW, "bass")), ("bass",), (20.0,))
        yield from _product(part, _some(("librivox-a",)), ("bass under speech",), (15.0,))
        yield from _product(part, _some(("drone",)), ("drone",), (10.0, 20.0))
        yield from _product(part, _some(("drums", "percussion")), ("drums",), (10.0, 20.0))
    elif part == "choose":
        noises = ("white", *(one.name for one in RECORDED if one.use == part))
        yield from _product(part, _some(_CHOOSE), noises, (7.5,))
    elif part == "stereo":
        yield from _product(part, _some(_OF_PART[part]), ("white", "wind"), (10.0,))
    else:
        yield from _product(part, _some(_OF_PART[part]), _REAL_NOISES, (5.0, 10.0))


_CHOOSE = tuple(one.name for one in SOUNDS if one.use == "choose")


def _some(names: Sequence[str]) -> dict[str, str]:
    return {name: _KINDS[name] for name in names}


def _product(
    part: str, recordings: Mapping[str, str], noises: Iterable[str], levels: Sequence[float]
) -> Iterator[Mixture]:
    noises = tuple(noises)
    for recording, kind in recordings.items():
        for noise in noises:
            for level in levels:
                yield Mixture(part, recording, kind, noise, level)


def reference(mixture: Mixture) -> Mixture:
    """Return the undamaged mixture that one with a fault is compared with."""
    if undamaged := _UNDAMAGED.get(mixture.noise):
        return replace(mixture, noise=undamaged)
    return replace(mixture, part="steady", noise="white")


def is_for_slow(mixture: Mixture) -> bool:
    """Whether methods that take long run on it too: two in every part with noise."""
    return mixture.recording in _FEW and (mixture.part, mixture.noise, mixture.level_db) in (
        ("steady", "white", 10),
        ("real", "water", 10),
        ("stereo", "white", 10),
    )


def fetch_for(wanted: Iterable[Mixture], cache: Path, debs: Path | None = None) -> None:
    """Have the recordings of these mixtures in `cache`."""
    names = {name for one in wanted for name in (one.recording, one.noise)}
    fetch([one for one in (*SOUNDS, *RECORDED) if one.name in names], cache, debs)


def make(mixture: Mixture, cache: Path, file: Path | None = None) -> Made:
    """Make a mixture; `file` is the recording where it is not from a package."""
    name, noise, level = mixture.recording, mixture.noise, mixture.level_db
    if mixture.part == "stereo":
        clean = np.atleast_2d(load(_recording(name), cache, _STEREO_RATE, mono=False))
        if len(clean) == 1:
            clean = clean * np.array([[1.0], [0.6]])  # a voice that sits to the left
        return Made(clean, add_noise(clean, name, noise, level, cache, _STEREO_RATE), _STEREO_RATE)
    clean = sound(name, cache, file)
    if noise in NOISES or noise == CLEAN:
        return Made(clean, add_noise(clean, name, noise, level, cache))
    if noise == "clicks":
        clicks = faults.clicks(len(clean), SAMPLE_RATE, _random(name, noise))
        return Made(clean, _at_level(clicks, clean, level))
    if noise == "bass under speech":
        saw = faults.saw(len(clean), SAMPLE_RATE)
        clean = normalised(clean + saw * np.linalg.norm(clean) / np.linalg.norm(saw))
    noisy = clean + add_noise(clean, name, "white", level, cache)
    gain = None
    if noise in ("mp3", "opus", "vorbis"):
        noisy = faults.coded(noisy, SAMPLE_RATE, noise)
    elif noise == "leader":
        gain = np.repeat([0.0, 1.0], [SAMPLE_RATE // 2, len(clean)])
        clean, noisy = (np.pad(x, (SAMPLE_RATE // 2, 0)) for x in (clean, noisy))
    elif noise in ("gate", "no gate"):
        gain = faults.gate(clean, SAMPLE_RATE)
    elif noise in ("fade", "no fade"):
        gain = faults.fade(len(clean), SAMPLE_RATE)
    elif noise == "step":
        gain = faults.step(len(clean), SAMPLE_RATE)
    elif noise not in KEPT:
        raise ValueError(f"there is no {noise!r}; choose from {', '.join([*NOISES, *FAULTS])}")
    if noise in _UNDAMAGED.values():  # only scored where the damaged one is
        return Made(clean, noisy - clean, gain=np.where(faults.audible(gain), 1.0, 0.0))
    if gain is not None:
        dither = faults.dither(len(gain), _random(name, noise))
        clean, noisy = gain * clean, gain * noisy + dither
    return Made(clean, noisy - clean, gain=gain)


def sound(name: str, cache: Path, file: Path | None = None) -> Array:
    """Return a recording by its name, at 16 kHz, or that of a file; the saw is made."""
    if file is not None:
        return normalised(read(file))
    if name == SAW:
        return normalised(faults.saw(4 * SAMPLE_RATE, SAMPLE_RATE))
    return load(_recording(name), cache)


def add_noise(
    clean: Array,
    name: str,
    noise: str,
    level_db: float,
    cache: Path,
    sample_rate: int = SAMPLE_RATE,
) -> Array:
    """Return the noise to be added to the recording `name`: the same one on every machine.

    `level_db` is the signal-to-noise ratio over the whole excerpt. Channels have independent
    noise, or different stretches of a recorded one.
    """
    if noise == CLEAN:
        return np.zeros_like(clean)
    random = _random(name, noise)
    if clean.ndim == 1:
        sound = _noise(noise, len(clean), random, cache, sample_rate)
    else:
        sound = np.stack([_noise(noise, clean.shape[1], random, cache, sample_rate) for _ in clean])
    return _at_level(sound - sound.mean(-1, keepdims=True), clean, level_db)


def _at_level(sound: Array, clean: Array, level_db: float) -> Array:
    return sound * (np.linalg.norm(clean) / np.linalg.norm(sound) * 10 ** (-level_db / 20))


def _random(name: str, noise: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{name} {noise}".encode()))


def _recording(name: str) -> Recording:
    return next(one for one in SOUNDS if one.name == name)


def _noise(
    noise: str, length: int, random: np.random.Generator, cache: Path, sample_rate: int
) -> Array:
    if noise == "white":
        return random.standard_normal(length)
    if noise == "pink":
        return _pink(length, random, sample_rate)
    if noise == "hum":
        phase = 2 * np.pi * 50 * np.arange(length) / sample_rate
        starts = random.uniform(0, 2 * np.pi, 40)
        tones = sum(np.sin(k * phase + start) / k for k, start in enumerate(starts, 1))
        return tones / np.std(tones) + 0.1 * _pink(length, random, sample_rate)
    recorded = next((one for one in RECORDED if one.name == noise), None)
    if recorded is None:
        raise ValueError(f"no noise is called {noise!r}, only {', '.join(NOISES)}")
    wave = load(recorded, cache, sample_rate)
    start = int(random.integers(len(wave)))
    return np.resize(np.roll(wave, -start), length)


def _pink(length: int, random: np.random.Generator, sample_rate: int) -> Array:
    spectrum = np.fft.rfft(random.standard_normal(length))
    hertz = np.fft.rfftfreq(length, 1 / sample_rate)
    wave = np.fft.irfft(spectrum * (hertz >= 20) / np.sqrt(np.maximum(hertz, 20)), length)
    return wave / np.std(wave)
