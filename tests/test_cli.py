"""The command: real files in and out, one clear sentence for bad input, nothing half-written."""

import io
import json
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
from harmonic_lowering.denoise.estimator import Estimate
from harmonic_lowering.denoise.prior import PriorEstimator

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
    refused(capsys, 2, "would replace the input", noisy, "-o", noisy, "--force")


def test_the_list_goes_on_after_a_bad_file(noisy, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    assert denoise(tmp_path / "none.wav", noisy, "-o", folder) == 1
    errors = capsys.readouterr().err
    assert "none.wav: no such file" in errors
    assert "1 of 2 recordings failed" in errors
    assert os.listdir(folder) == ["noisy.wav"]


def test_two_inputs_never_share_an_output(noisy, tmp_path, capsys):
    folder, twin = tmp_path / "folder", tmp_path / "sub" / "noisy.wav"
    folder.mkdir()
    twin.parent.mkdir()
    shutil.copy(noisy, twin)
    refused(capsys, 2, f"would be written for {noisy} and for {twin}", noisy, twin, "-o", folder)
    assert os.listdir(folder) == []


def write(path, samples, subtype="FLOAT", rate=16000):
    soundfile.write(path, samples, rate, subtype=subtype)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_text("hello"), "not a sound file that can be read"),
        (lambda path: path.touch(), "the file is empty (0 bytes)"),
        (lambda path: write(path, np.zeros(0)), "holds no samples"),
        (lambda path: write(path, np.full(5000, np.nan)), "is not a finite number"),
        (lambda path: write(path, np.zeros(1000)), "shorter than one window of 1024 (64 ms)"),
    ],
    ids=["none", "text", "empty", "no samples", "NaN", "short"],
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
    monkeypatch.setattr(PriorEstimator, "__call__", lambda self, noisy, *rest: Estimate(noisy * 3))
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
        (["-o", "out.raw"], "cannot write the file type '.raw'; name it one of"),
        (["-o", "{what}.wav"], "a template may use {stem}, {suffix}, {name}, {folder}"),
        (["-o", "-", "--plot"], "--plot draws beside the output"),
        (["-o", "-", "--json"], "--json writes to standard output"),
        (["--noise-out", "-"], "--noise-out cannot be -"),
        (["more.wav", "-o", "-"], "a pipe takes one recording, got 2"),
        (["-"], "cannot be mixed with other inputs"),
        ([""], "an input's name is empty"),
        (["--quality", "good"], "invalid choice: 'good'"),
        (["--strength", "2"], "strength must lie in [0, 1], got 2.0"),
        (["--time-limit", "0"], "time_limit is a positive number of seconds"),
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


def start(*arguments, **options):
    """Run the command in a process of its own; one step takes long enough to be interrupted."""
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLE.parents[1] / "src")}
    # What runs in the background of a shell ignores SIGINT, and so would its children.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from harmonic_lowering.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, "denoise", *map(str, arguments)],
        env=environment, **options,
    )  # fmt: skip


def wait_until(process, condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.05)


def begun(folder):
    return any(name.endswith(".part") for name in os.listdir(folder))


signals = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.mark.slow
@signals
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_ended_it_leaves_no_partial_file(noisy, tmp_path, number):
    arguments = [noisy, "-o", tmp_path / "out.wav", "--steps", "100000"]
    with start(*arguments, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(process, lambda: begun(tmp_path))
            process.send_signal(getattr(signal, number))
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 128 + getattr(signal, number)
    assert "Traceback" not in errors
    assert os.listdir(tmp_path) == ["noisy.wav"]


@pytest.mark.slow
@signals
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_keeps_the_best_so_far_and_a_second_one_nothing(noisy, tmp_path, presses):
    target = tmp_path / "out.wav"
    arguments = [noisy, "-o", target, "--steps", "100000"]
    with start(*arguments, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(process, lambda: begun(tmp_path))
            if presses == 2:
                # At once, before the step at work has ended, or one would be enough.
                process.send_signal(signal.SIGSTOP)
                process.send_signal(signal.SIGINT)
                process.send_signal(signal.SIGCONT)
                assert "Ctrl-C again writes nothing" in process.stderr.readline() + (
                    process.stderr.readline()
                )
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert "Traceback" not in errors
    assert process.returncode == 130
    if presses == 1:
        assert "interrupted, written with what was learnt in" in errors
        assert soundfile.info(target).frames == 8000
    else:
        assert os.listdir(tmp_path) in (["noisy.wav"], ["noisy.wav", "out.wav"])


# Pipes, folders, templates, reports


@pytest.mark.slow
def test_pipes(noisy):
    sound = noisy.read_bytes()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start("-", *FAST, **pipes) as process:
        result, errors = process.communicate(sound, timeout=120)
    assert process.returncode == 0, errors
    samples, rate = soundfile.read(io.BytesIO(result))
    assert (len(samples), rate) == (8000, 16000)
    with start("-", *FAST, **pipes) as process:
        result, errors = process.communicate(b"no sound", timeout=120)
    assert process.returncode == 1
    assert result == b""
    assert b"not a sound file that can be read" in errors


@pytest.mark.slow
@signals
def test_a_reader_that_goes_away_is_no_crash(noisy, tmp_path):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with start(noisy, "-o", "-", *FAST, **pipes) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors


def test_a_folder_means_the_recordings_in_it(noisy, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("not sound")
    (tmp_path / ".hidden.wav").write_text("not sound")
    shutil.copy(noisy, tmp_path / "b.wav")
    assert denoise(tmp_path) == 0
    made = {"b-denoised.wav", "noisy-denoised.wav"}
    assert made <= set(os.listdir(tmp_path))
    # Results of an earlier run are not taken for inputs.
    assert denoise(tmp_path, "--skip-existing") == 0
    assert capsys.readouterr().err.count("exists, skipped") == 2
    assert not any("denoised-denoised" in name for name in os.listdir(tmp_path))
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(capsys, 2, "no sound files in this folder", empty)


def test_templates(noisy, tmp_path):
    (tmp_path / "clean").mkdir()
    assert denoise(noisy, EXAMPLE, "-o", str(tmp_path / "clean" / "{stem}-x.flac")) == 0
    assert sorted(os.listdir(tmp_path / "clean")) == ["amiable-x.flac", "noisy-x.flac"]


def test_skipped_files_are_kept_and_the_rest_is_done(noisy, tmp_path):
    other = shutil.copy(noisy, tmp_path / "other.wav")
    done = tmp_path / "noisy-denoised.wav"
    done.write_text("from yesterday")
    assert denoise(noisy, other, "--skip-existing") == 0
    assert done.read_text() == "from yesterday"
    assert soundfile.info(tmp_path / "other-denoised.wav").frames == 8000


def test_noise_and_result_add_up_to_the_input(noisy, tmp_path):
    outputs = ["-o", tmp_path / "clean.wav", "--noise-out", tmp_path / "noise.wav"]
    assert denoise(noisy, *outputs) == 0
    clean, noise, whole = (soundfile.read(path)[0] for path in (outputs[1], outputs[3], noisy))
    assert np.abs(clean + noise - whole).max() <= 1 / 32768 + 1e-9
    assert np.abs(noise).max() > 0.001


def test_a_report_is_a_line_of_json_for_each_recording(noisy, tmp_path, capsys):
    assert denoise(noisy, tmp_path / "none.wav", "--json") == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["output"] == str(tmp_path / "noisy-denoised.wav")
    assert (first["length"], first["sample_rate"], first["channels"]) == (8000, 16000, 1)
    assert (first["steps"], first["ended"], first["clipped"]) == (1, "steps", 0)
    assert "no such file" in second["error"]


def test_hum_can_be_kept(tmp_path):
    time = np.arange(32000) / 16000
    tones = sum(np.sin(2 * np.pi * 50 * k * time + k) / k for k in range(1, 20))
    noise = np.random.default_rng(0).normal(0, 0.001, 32000)
    write(tmp_path / "in.wav", 0.1 * tones + noise)
    loudness = []
    for name, option in (("kept.wav", ["--keep-hum"]), ("gone.wav", [])):
        assert denoise(tmp_path / "in.wav", "-o", tmp_path / name, *option) == 0
        loudness.append(np.square(soundfile.read(tmp_path / name)[0]).mean())
    assert loudness[0] > 30 * loudness[1]


def test_rumble_can_be_kept(tmp_path):
    time = np.arange(32000) / 16000
    sound = np.sin(2 * np.pi * 220 * time) + np.sin(2 * np.pi * 23 * time)
    noise = np.random.default_rng(0).normal(0, 0.01, 32000)
    write(tmp_path / "in.wav", 0.1 * (sound + noise))
    low = []
    for name, option in (("kept.wav", ["--keep-rumble"]), ("gone.wav", [])):
        assert denoise(tmp_path / "in.wav", "-o", tmp_path / name, *option) == 0
        low.append(np.abs(np.fft.rfft(soundfile.read(tmp_path / name)[0])[46]))
    assert low[1] < 0.1 * low[0]


# Files of other kinds


@pytest.fixture
def ffmpeg(tmp_path, monkeypatch):
    """Put a program of that name on the path."""

    def install(script):
        folder = tmp_path / "bin"
        folder.mkdir()
        program = folder / "ffmpeg"
        program.write_text("#!/bin/sh\n" + script)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return install


@signals
def test_what_libsndfile_does_not_know_goes_through_ffmpeg(tmp_path, ffmpeg):
    made = tmp_path / "made.w64"
    write(made, np.random.default_rng(0).normal(0, 0.1, 5000))
    ffmpeg(f'for last; do :; done; cp "{made}" "$last"\n')
    (tmp_path / "memo.m4a").write_text("no sound that libsndfile knows")
    assert denoise(tmp_path / "memo.m4a") == 0
    assert soundfile.info(tmp_path / "memo-denoised.wav").frames == 5000


@signals
def test_what_ffmpeg_said_is_passed_on(tmp_path, ffmpeg, capsys):
    ffmpeg("echo moov atom not found >&2; exit 1\n")
    (tmp_path / "memo.m4a").write_text("nonsense")
    refused(capsys, 1, "nor by ffmpeg (moov atom not found)", tmp_path / "memo.m4a")


def test_a_recording_that_was_cut_off_is_used_with_a_note(noisy, capsys):
    noisy.write_bytes(noisy.read_bytes()[:-4000])
    refused(capsys, 0, "is shorter than its header says", noisy)
    assert soundfile.info(noisy.with_name("noisy-denoised.wav")).frames == 6000


def test_kinds_of_wav_and_opus(tmp_path):
    samples = np.random.default_rng(0).normal(0, 0.1, (5000, 2))
    soundfile.write(tmp_path / "in.wav", samples, 16000, format="WAVEX", subtype="PCM_24")
    assert denoise(tmp_path / "in.wav", "-o", tmp_path / "out.wav") == 0
    made = soundfile.info(tmp_path / "out.wav")
    assert (made.format, made.subtype) == ("WAVEX", "PCM_24")
    if soundfile.check_format("OGG", "OPUS"):
        assert denoise(tmp_path / "in.wav", "-o", tmp_path / "out.opus") == 0
        assert soundfile.info(tmp_path / "out.opus").subtype == "OPUS"


@pytest.mark.slow
def test_it_runs_as_a_module():
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLE.parents[1] / "src")}
    told = subprocess.run(
        [sys.executable, "-m", "harmonic_lowering", "denoise", "--help"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "usage: harmonic-lowering denoise" in told.stdout
