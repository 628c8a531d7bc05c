"""The example that trains the transcriber: what it learns from, and that it can be interrupted."""

import numpy as np
import pytest
import torch

from benchmarks.learning import band
from examples.transcription import data, evaluate, train
from harmonic_lowering.transcribe import Transcriber
from harmonic_lowering.transcribe.network import FRAME_S, vqt_levels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips of two tones, of which one begins late."""
    clips = tmp_path_factory.mktemp("transcription") / "clips"
    clips.mkdir()
    time = np.arange(16000 * 5, dtype=np.float32) / 16000
    for number in range(3):
        low, high = 57 + number, 76
        sound = np.sin(2 * np.pi * 440 * 2 ** ((low - 69) / 12) * time)
        sound += np.sin(2 * np.pi * 440 * 2 ** ((high - 69) / 12) * time) * (time >= 2)
        notes = np.array([(0, 5, low), (2, 5, high)], np.float32)
        level = vqt_levels(torch.from_numpy(sound / 2)).numpy().astype(np.float16)
        np.savez(clips / f"{number:05d}.npz", level=level, notes=notes)
    return clips.parent


def test_targets_say_what_sounds_and_where_it_begins():
    target = train.targets(np.array([(0.5, 1.0, 60), (0.3, 0.4, 20)]), 60)
    frames, onsets = target.float()
    assert torch.equal(frames.any(1).nonzero(), torch.tensor([[39]]))  # 60 is row 39; 20 has none
    sounding = frames[39].nonzero().ravel() * FRAME_S
    assert 0.5 <= sounding[0] < 0.5 + FRAME_S
    assert 1.0 - FRAME_S <= sounding[-1] < 1.0
    assert int(onsets[39].argmax()) == round(0.5 / FRAME_S)


def test_levels_and_targets_move_together(folder):
    clips = train.Clips(folder)
    levels, wanted = clips.batch(0)
    assert levels.shape == (train.BATCH, 288, train.FRAMES)
    assert wanted.shape == (train.BATCH, 2, 88, train.FRAMES)
    for level, target in zip(levels, wanted, strict=True):
        loudest = level.mean(1).unflatten(0, (96, 3)).amax(1).topk(1).indices
        assert target[0, loudest].any()
    again, _ = clips.batch(0)
    assert torch.equal(levels, again)


@pytest.mark.parametrize("stop", [1, 3])
def test_training_goes_on_where_it_was_interrupted(folder, tmp_path, monkeypatch, stop):
    results = []
    for interrupted in (False, True):
        place = tmp_path / str(interrupted)
        place.mkdir()
        (place / "clips").symlink_to(folder / "clips")
        batch = train.Clips.batch
        if interrupted:
            with monkeypatch.context() as patch:
                patch.setattr(train.Clips, "batch", _interrupt_at(stop, batch))
                train.train(place, 4)
            assert torch.load(place / "checkpoint.pt")["step"] == stop
        train.train(place, 4)
        results.append(torch.load(place / "checkpoint.pt")["network"])
        assert Transcriber.load(place / "transcription.safetensors").network.channels == 16
    whole, resumed = results
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value)


def _interrupt_at(stop, batch):
    def interrupting(self, step):
        if step == stop:
            raise KeyboardInterrupt
        return batch(self, step)

    return interrupting


def test_voices_and_rooms_follow_from_their_seed():
    for kind in (
        lambda random: data.by_chance(random),
        lambda random: data.from_score(random, [[[(0, 1, 60), (1, 2, 64), (30, 1, 67)]]]),
    ):
        voices = kind(np.random.default_rng(1))
        assert voices == kind(np.random.default_rng(1))
        assert voices != kind(np.random.default_rng(2))
    for seed in range(8):  # some with a room, an equaliser, noise
        sound = band.record(np.random.default_rng(seed), np.ones(16000, np.float32))
        assert sound.shape == (16000,)
        assert np.abs(sound).max() == pytest.approx(1)


def test_scores_of_perfect_and_of_no_answers():
    truth = np.array([(0.1, 0.5, 60), (0.6, 1.0, 64)])
    assert evaluate.note_f1(truth, truth) == [1, 1]
    assert evaluate.note_f1(truth, truth + np.array([0.2, 0, 0])) == [0, 0]
    assert evaluate.note_f1(truth, truth[:0]) == [0, 0]
    shorter = truth - np.array([0, 0.3, 0])
    assert evaluate.note_f1(truth, shorter) == [1, 0]
    assert evaluate.frame_f1(np.array([True, True]), np.array([True, False])) == 2 / 3
