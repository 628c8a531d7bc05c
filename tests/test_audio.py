"""Files: nothing is lost on the way in and out, nothing is half-written."""

import os
import shutil

import numpy as np
import pytest
import torch

from harmonic_lowering.audio import AudioError, AudioFormat, AudioReader, AudioWriter, replacing

soundfile = pytest.importorskip("soundfile")


def copy(source, target, **options):
    with (
        AudioReader(source) as reader,
        AudioWriter(target, reader.sample_rate, reader.channels, reader.format, **options) as out,
    ):
        half = reader.length // 2
        out.write(reader.read(0, half))
        out.write(reader.read(half))


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [("wav", s) for s in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")]
    + [("flac", "PCM_16"), ("flac", "PCM_24"), ("aiff", "PCM_16"), ("w64", "PCM_24")],
)
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_copy_keeps_every_sample_and_the_format(tmp_path, suffix, subtype, channels):
    samples = np.random.default_rng(0).uniform(-1, 1, (501, channels))
    samples[:2] = [[1.0], [-1.0]]
    source, target = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    soundfile.write(source, samples, 22050, subtype=subtype)
    copy(source, target)
    before, after = soundfile.info(source), soundfile.info(target)
    for name in ("samplerate", "channels", "frames", "format", "subtype"):
        assert getattr(after, name) == getattr(before, name)
    exact = [soundfile.read(path, dtype="float64", always_2d=True)[0] for path in (source, target)]
    assert np.array_equal(*exact)


def test_another_container_keeps_the_samples_it_can(tmp_path):
    source = tmp_path / "in.wav"
    soundfile.write(source, np.zeros((100, 1)), 16000, subtype="PCM_24")
    for name, subtype in (("a.flac", "PCM_24"), ("a.aiff", "PCM_24"), ("a.ogg", "VORBIS")):
        copy(source, tmp_path / name)
        assert soundfile.info(tmp_path / name).subtype == subtype
    with pytest.raises(AudioError, match=r"cannot write the file type '\.xyz'; name it one of"):
        copy(source, tmp_path / "a.xyz")


def write(path, samples, subtype, **options):
    with AudioWriter(path, 16000, 1, AudioFormat("WAV", subtype), **options) as out:
        out.write(torch.tensor([samples]))


def test_too_loud_samples_are_never_clipped_silently(tmp_path):
    loud = [0.5, 1.5, -2.0]
    with pytest.warns(UserWarning, match="2 samples were louder than PCM_16 holds"):
        write(tmp_path / "a.wav", loud, "PCM_16")
    assert soundfile.read(tmp_path / "a.wav")[0].tolist() == [0.5, 32767 / 32768, -1.0]
    with pytest.raises(AudioError, match="2 samples are louder than PCM_16 holds"):
        write(tmp_path / "b.wav", loud, "PCM_16", clip="error")
    assert not (tmp_path / "b.wav").exists()
    write(tmp_path / "c.wav", loud, "FLOAT")
    assert soundfile.read(tmp_path / "c.wav")[0].tolist() == loud
    with pytest.raises(ValueError, match="clip must be"):
        write(tmp_path / "d.wav", loud, "PCM_16", clip="wrap")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, error):
    target = tmp_path / "out.wav"
    soundfile.write(target, np.full(10, 0.25), 16000)
    before = target.read_bytes()

    def interrupted():
        with AudioWriter(target, 16000, 1, AudioFormat("WAV", "PCM_16")) as out:
            out.write(torch.zeros(1, 50_000))
            raise error

    with pytest.raises(error):
        interrupted()
    assert target.read_bytes() == before
    assert os.listdir(tmp_path) == ["out.wav"]


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "x.txt"
    with replacing(target) as part:
        part.write_text("new")
        assert not target.exists()
        assert part.parent == target.parent
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_reader_refuses_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)  # no ffmpeg

    def refused(name, match):
        with pytest.raises(AudioError, match=match) as caught:
            AudioReader(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path))
        assert "\n" not in str(caught.value)

    refused("none.wav", "no such file")
    refused("", "is a folder, expected a sound file")
    (tmp_path / "text.wav").write_text("not sound at all")
    refused("text.wav", "not a sound file that can be read .* ffmpeg -i text.wav")
    (tmp_path / "empty.wav").touch()
    refused("empty.wav", r"the file is empty \(0 bytes\)")
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0), 16000)
    refused("nothing.wav", "holds no samples")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_reader_names_the_sample_that_is_no_number(tmp_path, value):
    samples = np.zeros(16000, dtype=np.float32)
    samples[8000] = value
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    with AudioReader(tmp_path / "a.wav") as reader:
        assert reader.read(0, 8000).shape == (1, 8000)
        with pytest.raises(AudioError, match=r"sample 8000 \(at 0\.500 s\) is not a finite"):
            reader.read(4000, 16000)


def test_writer_refuses_what_the_container_cannot_hold(tmp_path):
    with pytest.raises(AudioError, match="FLAC with PCM_16 cannot hold 9 channels at 16000 Hz"):
        AudioWriter(tmp_path / "a.flac", 16000, 9, AudioFormat("FLAC", "PCM_16")).__enter__()
    with pytest.raises(AudioError, match=r"there is no folder .*; make it first"):
        write(tmp_path / "none" / "a.wav", [0.0], "PCM_16")
    assert os.listdir(tmp_path) == []
