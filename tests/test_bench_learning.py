"""The benchmark of learning: its music, networks, training, table and page, at their smallest."""

import csv
import importlib.util
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("soundfile")

import soundfile

from benchmarks.learning import data, features, training
from benchmarks.learning.__main__ import main
from benchmarks.learning.measure import Run, combinations, read_table
from benchmarks.learning.networks import NETWORKS, PARAMETERS, RATIOS, count_parameters
from benchmarks.learning.page import Interval, Results, page
from harmonic_lowering import FrequencyTapConv2d

ROOT = Path(__file__).parents[1]
SPECTROGRAM = {"vqt": features.VQT_BINS, "stft": features.STFT_BINS}


# ---------------------------------------------------------------- music


def tone(pitch, seconds, rate=data.SAMPLE_RATE):
    hz = 440 * 2 ** ((pitch - 69) / 12)
    time = np.arange(round(seconds * rate)) / rate
    return sum(np.sin(2 * np.pi * hz * k * time) / k for k in range(1, 6)).astype(np.float32)


def test_random_notes_are_polyphonic_and_doubled():
    random = np.random.default_rng(0)
    notes = data.random_notes(random, 60, voices=4)
    roll = data.piano_roll(notes, 1875, 0.032, 0, 128)
    assert {note.voice for note in notes} == {0, 1, 2, 3}
    assert all(note.pitch in data.PITCHES for note in notes)
    assert all(0 <= note.start_s < note.end_s <= 60 for note in notes)
    assert 2 < roll.sum(0).mean() <= 4
    assert roll.sum(0).max() == 4
    octaves = (roll[12:] & roll[:-12]).any(0).mean()
    single = data.random_notes(random, 60, voices=4, doubled=0)
    plain = data.piano_roll(single, 1875, 0.032, 0, 128)
    assert octaves > 1.5 * (plain[12:] & plain[:-12]).any(0).mean()


def test_piano_roll_marks_frames_whose_centre_is_in_the_note():
    notes = [data.Note(0.032, 0.096, 60), data.Note(0.05, 0.06, 61), data.Note(0, 1, 200)]
    roll = data.piano_roll(notes, 5, 0.032, 60, 2)
    assert roll.tolist() == [[False, True, True, False, False], [False] * 5]


@pytest.mark.parametrize("snr_db", [0, 10])
def test_noise_is_pink_and_has_its_level(snr_db):
    random = np.random.default_rng(0)
    sound = tone(60, 4)
    noise = data.add_noise(sound, snr_db, random) - sound
    ratio = np.mean(sound.astype(float) ** 2) / np.mean(noise.astype(float) ** 2)
    assert 10 * math.log10(ratio) == pytest.approx(snr_db, abs=0.01)
    power = np.abs(np.fft.rfft(noise)) ** 2
    octave = [power[n : 2 * n].sum() for n in (1000, 2000, 4000, 8000)]  # 250 Hz … 4 kHz
    assert max(octave) / min(octave) < 1.15


def test_recorded_notes_are_named_tuned_and_cut(tmp_path, monkeypatch):
    monkeypatch.setitem(data.RECORDED, "oboe", ("some-oboe", range(60, 80)))
    folder = tmp_path / "npm" / "some-oboe"
    folder.mkdir(parents=True)
    silence = np.zeros(4410, dtype=np.float32)
    for name, pitch in (("C4", 60), ("Fs4", 66)):
        sound = np.concatenate((silence, tone(pitch, 1.0, 44100)))
        soundfile.write(folder / f"{name}.wav", sound, 44100)
    soundfile.write(folder / "C4 v2.wav", silence, 44100)
    assert set(data.recorded_notes("oboe", tmp_path)) == {60, 66}
    notes = [data.Note(0.5, 1.0, 62), data.Note(1.0, 4.0, 67)]
    piece = data.play_recorded(notes, ["oboe"], 3, tmp_path)
    assert len(piece.sound) == 3 * data.SAMPLE_RATE
    assert not piece.sound[: data.SAMPLE_RATE // 2].any()
    # The second note ends where its recording does.
    assert piece.notes[1].end_s == pytest.approx(2.0, abs=0.07)
    example = features.example(piece, "vqt")
    sounding = example.spectrogram.float()[:, 20:28].mean(1)
    lowest = int(torch.nonzero(sounding > 0.9)[0])
    assert abs(lowest - 3 * (62 - features.LOWEST_NOTE)) <= 1
    assert example.roll.nonzero()[:, 0].unique().tolist() == [26, 31]


def test_music_is_disjoint():
    assert not set(features.TRAINING) & set(features.VALIDATION)
    assert not (set(features.TRAINING) | set(features.VALIDATION)) & set(features.UNSEEN)


def test_every_seed_learns_from_another_part():
    examples = list(range(360))
    parts = [features.training_pieces(examples, 300, seed) for seed in range(6)]
    assert all(len(part) == 60 for part in parts)
    assert len({index for part in parts for index in part}) == 360
    assert sorted(features.training_pieces(examples, 1800, 2)) == examples


@pytest.mark.skipif(
    not (data.default_cache() / data.SOUNDFONTS["timgm6mb"][1]).is_file()
    or importlib.util.find_spec("tinysoundfont") is None,
    reason="the soundfont or tinysoundfont is not here (make bench-learning brings them)",
)
def test_a_soundfont_plays_what_it_is_told():
    font = data.SoundFont(data.fetch_soundfont("timgm6mb", data.default_cache()))
    notes = [data.Note(0.5, 1.5, 57), data.Note(2.0, 3.0, 64, voice=1)]
    piece = font.play(notes, [73, 71], 4)
    assert piece.instruments == ["Flute TB", "Clarinet"]
    assert len(piece.sound) == 4 * data.SAMPLE_RATE
    picture = features.spectrogram(piece.sound, "vqt")
    for note, others in ((notes[0], notes[1]), (notes[1], notes[0])):
        frames = slice(round((note.start_s + 0.2) / 0.032), round((note.end_s - 0.1) / 0.032))
        level = picture[:, frames].mean(1)
        assert level[3 * (note.pitch - features.LOWEST_NOTE)] > 0.8
        assert level[3 * (others.pitch - features.LOWEST_NOTE)] < 0.5
    again = font.play(notes, [73, 71], 4)
    assert np.abs(again.sound - piece.sound).max() < 0.05  # nothing sounds on from before


# ---------------------------------------------------------------- networks and training


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_of_one_size_and_shape(name):
    network = NETWORKS[name]
    model = network(seed=1)
    assert abs(count_parameters(model) - PARAMETERS) < 0.06 * PARAMETERS
    logits = model(torch.rand(2, 1, SPECTROGRAM[network.feature], 19))
    assert logits.shape == (2, features.N_NOTES, 19)
    assert logits.sigmoid().mean() < 0.2


def test_only_the_shifts_differ_between_harmonic_and_random():
    harmonic, *random = (
        [m for m in NETWORKS[name](seed).modules() if isinstance(m, FrequencyTapConv2d)]
        for name, seed in (("harmonic", 0), ("random", 0), ("random", 1))
    )
    reach = [36 * math.log2(ratio) for ratio in RATIOS]
    for layers in random:
        for ours, theirs in zip(harmonic, layers, strict=True):
            assert ours.weight.shape == theirs.weight.shape
            shifts = [float(theirs.taps.position(row, 0)) for row in range(len(RATIOS))]
            assert 0 in shifts
            assert len(set(shifts)) == len(RATIOS)
            assert min(reach) - 1 < min(shifts) < max(shifts) < max(reach) + 1
    assert random[0][0].taps != random[1][0].taps


def toy_examples(count, feature="vqt", frames=80):
    """Return tones at random pitches as the networks see them."""
    random = np.random.default_rng(count)
    examples = []
    for _ in range(count):
        pitch = int(random.integers(40, 80))
        sound = np.concatenate((tone(pitch, 1.3), tone(pitch + 5, 1.3)))
        notes = [data.Note(0, 1.3, pitch), data.Note(1.3, 2.6, pitch + 5)]
        examples.append(features.example(data.Piece(sound, notes, ["sine"]), feature))
    return examples


def test_training_learns_and_repeats_itself():
    settings = training.Settings(steps=25, batch=4, frames=32)
    examples = toy_examples(3)
    losses = []
    for _ in range(2):
        model = NETWORKS["harmonic"](seed=0)
        before = training.predict(model, examples).average_precision()
        losses.append(training.train(model, examples, settings, seed=0))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert training.predict(model, examples).average_precision() > before + 0.2


def test_equalisers_leave_silence_and_mean_level():
    spectrograms = torch.full((64, 1, 100, 5), 0.5)
    spectrograms[:, :, 40] = 0
    result = training.equalised(spectrograms, 6, np.random.default_rng(0))
    assert not result[:, :, 40].any()
    assert (result.std(dim=0)[:, 0] > 0.05).all()
    assert result[:, :, :40].mean() == pytest.approx(0.5, abs=0.02)
    assert (result == result[..., :1]).all()  # constant in time
    assert torch.equal(training.equalised(spectrograms, 0, np.random.default_rng(0)), spectrograms)


def test_scores():
    truth = np.zeros((40, 4), dtype=bool)
    truth[10] = True
    probability = np.where(truth, 0.9, 0.1)
    probability[22, :2] = 0.8  # two octaves
    probability[15, 0] = 0.8  # and a fourth
    found = training.Predictions(probability, truth)
    assert found.average_precision() == 1
    assert found.best_threshold() == 0.9
    assert found.f1(0.85) == 1
    assert found.f1(0.5) == pytest.approx(2 * 4 / (7 + 4))
    assert found.octave_like_errors(0.5) == 2 / 4
    assert found.octave_like_errors(0.85) == 0


# ---------------------------------------------------------------- table and page


def made_up(network, training_s, seed, ap):
    scores = {f"{name}_ap": ap for name in ("B", "B10", "B0", "R", "R10")}
    return Run(network, training_s, seed, 400, parameters=7900, machine="a machine", **scores)


def test_intervals():
    one = Interval([0.8])
    assert str(one) == ".800"
    three = Interval([0.80, 0.82, 0.84])
    assert three.mean == pytest.approx(0.82)
    assert three.half == pytest.approx(4.3027 * 0.02 / math.sqrt(3), rel=1e-4)


def test_the_page_claims_only_what_is_apart():
    rows = [made_up("harmonic", 300, seed, 0.80 + 0.001 * seed) for seed in range(3)]
    rows += [made_up("random", 300, seed, 0.70 + 0.001 * seed) for seed in range(3)]
    rows += [made_up("harmonic", 30, seed, 0.60 + 0.1 * seed) for seed in range(3)]
    rows += [made_up("random", 30, seed, 0.55 + 0.1 * seed) for seed in range(3)]
    rows += [made_up("conv", 30, seed, 0.5 + 0.1 * seed) for seed in range(2)]
    results = Results(rows)
    assert results.overlaps("harmonic", "random", 300, "B_ap") is False
    assert results.overlaps("harmonic", "random", 30, "B_ap") is True
    assert results.overlaps("harmonic", "unet", 30, "B_ap") is None
    assert results.overlaps("harmonic", "conv", 30, "B_ap") is None
    text = page(rows, "picture.png")
    lines = [line for line in text.splitlines() if line.startswith("| 5 min | B |")]
    assert lines[0].endswith("| .100 ± .000 | **yes** |")
    lines = [line for line in text.splitlines() if line.startswith("| 30 s | B |")]
    assert lines[0].endswith("| no |")
    assert "- 30 min of training sound: no network" in text  # what was not measured is said
    assert NETWORKS["unet"].title in text[text.index("## Not measured") :]


def test_runs_that_say_most_come_first():
    keys = combinations(("harmonic", "conv"), (300, 30, 1800), lambda name: 2, 400)
    assert len(keys) == len(set(keys)) == 12
    assert {key.seed for key in keys[:4]} == {0}
    assert all(key.training_s == 1800 for key in keys[-4:])


def test_other_versions_do_not_count(tmp_path):
    from benchmarks.common.tables import write_rows

    row = made_up("harmonic", 30, 0, 0.5)
    write_rows(tmp_path / "rows.csv", [row, replace(row, version="0.0", seed=1)], Run)
    assert list(read_table(tmp_path / "rows.csv").values()) == [row]


def bench(tmp_path, *arguments):
    return subprocess.run(
        [
            sys.executable, "-m", "benchmarks.learning", "--cache", tmp_path, "--table",
            tmp_path / "rows.csv", "--jobs", "1", "--steps", "2", *arguments,
        ],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": "src"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_smoke(tmp_path):
    pytest.importorskip("matplotlib")
    folder = tmp_path / f"learning-{features.VERSION}"
    folder.mkdir()
    for name in features.SETS:
        examples = [(one.spectrogram, one.roll) for one in toy_examples(3)]
        torch.save(examples, folder / f"{name}-vqt.pt")
    arguments = ["--networks", "harmonic", "unet", "--training-s", "30", "--seeds", "1"]
    done = bench(tmp_path, *arguments, "--page", tmp_path / "page.md")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["network"] for row in rows] == ["harmonic", "unet"]
    assert all(0 <= float(row["R_ap"]) <= 1 for row in rows)
    assert "U-Net" in (tmp_path / "page.md").read_text()
    assert (tmp_path / "images" / "learning.png").read_bytes().startswith(b"\x89PNG")
    # Nothing is measured twice; what lacks is.
    arguments[-1] = "2"
    arguments[1:3] = ["unet"]
    again = bench(tmp_path, *arguments)
    assert again.returncode == 0, again.stderr
    with (tmp_path / "rows.csv").open() as file:
        later = list(csv.DictReader(file))
    assert later[:2] == rows
    assert [row["seed"] for row in later[2:]] == ["1"]


def test_says_which_package_is_missing(tmp_path, capsys):
    arguments = ["--cache", tmp_path, "--table", tmp_path / "rows.csv", "--debs", tmp_path]
    assert main([*map(str, arguments), "--networks", "conv", "--training-s", "30"]) == 1
    assert "no timgm6mb-soundfont_*.deb" in capsys.readouterr().err


def test_refuses_nonsense(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--networks", "transformer"])
    assert main(["--page-only", "--table", str(tmp_path / "rows.csv")]) == 1
    assert "has no runs of the present code" in capsys.readouterr().err
