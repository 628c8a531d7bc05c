"""The denoiser: it improves real sound, joins segments without a seam and harms nothing."""

import itertools
import math
import pickle
from pathlib import Path

import pytest
import torch

from harmonic_lowering.denoise import (
    Denoiser,
    Progress,
    SpectrogramUNet,
    Summary,
    fit,
    prior,
)
from harmonic_lowering.denoise.hum import subtract_hum
from harmonic_lowering.denoise.likelihood import (
    SNR_DB,
    log_likelihood,
    posterior_gain,
    shrinkage_risk,
)
from harmonic_lowering.denoise.noise_estimate import estimate_noise, truncated_mean
from harmonic_lowering.denoise.noise_model import NoiseModel
from harmonic_lowering.denoise.noise_recording import RecordingNoise
from harmonic_lowering.denoise.noise_sample import NoiseSample
from harmonic_lowering.denoise.rows import Rows
from harmonic_lowering.denoise.rumble import cut_rumble
from harmonic_lowering.denoise.segment import Cleaned, segment_bounds
from harmonic_lowering.metrics import si_sdr
from harmonic_lowering.modules import HarmonicConv2d
from harmonic_lowering.spectral import Stft

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {"steps": 2, "widths": (4, 4)}
RATE = 16000


def speech(seconds):
    soundfile = pytest.importorskip("soundfile")
    samples, rate = soundfile.read(EXAMPLES / "amiable.wav", dtype="float32")
    assert rate == RATE
    return torch.from_numpy(samples)[: round(seconds * rate)]


def with_noise(clean, snr_db, seed=0):
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    return clean + noise * clean.norm() / noise.norm() * 10 ** (-snr_db / 20)


# Noise level


@pytest.mark.parametrize("tilt", [0.0, 1.0], ids=["white", "pink"])
def test_noise_estimate_is_unbiased_on_noise(tilt):
    generator = torch.Generator().manual_seed(1)
    level = torch.arange(1, 514, dtype=torch.float64) ** -tilt
    power = level[:, None] * torch.empty(513, 200).double().exponential_(generator=generator)
    error_db = 10 * (estimate_noise(power) / level).log10()
    assert abs(error_db[8:].mean()) < 0.2
    assert error_db[8:].std() < 0.6


def test_noise_estimate_looks_through_a_signal_that_never_pauses():
    generator = torch.Generator().manual_seed(2)
    power = torch.empty(513, 200).double().exponential_(generator=generator)
    power[::3] += 50  # every third bin holds a loud steady tone
    power[:, ::2] += 50  # every second frame a click
    error_db = 10 * estimate_noise(power).log10()
    quantile_db = 10 * (torch.quantile(power, 0.1, dim=1) / 0.10536).log10()
    assert abs(error_db.mean()) < 1
    assert quantile_db.mean() > 5  # what a plain low quantile says


def test_noise_estimate_follows_a_slope_at_the_bottom():
    generator = torch.Generator().manual_seed(5)
    level = torch.arange(1, 514, dtype=torch.float64) ** -1.0
    power = level[:, None] * torch.empty(513, 200).double().exponential_(generator=generator)
    error_db = 10 * (estimate_noise(power) / level).log10()
    assert error_db[:8].abs().max() < 2  # half of pink noise lies there


@pytest.mark.parametrize("hertz", [80, 110, 220])
def test_noise_estimate_leaves_a_drone_alone(hertz):
    time = torch.arange(4 * RATE).double() / RATE
    tone = sum(torch.sin(2 * math.pi * k * hertz * time) / k for k in (1, 2, 3))
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(6)).double()
    transform = Stft.for_rate(RATE)
    found, alone = (estimate_noise(transform(x).abs().square()) for x in (tone + noise / 10, noise))
    bin_ = round(hertz * transform.n_fft / RATE)
    assert float(10 * (100 * found / alone)[bin_].log10()) < 13  # the tone has 42


def test_noise_estimate_survives_digital_silence_and_scales():
    generator = torch.Generator().manual_seed(3)
    power = torch.empty(257, 90).double().exponential_(generator=generator)
    gaps = torch.cat([power, torch.zeros(257, 200).double()], 1)
    assert torch.allclose(estimate_noise(gaps), estimate_noise(power))
    assert torch.allclose(estimate_noise(power * 1e-9), 1e-9 * estimate_noise(power))


def test_rounding_does_not_decide_what_noise_is_found():
    generator = torch.Generator().manual_seed(4)
    power = torch.empty(4000, 96).exponential_(generator=generator)
    loud = torch.rand(power.shape, generator=generator) < 0.6  # in most places there is a signal
    power[loud] *= 30
    rounded = power * (1 + 1e-7 * torch.randn(power.shape, generator=generator))
    assert float((truncated_mean(rounded) / truncated_mean(power) - 1).abs().max()) < 1e-3


# Noise that changes


def quiet_stretch(kind, clean, noise):
    """Return clean sound and noise of a recording with a stretch that is much quieter."""
    length = len(clean)
    seconds = torch.arange(length) / RATE
    if kind == "leader":  # half a second of rounding errors
        generator = torch.Generator().manual_seed(8)
        dither = torch.randint(-1, 2, (RATE // 2,), generator=generator) / 32768
        return torch.cat([torch.zeros(RATE // 2), clean]), torch.cat([dither, noise])
    if kind == "gate":
        gain = (seconds % 0.8 < 0.5) * 0.99 + 0.01
    elif kind == "fade":
        gain = 10 ** (-3 * (seconds - length / RATE + 1).clamp_min(0))
    elif kind == "step":
        gain = torch.where(seconds < 1.3, 1.0, 0.25)
    return clean * gain, noise * gain


def level_error_db(model, noise):
    """Return the error of the estimated level of white noise at each frame, and the true level."""
    transform = Stft.for_rate(RATE)
    power = transform(noise).abs().square().mean(0)
    found = model.power(transform, len(power)).median(0).values
    return 10 * (found / power).log10(), 10 * (power / power.max()).log10()


@pytest.mark.parametrize("kind", ["leader", "gate", "fade", "step"])
def test_a_quiet_stretch_does_not_mislead_the_noise_estimate(kind):
    clean = speech(3.2)
    noise = with_noise(clean, 10) - clean
    clean, noise = quiet_stretch(kind, clean, noise)
    error_db, true_db = level_error_db(NoiseModel.of(clean + noise, RATE), noise)
    assert abs(error_db[true_db > -3].median()) < 1
    assert float(error_db[true_db > -3].quantile(0.1)) > -3
    # Nor is the quiet stretch taken for noise: its own level is found, or that of its edges.
    assert error_db[true_db < -9].median() < 3


@pytest.mark.parametrize("seed", range(8))
def test_a_step_is_found_in_each_draw_of_the_noise(seed):
    clean = speech(3.2)
    clean, noise = quiet_stretch("step", clean, with_noise(clean, 10, seed) - clean)
    error_db, true_db = level_error_db(NoiseModel.of(clean + noise, RATE), noise)
    assert abs(error_db[true_db > -3].median()) < 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["leader", "gate", "fade", "step"])
def test_a_quiet_stretch_costs_no_quality(kind):
    clean = speech(3.2)
    noise = with_noise(clean, 10) - clean
    remove_noise = Denoiser(quality="fast", start="random")
    steady = remove_noise(clean + noise, RATE).waveform
    expected, _ = quiet_stretch(kind, steady, noise)
    clean, noise = quiet_stretch(kind, clean, noise)
    result = remove_noise(clean + noise, RATE).waveform
    assert si_sdr(clean, result) > si_sdr(clean, expected) - 1


@pytest.mark.parametrize("tilt", [0.0, 1.0], ids=["white", "pink"])
def test_steady_noise_is_found_to_be_steady(tilt):
    noise = torch.randn(4 * RATE, generator=torch.Generator().manual_seed(9))
    spectrum = torch.fft.rfft(noise)
    noise = torch.fft.irfft(spectrum / torch.arange(1, len(spectrum) + 1) ** (tilt / 2))
    model = NoiseModel.of(noise, RATE, (0.05,))
    assert model.steady
    for window_s in (0.032, 0.05, 0.064, 0.128):
        transform = Stft.for_rate(RATE, window_s)
        power = transform(noise).abs().square()
        error_db = 10 * (model.power(transform, power.shape[1]).mean(1) / power.mean(1)).log10()
        assert abs(error_db[8:-1].mean()) < 0.4
        assert error_db[8:-1].std() < 1


@pytest.mark.parametrize("hertz", [30.9, 41.2, 58.3])
@pytest.mark.slow
def test_a_sustained_low_note_is_not_noise(hertz):
    time = torch.arange(3 * RATE).double() / RATE
    clean = sum(torch.sin(2 * math.pi * k * hertz * time) / k for k in range(1, 120)).float()
    noisy = with_noise(clean, 20)
    result = Denoiser(steps=30, hum=False)(noisy, RATE).waveform
    assert abs(float(20 * ((result @ clean) / (clean @ clean)).log10())) < 0.5
    assert si_sdr(clean, result) > si_sdr(clean, noisy) - 0.3


def test_silence_in_a_recording_is_not_its_noise():
    noisy = with_noise(speech(2), 10)
    gaps = torch.cat([torch.zeros(RATE), noisy, torch.zeros(RATE)])
    transform = Stft.for_rate(RATE)
    alone = NoiseModel.of(noisy, RATE).power(transform, 50)[:, 25]
    among = NoiseModel.of(gaps, RATE).power(transform, 150)[:, 100]
    assert abs(10 * (among / alone).log10().median()) < 0.5


# The noise of the whole recording


def organ(seconds):
    """A chord of many pipes, which leaves no moment and hardly a bin to the noise."""
    time = torch.arange(round(seconds * RATE)) / RATE
    pitches = [110 * 2 ** (k / 12) for k in (0, 4, 7, 11, 14, 17, 21, 24, 28, 31)]
    wind = 1 + 0.5 * torch.sin(2 * math.pi * 5.3 * time)
    tones = [torch.sin(2 * math.pi * k * f * time + f) / k for f in pitches for k in range(1, 40)]
    return 0.02 * wind * sum(tones)


def segments_of(noisy):
    """Return the segments of a recording, as they would be sent elsewhere."""
    found = []

    def each(segments, progress):
        for segment in segments:
            found.append(pickle.loads(pickle.dumps(segment)))
            yield segment, Cleaned(segment.noisy)

    reading = lambda start, stop: noisy[None, start:stop]  # noqa: E731
    list(
        Denoiser(hum=False, segment_s=4.0, overlap_s=0.5).stream(
            reading, len(noisy), RATE, each=each
        )
    )
    return found


def noise_levels_db(noisy):
    """Return N (F, T) of each segment in dB, of the recording as it is."""
    transform = Stft.for_rate(RATE)
    levels = []
    for segment in segments_of(noisy):
        (channel,) = segment.noisy
        model = NoiseModel.of(channel, RATE, segment.settings.windows_s, segment.noise.states(0))
        power = model.power(transform, transform.frames(len(channel))) / transform.window_energy
        levels.append(10 * power.log10())
    return levels


def test_steady_noise_is_the_same_in_every_segment():
    clean = torch.cat([speech(4), organ(4), speech(4)])
    noise = 0.005 * torch.randn(len(clean), generator=torch.Generator().manual_seed(11))
    levels = noise_levels_db(clean + noise)
    assert len(levels) > 2
    true_db = float(10 * noise.square().mean().log10())
    for level in levels:
        assert abs(float(level[8:-1].median()) - true_db) < 1
    for before, after in itertools.pairwise(levels):
        assert float((after[:, 3] - before[:, -4]).abs().max()) < 0.3


def test_each_half_has_its_own_noise():
    clean = speech(3.2).repeat(4)
    noise = 0.01 * torch.randn(len(clean), generator=torch.Generator().manual_seed(12))
    noise[len(noise) // 2 :] *= 0.25  # the recording's own noise is 9 dB lower still
    levels = noise_levels_db(clean + noise)
    for level, part in ((levels[0], noise[: 4 * RATE]), (levels[-1], noise[-4 * RATE :])):
        true_db = float(10 * part.square().mean().log10())
        assert abs(float(level[8:-1].median()) - true_db) < 1.5


def test_noise_that_joins_in_some_bands_is_found():
    generator = torch.Generator().manual_seed(13)
    noise, hiss = 0.01 * torch.randn(2, 14 * RATE, generator=generator)
    hiss = torch.fft.rfft(hiss)
    hiss[: len(hiss) * 3 // 8] = 0  # nothing below 3 kHz
    hiss = 3 * torch.fft.irfft(hiss)
    hiss[: 7 * RATE] = 0
    levels = noise_levels_db(noise + hiss)
    rise_db = (levels[-1] - levels[0]).mean(1)
    assert abs(float(rise_db[20:180].mean())) < 0.5
    assert abs(float(rise_db[210:500].mean()) - 10) < 0.5


@pytest.mark.parametrize("power", [-60, 0, 60])
def test_loudness_changes_nothing_about_the_noise_of_a_recording(power):
    noise = torch.randn(1, 4 * RATE, generator=torch.Generator().manual_seed(14))
    scale = 2.0**power
    found = RecordingNoise.of([(2.0, scale * noise)], RATE, (0.064,)).scaled(4 / scale)
    (state,) = found.states(0)
    assert abs(float(10 * state.at(Stft.for_rate(RATE)).log10().mean()) - 12.04) < 0.3


def test_nothing_is_known_of_silence():
    stretches = [(1.0, torch.zeros(2, RATE)), (3.0, torch.zeros(2, RATE))]
    assert RecordingNoise.of(stretches, RATE, (0.064,)).states(1) == []
    stretches[1][1][0] = torch.randn(RATE)
    found = RecordingNoise.of(stretches, RATE, (0.064,))
    assert len(found.states(0)) == 1
    assert found.states(1) == []


# A sample of the noise


def swelling(length, seed):
    """Noise whose level changes by 24 dB all the time."""
    time = torch.arange(length) / RATE
    level_db = 8 * torch.sin(2 * math.pi * 0.5 * time) + 4 * torch.sin(2 * math.pi * 1.3 * time)
    noise = torch.randn(length, generator=torch.Generator().manual_seed(seed))
    return 0.02 * noise * 10 ** (level_db / 20)


@pytest.mark.slow
def test_a_sample_of_the_noise_replaces_the_estimate():
    clean = speech(3.3)
    noisy = clean + swelling(len(clean), 0)
    sample = swelling(2 * RATE, 1)
    remove_noise = Denoiser(quality="fast", start="random")
    found, given = remove_noise(noisy, RATE), remove_noise(noisy, RATE, noise=sample)
    assert given.summary.removed_db > found.summary.removed_db + 3
    assert si_sdr(clean, given.waveform) > si_sdr(clean, found.waveform) + 1
    both = remove_noise(torch.stack([noisy, noisy]), RATE, noise=sample).waveform
    torch.testing.assert_close(both[1], given.waveform, atol=1e-3, rtol=0)


@pytest.mark.parametrize("rate", [16000, 22050, 48000])
def test_a_sample_of_the_noise_may_have_a_higher_rate(rate):
    generator = torch.Generator().manual_seed(2)
    sample = torch.randn(1, 2 * rate, generator=generator) * (rate / RATE) ** 0.5
    transform = Stft.for_rate(RATE)
    power = NoiseSample(sample, rate, RATE).power(transform, 1)[:, 0]
    error_db = 10 * (power / transform.window_energy).log10()
    assert abs(error_db[2:-2].mean()) < 0.2
    assert error_db[2:-2].std() < 1


@pytest.mark.parametrize(
    ("sample", "rate", "match"),
    [
        (torch.zeros(RATE), RATE, "the sample of the noise is silent"),
        (torch.randn(100), RATE, r"must last 0.1 s or longer, got 0.006 s"),
        (torch.full((RATE,), math.nan), RATE, "not finite"),
        (torch.randn(1, 1, RATE), RATE, r"shape \(L,\) or \(C, L\), got torch.float32"),
        (torch.randn(3, RATE), RATE, "has 3 channels and the recording 2; it must have one or as"),
        (torch.randn(8000), 8000, "the sample of the noise has 8000 Hz and the recording 16000"),
        (torch.randn(8000), 0, "noise_rate must be a positive number of Hz, got 0"),
    ],
)
def test_refuses_a_sample_of_no_use(sample, rate, match):
    with pytest.raises(ValueError, match=match):
        Denoiser(**SMALL)(torch.randn(2, RATE), RATE, noise=sample, noise_rate=rate)


def test_the_published_method_takes_no_sample():
    with pytest.raises(ValueError, match='of use to method "prior" only'):
        Denoiser(**SMALL, method="dap")(torch.randn(RATE), RATE, noise=torch.randn(RATE))


def test_a_sample_that_is_a_voice_draws_a_warning():
    with pytest.warns(UserWarning, match="seems to be a voice or music"):
        Denoiser(**SMALL)(torch.randn(RATE), RATE, noise=speech(1))


def test_a_sample_that_is_noise_draws_none(recwarn):
    Denoiser(**SMALL)(torch.randn(RATE), RATE, noise=torch.randn(RATE))
    assert not recwarn.list


# What it says


@pytest.mark.parametrize("scale", [1.0, 2.0**-12])
def test_summary_tells_the_levels(scale):
    clean = speech(3.3)
    noisy = with_noise(clean, 10)
    summary = Denoiser(**SMALL)(scale * noisy, RATE).summary
    noise = scale * (noisy - clean)
    assert summary.noise_dbfs == pytest.approx(float(10 * noise.square().mean().log10()), abs=1)
    assert summary.snr_db == pytest.approx(10, abs=1)
    assert summary.steady is True
    assert summary.warning == ""


@pytest.mark.slow
def test_summary_tells_that_noise_which_changes_may_remain():
    clean = speech(3.3)
    summary = Denoiser(quality="fast", start="random")(
        clean + swelling(len(clean), 0), RATE
    ).summary
    assert summary.steady is False
    assert "its level changes" in summary.warning


def test_summary_tells_how_much_was_removed():
    noise = torch.randn(2 * RATE, generator=torch.Generator().manual_seed(5))
    settings = {"steps": 30, "widths": (4, 4)}
    removed = {
        limit: Denoiser(**settings, atten_lim=limit)(noise, RATE).summary.removed_db
        for limit in (None, 6.0)
    }
    assert removed[6.0] <= 6.01
    assert removed[None] > removed[6.0] + 1
    assert Denoiser(**settings, strength=0.0)(noise, RATE).summary.removed_db == 0


def test_summary_of_what_has_no_estimate():
    assert Denoiser(**SMALL)(torch.zeros(RATE), RATE).summary == Summary()
    assert Denoiser(**SMALL, method="dap")(torch.randn(RATE), RATE).summary == Summary()


# Likelihood and network


def test_likelihood_is_the_exponential_distribution():
    ratio = torch.tensor([0.3, 4.0, 90.0], dtype=torch.float64)
    for k, snr_db in enumerate(SNR_DB):
        expected = torch.distributions.Exponential(1 / (1 + 10 ** (snr_db / 10))).log_prob(ratio)
        assert torch.allclose(log_likelihood(ratio)[:, k], expected)


def test_gain_is_the_wiener_gain_where_the_ratio_is_certain():
    certain = torch.eye(len(SNR_DB), dtype=torch.float64)
    snr = 10 ** (torch.tensor(SNR_DB, dtype=torch.float64) / 10)
    assert torch.allclose(posterior_gain(certain, 1 + snr), snr / (1 + snr), atol=1e-3)


def test_gain_follows_the_bin_where_the_ratio_is_uncertain():
    weights = torch.full((40, len(SNR_DB)), 1 / len(SNR_DB), dtype=torch.float64)
    gain = posterior_gain(weights, torch.logspace(-3, 5, 40, dtype=torch.float64))
    assert (gain.diff() > 0).all()
    assert 0 < gain[0] < 0.25
    assert 0.999 < gain[-1] <= 1


def test_gain_has_the_least_expected_error():
    # For clean bins drawn with ratios of the grid, no other function of the power does better.
    generator = torch.Generator().manual_seed(4)
    weights = torch.tensor([1.0, *[0.0] * 4, 1.0, *[0.0] * 6, 1.0], dtype=torch.float64) / 3
    snr = 10 ** (torch.tensor(SNR_DB, dtype=torch.float64) / 10)
    drawn = snr[weights.multinomial(200_000, replacement=True, generator=generator)]
    clean, noise = (
        torch.view_as_complex(torch.randn(len(drawn), 2, generator=generator).double()) / 2**0.5
        for _ in range(2)
    )
    clean = clean * drawn.sqrt()
    noisy = clean + noise
    gain = posterior_gain(weights.expand(len(drawn), -1), noisy.abs().square())
    error = lambda gain: float((gain * noisy - clean).abs().square().mean())  # noqa: E731
    for power in (0.8, 1.25):
        assert error(gain) < error(gain**power)
    assert error(gain) < 0.9 * error(float(drawn.mean() / (1 + drawn.mean())))


def test_each_scale_knows_where_frequency_zero_lies():
    network = SpectrogramUNet(2, 1, widths=(4, 4, 4))
    origins = [float(m.origin) for m in network.modules() if isinstance(m, HarmonicConv2d)]
    assert origins == [0, 0.25, 0.375, 0.25, 0]
    network = SpectrogramUNet(2, 1, widths=(4, 4), stacked=2)
    origins = [float(m.origin) for m in network.modules() if isinstance(m, HarmonicConv2d)]
    assert origins == [0.25, 0.375, 0.25]  # of pairs of rows


@pytest.mark.parametrize("shape", [(33, 10), (32, 9), (257, 1)])
@pytest.mark.parametrize("layer", ["harmonic", "plain"])
@pytest.mark.parametrize("stacked", [1, 2, 3])
def test_network_keeps_the_shape(shape, layer, stacked):
    network = SpectrogramUNet(3, 2, (4, 4, 4), layer, stacked)
    input = torch.randn(1, 3, *shape)
    output = network(input)
    assert output.shape == (1, 2, *shape)
    bins = torch.randperm(shape[0] * shape[1])[:9]
    some = network.at(input, bins)
    assert torch.allclose(some, output[0].flatten(1)[:, bins].T, atol=1e-5)


@pytest.mark.parametrize(("bins", "single", "count"), [(1413, 513, 570), (40, 40, 40), (57, 8, 12)])
def test_merged_rows_are_means_and_exact_for_constants(bins, single, count):
    rows = Rows(bins, single)
    values = torch.rand(bins, 3)
    merged = rows.merge(values)
    assert merged.shape == (count, 3)
    assert torch.equal(merged[:single], values[:single])
    if single < bins:
        assert torch.allclose(merged[single], values[single : single + 16].mean(0))
        filled = torch.cat([values, values[-1:].expand(-(bins - single) % 16, -1)])
        assert torch.allclose(merged[-1], filled[-16:].mean(0))
    constant = rows.split(merged)
    assert constant.shape == (bins, 3)
    assert torch.allclose(rows.split(rows.merge(constant)), constant)


def test_layers_are_of_equal_size():
    sizes = [
        sum(p.numel() for p in SpectrogramUNet(8, 1, (16, 16), layer).parameters())
        for layer in ("harmonic", "plain")
    ]
    assert sizes[0] == sizes[1]
    with pytest.raises(ValueError, match='layer must be "harmonic" or "plain"'):
        SpectrogramUNet(8, 1, (4, 4), "log")


# Denoiser


def test_it_improves_real_speech():
    clean = speech(1.5)
    noisy = with_noise(clean, 10)
    result = Denoiser(steps=40, widths=(8, 8, 8))(noisy, RATE)
    assert si_sdr(clean, result.waveform) > 3 + si_sdr(clean, noisy)


def test_same_seed_same_bits_and_the_callers_random_state_is_left_alone():
    noisy = with_noise(speech(0.5), 10)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = Denoiser(**SMALL)(noisy, RATE).waveform
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(Denoiser(**SMALL)(noisy, RATE).waveform, first)
    assert not torch.equal(Denoiser(**SMALL, seed=1)(noisy, RATE).waveform, first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(8001,), (1, 8001), (2, 8001), (8, 2000)])
def test_shape_and_dtype_are_kept_and_noise_is_the_rest(shape, dtype):
    noisy = torch.randn(shape, dtype=dtype)
    result = Denoiser(**SMALL)(noisy, RATE)
    assert result.waveform.shape == shape
    assert result.waveform.dtype == dtype
    assert torch.allclose(result.waveform + result.noise, noisy, atol=1e-6)


def test_channels_share_one_gain():
    mono = with_noise(speech(0.5), 10)
    pair = torch.stack([mono, -0.25 * mono])
    clean = Denoiser(**SMALL)(pair, RATE).waveform
    assert torch.allclose(clean[1], -0.25 * clean[0], atol=1e-6)
    assert torch.allclose(clean[0], Denoiser(**SMALL)(mono, RATE).waveform, atol=1e-4)


def test_a_dead_channel_stays_dead_and_changes_nothing():
    mono = with_noise(speech(0.5), 10)
    clean = Denoiser(**SMALL)(torch.stack([mono, torch.zeros_like(mono)]), RATE).waveform
    assert not clean[1].any()
    assert torch.allclose(clean[0], Denoiser(**SMALL)(mono, RATE).waveform, atol=1e-6)


def test_bands_of_exact_zeros_stay_finite():
    power = torch.rand(257, 90)
    power[100:] = 0  # a recording brought up from a lower rate
    level = estimate_noise(power)
    assert (level > 0).all()
    assert (power / level[:, None]).isfinite().all()
    assert Denoiser(**SMALL)(torch.full((RATE,), 0.3), RATE).waveform.isfinite().all()


def test_silence_comes_back():
    assert not Denoiser(**SMALL)(torch.zeros(2, 5000), RATE).waveform.any()


def test_attenuation_limit_bounds_what_is_removed():
    noise = torch.randn(RATE)
    loss_db = {
        limit: float(10 * (noise.square().mean() / result.waveform.square().mean()).log10())
        for limit in (None, 6.0)
        for result in [Denoiser(steps=30, widths=(4, 4), atten_lim=limit)(noise, RATE)]
    }
    assert loss_db[6.0] <= 6.01
    assert loss_db[None] > loss_db[6.0] + 1


def test_progress_counts_every_step_of_every_segment():
    seen: list[Progress] = []
    Denoiser(**SMALL, segment_s=0.5, overlap_s=0.1)(torch.randn(RATE), RATE, seen.append)
    assert [(p.segment, p.step) for p in seen] == [(s, i) for s in (1, 2, 3) for i in (1, 2)]
    assert {(p.segments, p.steps) for p in seen} == {(3, 2)}
    assert [p.ended for p in seen] == 3 * ["", "steps"]


@pytest.mark.parametrize("length", [1, 99, 100, 101, 199, 1000, 12345])
def test_segments_cover_everything_and_overlap(length):
    bounds = segment_bounds(length, 100, 20)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == length
    assert all(stop - start <= 100 for start, stop in bounds)
    for (_, stop), (start, _) in itertools.pairwise(bounds):
        assert stop - start == 20


def test_segments_join_without_a_seam(monkeypatch):
    # With one gain for everything, segments must give exactly what the whole gives.
    half = lambda weights, ratio: torch.full_like(ratio, 0.5)  # noqa: E731
    monkeypatch.setattr(prior, "posterior_gain", half)
    noisy = torch.randn(2, 3 * RATE + 17, dtype=torch.float64)
    settings = {**SMALL, "segment_s": 0.7, "overlap_s": 0.2, "start": "random"}
    settings |= {"hum": False, "rumble": False}
    assert torch.allclose(Denoiser(**settings)(noisy, RATE).waveform, 0.5 * noisy, atol=1e-12)


def test_stream_reads_only_what_it_needs():
    noisy = torch.randn(1, 2 * RATE)
    spans = []

    def read(start, stop):
        spans.append((start, stop))
        return noisy[:, start:stop]

    remove_noise = Denoiser(**SMALL, segment_s=0.5, overlap_s=0.1)
    blocks = list(remove_noise.stream(read, noisy.shape[1], RATE))
    whole = remove_noise(noisy, RATE)
    assert torch.equal(torch.cat([block.clean for block in blocks], 1), whole.waveform)
    assert torch.equal(torch.cat([block.noise for block in blocks], 1), whole.noise)
    assert len(blocks) == 5
    assert spans[-5:] == segment_bounds(len(noisy[0]), RATE // 2, RATE // 10)
    assert len(spans) < 5 + 16  # the noise of the whole recording is looked for first
    assert max(stop - start for start, stop in spans) <= RATE // 2


@pytest.mark.parametrize("rate", [8000, 11025, 17000, 22050, 44100, 192_000])
def test_any_rate(rate):
    result = Denoiser(**SMALL)(torch.randn(rate // 4), rate).waveform
    assert result.shape == (rate // 4,)
    assert result.isfinite().all()


@pytest.mark.parametrize(("length", "window_s"), [(300, 0.01), (40, 0.001), (20000, 1.0)])
def test_any_window(length, window_s):
    result = Denoiser(**SMALL, window_s=window_s)(torch.randn(length), RATE).waveform
    assert result.shape == (length,)
    assert result.isfinite().all()


def test_transform_window_is_the_shortest_recording():
    shortest = Stft.for_rate(RATE).n_fft
    assert Denoiser(**SMALL)(torch.randn(shortest), RATE).waveform.shape == (shortest,)
    with pytest.raises(ValueError, match=r"has 1023 samples, shorter than one window of 1024 \(64"):
        Denoiser(**SMALL)(torch.randn(shortest - 1), RATE)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"method": "magic"}, 'method must be "prior" or "dap", got \'magic\''),
        ({"quality": "good"}, 'quality must be "fast" or "default" or "best", got \'good\''),
        ({"time_limit": 0.0}, "time_limit is a positive number of seconds, got 0.0"),
        ({"strength": 1.5}, r"strength must lie in \[0, 1\], got 1.5"),
        ({"strength": float("nan")}, r"strength must lie in \[0, 1\]"),
        ({"seed": -1}, r"seed must lie in 0 … 2\*\*63 - 1, got -1"),
        ({"device": "meta"}, "device 'meta' cannot be used here"),
        ({"atten_lim": -3.0}, "atten_lim is a positive number of dB, got -3.0"),
        ({"atten_lim": float("nan")}, "atten_lim is a positive number"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"window_s": 64.0}, "window_s is a number of seconds in 0.001 … 1, as 0.064, got 64.0"),
        ({"window_s": float("nan")}, "window_s is a number of seconds"),
        ({"overlap_s": 6.0}, r"between 0 and half of segment_s \(5.0\), got 6.0"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"layer": "log"}, 'layer must be "harmonic" or "plain"'),
        ({"widths": ()}, "widths must"),
    ],
)
def test_refuses_wrong_settings(arguments, match):
    with pytest.raises(ValueError, match=match):
        Denoiser(**arguments)


def test_refuses_wrong_sound():
    remove_noise = Denoiser(**SMALL)
    with pytest.raises(ValueError, match=r"shape \(L,\) or \(C, L\), got \(1, 1, 5000\)"):
        remove_noise(torch.zeros(1, 1, 5000), RATE)
    broken = torch.randn(2, 3 * RATE)
    broken[1, 40_000] = float("inf")
    with pytest.raises(ValueError, match=r"sample 40000 \(at 2.500 s\) is not a finite number"):
        Denoiser(**SMALL, segment_s=1, overlap_s=0.2)(broken, RATE)
    with pytest.raises(ValueError, match="sample_rate must be a positive"):
        remove_noise(torch.zeros(5000), 0)


# The window


def test_the_risk_is_the_error_of_the_filter():
    generator = torch.Generator().manual_seed(3)
    shape, level = (64, 500), torch.linspace(0.5, 2, 64).double()
    complex_noise = torch.randn(*shape, dtype=torch.complex128, generator=generator)
    clean = 3 * torch.rand(*shape, generator=generator, dtype=torch.float64) ** 4 + 0j
    noisy = clean + level.sqrt()[:, None] * complex_noise
    power = noisy.abs().square()
    filtered = noisy * (1 - 2 * level[:, None] / power).clamp_min(0)
    wrong = (filtered - clean).abs().square().sum() / power.sum()
    assert shrinkage_risk(power, level[:, None]) == pytest.approx(float(wrong), rel=0.03)


@pytest.mark.parametrize(("sound", "window_s"), [("clicks", 0.032), ("tones", 0.128)])
def test_the_window_is_short_for_clicks_and_long_for_tones(sound, window_s):
    time = torch.arange(2 * RATE).double() / RATE
    clean = sum(torch.sin(2 * math.pi * k * 217 * time) for k in range(1, 12))
    if sound == "clicks":
        clean = torch.zeros_like(time)
        clean[:: RATE // 9] = 50
    noisy = clean + 0.3 * torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    chosen = Denoiser(**SMALL)(noisy, RATE).waveform
    for fixed in (0.032, 0.064, 0.128):
        same = torch.equal(chosen, Denoiser(**SMALL, window_s=fixed)(noisy, RATE).waveform)
        assert same == (fixed == window_s)


# Hum


def with_hum(clean, mains, snr_db=10):
    time = torch.arange(len(clean)).double() / RATE
    tones = sum(torch.sin(2 * math.pi * mains * k * time + k * k) / k for k in range(1, 30))
    return clean + (tones * clean.norm() / tones.norm() * 10 ** (-snr_db / 20)).float()


# Rumble


def tones(hertz, seconds=4):
    time = torch.arange(seconds * RATE).double() / RATE
    return sum(torch.sin(2 * math.pi * hertz * k * time + k * k) / k for k in range(1, 9))


def rumble(seconds=4, highest=50, seed=0):
    """Bursts of noise below `highest` Hz, as strong as `tones`."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(seconds * RATE, generator=random, dtype=torch.float64)
    spectrum = torch.fft.rfft(noise)
    spectrum[highest * seconds :] = 0
    bursts = torch.fft.irfft(spectrum) * torch.hann_window(RATE // 2).double().repeat(2 * seconds)
    return bursts / bursts.norm() * tones(110, seconds).norm()


@pytest.mark.parametrize("hertz", [82.4, 110, 440])
def test_rumble_below_the_lowest_pitch_goes(hertz):
    noisy = (tones(hertz) + rumble())[None]
    assert si_sdr(tones(hertz), cut_rumble(noisy, noisy, RATE)[0]) > 20


@pytest.mark.parametrize("hertz", [27.5, 41.2, 61.7])
def test_a_bass_stays(hertz):
    noisy = (tones(hertz) + rumble(highest=20))[None]
    assert si_sdr(tones(hertz), cut_rumble(tones(hertz)[None], noisy, RATE)[0]) > 20


def test_a_little_rumble_is_left_alone():
    noisy = (tones(110) + 0.1 * rumble())[None]
    assert cut_rumble(noisy, noisy, RATE) is noisy


def test_cutting_rumble_keeps_the_mean_and_silence():
    noisy = torch.stack([tones(110) + rumble() + 0.5, torch.zeros(4 * RATE).double()])
    cut = cut_rumble(noisy, noisy, RATE)
    assert float(cut[0].mean()) == pytest.approx(0.5, abs=0.01)
    assert torch.equal(cut[1], noisy[1])


def test_all_channels_lose_the_same_rumble():
    # Each for itself, the first would be cut higher than the second.
    noisy = torch.stack([tones(110), tones(41.2)]) + rumble(highest=20)
    cut = cut_rumble(noisy, noisy, RATE)
    sum_of_both = cut_rumble(noisy.sum(0, keepdim=True), noisy, RATE)
    torch.testing.assert_close(cut.sum(0, keepdim=True), sum_of_both)


@pytest.mark.parametrize(("seconds", "rate"), [(0.4, 16000), (4, 500)])
def test_what_is_too_short_or_too_slow_for_rumble_is_left_alone(seconds, rate):
    noisy = rumble()[None, : round(seconds * rate)]
    assert cut_rumble(noisy, noisy, rate) is noisy


def test_rumble_is_cut_from_the_result():
    noisy = with_noise((tones(110) + rumble()).float(), 20)
    low = [
        torch.fft.rfft(Denoiser(**SMALL, rumble=cut)(noisy, RATE).waveform)[: 40 * 4].norm()
        for cut in (False, True)
    ]
    assert low[1] < 0.1 * low[0]


# When it ends, and how much it does


def test_a_plateau_is_a_loss_that_no_longer_falls():
    length = fit._WARM_UP + 2 * fit._WINDOW
    falling = [1 - 0.01 * i for i in range(length)]
    assert not fit._has_plateaued(falling)
    assert fit._has_plateaued([0.5] * length)
    assert fit._has_plateaued([0.5 + 0.01 * i for i in range(length)])
    assert not fit._has_plateaued([0.5] * (length - 1))


@pytest.mark.parametrize(
    ("early_stop", "count", "ended"), [(True, 18, "plateau"), (False, 40, "steps")]
)
def test_it_ends_sooner_when_nothing_more_is_learnt(monkeypatch, early_stop, count, ended):
    monkeypatch.setattr(fit, "_has_plateaued", lambda losses: len(losses) > 10)
    seen: list[Progress] = []
    remove_noise = Denoiser(steps=40, widths=(4,), early_stop=early_stop)
    remove_noise(with_noise(speech(0.5), 10), RATE, seen.append)
    assert [p.ended for p in seen] == [""] * (len(seen) - 1) + [ended]
    assert abs(len(seen) - count) <= 1


@pytest.mark.parametrize(
    ("start", "seconds", "steps"),
    [
        *[("random", 10, 200), ("random", 20, 200), ("random", 4, 80), ("random", 0.1, 50)],
        *[("learnt", 10, 60), ("learnt", 5, 30), ("learnt", 0.1, 25)],
    ],
)
def test_a_short_segment_takes_its_share_of_a_presets_steps(start, seconds, steps):
    settings = prior.PriorEstimator().settings("default", start)
    assert settings.for_segment(seconds).steps == steps


def test_steps_that_are_asked_for_are_taken():
    seen: list[Progress] = []
    Denoiser(steps=3, widths=(4,))(torch.randn(RATE // 4), RATE, seen.append)
    assert [(p.step, p.steps) for p in seen] == [(1, 3), (2, 3), (3, 3)]


def test_a_step_sees_no_more_of_a_long_recording(monkeypatch):
    seen: list[tuple[bool, int]] = []

    class Watched(SpectrogramUNet):
        def at(self, input, bins):
            seen.append((torch.is_grad_enabled(), input.shape[-1]))
            return super().at(input, bins)

    monkeypatch.setattr(fit, "SpectrogramUNet", Watched)
    noisy = torch.randn(4 * RATE, generator=torch.Generator().manual_seed(0))
    Denoiser(steps=3, widths=(4,), window_s=0.064)(noisy, RATE)
    assert [frames for fitting, frames in seen if fitting] == [83] * 3  # 1.33 s in hops of 16 ms
    assert {frames for fitting, frames in seen if not fitting} == {251}  # in the end, all


@pytest.mark.slow
@pytest.mark.parametrize("snr_db", [0, 10])
def test_the_rule_ends_near_the_best_step(snr_db):
    clean = speech(1.2)
    noisy = with_noise(clean, snr_db)

    def after(steps, early_stop):
        return si_sdr(
            clean,
            Denoiser(steps=steps, early_stop=early_stop, start="random")(noisy, RATE).waveform,
        )

    best = max(after(steps, False) for steps in (10, 25, 50, 100, 200, 300))
    assert after(300, True) > best - 0.5
    assert after(10, False) < best - 0.5  # or there would be nothing to find


@pytest.mark.parametrize("method", ["prior", "dap"])
def test_time_limit(method):
    seen: list[Progress] = []
    settings = {"steps": 10**6, "widths": (4,), "time_limit": 0.5, "early_stop": False}
    Denoiser(**settings, method=method)(torch.randn(RATE), RATE, seen.append)
    assert seen[-1].ended == "time"
    assert seen[-1].step < 10**6


def test_a_stopped_run_leaves_the_rest_as_it_is():
    noisy = torch.randn(2 * RATE)
    seen: list[Progress] = []

    def stop_in_the_second(progress):
        seen.append(progress)
        return progress.segment == 2

    remove_noise = Denoiser(**SMALL, segment_s=0.5, overlap_s=0.1)
    clean = remove_noise(noisy, RATE, stop_in_the_second).waveform
    assert [(p.segment, p.step) for p in seen] == [(1, 1), (1, 2), (2, 1)]
    _, (start, stop), *_ = segment_bounds(2 * RATE, RATE // 2, RATE // 10)
    assert torch.equal(clean[stop:], noisy[stop:])
    assert not torch.equal(clean[start:stop], noisy[start:stop])


def test_strength_is_the_share_of_the_noise_that_is_removed():
    noisy = with_noise(speech(0.5), 10)
    whole = Denoiser(**SMALL)(noisy, RATE).waveform
    assert torch.allclose(Denoiser(**SMALL, strength=0.0)(noisy, RATE).waveform, noisy)
    half = Denoiser(**SMALL, strength=0.5)(noisy, RATE).waveform
    assert torch.allclose(half, (whole + noisy) / 2, atol=1e-6)


def test_noise_is_estimated_once_whatever_the_number_of_starts(monkeypatch):
    calls = []

    def of(channel, *rest):
        calls.append(channel)
        return estimate(channel, *rest)

    estimate = NoiseModel.of
    monkeypatch.setattr(NoiseModel, "of", of)
    Denoiser(**SMALL, quality="best")(torch.randn(2, RATE), RATE)
    assert len(calls) == 2  # channels


def test_best_averages_several_starts():
    noisy = with_noise(speech(0.5), 10)
    seen: list[Progress] = []
    settings = {**SMALL, "start": "random"}  # of which nothing else depends on the seed
    best = Denoiser(**settings, quality="best", seed=4)(noisy, RATE, seen.append).waveform
    assert [(p.step, p.steps) for p in seen] == [(i, 6) for i in range(1, 7)]
    starts = [Denoiser(**settings, seed=seed)(noisy, RATE).waveform for seed in (4, 5, 6)]
    assert torch.allclose(best, torch.stack(starts).mean(0), atol=1e-6)


def test_the_published_method_learns_the_recording():
    noisy = with_noise(speech(0.5), 10)
    settings = {"method": "dap", "widths": (8, 8), "learning_rate": 1e-2}
    early, late = (Denoiser(**settings, steps=n)(noisy, RATE).waveform for n in (5, 80))
    assert si_sdr(noisy, late) > 3 + si_sdr(noisy, early)
    stereo = Denoiser(**settings, steps=2)(torch.stack([noisy, 0.5 * noisy]), RATE)
    assert stereo.waveform.shape == (2, len(noisy))


def test_the_published_method_leaves_hum_and_rumble_alone():
    noisy = with_hum((tones(110) + rumble()).float(), 50)
    settings = {"method": "dap", "widths": (4,), "steps": 1}
    as_it_is = Denoiser(**settings, hum=False, rumble=False)(noisy, RATE).waveform
    assert torch.equal(Denoiser(**settings)(noisy, RATE).waveform, as_it_is)
    assert not torch.equal(subtract_hum(noisy[None], RATE)[0], noisy)


@pytest.mark.parametrize("power", [-60, 100])
def test_loudness_changes_nothing_but_the_loudness(power):
    noisy = with_noise(speech(0.5), 10)
    scaled = Denoiser(**SMALL)(noisy * 2.0**power, RATE).waveform
    assert torch.equal(scaled, Denoiser(**SMALL)(noisy, RATE).waveform * 2.0**power)


def test_segments_are_shorter_at_high_rates():
    spans = []

    def silence(start, stop):
        spans.append(stop - start)
        return torch.zeros(1, stop - start)

    rate = 192_000
    total = sum(block.clean.shape[1] for block in Denoiser().stream(silence, 20 * rate, rate))
    assert total == 20 * rate
    assert max(spans) <= 2 * rate


@pytest.mark.slow
def test_segments_sound_like_the_whole():
    clean = speech(3.3)
    noisy = with_noise(clean, 10)
    settings = {"steps": 60, "widths": (8, 8), "early_stop": False}
    whole = Denoiser(**settings)(noisy, RATE).waveform
    joined = Denoiser(**settings, segment_s=1.3, overlap_s=0.3)(noisy, RATE).waveform
    assert si_sdr(clean, joined) > si_sdr(clean, whole) - 1
    # A seam would be a difference that is larger there than elsewhere.
    difference = (joined - whole).square()
    bounds = segment_bounds(len(clean), round(1.3 * RATE), round(0.3 * RATE))
    for (_, stop), (start, _) in itertools.pairwise(bounds):
        assert difference[start:stop].mean() < 4 * difference.mean()
