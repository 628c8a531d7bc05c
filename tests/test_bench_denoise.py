"""The bench of denoisers, at its smallest: it measures, resumes, and makes its page."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def bench(tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.denoise", "--cache", tmp_path / "cache",
         "--table", tmp_path / "rows.csv", "--jobs", "1", *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": "src"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_smoke(tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("soundfile")
    arguments = [
        "--sound", ROOT / "examples" / "amiable.wav", "--recordings", "amiable", "--noises",
        "white", "--levels", "10", "--methods", "noisy", "wiener", "prior-fast", "--page",
        tmp_path / "page.md",
    ]  # fmt: skip
    (tmp_path / "images").mkdir()
    told = bench(tmp_path, *arguments)
    assert told.returncode == 0, told.stderr
    with (tmp_path / "rows.csv").open() as file:
        scores = {
            (row["method"], row["noise"]): float(row["si_sdr"]) for row in csv.DictReader(file)
        }
    assert abs(scores["noisy", "white"] - 10) < 0.5
    assert scores["prior-fast", "white"] > 12
    assert scores["prior-fast", "none"] > 20  # a clean recording is left nearly alone
    assert "prior-fast" in (tmp_path / "page.md").read_text()
    assert (tmp_path / "images" / "denoising.png").read_bytes().startswith(b"\x89PNG")
    # Nothing is measured twice.
    again = bench(tmp_path, *arguments)
    assert again.returncode == 0
    assert " left\n" not in again.stderr


def test_unknown_names_are_wrong_usage(tmp_path):
    told = bench(tmp_path, "--methods", "magic")
    assert told.returncode == 2
    assert "there is no 'magic'; choose from noisy" in told.stderr
