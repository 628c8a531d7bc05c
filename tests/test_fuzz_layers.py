"""The layers' fuzz: its first calls in this process, and that it finds what is wrong."""

import sys

import fuzz_layers
import pytest
import torch

from harmonic_lowering import functional
from harmonic_lowering.engines import blocked, lowering

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("start", range(0, 360, 60))
def test_calls_are_right_or_refused(start):
    for seed in range(start, start + 60):
        _, words, wrong = fuzz_layers.run(seed)
        assert wrong is None, f"seed {seed}: {words}\n{wrong}"


@pytest.mark.slow
def test_a_run_counts_its_calls(capsys):
    assert fuzz_layers.Run(first=0, calls=9, jobs=2)() == 0
    assert "9 calls (3 to be refused, 6 to be right), 0 findings" in capsys.readouterr().out


def plain_call(**changes):
    calls = map(fuzz_layers.draw, range(1000))
    given = {
        "mode": "backward",
        "dtype": "float32",
        "autocast": None,
        "engine": "lowering",
        **changes,
    }
    return next(
        c for c in calls if all(getattr(c, k) == v for k, v in given.items()) and c.shape[0]
    )


@pytest.mark.parametrize("off", [1e-3, float("nan")])
def test_one_wrong_element_is_found(monkeypatch, off):
    call, convolve = plain_call(), lowering.convolve

    def wrong(*arguments):
        output = convolve(*arguments)
        return output + torch.zeros_like(output).index_fill_(1, torch.tensor([0]), off)

    assert fuzz_layers.check_call(call) is None
    monkeypatch.setattr(lowering, "convolve", wrong)
    monkeypatch.setattr(functional, "_passed", {})
    assert "output: " in fuzz_layers.check_call(call)


def test_a_wrong_gradient_is_found(monkeypatch):
    call, steps = plain_call(engine="blocked", needs=(True, True, True)), blocked._steps
    monkeypatch.setattr(blocked, "_steps", lambda *tensors: [*steps(*tensors)] * 2)
    assert "weight's gradient: " in fuzz_layers.check_call(call)


@pytest.mark.parametrize(
    ("make", "finding"),
    [
        (lambda: 1, "accepted, result 1"),
        (lambda: torch.ones(2) @ torch.ones(3), "raised"),
        (lambda: int("a"), "not raised by this package"),
        (lambda: fuzz_layers.hl.FrequencyTaps.harmonic(0), None),
    ],
)
def test_what_a_refusal_must_be(make, finding):
    found = fuzz_layers.check_wrong("a call", make)
    assert found == finding if finding is None else found.startswith(finding)


@pytest.mark.slow
def test_a_crash_and_a_call_that_does_not_end_are_findings(tmp_path, monkeypatch, capfd):
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, os, sys, time\n"
        "first, stop, step = map(int, sys.argv[2:])\n"
        "for seed in range(first, stop, step):\n"
        "    os.abort() if seed == 1 else time.sleep(60) if seed == 2 else None\n"
        "    print(json.dumps([seed, 'right', 'a call', None]), flush=True)\n"
    )
    monkeypatch.setattr(fuzz_layers, "__file__", str(worker))
    monkeypatch.setattr(fuzz_layers, "SECONDS_A_CALL", 5)
    assert fuzz_layers.Run(first=0, calls=5, jobs=1)() == 1
    said = capfd.readouterr().out
    assert "the process died (SIGABRT), 1 calls after its start" in said
    assert "the call does not end" in said
    assert "3 calls (3 to be right), 2 findings" in said
    assert f"--seed {1}" in said
    assert sys.executable
