"""The benchmark of denoisers at its smallest: it measures, resumes, and makes its page."""

import csv
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": "src"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def bench(tmp_path, *arguments):
    return python(
        "benchmarks.denoise", "--cache", tmp_path / "cache", "--table", tmp_path / "rows.csv",
        "--jobs", "1", *arguments,
    )  # fmt: skip


@pytest.mark.slow
def test_smoke(tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("soundfile")
    arguments = [
        "--sound", ROOT / "examples" / "amiable.wav", "--recordings", "amiable", "--noises",
        "white", "none", "--levels", "10", "inf", "--methods", "noisy", "wiener", "fast", "--page",
        tmp_path / "page.md",
    ]  # fmt: skip
    (tmp_path / "images").mkdir()
    done = bench(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "rows.csv").open() as file:
        scores = {
            (row["method"], row["noise"]): float(row["si_sdr"]) for row in csv.DictReader(file)
        }
    assert abs(scores["noisy", "white"] - 10) < 0.5
    assert scores["fast", "white"] > 12
    assert scores["fast", "none"] > 20  # a clean recording is nearly unchanged
    page = (tmp_path / "page.md").read_text()
    assert "| fast |" in page
    assert (tmp_path / "images" / "denoising.png").read_bytes().startswith(b"\x89PNG")
    # Nothing is measured twice.
    again = bench(tmp_path, *arguments)
    assert again.returncode == 0
    assert " left\n" not in again.stderr
    assert (tmp_path / "page.md").read_text() == page
    # The page alone can be made again, and still says on which machine the rows were measured.
    old = page.replace("measurements at a time", "measurements at a time, once")
    (tmp_path / "page.md").write_text(old)
    assert bench(tmp_path, "--page-only", "--page", tmp_path / "page.md").returncode == 0
    assert (tmp_path / "page.md").read_text() == old


def test_unknown_names_are_wrong_usage(tmp_path):
    done = bench(tmp_path, "--methods", "magic")
    assert done.returncode == 2
    assert "there is no 'magic'; choose from noisy" in done.stderr


def test_the_stored_table_is_written_as_it_was_read(tmp_path):
    pytest.importorskip("soundfile")
    from benchmarks.common.tables import write_rows
    from benchmarks.denoise.__main__ import TABLE
    from benchmarks.denoise.measure import DenoiserRow, read_table

    rows = read_table(TABLE)
    write_rows(tmp_path / "rows.csv", rows.values(), DenoiserRow)
    assert (tmp_path / "rows.csv").read_bytes() == TABLE.read_bytes()
    assert {key.kind for key in rows} == {"speech", "music"}


@pytest.mark.parametrize("file", sorted((ROOT / "research").rglob("[a-z]*.py")))
def test_every_module_of_research_can_be_imported(file):
    pytest.importorskip("scipy")
    pytest.importorskip("soundfile")
    import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))


@pytest.mark.slow
def test_a_table_of_something_else_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    done = bench(tmp_path, "--page-only", "--page", tmp_path / "page.md")
    assert done.returncode == 1
    assert "not a table of this benchmark" in done.stderr
    (tmp_path / "rows.csv").unlink()
    done = bench(tmp_path, "--page-only", "--page", tmp_path / "page.md")
    assert done.returncode == 1
    assert "has no row of the method noisy" in done.stderr


@pytest.mark.slow
def test_settings_of_the_denoiser_are_scored_on_mixtures_of_the_log():
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    pytest.importorskip("soundfile")
    sound = ROOT / "examples" / "amiable.wav"
    done = python(
        "research.sweep", "steps=1,widths=4/4", "steps=30,widths=4/4", "--mixtures",
        "amiable:white:10", "--sound", sound,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[0].strip("| ") for row in rows] == ["steps=1,widths=4/4", "steps=30,widths=4/4"]
    assert 10 < float(rows[0][1]) < float(rows[1][1])
    assert [row[-1].strip("| ") for row in rows] == ["1", "30"]
