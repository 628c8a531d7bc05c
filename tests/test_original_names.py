"""The original's import name, its two calls, and its checkpoints."""

import math

import pytest
import torch

import harmonic_conv
from harmonic_lowering import HarmonicConv2d, LogHarmonicConv2d


def test_the_originals_calls_run_verbatim_on_a_cpu():
    in_channels, out_channels, kernel_size, p = 2, 3, 7, 3
    layer = harmonic_conv.SingleHarmonicConv2d(
        in_channels,
        out_channels,
        kernel_size,
        anchor=1,
        stride=1,
        padding=(0, p),
        dilation=1,
        groups=1,
        bias=True,
        padding_mode="zero",
    )
    log = harmonic_conv.SingleLogHarmonicConv2d(
        in_channels,
        out_channels,
        kernel_size,
        out_log_scale=1000,
        in_log_scale=0.001,
        radix=None,
        anchor=1,
        padding=(0, p),
    )
    x = torch.randn(2, 2, 2048, 8, requires_grad=True)
    for module in (layer, log):
        y = module(x)
        assert y.shape == (2, 3, 2048, 8)
        y.sum().backward()


def test_positional_arguments_are_in_the_originals_order():
    layer = harmonic_conv.SingleHarmonicConv2d(
        4, 6, 3, 2, (1, 2), (0, 1), (2, 3), 2, False, "zeros"
    )
    assert (layer.anchor, layer.stride, layer.padding) == (2, (1, 2), (0, 1))
    assert (layer.dilation, layer.groups, layer.bias) == ((1, 3), 2, None)
    log = harmonic_conv.SingleLogHarmonicConv2d(4, 6, 3, 12, 0.1, 2, 3)
    assert (log.out_log_scale, log.in_log_scale, log.radix, log.anchor) == (12, 0.1, 2, 3)


def test_they_compute_what_the_new_names_compute():
    x = torch.randn(1, 2, 64, 9)
    old, new = harmonic_conv.SingleHarmonicConv2d(2, 3, 3, 2), HarmonicConv2d(2, 3, 3, anchor=2)
    new.load_state_dict(old.state_dict())
    assert torch.equal(old(x), new(x))
    old = harmonic_conv.SingleLogHarmonicConv2d(2, 3, 3, 12, radix=2)
    new = LogHarmonicConv2d(2, 3, 3, bins_per_octave=12)
    new.load_state_dict(old.state_dict())
    assert torch.equal(old(x), new(x))


def test_checkpoints_of_the_original_load():
    """Its forward convolves copies stacked as channels k·C + c with a (1, K_t) kernel."""
    layer = harmonic_conv.SingleHarmonicConv2d(2, 3, (5, 3), anchor=2, padding=(0, 1))
    lowered_weight = torch.randn(3, 5 * 2, 1, 3)
    bias = torch.randn(3)
    net = torch.nn.Sequential(layer)
    checkpoint = {"0.lowered_weight": lowered_weight, "0.bias": bias}
    net.load_state_dict(checkpoint)
    assert set(checkpoint) == {"0.lowered_weight", "0.bias"}

    x = torch.randn(1, 2, 40, 9)
    copies = torch.zeros(1, 10, 40, 9)
    for k in range(5):
        for f in range(40):
            position = (k + 1) / 2 * f
            if position <= 39:
                low, share = int(position), position - int(position)
                copies[:, 2 * k : 2 * k + 2, f] = (1 - share) * x[:, :, low]
                if share:
                    copies[:, 2 * k : 2 * k + 2, f] += share * x[:, :, low + 1]
    expected = torch.nn.functional.conv2d(copies, lowered_weight, bias, padding=(0, 1))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_another_shape_is_refused():
    layer = harmonic_conv.SingleHarmonicConv2d(2, 3, 5)
    with pytest.raises(ValueError, match=r"must have shape \(3, 10, 1, 5\).*got \(3, 8, 1, 5\)"):
        layer.load_state_dict({"lowered_weight": torch.zeros(3, 8, 1, 5), "bias": torch.zeros(3)})


@pytest.mark.parametrize("names", ["weight_norm", "spectral_norm"])
def test_checkpoints_load_into_normalised_layers(names):
    plain = harmonic_conv.SingleHarmonicConv2d(2, 3, (5, 3))
    normalised = harmonic_conv.SingleHarmonicConv2d(2, 3, (5, 3)).eval()
    net = torch.nn.Sequential(getattr(torch.nn.utils.parametrizations, names)(normalised))
    lowered_weight, bias = torch.randn(3, 10, 1, 3), torch.randn(3)
    plain.load_state_dict({"lowered_weight": lowered_weight, "bias": bias})
    net.load_state_dict({"0.lowered_weight": lowered_weight, "0.bias": bias})
    held = net[0].weight if names == "weight_norm" else net[0].parametrizations.weight.original
    torch.testing.assert_close(held, plain.weight)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_weight_computed_by_a_hook_is_refused():
    layer = torch.nn.utils.weight_norm(harmonic_conv.SingleHarmonicConv2d(2, 3, 3))
    with pytest.raises(ValueError, match="load it first and normalise then"):
        layer.load_state_dict({"lowered_weight": torch.zeros(3, 6, 1, 3), "bias": torch.zeros(3)})


@pytest.mark.parametrize("dilation", [(2,), (1, 2, 3), (1, 0), 0, "2", (1, 2.0)])
def test_a_dilation_that_is_none_is_refused(dilation):
    with pytest.raises(ValueError, match="dilation must be "):
        harmonic_conv.SingleHarmonicConv2d(2, 3, 3, dilation=dilation)


def log_axis(ratios, **axis):
    return harmonic_conv.SingleLogHarmonicConv2d(1, 1, (ratios, 3), **axis).taps


@pytest.mark.parametrize(
    ("axis", "shift"),
    [
        ({"out_log_scale": 36, "radix": 2}, lambda r: 36 * math.log2(r)),
        ({"out_log_scale": 7, "radix": 10}, lambda r: 7 * math.log10(r)),
        ({"out_log_scale": 50.0, "radix": 3.0, "in_log_scale": 7.0}, lambda r: 50 * math.log(r, 3)),
        ({}, lambda r: 1000 * math.log(r)),
    ],
)
def test_the_logarithmic_axis_is_the_originals(axis, shift):
    offsets = log_axis(12, **axis).offsets
    for k, offset in enumerate(offsets, start=1):
        assert math.isclose(offset, shift(k), rel_tol=1e-12, abs_tol=1e-12)


def test_whole_shifts_are_whole_on_any_axis():
    assert log_axis(16, out_log_scale=12, radix=2).offsets[1::2][0] == 12
    assert log_axis(1000, out_log_scale=7, radix=10).offsets[999] == 21
    assert log_axis(9, out_log_scale=12, radix=3).offsets[8] == 24


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ({"radix": 1}, "radix must be > 1, got 1"),
        ({"radix": -2}, "radix must be > 0, got -2"),
        ({"in_log_scale": -1}, "in_log_scale must be > 0, got -1"),
        ({"out_log_scale": 0}, "out_log_scale must be > 0, got 0"),
    ],
)
def test_a_logarithmic_axis_that_is_none_is_refused(axis, message):
    with pytest.raises(ValueError, match=message):
        log_axis(3, **axis)
