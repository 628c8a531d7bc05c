"""Scores of restored sound."""

import sys

import pytest
import torch

from harmonic_lowering.metrics import pesq, si_sdr, stoi


def test_si_sdr_of_known_noise():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(2, 3, 100_000, generator=generator)
    noise = torch.randn(2, 3, 100_000, generator=generator)
    for decibels in (-5.0, 0.0, 20.0):
        noisy = clean + 10 ** (-decibels / 20) * noise
        assert torch.allclose(si_sdr(clean, noisy), torch.tensor(decibels).double(), atol=0.2)
        assert torch.allclose(si_sdr(clean, -7 * noisy + 3), si_sdr(clean, noisy))


def test_si_sdr_of_itself_is_without_bound():
    clean = torch.randn(1000)
    assert si_sdr(clean, 2 * clean) > 200


def test_si_sdr_where_there_is_nothing_to_compare():
    clean, other = torch.tensor([1.0, -1, 1, -1]), torch.tensor([1.0, 1, -1, -1])
    assert si_sdr(clean, other) == -torch.inf
    for silence in (torch.zeros(4), torch.ones(4)):
        assert si_sdr(clean, silence).isnan()
        assert si_sdr(silence, clean).isnan()


def test_si_sdr_refuses_different_shapes():
    with pytest.raises(ValueError, match=r"same shape, got \(5,\) and \(6,\)"):
        si_sdr(torch.ones(5), torch.ones(6))


@pytest.mark.parametrize(("score", "name"), [(pesq, "pesq"), (stoi, "pystoi")])
def test_a_missing_package_is_named_at_the_call(monkeypatch, score, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"needs {name}: pip install '{name}'"):
        score(torch.ones(5), torch.ones(5), 16000)


def test_pesq_refuses_other_rates(monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", object())
    with pytest.raises(ValueError, match="defined at 16000 Hz, got 22050: resample first"):
        pesq(torch.ones(5), torch.ones(5), 22050)
