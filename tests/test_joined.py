"""The learnt mask and the prior together: which is asked when, and what each gives the other."""

import pickle

import pytest
import torch
from test_denoise import RATE, SMALL, speech, swelling, with_noise

from harmonic_lowering.denoise import Denoiser, denoiser, fit, mask, prior
from harmonic_lowering.denoise.joined import Learnt, RaisedNoise
from harmonic_lowering.denoise.mask import LearntMask, MaskEstimate, WeightsError, shipped_mask
from harmonic_lowering.denoise.mask_fit import fit_mask
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


@pytest.mark.parametrize("quality", ["default", "fast"])
def test_beside_a_sample_of_the_noise_the_mask_is_not_asked(monkeypatch, quality):
    def unread():
        raise AssertionError("read")

    monkeypatch.setattr(prior, "shipped_mask", unread)
    noisy, sample = with_noise(speech(1), 8), 0.02 * torch.randn(RATE)
    steps = []
    Denoiser(quality=quality, time_limit=0.5)(noisy, RATE, steps.append, noise=sample)
    assert steps[-1].ended != "mask"
    with pytest.raises(AssertionError, match="read"):
        Denoiser(quality=quality)(noisy, RATE)


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
    with pytest.warns(UserWarning, match=f"{error}; going on with the prior from a random"):
        result = Denoiser(**SMALL)(noisy, RATE)
    assert torch.equal(result.waveform, Denoiser(**SMALL, start="random")(noisy, RATE).waveform)


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match='start must be "learnt" or "random", got \'zero\''):
        Denoiser(start="zero")


# What the mask tells the prior -----------------------------------------------------------------


def learnt(noise, sound):
    """What a mask says that knows the noise (F, T)."""
    return Learnt(
        shipped_mask(),
        sound,
        RATE,
        LearntMask.transform(RATE)(sound),
        MaskEstimate(torch.ones_like(noise), noise, torch.zeros(noise.shape[1])),
    )


def test_noise_on_which_both_agree_stays():
    sound = torch.randn(2, 3 * RATE, generator=torch.Generator().manual_seed(0))
    models = [NoiseModel.of(channel, RATE) for channel in sound]
    transform = LearntMask.transform(RATE)
    frames = transform.frames(sound.shape[1])
    own = torch.stack([model.power(transform, frames) for model in models])
    joined = learnt(own.mean(0), sound).joined(models)
    assert joined.share.min() > 0.9
    for before, model in zip(own, joined.raised, strict=True):
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
    (raised,) = learnt(known, sound).joined([model]).raised
    other = transform.for_rate(RATE, window_s)
    count = other.frames(sound.shape[1])
    by_db = 10 * (raised.power(other, count) / model.power(other, count)).log10()
    bins = other.bins
    assert by_db[bins * 5 // 10 :, count * 6 // 10 :].sub(20).abs().max() < 0.5
    assert by_db[:, : count * 4 // 10].abs().max() < 0.5
    assert by_db[: bins * 3 // 10].abs().max() < 0.5


def saw(hertz, seconds):
    time = torch.arange(round(seconds * RATE)) / RATE
    partials = torch.arange(1, int(0.45 * RATE / hertz))[:, None]
    return (torch.sin(2 * torch.pi * partials * hertz * time) / partials).sum(0)


def test_what_fills_the_masks_window_is_no_noise():
    quiet = 0.01 * torch.randn(1, 4 * RATE, generator=torch.Generator().manual_seed(0))
    transform = LearntMask.transform(RATE)
    frames = transform.frames(4 * RATE)
    model = NoiseModel.of(quiet[0], RATE)
    known = model.power(transform, frames).clone()
    known[:200] *= 100  # takes the note for noise
    joined = learnt(known, quiet + saw(41.2, 4)).joined([model])
    assert joined.share[20:190].mean() < 0.05
    assert joined.share[210:].mean() > 0.9
    by_db = (
        10 * (joined.raised[0].power(transform, frames) / model.power(transform, frames)).log10()
    )
    assert by_db[20:180].abs().mean() < 0.5


def test_noise_with_holes_is_noise():
    """As codecs leave it: the prior takes what is left in the holes for all there is."""
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4 * RATE, generator=random)
    transform = LearntMask.transform(RATE)
    spectrum = transform(noise)
    holes = torch.rand(spectrum.shape, generator=random) < 0.5
    coded = transform.inverse(spectrum.masked_fill(holes, 0), noise.shape[1])
    model = NoiseModel.of(0.01 * noise[0], RATE)
    true = spectrum.abs().square().mean(2)[0, :, None].expand(-1, spectrum.shape[2])
    joined = learnt(true / 2, coded).joined([model])
    assert joined.share[20:500].mean() > 0.9


def test_where_the_mask_misses_noise_the_prior_decides():
    sound = torch.randn(1, 4 * RATE, generator=torch.Generator().manual_seed(0))
    model = NoiseModel.of(sound[0], RATE)
    transform = LearntMask.transform(RATE)
    frames = transform.frames(sound.shape[1])
    own = model.power(transform, frames)
    known = own.clone()
    known[:, frames // 2 :] /= 100  # as a mask that a gate has misled
    joined = learnt(known, sound).joined([model])
    assert joined.share[:, frames // 2 + 4 :].max() < 0.01
    assert joined.share[:, : frames // 2 - 4].min() > 0.9
    by_db = 10 * (joined.raised[0].power(transform, frames) / own).log10()
    assert by_db.abs().max() < 1.5


def test_a_silent_channel_has_no_noise():
    sound = torch.randn(2, RATE) * torch.tensor([[1.0], [0.0]])
    noise = torch.ones(513, LearntMask.transform(RATE).frames(RATE))
    raised = learnt(noise, sound).joined([NoiseModel.of(sound[0], RATE), None]).raised
    assert isinstance(raised[0], RaisedNoise)
    assert raised[1] is None
    joined = learnt(noise, sound).joined([None, None])
    assert joined.raised == [None, None]
    assert joined.fitted(steps=1, seed=0, time_limit=None) is joined


# Fitted to the recording -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_mask_that_is_fitted_removes_more():
    gains, clean = [], speech(3)
    for seed in range(2):
        noisy = with_noise(clean, 5, seed)
        own = Learnt.of(shipped_mask(), noisy[None], RATE)
        joined = own.joined([NoiseModel.of(noisy, RATE)])
        fitted = joined.fitted(steps=8, seed=seed, time_limit=None).learnt
        assert torch.equal(fitted.estimate.noise, own.estimate.noise)
        gains.append(si_sdr(clean, fitted.alone().clean[0]) - si_sdr(clean, own.alone().clean[0]))
    assert sum(gains) > 0.2


def fitted_briefly(seed=0, time_limit=None):
    sound = with_noise(speech(1), 5)[None]
    noise = torch.full((1, 513, LearntMask.transform(RATE).frames(RATE)), 0.01)
    return fit_mask(
        shipped_mask(), sound, RATE, noise, torch.zeros(noise.shape[1:]),
        steps=2, seed=seed, time_limit=time_limit,
    )  # fmt: skip


def test_a_fit_changes_no_other_mask_and_ends_in_time():
    before = {name: value.clone() for name, value in shipped_mask().network.state_dict().items()}
    for limit in (None, 1e-9):
        changed = fitted_briefly(time_limit=limit).network.state_dict()
        assert any(not torch.equal(value, changed[name]) for name, value in before.items())
    for name, value in shipped_mask().network.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_fit_is_the_same_again():
    power = torch.rand(513, 20)
    gains = [fitted_briefly(seed).estimate(power).gain for seed in (0, 0, 1)]
    assert torch.equal(gains[0], gains[1])
    assert not torch.equal(gains[0], gains[2])


# The start of the prior ------------------------------------------------------------------------


def test_a_learnt_start_is_for_the_network_that_it_was_learnt_with():
    assert fit.shipped_start(fit.WIDTHS, "harmonic") is not None
    assert fit.shipped_start(fit.WIDTHS, "plain") is None
    assert fit.shipped_start((4, 4), "harmonic") is None


@pytest.mark.slow
def test_a_learnt_start_is_ahead_after_few_steps():
    clean = speech(3)
    noisy = with_noise(clean, 5)
    sample = noisy - clean
    learnt_start, random_start = (
        si_sdr(clean, Denoiser(steps=10, start=start)(noisy, RATE, noise=sample).waveform)
        for start in ("learnt", "random")
    )
    assert learnt_start > random_start + 0.5


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
    settings = PriorEstimator().settings("fast", "learnt")
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert shipped_mask() is shipped_mask()
