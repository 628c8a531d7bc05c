"""`harmonic-lowering info`: the real command, and what it says held against what happens."""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import harmonic_lowering
from harmonic_lowering.cli import main

ROOT = Path(__file__).parents[1]
TRY_ENGINES = """
import json, torch
from harmonic_lowering import HarmonicConv2d
from harmonic_lowering.engines import ENGINES

errors = {}
for engine in ENGINES:
    try:
        HarmonicConv2d(1, 1, 3, padding=1, engine=engine)(torch.ones(1, 1, 8, 8))
    except RuntimeError as error:
        errors[engine] = str(error)
print(json.dumps({"engines": list(ENGINES), "errors": errors}))
"""


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def info(*arguments, **environment):
    done = python("-m", "harmonic_lowering", "info", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def here():
    return json.loads(info("--json", "--no-time"))


@pytest.mark.parametrize("user", ["this one", "one who has built nothing"])
@pytest.mark.slow
def test_engines_run_or_refuse_as_it_says(user, here, tmp_path):
    home = {} if user == "this one" else {"HOME": str(tmp_path), "XDG_CACHE_HOME": ""}
    found = json.loads(info("--json", "--no-time", **home)) if home else here
    seen = json.loads(python("-c", TRY_ENGINES, **home).stdout)
    assert list(found["engines"]) == seen["engines"]
    reasons = {name: reason for name, reason in found["engines"].items() if reason}
    assert set(reasons) == set(seen["errors"])
    for name, reason in reasons.items():
        # the report abbreviates paths; what follows the last one is the same
        assert reason.rpartition("/")[2] in seen["errors"][name]
    assert (found["native_core"]["path"] is None) == ("native" in reasons)


def test_what_it_says_of_this_machine_is_so(here):
    assert here["harmonic_lowering"] == harmonic_lowering.__version__
    assert here["torch"] == torch.__version__
    assert here["processor"]["torch_instruction_set"] == torch.backends.cpu.get_cpu_capability()
    assert bool(here["accelerators"]) == torch.accelerator.is_available()
    assert here["packages"]["numpy"] == importlib.metadata.version("numpy")
    assert "timings" not in here


@pytest.mark.slow
def test_neither_the_home_nor_the_name_of_the_user_is_in_it(tmp_path):
    compiler = tmp_path / "tools" / getpass.getuser() / "c++"
    text = info("--json", "--no-time", HOME=str(tmp_path), CXX=str(compiler))
    assert str(tmp_path) not in text
    assert json.loads(text)["environment"]["CXX"] == os.path.join("~", "tools", "USER", "c++")


@pytest.mark.slow
def test_a_broken_package_is_said_to_be_broken(tmp_path):
    (tmp_path / "soundfile.py").write_text("raise OSError('libsndfile is damaged')")
    path = os.pathsep.join((str(tmp_path), str(ROOT / "src")))
    found = json.loads(info("--json", "--no-time", PYTHONPATH=path))
    assert "cannot be imported: libsndfile is damaged" in found["packages"]["soundfile"]


@pytest.mark.slow
def test_programs_that_are_missing_are_said_to_be_missing(tmp_path):
    text = info("--no-time", PATH=str(tmp_path), CXX="no-such-compiler")
    assert [line.split()[1] for line in text.splitlines() if "ffmpeg" in line] == ["missing"]
    assert [line.split()[1] for line in text.splitlines() if "c++ " in line] == ["missing"]


@pytest.mark.slow
def test_the_table_has_a_row_for_every_layer_in_text_and_json(capsys):
    rows = json.loads(info("--json"))["timings"]
    assert [(row["kernel"], row["anchor"]) for row in rows] == [(3, 1), (3, 3), (5, 1), (7, 1)]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["layer_ms"] / row["conv2d_ms"])
        assert row["engine"] in ("native", "blocked", "lowering")
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.partition("kernel  anchor")[2].splitlines()
    shown = [line for line in lines if " x " in line]
    assert [line.split()[:4] for line in shown] == [
        [str(row["kernel"]), "x", str(row["kernel"]), str(row["anchor"])] for row in rows
    ]


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"harmonic-lowering {harmonic_lowering.__version__}\n"


def test_bench_says_where_it_went(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--quick"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "make bench" in said
    assert "harmonic-lowering info" in said
