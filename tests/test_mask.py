"""The learnt mask, its weights' file, the synthesiser and the training behind it."""

import builtins
import itertools
import zlib

import numpy as np
import pytest
import torch

import harmonic_lowering.denoise.mask as mask_module
from harmonic_lowering import weights
from harmonic_lowering.denoise.mask import LearntMask, WeightsError
from harmonic_lowering.denoise.mask_network import (
    MaskNetwork,
    mask_features,
    merge_bins,
    split_rows,
)
from harmonic_lowering.metrics import si_sdr
from harmonic_lowering.spectral import Stft
from harmonic_lowering.weights import read_weights
from research import prior_start
from research.mask import evaluate
from research.mask.canvas import Canvas, damped_sines
from research.mask.examples import NOISES, SOUNDS, draw_batch, draw_example, draw_sound
from research.mask.noises import KINDS, measured_power, noise
from research.mask.train import Settings, Trainer, losses, main, train

RATES = (8000, 11025, 16000, 22050, 44100, 48000, 96000)


def untrained(**arguments):
    torch.manual_seed(0)
    return LearntMask(MaskNetwork((4, 4, 8, 8), **arguments).eval().folded())


@pytest.fixture(scope="module")
def trained():
    return LearntMask.load()


# Rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
def test_rows_are_bins_below_8_khz_and_means_above(rate):
    bins = LearntMask.transform(rate).bins
    power = torch.rand(2, bins, 5)
    rows = merge_bins(power)
    assert rows.shape[1] % 2 == 0
    fine = min(512, rows.shape[1])
    assert torch.equal(rows[:, :fine], power[:, :fine])
    if rows.shape[1] > 512:
        expected = power[:, 512 : 512 + 16 * (rows.shape[1] - 512)]
        assert torch.allclose(rows[:, 512:].mean(1), expected.mean(1))
    back = split_rows(rows, bins)
    assert back.shape == power.shape
    assert torch.allclose(merge_bins(back), rows)


def test_bins_lie_15_6_hertz_apart_at_any_rate():
    for rate in RATES:
        assert rate / LearntMask.transform(rate).n_fft == pytest.approx(15.625, rel=0.01)


def test_features_do_not_depend_on_the_level():
    power = torch.rand(1, 512, 300).square() + 1e-3
    planes, level = mask_features(power)
    louder, loud_level = mask_features(1e6 * power)
    assert planes.shape == (1, 7, 256, 300)
    assert torch.allclose(planes, louder, atol=1e-3)
    assert torch.allclose(1e6 * level, loud_level)


def test_a_quiet_stretch_does_not_lower_the_floor_around_it():
    torch.manual_seed(0)
    power = torch.randn(1, 512, 400, dtype=torch.complex64).abs().square()
    gated = power.clone()
    gated[..., 150:200] *= 1e-4
    above, above_gated = (
        mask_features(each)[0][:, 2:4].float().mean((0, 1, 2)) for each in (power, gated)
    )
    outside = torch.ones(400, dtype=torch.bool)
    outside[140:210] = False
    # 15 dB are 1.
    assert (above_gated - above)[outside].abs().max() < 2 / 15
    assert (above_gated - above)[155:195].abs().max() < 3 / 15


def test_silence_has_finite_features():
    planes, _ = mask_features(torch.zeros(1, 512, 40))
    assert planes.isfinite().all()


# The network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["harmonic", "plain"])
def test_folding_changes_nothing(layer):
    network = MaskNetwork((4, 4, 8, 8), layer)
    for _ in range(3):  # statistics that are not 0 and 1
        network(3 + 2 * torch.randn(2, 7, 64, 40))
    network.eval()
    planes = torch.randn(1, 7, 272, 30)
    for expected, folded in zip(network(planes), network.folded()(planes), strict=True):
        assert torch.allclose(expected, folded, atol=1e-5)


def test_layers_have_the_same_number_of_weights():
    count = [
        sum(value.numel() for value in MaskNetwork(layer=layer).parameters())
        for layer in ("harmonic", "plain")
    ]
    assert count[0] == count[1]


def test_an_unknown_layer_is_refused():
    with pytest.raises(ValueError, match=r"layer must be .*, got 'round'"):
        MaskNetwork(layer="round")


# Recordings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
def test_a_recording_keeps_its_shape_and_dtype(rate):
    for dtype, shape in itertools.product(
        (torch.float32, torch.float64), ((2, rate // 3), (rate // 10,))
    ):
        sound = torch.randn(shape, dtype=dtype)
        before = sound.clone()
        result = untrained().apply(sound, rate)
        assert result.shape == sound.shape
        assert result.dtype == dtype
        assert result.isfinite().all()
        assert torch.equal(sound, before)


def test_channels_share_one_mask():
    sound = torch.randn(16000)
    both = untrained().apply(torch.stack([sound, -0.5 * sound]), 16000)
    assert torch.allclose(both[1], -0.5 * both[0], atol=1e-6)


def test_loudness_changes_nothing_but_loudness():
    sound = torch.randn(16000)
    mask = untrained()
    assert torch.allclose(
        mask.apply(1e-4 * sound, 16000), 1e-4 * mask.apply(sound, 16000), rtol=1e-3
    )


def test_silence_stays():
    assert not untrained().apply(torch.zeros(2, 8000), 16000).any()


def test_bad_recordings_are_refused():
    mask = untrained()
    with pytest.raises(ValueError, match=r"shape \(L,\) or \(C, L\), got \(1, 1, 9000\)"):
        mask.apply(torch.zeros(1, 1, 9000), 16000)
    with pytest.raises(ValueError, match="has 100 samples, fewer than the 513"):
        mask.apply(torch.zeros(100), 16000)
    with pytest.raises(ValueError, match="not finite"):
        mask.apply(torch.full((9000,), torch.nan), 16000)
    with pytest.raises(ValueError, match="sample_rate must be a positive number"):
        mask.apply(torch.zeros(9000), 0)


# The weights -----------------------------------------------------------------------------------


def test_weights_survive_a_file(tmp_path):
    mask, file = untrained(), tmp_path / "mask.safetensors"
    mask.save(file, {"steps": "0"})
    sound = torch.randn(8000)
    assert torch.equal(LearntMask.load(file).apply(sound, 16000), mask.apply(sound, 16000))
    assert [path.name for path in tmp_path.iterdir()] == ["mask.safetensors"]


def test_missing_weights_are_an_error_to_catch(tmp_path):
    with pytest.raises(WeightsError, match=r"are not at .*none.safetensors: reinstall"):
        LearntMask.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text"])
def test_damaged_weights_are_an_error_to_catch(tmp_path, damage):
    file = tmp_path / "mask.safetensors"
    untrained().save(file, {})
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[-100] ^= 1
    file.write_bytes(
        {"cut": content[:-1000], "empty": b"", "flipped": content, "text": b"weights\n" * 99}[
            damage
        ]
    )
    with pytest.raises(WeightsError, match=r"cannot be read|are damaged"):
        LearntMask.load(file)


def test_weights_of_another_network_are_an_error_to_catch(tmp_path):
    from safetensors.torch import save_file

    state = {"other": torch.zeros(3)}
    file = tmp_path / "mask.safetensors"
    save_file(state, file, {"sha256": weights._digest(state), "layer": "plain"})
    with pytest.raises(WeightsError, match="made for another network"):
        LearntMask.load(file)


def test_without_safetensors_the_message_says_what_to_install(monkeypatch):
    original = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("safetensors"):
            raise ModuleNotFoundError(name)
        return original(name, *rest)

    monkeypatch.setattr("importlib.import_module", lambda name: refuse(name))
    with pytest.raises(ImportError, match=r"pip install 'harmonic-lowering\[audio\]'"):
        LearntMask.load()


def test_the_packaged_weights_are_small_and_described():
    assert mask_module.WEIGHTS.stat().st_size < 2**20
    card = mask_module.WEIGHTS.with_name("README.md").read_text()
    assert "never" in card
    assert "synthetic" in card


@pytest.mark.parametrize("kind", ["speech", "music"])
@pytest.mark.parametrize("noise_kind", ["white", "moving", "bubbles"])
def test_the_packaged_weights_take_noise_away(trained, kind, noise_kind):
    gains = []
    for index in range(2):
        seed = (evaluate._HELD_OUT, zlib.crc32(f"{kind} {noise_kind}".encode()), 50 + index)
        random = np.random.default_rng(seed)
        example = draw_example(random, Canvas(16000), kind, noise_kind, 5.0)
        clean = torch.from_numpy(example.sound)
        noisy = clean + torch.from_numpy(example.noise.waveform)
        gains.append(si_sdr(clean, trained.apply(noisy, 16000)) - si_sdr(clean, noisy))
    assert np.mean(gains) > 2


@pytest.mark.parametrize("rate", [16000, 48000])
def test_the_packaged_weights_keep_what_is_clean(trained, rate):
    sound = torch.from_numpy(draw_sound(np.random.default_rng(5), Canvas(rate), "speech"))
    assert si_sdr(sound, trained.apply(sound, rate)) > 25


def test_the_packaged_weights_know_the_noise(trained):
    made = noise(np.random.default_rng(3), Canvas(16000), "white")
    sound = draw_sound(np.random.default_rng(4), Canvas(16000), "speech")
    noisy = torch.from_numpy(sound + 0.5 * made.waveform)
    mean, spread = evaluate.noise_error(trained, noisy, 0.25 * torch.from_numpy(made.power))
    assert abs(mean) < 2
    assert spread < 3


# The synthesiser -------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
@pytest.mark.parametrize("kind", SOUNDS)
def test_sounds_follow_from_their_seed(rate, kind):
    canvas = Canvas(rate, 1.5)
    one, two, other = (draw_sound(np.random.default_rng(seed), canvas, kind) for seed in (3, 3, 4))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    assert len(one) == canvas.length
    assert one.dtype == np.float32
    assert np.sqrt(np.mean(one**2)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("rate", [16000, 48000])
@pytest.mark.parametrize("kind", KINDS)
def test_noises_know_their_power(rate, kind):
    canvas = Canvas(rate, 2.0)
    made = noise(np.random.default_rng(11), canvas, kind)
    again = noise(np.random.default_rng(11), canvas, kind)
    assert np.array_equal(made.waveform, again.waveform)
    measured = measured_power(made.waveform, canvas)
    assert made.power.shape == measured.shape
    inside = (slice(1, -1), slice(4, -4))
    audible = measured[inside] > 1e-4 * measured.max()
    error = 10 * np.log10(made.power[inside] / measured[inside])[audible]
    assert abs(error.mean()) < 1
    assert error.std() < 4.5  # grains are finer than the average over the outcome


def test_expected_power_is_the_mean_of_outcomes():
    canvas = Canvas(16000, 1.0)
    outcomes = [KINDS["white"](np.random.default_rng(seed), canvas) for seed in range(20)]
    measured = np.mean([measured_power(one.waveform, canvas) for one in outcomes], 0)
    error = 10 * np.log10(measured / outcomes[0].power)[1:-1, 2:-2]
    assert abs(error.mean()) < 0.1
    assert error.std() < 0.5


def test_half_of_the_noise_moves():
    moving = sum(NOISES[kind] for kind in ("moving", "gusts", "grains", "bubbles", "crowd"))
    assert set(NOISES) == set(KINDS)
    assert 0.5 <= moving / sum(NOISES.values()) <= 0.75


def test_speech_reaches_above_8_khz():
    canvas = Canvas(48000, 2)
    shares = []
    for seed in range(6):
        sound = draw_sound(np.random.default_rng(seed), canvas, "speech")
        power = np.abs(np.fft.rfft(sound)) ** 2
        shares.append(power[2 * 8000 :].sum() / power.sum())
    assert max(shares) > 0.01


def test_pulses_hold_all_harmonics_at_one_level():
    canvas = Canvas(16000, 1.0)
    periods = np.arange(100, 15900, 80.0) + 0.3  # 200 Hz
    spectrum = np.abs(np.fft.rfft(canvas.pulses(periods, np.ones(len(periods)))))
    harmonics = spectrum[200:7000:200]
    assert harmonics.min() > 0.9 * harmonics.max()
    assert spectrum[300:7000:200].max() < 0.05 * harmonics.max()


def test_damped_sines_are_what_they_say():
    seconds = np.arange(1000) / 16000
    expected = 2 * np.exp(-3 * seconds) * np.cos(2 * np.pi * 440 * seconds)
    expected += np.exp(-9 * seconds) * np.sin(2 * np.pi * 1000 * seconds)
    frequency, decay, amplitude = np.array([440, 1000]), np.array([3, 9]), np.array([2, -1j])
    sound = damped_sines(frequency, decay, amplitude, 1000, 16000)
    assert np.abs(sound - expected).max() < 1e-4


def test_an_example_has_the_ratio_that_was_asked():
    for seed in range(20):
        example = draw_example(np.random.default_rng(seed), Canvas(16000, 1), "music", "still", 7.0)
        ratio = np.mean(example.sound**2) / np.mean(example.noise.waveform**2)
        assert 10 * np.log10(ratio) == pytest.approx(7, abs=6)  # a gate changes both


# Training --------------------------------------------------------------------------------------

SMALL = Settings(widths=(4, 4, 4, 8), steps=4, batch=1, seconds=0.5)


def test_every_rate_has_finite_losses():
    network = MaskNetwork(SMALL.widths)
    seen = set()
    for step in range(12):
        batch = draw_batch((1, step), 1, 0.5)
        seen.add(batch.sound.shape[1])
        assert losses(network, batch).isfinite().all()
    assert len(seen) > 1


def test_a_resumed_run_is_the_same_run(tmp_path):
    whole = Trainer(SMALL)
    for _ in range(4):
        whole.advance()
    half = Trainer(SMALL)
    for _ in range(2):
        half.advance()
    half.save(tmp_path)
    resumed = Trainer(SMALL)
    resumed.resume(tmp_path)
    assert resumed.step == 2
    for _ in range(2):
        resumed.advance()
    for name, value in whole.averaged().state_dict().items():
        assert torch.equal(value, resumed.averaged().state_dict()[name])


def test_examples_drawn_ahead_are_the_same(tmp_path):
    for ahead in (False, True):
        train(SMALL, tmp_path / str(ahead), ahead=ahead)
    here, ahead = (
        LearntMask.load(tmp_path / str(ahead) / "mask.safetensors").network.state_dict()
        for ahead in (False, True)
    )
    for name, value in here.items():
        assert torch.equal(value, ahead[name])


def test_the_command_trains_stops_and_goes_on(tmp_path, capsys):
    command = [
        str(tmp_path),
        *["--widths", "4", "4", "4", "8", "--batch", "1", "--steps", "2", "--seconds", "0.5"],
    ]
    main([*command, "--minutes", "0"])
    main(command)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
    assert LearntMask.load(tmp_path / "mask.safetensors").network.widths == (4, 4, 4, 8)
    with pytest.raises(ValueError, match="another seed"):
        main([*command, "--seed", "1"])


# The start of the prior ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["white", "still", "moving"])
@pytest.mark.parametrize("window_s", [0.032, 0.128])
def test_the_noise_of_an_example_is_its_own_in_any_window(kind, window_s):
    canvas = Canvas(16000, 4.0)
    example = draw_example(np.random.default_rng(3), canvas, "speech", kind, -40.0)
    ratio = prior_start.power_ratio(example, 16000, Stft.for_rate(16000, window_s))
    levels_db = 10 * ratio[8:-8, 8:-8].mean(1).log10()
    assert levels_db.median().abs() < 1


def test_a_start_is_trained_stopped_and_goes_on(tmp_path, monkeypatch):
    prior_start.train(tmp_path / "whole", 2)
    prior_start.train(tmp_path / "half", 2, limit_s=0)
    backward = prior_start.backward

    def interrupted(network, seed):
        if seed[1] == 1:
            raise KeyboardInterrupt
        return backward(network, seed)

    monkeypatch.setattr(prior_start, "backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prior_start.train(tmp_path / "half", 2, checkpoint_steps=1)
    monkeypatch.undo()
    prior_start.train(tmp_path / "half", 2)
    whole, half = (
        read_weights(tmp_path / name / "prior.safetensors", "") for name in ("whole", "half")
    )
    assert whole[1] == half[1]
    assert all(torch.equal(value, half[0][name]) for name, value in whole[0].items())
    with pytest.raises(ValueError, match="holds a run of 2 steps with seed 0"):
        prior_start.train(tmp_path / "half", 3)
