"""The benchmark for cards, without one: its order, its rows, its page and its report."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from benchmarks.common.tables import read_rows
from benchmarks.gpu import denoise, run, tune
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.run import BOTH, COLUMNS, Options, cells
from benchmarks.layers.rows import read_csv
from benchmarks.layers.settings import SETTINGS, toy
from harmonic_lowering.engines.triton import cards, core, plan

pytestmark = pytest.mark.filterwarnings("ignore::harmonic_lowering.DeadTapWarning")


def test_the_most_useful_comes_first_and_all_comes():
    todo = cells(Options())
    first = todo[:16]
    assert {cell.setting.name for cell in first} == {"1", "3", "3a", "9"}
    assert {cell.precision for cell in first} == {"bfloat16", "tf32"}
    assert all({"conv2d", "triton", "auto", "stacking"} <= set(cell.columns) for cell in first)
    eager = {
        (c.setting.name, c.precision, c.memory_format, c.direction, column)
        for c in todo
        for column in c.columns
        if c.mode == "eager"
    }
    for name in SETTINGS:
        for kind in ("bfloat16", "tf32", "float32"):
            for form in ("contiguous", "channels_last"):
                for direction in ("forward", BOTH):
                    for column in ("conv2d", "triton", "auto", "stacking", "log"):
                        assert (name, kind, form, direction, column) in eager
    assert {column for *_, column in eager} == set(COLUMNS)
    assert {c.setting.name for c in todo if c.mode == "graph"} == set(SETTINGS)


@pytest.mark.slow
@pytest.mark.skipif(bool(cards._triton_is_missing()), reason="triton is not installed here")
@pytest.mark.skipif(not cards.is_interpreted(), reason="a card is here")
def test_tiles_are_tried_and_put_back(tmp_path, capsys):
    table = plan.tiles, plan.grad_tiles, core._is_worth_a_copy
    output = tmp_path / "tiles.csv"
    assert tune.main(["--toy", "-o", str(output)]) == 0
    rows = read_rows(output, tune.Row)
    assert [row.which for row in rows] == list(tune.PASSES)
    assert all(row.us > 0 and row.conv2d_us > 0 and "toy" in row.device for row in rows)
    assert "3 of 3 measured" in capsys.readouterr().out
    assert (plan.tiles, plan.grad_tiles, core._is_worth_a_copy) == table


def test_every_kernel_has_tiles_that_fit_registers():
    for trial in tune.trials():
        kind = plan.GradTiles if trial.which == "weight gradient" else plan.Tiles
        tiles = kind(*trial.tiles)
        assert tiles.channels * getattr(tiles, "phases", 1) <= 64
    assert {trial.place[0] for trial in tune.trials()} == set(tune.CHOSEN)


@pytest.mark.slow
def test_a_run_writes_its_table_page_and_report(tmp_path, capsys, monkeypatch):
    """On the CPU, at toy sizes: nothing of it says how fast a card is."""
    measured = cards.MEASURED_CAPABILITIES
    tiny = {"batch": 1, "bins": 5, "frames": 4}  # the interpreter takes milliseconds for a row
    monkeypatch.setattr(run, "toy", lambda setting: replace(toy(setting), **tiny))
    kept = run.cells(Options(device="cpu", toy=True))
    chosen = [c for c in kept if c.setting.name == "9" and c.precision == "tf32"][:2]
    chosen += [c for c in kept if c.columns == ("conv2d", "deform_conv2d")][:1]
    monkeypatch.setattr(run, "cells", lambda options: chosen)
    output = tmp_path / "made" / "gpu.csv"
    status = main(["--toy", "--device", "cpu", "-o", str(output)])
    rows = read_csv(output)
    assert [r.column for r in rows] == [column for cell in chosen for column in cell.columns]
    runs_here = not cards.unsupported_reason(torch.ones(1))
    assert status == (0 if runs_here else 1)
    for row in rows:
        ours = row.column in ("triton", "log")
        if row.column != "deform_conv2d" and (runs_here or not ours):
            assert row.median_ms > 0
            assert row.ratio > 0
            assert row.error is None or row.error < 1e-5
        elif ours:
            assert "cannot run" in row.note
    assert measured == cards.MEASURED_CAPABILITIES
    printed = capsys.readouterr().out
    assert "paste all of this" in printed
    assert rows[0].machine in printed
    page = output.with_suffix(".md").read_text(encoding="utf-8")
    assert "Time ÷ `Conv2d`'s" in page
    assert "nothing here says how fast" in page
    assert "nothing here says how fast" in printed
    if runs_here:
        assert (output.parent / "images" / "gpu-harmonic.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--toy"], "give it an --output of its own"),
        (["--toy", "--device", "nonsense", "-o", "t.csv"], "'nonsense' cannot be used here"),
        (["--toy", "--device", "cpu", "-o", "/"], "cannot write /"),
        (["--toy", "--device", "cpu", "-o", "/proc/none/t.csv"], "cannot write /proc/none/t.csv"),
        (["--minutes", "0"], "--minutes must be a number > 0"),
        (["--device", "nonsense"], "device 'nonsense' cannot be used here"),
        (["--device", "cpu"], "device 'cpu' is no card"),
        *([] if torch.cuda.is_available() else [([], "device 'cuda' cannot be used here")]),
    ],
)
def test_wrong_usage(arguments, message, capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_interpreted_kernels_are_not_measured(capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


@pytest.mark.slow
def test_a_recording_is_denoised_on_a_device_and_scored_elsewhere(tmp_path, capsys):
    sound, folder = tmp_path / "sound.wav", tmp_path / "new" / "folder"
    tone = np.sin(np.arange(4000) * 0.2)
    soundfile.write(sound, tone / 2, 4000)
    steps = ["--device", "cpu", "--steps", "1", "--dap-steps", "1"]
    arguments = [str(sound), "-o", str(folder), *steps]
    assert denoise.main([*arguments, "--no-scores"]) == 0
    unscored = read_rows(folder / "gpu-denoising.csv", denoise.Row)
    names = ["noisy", "fast", "default", "prior", "dap, 1 steps"]
    assert [row.method for row in unscored] == names
    assert all(np.isnan(row.si_sdr) for row in unscored)
    assert denoise.main([*arguments, "--score-only"]) == 0
    rows = read_rows(folder / "gpu-denoising.csv", denoise.Row)
    assert rows[0].si_sdr == pytest.approx(10, abs=0.5)
    assert [row.seconds for row in rows] == [row.seconds for row in unscored]
    assert all(np.isfinite(row.si_sdr) for row in rows)
    assert (folder / "gpu-denoising.png").stat().st_size > 1000
    assert "default" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["none.wav"], ["none.wav", "--score-only"]])
def test_without_a_recording(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        denoise.main(arguments)
    assert "none.wav" in capsys.readouterr().err
