"""The learnt mask and the prior together: which is asked when, and what each gives the other."""

import pickle

import pytest
import torch
from test_denoise import RATE, SMALL, speech, swelling, with_noise

from harmonic_lowering.denoise import Denoiser, denoiser, mask
from harmonic_lowering.denoise.joined import Learnt, RaisedNoise
from harmonic_lowering.denoise.mask import LearntMask, MaskEstimate, WeightsError, shipped_mask
from harmonic_lowering.denoise.noise_model import NoiseModel
from harmonic_lowering.denoise.prior import PriorEstimator
from harmonic_lowering.metrics import si_sdr

PLAIN = {"hum": False, "rumble": False}


def test_fast_is_the_mask_alone():
    noisy = with_noise(speech(2), 8)
    steps = []
    result = Denoiser(quality="fast", **PLAIN)(noisy, RATE, steps.append)
    assert torch.allclose(result.waveform, LearntMask.load().apply(noisy, RATE), atol=1e-5)
    assert [(step.step, step.steps, step.ended) for step in steps] == [(1, 1, "mask")]


def test_steps_ask_for_the_prior():
    told = []
    Denoiser(quality="fast", steps=2, widths=(4, 4))(with_noise(speech(1), 8), RATE, told.append)
    assert len(told) == 2


def test_a_random_start_never_reads_the_weights(monkeypatch):
    def unread():
        raise AssertionError("read")

    for module in (denoiser, mask):
        monkeypatch.setattr(module, "shipped_mask", unread)
    noisy = with_noise(speech(1), 8)
    Denoiser(**SMALL, start="random")(noisy, RATE)
    with pytest.raises(AssertionError, match="read"):
        Denoiser(**SMALL)(noisy, RATE)


@pytest.mark.parametrize(
    "settings", [{}, {"quality": "fast", "steps": None}], ids=["default", "fast"]
)
def test_a_sample_of_the_noise_leaves_the_prior_alone(settings):
    noisy, sample = with_noise(speech(1), 8), 0.02 * torch.randn(RATE)
    told = [
        Denoiser(**{**SMALL, "steps": 2, **settings}, start=start)(noisy, RATE, noise=sample)
        for start in ("learnt", "random")
    ]
    assert torch.equal(told[0].waveform, told[1].waveform)


def test_a_recording_of_less_than_a_window_is_left_to_the_prior():
    noisy = torch.randn(900)
    short = {**SMALL, "window_s": 0.01, "overlap_s": 0.02, "segment_s": 0.1}
    results = [Denoiser(**short, start=start)(noisy, RATE) for start in ("learnt", "random")]
    assert torch.equal(results[0].waveform, results[1].waveform)


@pytest.mark.parametrize("error", [WeightsError("damaged"), ImportError("pip install x")])
def test_without_weights_it_says_so_and_goes_on(monkeypatch, error):
    def missing():
        raise error

    monkeypatch.setattr(denoiser, "shipped_mask", missing)
    noisy = with_noise(speech(1), 8)
    with pytest.warns(UserWarning, match=f"{error}; going on without it, with the prior"):
        result = Denoiser(**SMALL)(noisy, RATE)
    assert torch.equal(result.waveform, Denoiser(**SMALL, start="random")(noisy, RATE).waveform)


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match='start must be "learnt" or "random", got \'zero\''):
        Denoiser(start="zero")


# What the mask tells the prior -----------------------------------------------------------------


def learnt(noise, sound):
    """What a mask says that knows the noise (F, T)."""
    transform = LearntMask.transform(RATE)
    spectrum = transform(sound)
    return Learnt(
        transform,
        spectrum,
        MaskEstimate(torch.ones_like(noise), noise, torch.zeros(noise.shape[1])),
    )


def test_noise_on_which_both_agree_stays():
    sound = torch.randn(2, 3 * RATE, generator=torch.Generator().manual_seed(0))
    models = [NoiseModel.of(channel, RATE) for channel in sound]
    transform = LearntMask.transform(RATE)
    frames = transform.frames(sound.shape[1])
    own = torch.stack([model.power(transform, frames) for model in models])
    raised, trust = learnt(own.mean(0), sound).raise_noise(models)
    assert trust.min() > 0.95
    for before, model in zip(own, raised, strict=True):
        change_db = 10 * (model.power(transform, frames) / before).log10()
        assert change_db.abs().max() < 0.01


@pytest.mark.parametrize("window_s", [0.032, 0.064, 0.128])
def test_noise_that_the_prior_misses_is_raised_in_any_window(window_s):
    sound = torch.randn(1, 4 * RATE, generator=torch.Generator().manual_seed(0))
    (model,) = [NoiseModel.of(sound[0], RATE)]
    transform = LearntMask.transform(RATE)
    frames = transform.frames(sound.shape[1])
    known = model.power(transform, frames).clone()
    known[200:, frames // 2 :] *= 100  # 20 dB from the middle on, above 3.1 kHz
    (raised,), _ = learnt(known, sound).raise_noise([model])
    other = transform.for_rate(RATE, window_s)
    count = other.frames(sound.shape[1])
    by_db = 10 * (raised.power(other, count) / model.power(other, count)).log10()
    bins = other.bins
    assert by_db[bins * 5 // 10 :, count * 6 // 10 :].sub(20).abs().max() < 0.5
    assert by_db[:, : count * 4 // 10].abs().max() < 0.5
    assert by_db[: bins * 3 // 10].abs().max() < 0.5


def test_what_is_always_missing_is_no_swelling():
    sound = torch.randn(1, 4 * RATE, generator=torch.Generator().manual_seed(0))
    model = NoiseModel.of(sound[0], RATE)
    transform = LearntMask.transform(RATE)
    frames = transform.frames(sound.shape[1])
    own = model.power(transform, frames)
    known = own.clone()
    known[:200] *= 100
    (raised,), trust = learnt(known, sound).raise_noise([model])
    assert trust[:190].max() < 0.01
    assert trust[210:].min() > 0.95
    by_db = 10 * (raised.power(transform, frames) / own).log10()
    assert by_db[:190].abs().max() < 0.5
    assert by_db[210:].abs().max() < 0.5


def test_a_silent_channel_has_no_noise():
    sound = torch.randn(2, RATE) * torch.tensor([[1.0], [0.0]])
    noise = torch.ones(513, LearntMask.transform(RATE).frames(RATE))
    raised, _ = learnt(noise, sound).raise_noise([NoiseModel.of(sound[0], RATE), None])
    assert isinstance(raised[0], RaisedNoise)
    assert raised[1] is None
    assert learnt(noise, sound).raise_noise([None, None])[0] == [None, None]


def test_steadiness():
    transform = LearntMask.transform(RATE)
    sound = torch.randn(1, 4 * RATE)
    level = torch.ones(513, transform.frames(4 * RATE))
    assert learnt(level, sound).steady
    level[:, ::3] *= 10
    assert not learnt(level, sound).steady


@pytest.mark.slow
@pytest.mark.parametrize("quality", ["fast", "default"])
def test_noise_that_swells_is_removed(quality):
    clean = speech(3.3)
    noisy = clean + swelling(len(clean), 0)
    settings = {} if quality == "fast" else {"steps": 40}
    before = si_sdr(clean, noisy)
    alone = si_sdr(clean, Denoiser(steps=40, start="random")(noisy, RATE).waveform)
    joined = si_sdr(clean, Denoiser(quality=quality, **settings)(noisy, RATE).waveform)
    assert joined > before + 2
    assert joined > alone + 1


def test_settings_travel_to_other_processes():
    settings = PriorEstimator().settings("fast")
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert shipped_mask() is shipped_mask()
