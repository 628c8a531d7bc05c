"""The command: real files in and out, one clear sentence for bad input, nothing half-written."""

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from harmonic_lowering.audio import AudioReader, replacing
from harmonic_lowering.cli import main
from harmonic_lowering.denoise import Denoiser
from harmonic_lowering.denoise.estimator import Estimate
from harmonic_lowering.denoise.prior import PriorEstimator
from harmonic_lowering.denoise.segment import Segment

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
    offset = sound.mean()  # taken off before and put back
    expected = Denoiser(steps=1, seed=3, atten_lim=12)(sound - offset, 16000).waveform + offset
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
    assert "1 denoised, 1 of 2 recordings failed, in " in errors.splitlines()[-1]
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
    write(tmp_path / "in.wav", np.tile([0.5, -0.5], 2500), "PCM_16")
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
        (["-o", "{what}.wav"], "a template may use {stem}, {suffix}, {name}, {folder}, {ext}"),
        (["-o", "{stem.foo}.wav"], "a template may use {stem}"),
        (["-o", "{stem:>99999999}.wav"], "a template may use {stem}"),
        (["-o", "{stem!r}.wav"], "a template may use {stem}"),
        (["-o", "{stem.wav"], "a template may use {stem}"),
        (["-o", "{stem}" + "x" * 250 + ".wav"], "is longer than 255 bytes"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--channels", "both"], "invalid choice: 'both'"),
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


def start(*arguments, env=None, **options):
    """Run the command in a process of its own; one step takes long enough to be interrupted."""
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLE.parents[1] / "src"), **(env or {})}
    # What runs in the background of a shell, or under nohup, ignores signals, and so would its
    # children.
    program = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "signal.signal(signal.SIGHUP, getattr(signal, os.environ.get('HANGUP', 'SIG_DFL'))); "
        "from harmonic_lowering.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, "denoise", *map(str, arguments)],
        env=environment, **options,
    )  # fmt: skip


def wait_until(process, condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
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
def test_under_nohup_it_goes_on(noisy, tmp_path):
    with start(noisy, "--steps", "10", env={"HANGUP": "SIG_IGN"}) as process:
        wait_until(process, lambda: begun(tmp_path))
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=300) == 0
    assert soundfile.info(tmp_path / "noisy-denoised.wav").frames == 8000


@signals
@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.slow
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
        assert sorted(os.listdir(tmp_path)) == ["noisy.wav", "out.partial.wav"]
        assert soundfile.info(tmp_path / "out.partial.wav").frames == 8000
    else:
        assert set(os.listdir(tmp_path)) <= {"noisy.wav", "out.partial.wav"}


def test_an_interrupt_while_torch_is_imported_is_not_lost():
    """Torch imports NumPy from C and drops what is raised there: NumPy has to come first."""
    program = (
        "import sys, harmonic_lowering.cli; names = list(sys.modules); "
        "print(names.index('numpy') < names.index('torch'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLE.parents[1] / "src")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"


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
    with start("-", *FAST, **pipes) as process:
        result, errors = process.communicate(b"", timeout=120)
    assert process.returncode == 1
    assert b"standard input is empty" in errors
    assert tempfile.gettempdir().encode() not in errors


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


@pytest.mark.slow
@signals
def test_a_reader_that_goes_away_is_told_of(noisy, tmp_path):
    other = shutil.copy(noisy, tmp_path / "other.wav")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with start(noisy, other, *FAST, **pipes) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 1
    assert "whoever read standard output has closed it" in errors
    assert "1 not begun" in errors


@pytest.mark.slow
@signals
@pytest.mark.parametrize(
    ("output", "redirection", "message"),
    [
        (["-o", "-"], ">&-", "standard output is closed"),
        ([], "> /dev/full", "standard output cannot be written: No space left on device"),
    ],
)
def test_an_output_that_cannot_be_written(noisy, output, redirection, message):
    words = [sys.executable, "-m", "harmonic_lowering", "denoise", noisy, *output, *FAST]
    line = f"{shlex.join(map(str, words))} {redirection}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_folder_means_the_recordings_in_it(noisy, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("not sound")
    (tmp_path / ".hidden.wav").write_text("not sound")
    shutil.copy(noisy, tmp_path / "b.wav")
    assert denoise(tmp_path) == 0
    made = {"b-denoised.wav", "noisy-denoised.wav"}
    assert made <= set(os.listdir(tmp_path))
    # Results of an earlier run are not taken for inputs.
    assert denoise(tmp_path, "--skip-existing") == 0
    said = capsys.readouterr().err
    assert said.count("exists, skipped") == 2
    assert "2 skipped, in " in said.splitlines()[-1]
    assert not any("denoised-denoised" in name for name in os.listdir(tmp_path))
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(capsys, 2, "no sound files in this folder", empty)


def test_an_empty_folder_does_not_keep_the_rest_from_being_done(noisy, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert denoise(empty, noisy) == 1
    assert (tmp_path / "noisy-denoised.wav").exists()
    said = capsys.readouterr().err
    assert "empty: no sound files in this folder" in said
    assert "1 denoised, 1 of 2 recordings failed" in said


def test_a_link_has_an_output_of_its_own(noisy, tmp_path):
    folder, made = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    made.mkdir()
    shutil.move(noisy, folder / "real.wav")
    (folder / "alias.wav").symlink_to(folder / "real.wav")
    assert denoise(folder, folder / "real.wav", "-o", made) == 0
    assert sorted(os.listdir(made)) == ["alias.wav", "real.wav"]


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
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    second, first = lines  # what is found out before the work comes first
    assert first["output"] == str(tmp_path / "noisy-denoised.wav")
    assert (first["length"], first["sample_rate"], first["channels"]) == (8000, 16000, 1)
    assert (first["steps"], first["ended"], first["clipped"]) == (1, "steps", 0)
    assert (first["status"], first["notes"]) == ("done", [])
    assert (second["status"], second["input"]) == ("failed", str(tmp_path / "none.wav"))
    assert "no such file" in second["error"]


def test_notes_are_in_the_report(noisy, capsys):
    noisy.write_bytes(noisy.read_bytes()[:-4000])
    assert denoise(noisy, "--json") == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert "was cut off or is damaged" in note


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


@pytest.mark.ffmpeg
def test_m4a_in_and_out(noisy, tmp_path):
    memo = tmp_path / "memo.m4a"
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", noisy, "-c:a", "aac", "-b:a", "48k",
         "-metadata", "title=a memo", memo], check=True,
    )  # fmt: skip
    assert denoise(memo) == 0
    with AudioReader(memo) as before, AudioReader(tmp_path / "memo-denoised.m4a") as after:
        assert after.metadata.tags.texts["title"] == ["a memo"]
        assert after.format.subtype == "AAC"
        assert 0 <= after.length - before.length <= 1024
        assert not torch.equal(after.read(0, before.length), before.read())


@pytest.mark.ffmpeg
def test_what_ffmpeg_said_is_passed_on(tmp_path, capsys):
    (tmp_path / "memo.m4a").write_text("nonsense")
    refused(
        capsys, 1, "nor by ffmpeg (Invalid data found when processing input)",
        tmp_path / "memo.m4a",
    )  # fmt: skip


def test_a_recording_that_was_cut_off_is_used_with_a_note(noisy, capsys):
    noisy.write_bytes(noisy.read_bytes()[:-4000])
    refused(capsys, 0, "was cut off or is damaged (its header promises more)", noisy)
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


# Lists


def short(path, rate=8000, channels=1, seconds=0.2):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(
        path, np.random.default_rng(0).normal(0, 0.1, (round(seconds * rate), channels)), rate
    )
    return path


def below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_folders_are_searched_and_mirrored(tmp_path, capsys):
    tapes, clean = tmp_path / "tapes", tmp_path / "tapes" / "clean"
    for name in (
        "a.wav",
        "disc1/B.FLAC",
        "disc1/side2/c.Wave",
        ".git/no.wav",
        "disc1/x.partial.wav",
    ):
        short(tapes / name.replace("Wave", "wav").replace("FLAC", "flac")).rename(tapes / name)
    (tapes / "disc1" / "cover.txt").write_text("no sound")
    clean.mkdir()
    for _ in range(2):  # the second time the results lie in the folder, and are no inputs
        assert denoise(tapes, "-o", clean, "--skip-existing") == 0
        assert below(clean) == ["a.wav", "disc1/B.FLAC", "disc1/side2/c.Wave"]
    assert "3 skipped" in capsys.readouterr().err
    assert denoise(tapes / "disc1", "-o", str(tmp_path / "by" / "{sub}" / "{ext}-{stem}.wav")) == 0
    assert below(tmp_path / "by") == ["FLAC-B.wav", "side2/Wave-c.wav"]


@pytest.mark.ffmpeg
def test_recordings_of_one_name_are_told_apart(tmp_path, capsys):
    talk = short(tmp_path / "talk.wav", 16000)
    for name in ("talk.m4a", "talk.mka"):
        subprocess.run(["ffmpeg", "-v", "error", "-i", talk, tmp_path / name], check=True)
    assert denoise(tmp_path) == 0
    assert {"talk-denoised.wav", "talk-denoised.m4a", "talk.mka-denoised.wav"} < set(
        below(tmp_path)
    )
    inputs = [tmp_path / "talk.wav", tmp_path / "talk.m4a"]
    refused(capsys, 2, "with --output '{folder}/{stem}-{ext}{suffix}'", *inputs,
            "-o", str(tmp_path / "{stem}-x.wav"))  # fmt: skip


def test_a_name_that_begins_with_a_dash_gets_a_hint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short(Path("-take1.wav"))
    monkeypatch.setattr(sys, "argv", ["harmonic-lowering", "denoise", "-take1.wav"])
    refused(capsys, 2, "for the file -take1.wav write -- -take1.wav, or ./-take1.wav", "-take1.wav")
    assert main(["denoise", *FAST, "--", "-take1.wav"]) == 0
    assert below(tmp_path) == ["-take1-denoised.wav", "-take1.wav"]


@signals
@pytest.mark.parametrize(
    "name", [b"\xe9t\xe9.wav", ("音" * 80 + ".wav").encode(), b"x" * 251 + b".wav"]
)
@pytest.mark.slow
def test_names_of_any_bytes_and_length(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    short(tmp_path / "a.wav").rename(path)
    environment = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    with start(tmp_path, *FAST, "--plot", env=environment, stdout=subprocess.PIPE) as process:
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    made = [file for file in os.listdir(tmp_path) if file.endswith("-denoised.wav")]
    assert len(made) == 1
    assert len(os.fsencode(made[0])) <= 255
    if name.startswith(b"\xe9"):
        assert printed == os.fsencode(tmp_path / made[0]) + b"\n"


@pytest.mark.slow
def test_several_at_a_time_give_the_same(tmp_path):
    tapes = tmp_path / "tapes"
    for name in ("a.wav", "b.flac", "c.wav"):
        short(tapes / name)
    (tapes / "bad.wav").write_text("no sound")
    for folder, jobs in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        with start(tapes, "-o", tmp_path / folder, "--jobs", jobs, *FAST,
                   stderr=subprocess.PIPE, text=True) as process:  # fmt: skip
            errors = process.communicate(timeout=300)[1]
        assert process.returncode == 1
        assert "3 denoised, 1 of 4 recordings failed" in errors
        assert below(tmp_path / folder) == ["a.wav", "b.flac", "c.wav"]
    for name in below(tmp_path / "one"):
        assert np.array_equal(
            soundfile.read(tmp_path / "one" / name)[0], soundfile.read(tmp_path / "two" / name)[0]
        )


@signals
@pytest.mark.slow
def test_ctrl_c_reaches_those_who_work(tmp_path):
    for name in ("a.wav", "b.wav", "c.wav"):
        short(tmp_path / name, 16000, seconds=1)
    with start(tmp_path, "--jobs", "2", "--steps", "100000",
               stderr=subprocess.PIPE, text=True) as process:  # fmt: skip
        try:
            wait_until(process, lambda: sum(n.endswith(".part") for n in os.listdir(tmp_path)) == 2)
            process.send_signal(signal.SIGINT)
            errors = process.communicate(timeout=300)[1]
        finally:
            process.kill()
    assert process.returncode == 130
    assert "2 interrupted, 1 not begun" in errors
    assert "Traceback" not in errors
    made = {"a-denoised.partial.wav", "b-denoised.partial.wav"}
    assert set(below(tmp_path)) == {"a.wav", "b.wav", "c.wav"} | made
    # Neither taken for inputs nor for results.
    assert denoise(tmp_path, "--skip-existing") == 0
    assert {f"{n}-denoised.wav" for n in "abc"} < set(below(tmp_path))


@signals
@pytest.mark.slow
def test_a_worker_that_dies_fails_one_recording_only(tmp_path):
    for name in ("a.wav", "b.wav"):
        short(tmp_path / name, 16000, seconds=1)
    with start(tmp_path, "--jobs", "2", "--steps", "3000", "--time-limit", "20",
               stderr=subprocess.PIPE, text=True) as process:  # fmt: skip
        try:
            wait_until(process, lambda: begun(tmp_path))
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            lines = {int(c): Path(f"/proc/{c}/cmdline").read_bytes() for c in children}
            os.kill(next(pid for pid, line in lines.items() if b"spawn_main" in line), 9)
            errors = process.communicate(timeout=300)[1]
        finally:
            process.kill()
    assert process.returncode == 1
    assert "ended (signal SIGKILL, perhaps for lack of memory)" in errors
    assert "1 denoised, 1 of 2 recordings failed" in errors


def test_channels_apart(tmp_path):
    """Each channel as if it were alone; by default one gain serves both."""
    rng = np.random.default_rng(0)
    time = np.arange(16000) / 16000
    left = 0.3 * np.sin(2 * np.pi * 300 * time) + rng.normal(0, 0.01, 16000)
    right = rng.normal(0, 0.05, 16000)
    write(tmp_path / "both.wav", np.stack([left, right], 1))
    write(tmp_path / "left.wav", left)
    for name, more in (("both", ["--channels", "separate"]), ("left", [])):
        assert (
            denoise(tmp_path / f"{name}.wav", "--noise-out", tmp_path / f"{name}-n.wav", *more) == 0
        )
    apart, alone = (soundfile.read(tmp_path / f"{n}-denoised.wav")[0] for n in ("both", "left"))
    assert np.abs(apart[:, 0] - alone).max() < 1e-6
    removed = soundfile.read(tmp_path / "both-n.wav")[0]
    assert np.abs(apart + removed - np.stack([left, right], 1)).max() < 1e-5
    assert denoise(tmp_path / "both.wav", "--force") == 0
    assert np.abs(soundfile.read(tmp_path / "both-denoised.wav")[0][:, 0] - alone).max() > 1e-3


def test_an_offset_costs_nothing_and_comes_back(tmp_path):
    rng = np.random.default_rng(0)
    sound = 0.2 * np.sin(2 * np.pi * 300 * np.arange(16000) / 16000) + rng.normal(0, 0.02, 16000)
    sound -= sound.mean()
    write(tmp_path / "a.wav", sound)
    write(tmp_path / "b.wav", sound + 0.25)
    assert denoise(tmp_path) == 0
    plain, kept = (soundfile.read(tmp_path / f"{n}-denoised.wav")[0] for n in "ab")
    assert np.abs(kept - 0.25 - plain).max() < 1e-3
    assert denoise(tmp_path / "b.wav", "--remove-dc", "--force") == 0
    assert np.abs(soundfile.read(tmp_path / "b-denoised.wav")[0] - plain).max() < 1e-3


# Resuming, and machines that fail


def test_a_result_counts_only_with_all_its_files(noisy, capsys):
    more = ["--noise-out", str(noisy.parent / "noise.wav")]
    assert denoise(noisy) == 0
    refused(capsys, 1, "exists already, but not", noisy, "--skip-existing", *more)
    assert denoise(noisy, "--force", *more) == 0
    refused(capsys, 0, "exists, skipped", noisy, "--skip-existing", *more)


@signals
def test_two_runs_on_one_output_do_not_mix(noisy, tmp_path, capsys):
    target = tmp_path / "out.wav"
    with replacing(target) as part:
        part.write_text("of another run")
        refused(capsys, 1, "out.wav: another run is writing it now", noisy, "-o", target)
    assert target.read_text() == "of another run"


@signals
def test_what_cannot_be_written_is_found_out_before_the_work(noisy, tmp_path, capsys):
    (tmp_path / "link.wav").symlink_to(tmp_path / "nowhere.wav")
    refused(
        capsys, 1, "link.wav: is a symbolic link", noisy, "-o", tmp_path / "link.wav", "--force"
    )
    assert not (tmp_path / "nowhere.wav").exists()


def test_what_does_not_fit_on_the_disk_is_found_out_before_the_work(noisy, capsys, monkeypatch):
    usage = shutil.disk_usage(noisy.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused(capsys, 1, "needs 0.0 MB, and 0.0 MB are free on its disk", noisy)


def test_the_folder_vanishes(noisy, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    original = Segment.clean

    def vanishing(self, *arguments):
        shutil.rmtree(folder)
        return original(self, *arguments)

    monkeypatch.setattr(Segment, "clean", vanishing)
    refused(
        capsys, 1, "out.wav: cannot be written, its folder is gone", noisy, "-o", folder / "out.wav"
    )
    assert below(tmp_path) == ["noisy.wav"]


# Root runs it once, which loads what the other user may not read.
AS_NOBODY = """
import os, sys
from harmonic_lowering.cli import main
assert main(["denoise", sys.argv[1], "-o", sys.argv[1] + ".flac", "-q", "--steps", "1"]) == 0
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(main(sys.argv[2:]))
"""


@signals
@pytest.mark.skipif(sys.platform == "win32" or os.getuid() != 0, reason="only root becomes nobody")
@pytest.mark.slow
def test_another_user_gets_one_sentence_each(tmp_path):
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # pytest's folders are private
        folder = Path(place)
        folder.chmod(0o755)
        for name in ("mine/a.wav", "open/b.wav", "open/secret.wav", "open/sub/c.wav"):
            short(folder / name)
        (folder / "open").chmod(0o777)
        (folder / "open" / "secret.wav").chmod(0o600)
        (folder / "open" / "sub").chmod(0o700)
        before = below(folder)
        loaded = short(tmp_path / "loaded.wav")
        told = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, loaded, "denoise", folder / "mine", folder / "open",
             *FAST],
            env={**os.environ, "PYTHONPATH": str(EXAMPLE.parents[1] / "src"), "HOME": place},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert told.returncode == 1
        assert "a-denoised.wav: may not be written there (Permission denied)" in told.stderr
        assert "secret.wav: may not be read (no permission)" in told.stderr
        assert "sub: may not be read (Permission denied)" in told.stderr
        assert "1 denoised, 3 of 4 recordings failed" in told.stderr
        assert "Traceback" not in told.stderr
        assert below(folder) == sorted([*before, "open/b-denoised.wav"])


@signals
@pytest.mark.slow
def test_killed_at_random_moments_it_leaves_nothing_that_counts(tmp_path):
    """`KILLS=200 make test ARGS="-k random_moments"` kills it as often."""
    rng = np.random.default_rng(0)
    source = short(tmp_path / "in" / "a.flac", 8000)
    original, out = source.read_bytes(), tmp_path / "out"
    out.mkdir()
    arguments = [source, "-o", out, "--skip-existing", "--steps", "20", "-q", "--plot"]
    began = time.monotonic()
    with start(*arguments) as process:
        assert process.wait(timeout=300) == 0
    whole = time.monotonic() - began
    expected = (out / "a.flac").read_bytes()
    for name in ("a.flac", "a.png"):
        (out / name).unlink()
    for _ in range(int(os.environ.get("KILLS", "5"))):
        with start(*arguments, stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(timeout=rng.uniform(0.4, 1.1) * whole)
            except subprocess.TimeoutExpired:
                process.kill()
        left = [name for name in os.listdir(out) if not name.startswith(".harmonic-lowering-")]
        assert set(left) <= {"a.flac", "a.png"}
        assert source.read_bytes() == original
        if "a.flac" in left:
            assert (out / "a.flac").read_bytes() == expected
            (out / "a.flac").unlink()
            (out / "a.png").unlink(missing_ok=True)
    assert denoise(source, "-o", out, "--force") == 0
    assert os.listdir(out) == ["a.flac"]  # and no parts of the killed


@pytest.mark.slow
def test_it_runs_as_a_module():
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLE.parents[1] / "src")}
    told = subprocess.run(
        [sys.executable, "-m", "harmonic_lowering", "denoise", "--help"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "usage: harmonic-lowering denoise" in told.stdout


# A sample of the noise


@pytest.fixture
def with_leader(tmp_path):
    """A tone in noise, after a second of the noise alone; and that noise in a file of its own."""
    rng = np.random.default_rng(0)
    time = np.arange(48000) / 16000
    noise = rng.normal(0, 0.05, 48000)
    write(tmp_path / "in.wav", noise + 0.3 * np.sin(2 * np.pi * 440 * time) * (time > 1))
    write(tmp_path / "noise.wav", noise[:16000])
    return tmp_path / "in.wav"


def test_the_noise_can_be_told(tmp_path, with_leader, capsys):
    assert denoise(with_leader, "--json", "--noise", tmp_path / "noise.wav") == 0
    of_file = json.loads(capsys.readouterr().out)
    of_file_sound = soundfile.read(tmp_path / "in-denoised.wav")[0]
    assert denoise(with_leader, "--json", "--force", "--noise-from", "0-1") == 0
    of_stretch = json.loads(capsys.readouterr().out)
    assert np.allclose(soundfile.read(tmp_path / "in-denoised.wav")[0], of_file_sound, atol=1e-4)
    for report in (of_file, of_stretch):
        assert abs(report["noise"]["noise_dbfs"] - 20 * np.log10(0.05)) < 1
        assert report["noise"]["removed_db"] > 8
    assert main(["denoise", str(with_leader), "--force", "--steps", "2"]) == 0
    assert "in.wav: noise -" in capsys.readouterr().err


def test_the_sample_of_the_noise_is_never_replaced(tmp_path, with_leader, capsys):
    sample = tmp_path / "noise.wav"
    before = sample.read_bytes()
    for more in ("-o", sample), ("--noise-out", sample):
        refused(capsys, 2, "would replace the sample of the noise", with_leader,
                "--noise", sample, "--force", *more)  # fmt: skip
    assert sample.read_bytes() == before


def test_a_sample_that_is_none_is_refused(tmp_path, with_leader, capsys):
    refused(capsys, 1, "--noise-from 2-9 lies outside the recording, which lasts 3 s",
            with_leader, "--noise-from", "2-9")  # fmt: skip
    refused(capsys, 2, "two numbers of seconds, the smaller one first", with_leader,
            "--noise-from", "2-1")  # fmt: skip
    refused(
        capsys, 2, "not allowed with", with_leader, "--noise-from", "0-1", "--noise", with_leader
    )
    refused(capsys, 2, "missing.wav: no such file", with_leader,
            "--noise", tmp_path / "missing.wav")  # fmt: skip
    text = tmp_path / "text.wav"
    text.write_text("no sound")
    refused(capsys, 2, "text.wav", with_leader, "--noise", text)
    write(tmp_path / "two.wav", np.zeros((16000, 2)))
    refused(capsys, 1, "one channel or as many as the recording, got 2 for 1", with_leader,
            "--noise", tmp_path / "two.wav")  # fmt: skip
    write(tmp_path / "silent.wav", np.zeros(16000))
    refused(capsys, 1, "silent", with_leader, "--noise", tmp_path / "silent.wav")
