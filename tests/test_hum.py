"""Hum and whistles of many kinds go, held notes and organs stay."""

import math
from pathlib import Path

import pytest
import torch

from harmonic_lowering.denoise import Denoiser
from harmonic_lowering.denoise.hum import subtract_hum
from harmonic_lowering.metrics import si_sdr

RATE = 16000
FORTY = range(1, 41)


def speech(rate=RATE):
    """Read 3.3 s; at another rate it plays faster or slower."""
    soundfile = pytest.importorskip("soundfile")
    samples, _ = soundfile.read(Path(__file__).parents[1] / "examples" / "amiable.wav")
    sound = torch.from_numpy(samples)
    return sound.repeat(math.ceil(3.3 * rate / len(sound)))[: round(3.3 * rate)]


def tones(hertz, multiples, seconds=3.3, rate=RATE, wow=0.0, drift=0.0, begin=0.0, end=math.inf):
    """Return tones of amplitude 1/k at the multiples of a frequency that changes by shares."""
    time = torch.arange(round(seconds * rate)).double() / rate
    change = wow * torch.sin(2 * math.pi * 0.6 * time + 1) + drift * (time / seconds - 0.5)
    turns = (hertz * (1 + change)).cumsum(0) / rate
    sound = sum(torch.sin(2 * math.pi * k * turns + k * k) / k for k in multiples)
    return sound * ((time >= begin) & (time < end))


def plucked(notes=(110, 164.8, 220, 130.8, 174.6, 196), seconds=0.55):
    decay = torch.exp(-4 * torch.arange(round(seconds * RATE)) / RATE)
    return torch.cat([tones(hertz, range(1, 9), seconds) * decay for hertz in notes])


def mixed(clean, noise, snr_db=5.0):
    return clean + noise * clean.norm() / noise.norm() * 10 ** (-snr_db / 20)


KINDS = {
    "a little below 50 Hz": {"hertz": 49.97},
    "60.02 Hz": {"hertz": 60.02},
    "50.25 Hz": {"hertz": 50.25},
    "59.6 Hz": {"hertz": 59.6},
    "wow": {"hertz": 50.0, "wow": 0.002},
    "drifts": {"hertz": 60.0, "drift": 0.004},
    "begins inside": {"hertz": 50.0, "begin": 1.2},
    "ends inside": {"hertz": 60.0, "end": 1.9},
    "begins and ends inside": {"hertz": 50.0, "begin": 0.8, "end": 2.6},
    "two lines": {"hertz": 50.0, "multiples": (1, 2)},
    "rectified, two lines": {"hertz": 50.1, "multiples": (2, 4)},
    "rectified, 60 Hz": {"hertz": 60.0, "multiples": (2, 4)},
    "one line": {"hertz": 60.0, "multiples": (1,)},
    "whistle": {"hertz": 1000.0, "multiples": (1,)},
    "whistle between notes": {"hertz": 3777.7, "multiples": (1,)},
    "whistle that drifts": {"hertz": 1000.0, "multiples": (1,), "drift": 0.006},
    "two whistles": {"hertz": 930.0, "multiples": (1, 7)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sound", [speech, plucked], ids=["speech", "plucked"])
def test_hum_goes(kind, sound):
    clean = sound()
    noisy = mixed(clean, tones(**{"multiples": FORTY, **KINDS[kind]}))
    # Most lines lie under the voice and do not stand out; they must go as well.
    assert si_sdr(clean, subtract_hum(noisy[None], RATE)[0]) > 14


def test_hum_goes_from_under_a_chord_whose_partials_lie_beside_it():
    time = torch.arange(4 * RATE).double() / RATE
    notes = (82.4, 123.5, 164.8, 246.9, 329.6)  # 247 and 250, 329.6 and 350, 494 and 500 …
    chord = sum(
        tones(hertz, range(1, 11), 4.0) * torch.exp(-(0.4 + 0.1 * number) * time)
        for number, hertz in enumerate(notes)
    )
    noisy = mixed(chord, tones(50.0, FORTY, 4.0))
    assert si_sdr(chord, subtract_hum(noisy[None], RATE)[0]) > 26
    assert torch.equal(subtract_hum(chord[None], RATE)[0], chord)


def test_the_line_of_a_television_goes():
    rate = 44100
    clean = speech(rate)
    noisy = mixed(clean, tones(15734, (1,), rate=rate, drift=0.0002))
    assert si_sdr(clean, subtract_hum(noisy[None], rate)[0]) > 30


def organ(hertz, ratios=(1.0, 1.25, 1.5), seconds=3.3):
    return sum(tones(hertz * ratio, range(1, 9), seconds) for ratio in ratios)


CLEAN = {
    **{f"tone of {hertz} Hz": tones(hertz, (1,)) for hertz in (100, 120, 150, 350)},
    **{f"note of {hertz} Hz": tones(hertz, range(1, 13)) for hertz in (55, 100, 110, 220)},
    "two seconds": tones(220, range(1, 13), 2),
    "ten seconds": organ(220, seconds=10),
    "organ, 110 Hz": organ(110),
    "organ, octaves": organ(55, (1, 2, 4, 8)),
    "melody": torch.cat([tones(hertz, range(1, 9), 1.5) for hertz in (100, 200, 120, 100)]),
    "plucked": plucked(),
    "plucked, 60 Hz": plucked((60, 120, 60, 120), 1.2),
    "glide": torch.sin(
        2 * math.pi * (lambda time: 50 * time + 5 * time**2)(torch.arange(48000) / RATE)
    ),
    "noise": torch.randn(3 * RATE, generator=torch.Generator().manual_seed(0)),
    "silence": torch.zeros(3 * RATE),
}


@pytest.mark.parametrize("name", CLEAN)
def test_what_is_no_hum_is_left_alone(name):
    noise = torch.randn(len(CLEAN[name]), generator=torch.Generator().manual_seed(1)).double()
    for sound in (CLEAN[name][None], mixed(CLEAN[name], noise, 30)[None]):
        assert subtract_hum(sound, RATE) is sound


@pytest.mark.parametrize("hertz", [55, 110, 220])
def test_a_held_note_under_speech_is_left_alone(hertz):
    sound = mixed(speech(), organ(hertz, (1.0,)))[None]
    assert subtract_hum(sound, RATE) is sound


def test_a_note_keeps_the_partials_that_lie_on_multiples_of_hum():
    note = tones(220, range(1, 9))  # 660 and 1320 Hz
    noisy = mixed(note + 0.01 * speech(), tones(60, range(1, 30)))
    assert si_sdr(note, subtract_hum(noisy[None], RATE)[0]) > 25


@pytest.mark.parametrize("length", [0, 1, RATE // 2, RATE])
def test_short_recordings(length):
    sound = tones(50, FORTY)[None, :length]
    assert subtract_hum(sound, RATE).shape == sound.shape


def test_loudness_changes_nothing_but_the_loudness():
    noisy = mixed(speech(), tones(50, FORTY))[None]
    clean = subtract_hum(noisy, RATE)
    for power in (-60, 60):
        assert torch.allclose(subtract_hum(noisy * 2.0**power, RATE), clean * 2.0**power, rtol=1e-9)


def test_hum_is_looked_for_in_each_channel():
    clean = speech().float()
    noisy = mixed(clean, tones(50, FORTY).float())
    kept = noisy.clone()
    result = subtract_hum(torch.stack([noisy, clean]), RATE)
    assert torch.equal(noisy, kept)
    assert result.dtype == torch.float32
    assert torch.equal(result[1], clean)
    assert torch.equal(result[0], subtract_hum(noisy[None], RATE)[0])


def test_the_denoiser_subtracts_hum_unless_told_otherwise():
    noisy = mixed(speech(), tones(50, FORTY)).float()[: 3 * RATE // 2]
    settings = {"steps": 2, "widths": (4, 4)}
    kept = Denoiser(**settings, hum=False)(noisy, RATE).waveform
    assert not torch.equal(kept, Denoiser(**settings)(noisy, RATE).waveform)
