"""Published models and libraries that are special cases of taps."""

import numpy as np
import pytest
import torch

from benchmarks.relatives import blocks
from harmonic_lowering import (
    FrequencyTaps,
    HarmonicLowering,
    LogHarmonicConv2d,
    LogHarmonicLowering,
    harmonic_lowering,
    log_harmonic_lowering,
    replace_conv2d,
)


def shifts(taps, n_bins=512, at=256):
    return [int(taps.position(tap, at)) - at for tap in range(len(taps))]


def test_basic_pitch_harmonic_stacking():
    taps = FrequencyTaps.log_from_ratios(
        (0.5, 1, 2, 3, 4, 5, 6, 7), bins_per_octave=36, interpolation="nearest"
    )
    assert shifts(taps) == [-36, 0, 36, 57, 72, 84, 93, 101]


def test_harmof0():
    taps = FrequencyTaps.log_harmonic(12, bins_per_octave=48, interpolation="nearest")
    assert shifts(taps) == [0, 48, 76, 96, 111, 124, 135, 144, 152, 159, 166, 172]


def test_hppnet():
    ratios = [1 / k for k in range(9, 1, -1)] + list(range(1, 10))
    taps = FrequencyTaps.log_from_ratios(ratios, bins_per_octave=48, interpolation="nearest")
    above = [48, 76, 96, 111, 124, 135, 144, 152]  # its dilations
    assert shifts(taps) == [-d for d in above[::-1]] + [0] + above


@pytest.mark.parametrize("bins", [40, 400])
@pytest.mark.parametrize(
    ("block", "layer"),
    [
        (lambda: blocks.Harmonica(3, 5), blocks.harmonica_layer),
        (lambda: blocks.HPPNet(3, 5), blocks.hppnet_layer),
        (lambda: blocks.HarmoF0(3, 5), blocks.HarmoF0Layer),
        (lambda: blocks.BasicPitch(36), lambda block: blocks.BasicPitchLayer(block.bins)),
    ],
    ids=["harmonica", "hppnet", "harmof0", "basic-pitch"],
)
@pytest.mark.filterwarnings("ignore::harmonic_lowering.DeadTapWarning")  # 40 bins: some never read
def test_published_blocks_are_layers(block, layer, bins):
    block = block().double()
    for parameter in block.parameters():  # random biases too
        torch.nn.init.normal_(parameter)
    layer = layer(block)
    ours = torch.randn(2, 3, bins, 7, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    expected, result = block(theirs), layer(ours)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(expected)
    expected.backward(grad)
    result.backward(grad)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


def test_the_dilated_convolutions_of_a_published_model_are_swapped():
    block = blocks.HPPNet(3, 5)
    x = torch.randn(2, 3, 400, 7)
    expected = block(x)
    report = replace_conv2d(block, LogHarmonicConv2d)
    assert len(report.swapped) == 8
    torch.testing.assert_close(block(x), expected)


@pytest.mark.slow
def test_lowering_is_librosas_interp_harmonics():
    librosa = pytest.importorskip("librosa")
    x = torch.rand(1, 1, 65, 9, dtype=torch.float64)
    ratios = [1 / 3, 1 / 2, 1, 1.5, 2, 3, 7]
    expected = librosa.interp_harmonics(
        x[0, 0].numpy(), freqs=np.arange(65.0), harmonics=ratios, fill_value=0, axis=-2
    )
    lowered = harmonic_lowering(x, harmonics=ratios)[0]
    np.testing.assert_allclose(lowered.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_log_lowering_of_whole_shifts_is_librosas():
    librosa = pytest.importorskip("librosa")
    x = torch.rand(1, 1, 60, 5, dtype=torch.float64)
    freqs = 32.7 * 2 ** (np.arange(60) / 12)
    expected = librosa.interp_harmonics(
        x[0, 0].numpy(), freqs=freqs, harmonics=[1 / 2, 1, 2, 4], kind="nearest", axis=-2
    )
    lowered = log_harmonic_lowering(x, harmonics=[1 / 2, 1, 2, 4], bins_per_octave=12)[0]
    expected = np.nan_to_num(expected)
    # "nearest" in librosa may reach one rounding error beyond the last frequency
    np.testing.assert_allclose(lowered.numpy()[:, 12:-24], expected[:, 12:-24])


def test_channel_of_the_lowering_is_k_c_plus_c():
    module, x = HarmonicLowering(3, anchor=2), torch.randn(2, 4, 11, 3)
    lowered = module(x)
    assert lowered.shape == (2, 3 * 4, 11, 3)
    for k in range(3):
        for c in range(4):
            alone = module(x[:, c : c + 1])[:, k]
            assert torch.equal(lowered[:, k * 4 + c], alone)


def test_modules_and_functions_lower_alike():
    x = torch.randn(4, 11, 3)
    assert torch.equal(
        HarmonicLowering(harmonics=(0.5, 2), origin=1)(x),
        harmonic_lowering(x, harmonics=(0.5, 2), origin=1),
    )
    assert torch.equal(
        LogHarmonicLowering(3, anchor=2, bins_per_octave=2)(x),
        log_harmonic_lowering(x, 3, anchor=2, bins_per_octave=2),
    )
