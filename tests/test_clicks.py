"""Clicks, clipped peaks and missing stretches: what is repaired, and what is left alone."""

import json
import math

import pytest
import soundfile
import torch

from harmonic_lowering.audio import AudioReader
from harmonic_lowering.cli import main
from harmonic_lowering.denoise import Denoiser
from harmonic_lowering.denoise.clicks import repair_clicks
from harmonic_lowering.metrics import si_sdr

RATE = 16000
SPEECH = "examples/amiable.wav"


def chord(rate=RATE, seconds=1.0, seed=0, noise=1e-3):
    """Six partials that swell, in a little noise."""
    random = torch.Generator().manual_seed(seed)
    time = torch.arange(round(rate * seconds)).double() / rate
    hertz = torch.tensor([131.1, 262.7, 330.3, 523.9, 660.1, 1047.7]).double()[:, None]
    phase = torch.rand(6, 1, generator=random)
    partials = torch.cos(2 * math.pi * (hertz * time + phase)) / torch.arange(1, 7)[:, None]
    sound = partials.sum(0) * (1 + 0.3 * torch.cos(9 * time))
    return 0.2 * sound + noise * torch.randn(len(time), generator=random).double()


def speech():
    with AudioReader(SPEECH) as reader:
        return reader.read(0, 2 * RATE)[0].double()


def clicked(sound, rate=RATE, per_second=20, size=1.0, seed=0):
    """Add bursts of 0.5 to 2.5 ms that fall off, of any size; also say where."""
    random = torch.Generator().manual_seed(seed)
    noisy, where = sound.clone(), torch.zeros(len(sound), dtype=torch.bool)
    for _ in range(round(per_second * len(sound) / rate)):
        length = round(rate * float(torch.empty(1).uniform_(5e-4, 2.5e-3, generator=random)))
        start = int(torch.randint(len(sound) - length, (1,), generator=random))
        burst = torch.randn(length, generator=random).double()
        burst *= torch.exp(-3 * torch.arange(length) / length)
        strength = 0.7 * torch.randn(1, generator=random).exp()
        noisy[start : start + length] += size * float(sound.std()) * strength * burst
        where[start : start + length] = True
    return noisy, where


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_clicks_on_notes_go(rate):
    gains = []
    for seed in range(4):
        clean = chord(rate)
        noisy, where = clicked(clean, rate, seed=seed)
        repaired, count = repair_clicks(noisy[None], rate)
        gains.append(float(si_sdr(clean, repaired[0]) - si_sdr(clean, noisy)))
        assert 1 <= count <= 30
        assert ((repaired[0] != noisy) & ~where).sum() < where.sum()
    assert min(gains) > 3
    assert sum(gains) / len(gains) > 18


@pytest.mark.parametrize("size", [1.0, 2.0])
def test_clicks_on_speech_go(size):
    clean = speech()
    gains = []
    for seed in range(6):
        noisy, _ = clicked(clean, seed=seed, size=size)
        repaired = repair_clicks(noisy[None], RATE).waveform[0]
        gains.append(float(si_sdr(clean, repaired) - si_sdr(clean, noisy)))
    assert min(gains) > 4  # though most have another one within 10 ms
    assert sum(gains) / len(gains) > 6


def test_predictable_sound_is_recovered_almost_exactly():
    clean = chord(noise=1e-6)  # a sum of sinusoids obeys a linear recurrence
    noisy = clean.clone()
    noisy[8000:8030] += torch.linspace(1, -1, 30)
    repaired, count = repair_clicks(noisy[None], RATE)
    assert count == 1
    assert (repaired[0] - clean).abs().max() < 2e-3
    outside = torch.ones(RATE, dtype=torch.bool)
    outside[7990:8040] = False
    assert torch.equal(repaired[0][outside], noisy[outside])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "sound",
    [
        chord(),
        speech(),
        torch.zeros(RATE),
        torch.ones(RATE),
        torch.randn(RATE, generator=torch.Generator().manual_seed(0)),
        torch.sin(torch.arange(RATE) * 2 * math.pi * 110 / RATE).sign(),
        (torch.arange(RATE) % 100) / 100 - 0.5,
        (4 * torch.sin(torch.arange(RATE) * 0.01)).round() / 128,  # a few steps of eight bits
        (2**15 * torch.sin(torch.arange(RATE) * 2 * math.pi * 20 / RATE)).round() / 2**15,
    ],
    ids=["chord", "speech", "silence", "constant", "noise", "square", "saw", "coarse", "low"],
)
def test_nothing_changes_where_nothing_is_wrong(sound, dtype):
    sound = sound.to(dtype)[None]
    repaired, count = repair_clicks(sound, RATE)
    assert repaired is sound
    assert count == 0


def struck(rate, seconds=0.4, seed=0):
    """A string and a drum that begin at once, and a burst of air that lasts."""
    random = torch.Generator().manual_seed(seed)
    time = torch.arange(round(rate * seconds)).double() / rate
    string = sum(torch.sin(2 * math.pi * 196.3 * k * time) / k for k in range(1, 12))
    drum = torch.randn(len(time), generator=random).double() * torch.exp(-time / 0.02)
    return 0.2 * string * torch.exp(-time / 0.05) + 0.3 * drum


@pytest.mark.parametrize("rate", [16000, 44100])
def test_onsets_are_no_clicks(rate):
    sound = torch.cat([struck(rate, seed=seed) for seed in range(6)])
    sound += 1e-3 * torch.randn(len(sound), generator=torch.Generator().manual_seed(1)).double()
    repaired, _ = repair_clicks(sound[None], rate)
    assert torch.equal(repaired[0], sound)


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("hertz", [27.5, 41.2, 55.0, 98.0])
def test_the_pulses_of_a_deep_note_are_no_clicks(rate, hertz):
    time = torch.arange(2 * rate).double() / rate
    partials = torch.arange(1, int(0.45 * rate / hertz))[:, None]
    pitch = hertz * (time + 0.002 * torch.sin(4 * time))  # which glides a little
    sound = 0.2 * (torch.sin(2 * math.pi * partials * pitch) / partials).sum(0)
    sound += 1e-4 * torch.randn(len(time), generator=torch.Generator().manual_seed(0)).double()
    repaired, _ = repair_clicks(sound[None], rate)
    assert float(si_sdr(sound, repaired[0])) > 40


@pytest.mark.parametrize("milliseconds", [2, 5, 10, 20])
@pytest.mark.parametrize("value", [0.0, None])
def test_missing_stretches_are_filled(milliseconds, value):
    clean = chord()
    length = milliseconds * RATE // 1000
    noisy = clean.clone()
    for start in (3000, 9000):
        noisy[start : start + length] = noisy[start - 1] if value is None else value
    repaired, count = repair_clicks(noisy[None], RATE)
    assert count == 2
    assert si_sdr(clean, repaired[0]) > si_sdr(clean, noisy) + 12
    assert (repaired[0] != noisy).sum() <= 2 * length + 2


def test_longer_silence_is_no_missing_stretch():
    sound = chord()
    sound[5000 : 5000 + 25 * RATE // 1000] = 0
    repaired = repair_clicks(sound[None], RATE).waveform[0]
    assert (repaired != sound).sum() < 5 * RATE // 1000  # at most its edges
    assert not repaired[5100:5300].any()


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_clipped_peaks_rise_beyond_the_level(rate, offset):
    clean = chord(rate) + offset
    level = 0.75 * float(chord(rate).abs().max())
    noisy = clean.clamp(offset - level, offset + level)
    repaired, count = repair_clicks(noisy[None], rate)
    assert count > 10
    changed = repaired[0] != noisy
    clipped = ((noisy - offset).abs() - level).abs() < 1e-9
    assert (changed & ~clipped).sum() < 0.25 * clipped.sum()  # kinks of shorter plateaus
    beyond = (repaired[0] - offset).abs() >= level * (1 - 1e-9)
    assert beyond[changed & clipped].double().mean() > 0.95
    assert si_sdr(clean, repaired[0]) > si_sdr(clean, noisy) + 6


def test_each_channel_is_searched_alone():
    left, right = chord(seed=1), chord(seed=2)
    noisy = torch.stack([clicked(left)[0], right])
    repaired, count = repair_clicks(noisy, RATE)
    assert torch.equal(repaired[1], right)
    alone, only = repair_clicks(noisy[:1], RATE)
    assert torch.equal(repaired[0], alone[0])
    assert count == only


def test_float32_is_repaired_as_float64():
    noisy, _ = clicked(chord())
    double, single = (
        repair_clicks(noisy[None].to(t), RATE).waveform for t in (torch.float64, torch.float32)
    )
    assert single.dtype == torch.float32
    assert si_sdr(double, single) > 60


@pytest.mark.parametrize("length", [1, 2, 63, 64, 400, 1599, 1600, 1700])
def test_short_recordings(length):
    sound = chord()[None, :length].clone()
    sound[0, length // 2] += 1
    before = sound.clone()
    repaired, count = repair_clicks(sound, RATE)
    assert torch.equal(sound, before)
    assert repaired.shape == sound.shape
    assert repaired.isfinite().all()
    if length < 1600:
        assert count == 0


@pytest.mark.parametrize("per_second", [3, 200, 2000])
def test_nothing_but_clicks_comes_back_sane(per_second):
    random = torch.Generator().manual_seed(0)
    sound = torch.zeros(RATE)
    sound[torch.randint(RATE, (per_second,), generator=random)] = 1.0
    repaired, _ = repair_clicks(sound[None], RATE)
    assert repaired.isfinite().all()
    assert repaired.abs().max() <= 1.5


def test_inputs_are_not_written_to():
    noisy, _ = clicked(chord())
    before = noisy.clone()
    repair_clicks(noisy[None], RATE)
    assert torch.equal(noisy, before)


# The denoiser


def test_the_denoiser_repairs_first_and_counts():
    noisy = clicked(chord())[0].float()
    settings = {"steps": 2, "seed": 1}
    result = Denoiser(**settings)(noisy, RATE)
    assert result.summary.clicks == repair_clicks(noisy[None], RATE).clicks
    kept = Denoiser(**settings, declick=False)(noisy, RATE)
    assert kept.summary.clicks == 0
    assert not torch.equal(kept.waveform, result.waveform)
    repaired = repair_clicks(noisy[None], RATE).waveform[0]
    by_hand = Denoiser(**settings, declick=False)(repaired, RATE)
    assert si_sdr(by_hand.waveform, result.waveform) > 60


def test_the_published_method_leaves_clicks_alone():
    noisy = clicked(chord(seconds=0.3))[0].float()
    results = [
        Denoiser(method="dap", steps=1, widths=(4,), declick=on)(noisy, RATE).waveform
        for on in (True, False)
    ]
    assert torch.equal(*results)


def test_the_command_repairs_clicks_and_says_so(tmp_path, capsys):
    noisy = clicked(chord())[0].float()
    source = tmp_path / "crackle.wav"
    soundfile.write(source, noisy.numpy(), RATE, subtype="FLOAT")
    told = []
    for option in ("--declick", "--no-declick"):
        target = tmp_path / f"{option}.wav"
        command = ["denoise", str(source), "-o", str(target), "--steps", "1", "--json", option]
        assert main(command) == 0
        told.append(json.loads(capsys.readouterr().out)["noise"]["clicks"])
    assert told[0] > 5
    assert told[1] == 0
