"""The transforms: their definition, librosa, gradients, segments, errors."""

import copy
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import harmonic_lowering.constant_q as constant_q
from harmonic_lowering import CQT, VQT, LogHarmonicConv2d

AMIABLE = Path(__file__).parents[1] / "examples" / "amiable.wav"

CASES = [
    {},
    {"gamma": 0},
    {"gamma": 20, "filter_scale": 0.7, "scale": False},
    {"hop_length": 441, "bins_per_octave": 36, "n_bins": 200},
    {"hop_length": 64, "fmin": 261.3, "n_bins": 1, "bins_per_octave": 24},
    {"sr": 8000.0, "hop_length": 5000, "n_bins": 40, "bins_per_octave": 7},
]


def by_definition(sound, transform):
    """Sum the formula in the docstring."""
    radius = math.ceil(max(transform.lengths) / 2)
    padded = np.pad(sound, radius)
    frames = 1 + len(sound) // transform.hop_length
    result = np.zeros((transform.n_bins, frames), dtype=complex)
    for k, (frequency, length) in enumerate(
        zip(transform.frequencies, transform.lengths, strict=True)
    ):
        j = np.arange(-math.ceil(length / 2) + 1, math.ceil(length / 2))
        window = 0.5 + 0.5 * np.cos(2 * np.pi * j / length)
        window *= (2 / math.sqrt(length) if transform.scale else 2) * (length / 2 / window.sum())
        kernel = window * np.exp(-2j * np.pi * frequency * j / transform.sr)
        for t in range(frames):
            result[k, t] = (kernel * padded[radius + t * transform.hop_length + j]).sum()
    return result


@pytest.mark.parametrize("case", CASES)
def test_definition(case):
    transform = VQT(**case)
    sound = np.random.default_rng(0).standard_normal(9001)
    ours = transform(torch.from_numpy(sound)).numpy()
    expected = by_definition(sound, transform)
    assert ours.shape == expected.shape
    # Bins differ in scale: the error is relative to the largest of each.
    largest = np.abs(expected).max(1, keepdims=True)
    assert (np.abs(ours - expected) / largest).max() < 5e-4


# Odd hops: librosa computes all bins at the full rate, so that it rounds window lengths least.
@pytest.mark.parametrize(
    ("case", "exact", "by_default"),
    [
        ({"n_bins": 200, "bins_per_octave": 36, "fmin": 65.4}, 0.001, 0.015),
        ({"n_bins": 84}, 0.006, 0.06),
        ({"gamma": 0, "n_bins": 72}, 0.002, 0.01),
        ({"gamma": 0, "n_bins": 60, "scale": False}, 0.002, 0.01),
        ({"gamma": 10.0, "n_bins": 100, "bins_per_octave": 24, "filter_scale": 0.8}, 0.003, 0.04),
    ],
)
def test_as_librosa(case, exact, by_default):
    librosa = pytest.importorskip("librosa")
    sound, sr = librosa.load(AMIABLE, sr=None, duration=3)
    for hop_length, sparsity, tolerance in ((255, 0, exact), (256, 0.01, by_default)):
        theirs = librosa.vqt(sound, sr=sr, hop_length=hop_length, sparsity=sparsity, **case)
        ours = VQT(sr=sr, hop_length=hop_length, **case)(torch.from_numpy(sound)).numpy()
        assert ours.shape == theirs.shape
        error = np.abs(np.abs(ours) - np.abs(theirs)).max() / np.abs(theirs).max()
        assert error < tolerance
        # Phases, too, where there is something.
        loud = np.abs(theirs) > 0.05 * np.abs(theirs).max()
        assert np.median(np.abs(np.angle(ours[loud] / theirs[loud]))) < 0.05


def test_cqt_is_librosas_and_has_its_defaults():
    librosa = pytest.importorskip("librosa")
    sound = librosa.chirp(fmin=60, fmax=2000, sr=22050, duration=3)
    theirs = np.abs(librosa.cqt(sound, sr=22050))
    ours = CQT()(torch.from_numpy(sound.astype(np.float32))).abs().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 0.02 * theirs.max()
    frequencies = librosa.cqt_frequencies(84, fmin=librosa.note_to_hz("C1"))
    assert np.allclose(CQT().frequencies, frequencies)


def test_a_sinusoid_is_where_and_as_large_as_the_docstring_says():
    transform = CQT(sr=16000, n_bins=180, bins_per_octave=36, fmin=55)
    for k in (30, 101, 150):
        time = torch.arange(32000, dtype=torch.float64) / 16000
        sound = 0.3 * (2 * math.pi * transform.frequencies[k] * time).cos()
        magnitude = transform(sound).abs()[:, 20:-20]
        assert (magnitude.argmax(0) == k).all()
        expected = 0.3 * math.sqrt(transform.lengths[k]) / 2
        assert magnitude[k].sub(expected).abs().max() < 1e-3 * expected


def test_batches_and_precisions():
    transform = VQT(sr=16000, n_bins=60)
    sound = torch.randn(2, 3, 5000, dtype=torch.float64)
    whole = transform(sound)
    assert whole.shape == (2, 3, 60, 10)
    assert whole.dtype == torch.complex128
    assert torch.allclose(whole[1, 2], transform(sound[1, 2]))
    single = transform(sound.float())
    assert single.dtype == torch.complex64
    assert (single - whole).abs().max() < 1e-5 * whole.abs().max()
    assert transform(torch.randn(0, 5000)).shape == (0, 60, 10)


@pytest.mark.parametrize("length", [1, 2, 511, 512, 513])
def test_short_sounds(length):
    sound = torch.randn(length, dtype=torch.float64)
    padded = torch.cat((sound, torch.zeros(4096, dtype=torch.float64)))
    transform = VQT(n_bins=70)
    ours = transform(sound)
    assert ours.shape == (70, 1 + length // 512)
    expected = transform(padded)[:, : ours.shape[1]]
    assert (ours - expected).abs().max() < 2e-4 * expected.abs().max()


def test_segments_of_a_long_recording_join(monkeypatch):
    transform = VQT(sr=16000, n_bins=150, bins_per_octave=24)
    sound = torch.randn(2, 50001, dtype=torch.float64)
    whole = transform(sound)
    monkeypatch.setattr(constant_q, "_MOST_SAMPLES", 12000)
    parts = transform(sound)
    assert parts.shape == whole.shape
    assert (parts - whole).abs().max() < 1e-4 * whole.abs().max()


def test_gradients():
    transform = VQT(sr=2000, hop_length=37, n_bins=20, fmin=100)
    sound = torch.randn(2, 150, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(transform, sound)
    assert torch.autograd.gradgradcheck(transform, sound)


def test_training_after_inference():
    transform = VQT(sr=16000, n_bins=33)
    with torch.inference_mode():
        transform(torch.randn(3000))
    sound = torch.randn(3000, requires_grad=True)
    transform(sound).abs().sum().backward()
    assert sound.grad.abs().max() > 0


def test_tracers_get_it_and_leave_nothing_behind():
    from torch._subclasses.fake_tensor import FakeTensorMode

    sound = torch.randn(2, 3000)
    transform = VQT(sr=16000, n_bins=34)
    with FakeTensorMode():
        assert transform(torch.empty(2, 3000)).shape == (2, 34, 6)
    expected = transform(sound)
    assert expected.isfinite().all()
    compiled = torch.compile(VQT(sr=16000, n_bins=34), backend="eager", fullgraph=True)
    assert torch.equal(compiled(sound), expected)
    assert torch.equal(compiled(sound[:, 700:]), transform(sound[:, 700:]))
    exported = torch.export.export(transform, (sound,)).module()
    assert torch.allclose(exported(sound), expected)
    assert torch.allclose(torch.func.vmap(transform)(sound), expected)
    with torch.autocast("cpu"):
        assert torch.equal(transform(sound), expected)


def test_feeds_the_layer_and_trains_through_it():
    torch.manual_seed(0)
    transform = VQT(sr=16000, n_bins=90)
    layer = LogHarmonicConv2d(1, 4, 3, harmonics=(1 / 2, 1, 2), bins_per_octave=12, padding="same")
    sound = torch.randn(2, 1, 4000, requires_grad=True)
    layer(transform(sound).abs()).square().mean().backward()
    assert sound.grad.isfinite().all()
    assert sound.grad.abs().max() > 0
    silent = torch.zeros(1, 4000, requires_grad=True)
    transform(silent).abs().sum().backward()
    assert silent.grad.isfinite().all()


def test_copies_and_has_no_state():
    transform = VQT(sr=16000, n_bins=50, gamma=3)
    sound = torch.randn(3000)
    for twin in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert torch.equal(twin(sound), transform(sound))
    assert not transform.state_dict()
    assert "gamma=3" in repr(transform)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sr": 0}, "sr must be > 0"),
        ({"hop_length": 0}, "hop_length must be an int >= 1"),
        ({"n_bins": 12.5}, "n_bins must be an int >= 1"),
        ({"gamma": -1}, "gamma must be >= 0, got -1"),
        ({"fmin": float("nan")}, "fmin must be a finite number"),
        ({"filter_scale": 0}, "filter_scale must be > 0"),
        ({"n_bins": 120}, r"highest of 120 bins, at 31609 Hz, .*lower n_bins"),
    ],
)
def test_refuses_nonsense(arguments, message):
    with pytest.raises(ValueError, match=message):
        VQT(**arguments)


def test_refuses_wrong_input():
    transform = VQT()
    with pytest.raises(TypeError, match="float32 or float64"):
        transform(torch.zeros(4000, dtype=torch.int16))
    with pytest.raises(ValueError, match="one sample or more"):
        transform(torch.zeros(3, 0))


@pytest.mark.gpu
def test_on_an_accelerator():
    device = torch.accelerator.current_accelerator()
    transform = VQT(sr=16000, n_bins=150, bins_per_octave=24)
    sound = torch.randn(2, 30000)
    there = transform(sound.to(device)).cpu()
    assert (there - transform(sound)).abs().max() < 1e-5 * there.abs().max()
