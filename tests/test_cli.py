"""The command: real files in and out, one clear sentence for bad input, nothing half-written."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from harmonic_lowering.cli import main
from harmonic_lowering.denoise import Denoiser

soundfile = pytest.importorskip("soundfile")

EXAMPLE = Path(__file__).parents[1] / "examples" / "amiable.wav"
FAST = ["--steps", "1", "--quiet"]


@pytest.fixture
def noisy(tmp_path):
    path = tmp_path / "noisy.wav"
    samples, rate = soundfile.read(EXAMPLE, frames=8000)
    samples += np.random.default_rng(0).normal(0, 0.01, samples.shape)
    soundfile.write(path, samples, rate)
    return path


def denoise(*arguments):
    try:
        return main(["denoise", *map(str, arguments), *FAST])
    except SystemExit as stop:  # argparse
        return stop.code


def refused(capsys, status, match, *arguments):
    """Run; the last line on stderr is the sentence."""
    assert denoise(*arguments) == status
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert match in sentence
    assert "Traceback" not in sentence


def test_a_recording_keeps_everything_but_its_noise(tmp_path, capsys):
    source, target = tmp_path / "in.flac", tmp_path / "out.flac"
    samples = np.random.default_rng(0).normal(0, 0.1, (9001, 2))
    soundfile.write(source, samples, 22050, subtype="PCM_24")
    original = source.read_bytes()
    assert denoise(source, "-o", target) == 0
    assert capsys.readouterr().out.strip() == str(target)
    before, after = soundfile.info(source), soundfile.info(target)
    for name in ("samplerate", "channels", "frames", "format", "subtype"):
        assert getattr(after, name) == getattr(before, name)
    assert not np.allclose(soundfile.read(target)[0], samples, atol=1e-3)
    assert source.read_bytes() == original
    assert sorted(os.listdir(tmp_path)) == ["in.flac", "out.flac"]


def test_it_is_a_loop_over_the_api(noisy, tmp_path):
    target = tmp_path / "out.wav"
    options = ["--seed", "3", "--atten-lim", "12", "-o", target]
    assert denoise(noisy, *options) == 0
    sound = torch.from_numpy(soundfile.read(noisy, dtype="float32")[0])
    expected = Denoiser(steps=1, seed=3, atten_lim=12)(sound, 16000).waveform
    result = torch.from_numpy(soundfile.read(target, dtype="float32")[0])
    assert (result - expected).abs().max() < 1 / 32768


def test_output_names(noisy, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    other = shutil.copy(noisy, tmp_path / "other.wav")
    assert denoise(noisy, other, "-o", folder) == 0
    assert sorted(os.listdir(folder)) == ["noisy.wav", "other.wav"]
    assert denoise(noisy) == 0
    assert (tmp_path / "noisy-denoised.wav").exists()


def test_plot(noisy, tmp_path):
    pytest.importorskip("matplotlib")
    assert denoise(noisy, "-o", tmp_path / "out.wav", "--plot") == 0
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(tmp_path)) == ["noisy.wav", "out.png", "out.wav"]


def test_an_existing_output_is_kept_without_force(noisy, tmp_path, capsys):
    target = tmp_path / "out.wav"
    target.write_text("precious")
    refused(capsys, 1, "exists already; allow replacing it with --force", noisy, "-o", target)
    assert target.read_text() == "precious"
    assert denoise(noisy, "-o", target, "--force") == 0
    assert soundfile.info(target).frames == 8000
    refused(capsys, 1, "would replace the input", noisy, "-o", noisy, "--force")


def test_the_list_goes_on_after_a_bad_file(noisy, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    twin = tmp_path / "sub" / "noisy.wav"
    twin.parent.mkdir()
    shutil.copy(noisy, twin)
    assert denoise(tmp_path / "none.wav", noisy, twin, "-o", folder) == 1
    errors = capsys.readouterr().err
    assert "none.wav: no such file" in errors
    assert "another input was already written to" in errors
    assert "2 of 3 recordings failed" in errors
    assert os.listdir(folder) == ["noisy.wav"]


def write(path, samples, subtype="FLOAT", rate=16000):
    soundfile.write(path, samples, rate, subtype=subtype)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a folder, expected a sound file"),
        (lambda path: path.write_text("hello"), "not a sound file that can be read"),
        (lambda path: path.touch(), "the file is empty (0 bytes)"),
        (lambda path: write(path, np.zeros(0)), "holds no samples"),
        (lambda path: write(path, np.full(5000, np.nan)), "is not a finite number"),
        (lambda path: write(path, np.zeros(1000)), "shorter than one window of 1024 (64 ms)"),
    ],
    ids=["none", "folder", "text", "empty", "no samples", "NaN", "short"],
)
def test_bad_recordings(tmp_path, capsys, make, match):
    source = tmp_path / "in.wav"
    make(source)
    refused(capsys, 1, match, source, "-o", tmp_path / "out.wav")
    assert set(os.listdir(tmp_path)) <= {"in.wav"}


def test_silence_is_copied_with_a_note(tmp_path, capsys):
    write(tmp_path / "in.wav", np.zeros((5000, 2)), "PCM_16")
    refused(
        capsys, 0, "is silent, there was nothing to remove",
        tmp_path / "in.wav", "-o", tmp_path / "out.wav",
    )  # fmt: skip
    assert (tmp_path / "in.wav").read_bytes() == (tmp_path / "out.wav").read_bytes()


@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_channels_and_offset(tmp_path, channels, offset):
    samples = offset + np.random.default_rng(0).normal(0, 0.05, (4000, channels))
    write(tmp_path / "in.wav", samples)
    assert denoise(tmp_path / "in.wav", "-o", tmp_path / "out.wav") == 0
    assert soundfile.info(tmp_path / "out.wav").channels == channels


def test_a_loud_result_is_cut_with_a_note(tmp_path, capsys, monkeypatch):
    write(tmp_path / "in.wav", np.full(5000, 0.5), "PCM_16")
    monkeypatch.setattr(Denoiser, "_clean", lambda self, noisy, *rest: noisy * 3)
    refused(
        capsys, 0, "5000 samples were louder than PCM_16 holds",
        tmp_path / "in.wav", "-o", tmp_path / "out.wav",
    )  # fmt: skip
    refused(
        capsys, 1, "5000 samples are louder than PCM_16 holds",
        tmp_path / "in.wav", "-o", tmp_path / "b.wav", "--clip", "error",
    )  # fmt: skip
    assert not (tmp_path / "b.wav").exists()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["-o", "nowhere/"], "no such folder; make it first (mkdir -p"),
        (["-o", "nowhere/out.wav"], "there is no folder nowhere; make it first"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--atten-lim", "-1"], "atten_lim is a positive number of dB"),
        (["--seed", "x"], "invalid int value: 'x'"),
        (["-o", "nowhere"], "no such folder; make it first (mkdir -p nowhere), or name a file"),
        (["more.wav", "-o", "out.wav"], "several inputs need an existing folder"),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_wrong_usage_is_status_2(noisy, capsys, arguments, match):
    refused(capsys, 2, match, noisy, *arguments)
    assert os.listdir(noisy.parent) == ["noisy.wav"]


def test_no_command_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_a_missing_package_is_named_before_the_work(noisy, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    refused(capsys, 1, "pip install 'harmonic-lowering[plot]'", noisy, "--plot")
    assert os.listdir(noisy.parent) == ["noisy.wav"]


def test_a_failure_of_the_disk_is_one_sentence(noisy, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(capsys, 1, "cannot be written (No space left on device)", noisy)
    assert os.listdir(noisy.parent) == ["noisy.wav"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_leaves_no_partial_file(noisy, tmp_path, number, status):
    program = "import sys; from harmonic_lowering.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["denoise", str(noisy), "-o", str(tmp_path / "out.wav"), "--steps", "100000"]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLE.parents[1] / "src")}
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while not any(name.endswith(".part") for name in os.listdir(tmp_path)):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline, "it never began to write"
                time.sleep(0.05)
            process.send_signal(number)
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == status
    assert "Traceback" not in errors
    assert os.listdir(tmp_path) == ["noisy.wav"]
