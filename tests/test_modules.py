"""The layers as drop-ins for Conv2d, and the tools of the ecosystem around them."""

import copy
import io
import itertools
import pickle
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp, vmap

import harmonic_conv
from harmonic_lowering import (
    DeadTapWarning,
    FrequencyTapConv2d,
    FrequencyTaps,
    HarmonicConv2d,
    HarmonicLowering,
    LogHarmonicConv2d,
    LogHarmonicLowering,
    UpwardTapsWarning,
    harmonic_conv2d,
    log_harmonic_conv2d,
)

LAYERS = {
    "harmonic": lambda **kw: HarmonicConv2d(4, 6, 3, padding=1, anchor=2, **kw),
    "ratios": lambda **kw: HarmonicConv2d(4, 6, (3, 3), harmonics=(1 / 2, 1, 3), origin=1, **kw),
    "anchors": lambda **kw: HarmonicConv2d(4, 6, 3, stride=(1, 2), anchor=(1, 2, 3), **kw),
    "groups": lambda **kw: HarmonicConv2d(4, 6, 3, groups=2, padding="same", **kw),
    "log": lambda **kw: LogHarmonicConv2d(4, 6, 3, padding=1, bins_per_octave=4.5, **kw),
    "shifts": lambda **kw: LogHarmonicConv2d(4, 6, (3, 3), shifts=(-2, 0, 5), **kw),
    "time first": lambda **kw: HarmonicConv2d(
        4, 6, (2, 3), stride=(2, 1), padding=(1, 0), anchor=(1, 2), freq_dim=-1, **kw
    ),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]()


@pytest.fixture
def x():
    return torch.randn(2, 4, 16, 12)


# -------------------------------------------------------------------- like Conv2d


@pytest.mark.parametrize(
    ("stride", "padding"),
    [(1, "same"), *itertools.product([1, 2, (1, 2), (3, 1)], [0, 1, 2, (0, 3), "valid"])],
)
@pytest.mark.parametrize("dilation", [1, 2, (1, 3)])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_the_output_has_conv2ds_shape(stride, padding, dilation, frames):
    x = torch.randn(1, 2, 9, 20)
    layer = HarmonicConv2d(2, 3, (3, frames), stride, padding, dilation)
    p, d = layer.padding, layer.dilation[1]
    conv = nn.Conv2d(2, 3, (1, frames), stride, p, (1, d))
    assert layer(x).shape == conv(x).shape


def test_same_padding_puts_the_odd_zero_where_conv2d_puts_it():
    x = torch.randn(1, 2, 9, 20)
    layer = HarmonicConv2d(2, 3, (1, 4), padding="same")
    conv = nn.Conv2d(2, 3, (1, 4), padding="same")
    conv.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), conv(x))


def test_parameters_are_conv2ds():
    torch.manual_seed(3)
    layer = HarmonicConv2d(4, 6, (5, 3), groups=2)
    torch.manual_seed(3)
    conv = nn.Conv2d(4, 6, (5, 3), groups=2)
    ours, theirs = layer.state_dict(), conv.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert isinstance(layer, nn.Conv2d)


def test_several_anchors_are_initialised_for_all_their_rows():
    layer = HarmonicConv2d(8, 16, 3, anchor=(1, 2, 3, 4))
    assert layer.weight.shape == (16, 8, 12, 3)
    bound = 1 / (8 * 12 * 3) ** 0.5
    assert layer.weight.abs().max() <= bound
    assert layer.weight.abs().max() > 0.95 * bound
    assert torch.equal(layer.anchor_weight, torch.ones(4))
    layer.anchor_weight.data.zero_()
    layer.reset_parameters()
    assert torch.equal(layer.anchor_weight, torch.ones(4))


def test_module_and_function_agree(x):
    layer = HarmonicConv2d(4, 6, 3, 2, 1, (1, 2), 2, anchor=(1, 2), origin=0.5)
    expected = harmonic_conv2d(
        x,
        layer.weight,
        layer.bias,
        2,
        1,
        (1, 2),
        2,
        anchor=(1, 2),
        origin=0.5,
        anchor_weight=layer.anchor_weight,
    )
    assert torch.equal(layer(x), expected)
    axis = {"bins_per_octave": 3.0, "anchor": 2, "interpolation": "nearest"}
    log = LogHarmonicConv2d(4, 6, 3, padding=1, **axis)
    assert torch.equal(log(x), log_harmonic_conv2d(x, log.weight, log.bias, padding=1, **axis))


def test_unbatched_and_empty_batches(layer, x):
    torch.testing.assert_close(layer(x[0]), layer(x)[0])
    empty = layer(x[:0].requires_grad_())
    assert empty.shape == (0, *layer(x).shape[1:])
    empty.sum().backward()
    assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: x[:1].expand(2, -1, -1, -1),
    ],
    ids=["channels_last", "transposed", "strided", "expanded"],
)
def test_any_memory_layout(layer, x, layout):
    strided = layout(x)
    assert not strided.is_contiguous()
    torch.testing.assert_close(layer(strided), layer(strided.contiguous()))


def test_the_input_is_left_alone(layer, x):
    before = x.clone()
    layer(x).sum().backward()
    assert torch.equal(x, before)


def test_repr_shows_what_is_not_default():
    assert repr(HarmonicConv2d(1, 2, (3, 5), harmonics=(1, 2, 3), origin=1)) == (
        "HarmonicConv2d(1, 2, kernel_size=(3, 5), stride=(1, 1), harmonics=(1, 2, 3), origin=1)"
    )
    assert repr(LogHarmonicConv2d(1, 2, 3, bins_per_octave=12, bias=False)) == (
        "LogHarmonicConv2d(1, 2, kernel_size=(3, 3), stride=(1, 1), bias=False, bins_per_octave=12)"
    )


def test_repr_shows_ratios_as_numbers():
    layer = HarmonicConv2d(
        1, 2, (4, 1), harmonics=(r for r in (Fraction(1, 3), 0.5, np.float64(1.5), np.int64(2)))
    )
    assert "harmonics=(1/3, 0.5, 1.5, 2)" in repr(layer)
    assert len(layer.taps) == 4
    assert "origin=0.25" in repr(HarmonicConv2d(1, 2, 3, origin=np.float32(0.25)))
    assert "engine=lowering" in repr(HarmonicConv2d(1, 2, 3, engine="lowering"))


def test_numpys_integers_are_integers(x):
    n = np.int64
    layer = HarmonicConv2d(n(4), n(6), (n(3), n(3)), n(2), (0, n(1)), n(2), n(2), anchor=n(2))
    twin = HarmonicConv2d(4, 6, 3, 2, 1, 2, 2, anchor=2)
    assert repr(layer) == repr(twin)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), twin(x))
    assert HarmonicConv2d(4, 6, 3, anchor=(n(1), n(2))).anchor == (1, 2)
    w, b = layer.weight, layer.bias
    y = harmonic_conv2d(x, w, b, n(2), (0, n(1)), n(2), n(2), anchor=n(2))
    assert torch.equal(y, layer(x))
    assert torch.equal(HarmonicLowering(n(3))(x), HarmonicLowering(3)(x))


def test_the_choice_of_engine_can_be_asked_for(layer, x):
    choice = layer.engine_for(x)
    assert choice.engine in ("lowering", "blocked", "native")
    assert choice.reason
    named = HarmonicConv2d(4, 6, 3, engine="reference").engine_for(x)
    assert named.engine == "reference"


# -------------------------------------------------------------------- (batch, channel, time, freq)


def swap(value):
    """Turn (freq, time) round: the axes of a tensor, or a pair."""
    return value.transpose(-1, -2) if isinstance(value, torch.Tensor) else value[::-1]


TIME_FIRST = {
    "one anchor": (HarmonicConv2d, {"anchor": 2, "origin": 1}),
    "several anchors": (HarmonicConv2d, {"anchor": (1, 3)}),
    "log": (LogHarmonicConv2d, {"bins_per_octave": 4.5}),
    "taps": (FrequencyTapConv2d, {"taps": FrequencyTaps((1, 2, 0.5), (0, 1, -2))}),
}


@pytest.mark.parametrize("engine", ["auto", "native", "blocked", "lowering", "reference"])
@pytest.mark.parametrize("name", TIME_FIRST)
def test_time_before_frequency_is_the_transposed_layer(name, engine, x):
    layer, choices = TIME_FIRST[name]
    given = {"kernel_size": (3, 2), "stride": (2, 3), "padding": (0, 1), "dilation": (1, 2)}
    twin = layer(4, 6, **given, groups=2, engine=engine, **choices)
    turned = {key: swap(pair) for key, pair in given.items()}
    time_first = layer(4, 6, **turned, groups=2, engine=engine, freq_dim=-1, **choices)
    twin.load_state_dict(
        {k: swap(v) if k == "weight" else v for k, v in time_first.state_dict().items()}
    )
    x = x.requires_grad_()
    ours, theirs = time_first(swap(x)), swap(twin(x))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(time_first(swap(x)[0]), ours[0])
    ours_x, ours_w = torch.autograd.grad(ours.square().sum(), (x, time_first.weight))
    theirs_x, theirs_w = torch.autograd.grad(theirs.square().sum(), (x, twin.weight))
    torch.testing.assert_close(ours_x, theirs_x)
    torch.testing.assert_close(ours_w, swap(theirs_w))
    assert time_first.engine_for(swap(x)) == twin.engine_for(x)


def test_time_first_has_exact_gradients_of_every_order():
    layer = HarmonicConv2d(
        2, 2, (2, 3), (2, 1), (1, 0), anchor=(1, 2), freq_dim=-1, dtype=torch.float64
    )
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)

    def call(x, weight, bias, anchor_weight):
        parameters = {"weight": weight, "bias": bias, "anchor_weight": anchor_weight}
        return functional_call(layer, parameters, (x,))

    inputs = (x, layer.weight, layer.bias, layer.anchor_weight)
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("freq_dim", [-2, -1])
def test_weights_and_arguments_are_conv2ds_on_either_axis(freq_dim, x):
    """Rows at neighbouring bins are Conv2d's: everything but the taps must agree."""
    size, padding = ((3, 2), (1, 2)) if freq_dim == -2 else ((2, 3), (2, 1))
    stride = (1, 2) if freq_dim == -2 else (2, 1)
    conv = nn.Conv2d(4, 6, size, stride, padding, groups=2)
    along_time = (0, 2) if freq_dim == -2 else (2, 0)
    layer = LogHarmonicConv2d(
        4, 6, size, stride, along_time, groups=2, shifts=(-1, 0, 1), freq_dim=freq_dim
    )
    layer.load_state_dict(conv.state_dict())
    for layout in (x, x.to(memory_format=torch.channels_last)):
        y, expected = layer(layout), conv(layout)
        torch.testing.assert_close(y, expected)
        assert y.stride() == expected.stride()
    assert layer(x[0]).stride() == conv(x[0]).stride()


def test_lowering_with_time_before_frequency(x):
    for layer, choices in (
        (HarmonicLowering, {"n_harmonics": 3, "anchor": 2}),
        (LogHarmonicLowering, {"shifts": (-1, 0, 2.5)}),
    ):
        turned = layer(freq_dim=-1, **choices)
        assert torch.equal(turned(swap(x)), swap(layer(**choices)(x)))
        assert repr(turned).endswith(", freq_dim=-1)")


def test_time_first_is_told_what_does_not_fit():
    for wrong in (0, 1, 2, -3, True, "time", None, 2.0):
        with pytest.raises(ValueError, match=r"freq_dim must be -2, for inputs .* or -1, for"):
            HarmonicConv2d(1, 1, 3, freq_dim=wrong)
        with pytest.raises(ValueError, match="freq_dim must be -2"):
            HarmonicLowering(3, freq_dim=wrong)
    order = r"with freq_dim=-1 give them as \(time, freq\)"
    with pytest.raises(ValueError, match=f"padding along frequency must be 0.*{order}"):
        HarmonicConv2d(1, 1, 3, padding=(0, 1), freq_dim=-1)
    with pytest.raises(ValueError, match=f"harmonics must have one entry.*{order}"):
        HarmonicConv2d(1, 1, (2, 3), harmonics=(1, 2), freq_dim=-1)
    with pytest.raises(ValueError, match=r"for each of the 2 taps, got 3 rows: use .*=\(4, 2\)"):
        FrequencyTapConv2d(1, 1, (4, 3), taps=FrequencyTaps((1, 2), (0, 0)), freq_dim=-1)
    with pytest.raises(ValueError, match=r"needs an input \(batch, 1, time, freq\), got .*5, 9"):
        HarmonicConv2d(1, 1, 3, freq_dim=-1)(torch.randn(1, 2, 5, 9))
    with pytest.raises(TypeError, match=r"input must be a torch.Tensor, got ndarray"):
        HarmonicConv2d(1, 1, 3, freq_dim=-1)(np.zeros((1, 1, 5, 9)))


# -------------------------------------------------------------------- dtypes and devices


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype, x):
    layer = HarmonicConv2d(4, 6, 3, anchor=2, dtype=dtype)
    assert layer(x.to(dtype)).dtype == dtype
    expected = copy.deepcopy(layer).double()(x.to(dtype).double())
    torch.testing.assert_close(layer(x.to(dtype)).double(), expected, rtol=0.02, atol=0.02)


def test_autocast(layer, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        conv = nn.Conv2d(4, 6, 3)(x)
    assert y.dtype == conv.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_float64_under_autocast_is_conv2ds(x):
    layer = HarmonicConv2d(4, 6, 3, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x.double()).dtype == torch.float64
        with pytest.raises(TypeError, match=r"same dtype, got torch.float64 and torch.float32"):
            HarmonicConv2d(4, 6, 3, bias=False)(x.double())


def test_meta_device():
    layer = HarmonicConv2d(4, 6, 3, anchor=(1, 2), device="meta")
    assert layer(torch.empty(2, 4, 16, 12, device="meta")).shape == (2, 6, 16, 10)
    assert layer.to_empty(device="cpu").weight.device.type == "cpu"
    with torch.device("meta"):
        assert LogHarmonicConv2d(1, 1, 3, bins_per_octave=2).weight.is_meta


@pytest.mark.gpu
def test_an_accelerator_computes_the_same(layer, x):
    device = torch.accelerator.current_accelerator()
    on_gpu = copy.deepcopy(layer).to(device)
    y = on_gpu(x.to(device))
    y.sum().backward()
    layer(x).sum().backward()
    torch.testing.assert_close(y.cpu(), layer(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(on_gpu.weight.grad.cpu(), layer.weight.grad, rtol=1e-3, atol=1e-2)


# -------------------------------------------------------------------- attributes


CHANGES = {
    "stride": [(2, 3), 2],
    "padding": [1, (0, 2), "valid"],
    "dilation": [2, (1, 3)],
    "groups": [2],
    "engine": ["lowering", "reference"],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in CHANGES for v in CHANGES[n]])
def test_an_attribute_that_changes_takes_effect(name, value):
    x = torch.randn(1, 2, 9, 14)
    layer = HarmonicConv2d(4, 6, (3, 2), anchor=2)
    built = HarmonicConv2d(4, 6, (3, 2), anchor=2, **{name: value})
    setattr(layer, name, value)
    assert getattr(layer, name) == getattr(built, name)
    assert repr(layer) == repr(built)
    weight, bias = torch.randn(6, 2, 3, 2), torch.randn(6)
    x = torch.randn(1, 2 * layer.groups, 9, 14)
    parameters = {"weight": weight, "bias": bias}
    if name != "groups":
        parameters, x = built.state_dict(), torch.randn(1, 4, 9, 14)
    assert torch.equal(
        functional_call(layer, parameters, (x,)), functional_call(built, parameters, (x,))
    )


def test_pairs_that_change_are_in_the_order_of_the_axes():
    layer = HarmonicConv2d(1, 1, 3, freq_dim=-1)
    layer.stride, layer.padding, layer.dilation = (3, 1), 2, 2
    assert (layer.stride, layer.padding, layer.dilation) == ((3, 1), (2, 0), (2, 1))
    assert layer(torch.randn(1, 1, 20, 9)).shape == (1, 1, 7, 9)
    with pytest.raises(ValueError, match=r"padding along frequency must be 0"):
        layer.padding = (0, 1)
    assert layer.padding == (2, 0)


READ_ONLY = {
    "taps": FrequencyTaps((1, 2, 3), (0, 0, 0)),
    "kernel_size": (3, 5),
    "padding_mode": "reflect",
    "anchor": 3,
    "harmonics": (1, 2, 3),
    "origin": 1,
    "interpolation": "nearest",
    "freq_dim": -1,
}


@pytest.mark.parametrize("name", READ_ONLY)
def test_what_chooses_the_taps_is_read_only(name):
    layer = HarmonicConv2d(1, 1, 3, anchor=2)
    before = repr(layer), getattr(layer, name)
    with pytest.raises(AttributeError, match=rf"{name} is read-only.*load_state_dict"):
        setattr(layer, name, READ_ONLY[name])
    assert (repr(layer), getattr(layer, name)) == before


def test_the_resolution_of_a_log_layer_is_read_only():
    layer = LogHarmonicConv2d(1, 1, 3, bins_per_octave=12)
    for name, value in (("bins_per_octave", 24), ("shifts", (0, 1, 2))):
        with pytest.raises(AttributeError, match=f"{name} is read-only"):
            setattr(layer, name, value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("stride", 0, "stride must be >= 1"),
        ("padding", (1, 1), "padding along frequency must be 0"),
        ("dilation", "two", "dilation must be an int"),
        ("groups", 1.5, "groups must be an int"),
        ("engine", "fast", "engine must be 'auto' or one of"),
    ],
)
def test_an_attribute_that_does_not_fit_is_refused_and_changes_nothing(name, value, message):
    layer = HarmonicConv2d(1, 1, 3)
    before, x = repr(layer), torch.randn(1, 1, 9, 9)
    expected = layer(x)
    with pytest.raises(ValueError, match=message):
        setattr(layer, name, value)
    assert repr(layer) == before
    assert torch.equal(layer(x), expected)


def test_other_attributes_are_free():
    layer = HarmonicConv2d(1, 1, 3)
    layer.note = "mine"
    layer.weight = nn.Parameter(torch.zeros(1, 1, 3, 3))
    layer.bias = None
    assert not layer(torch.randn(1, 1, 9, 9)).any()


# -------------------------------------------------------------------- saving and copying


def test_pickle_deepcopy_and_state_dict(layer, x):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    copies = (copy.deepcopy(layer), copy.copy(layer), torch.load(buffer, weights_only=False))
    for twin in (*copies, pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
        assert repr(twin) == repr(layer)
        with pytest.raises(AttributeError, match="anchor is read-only"):
            twin.anchor = 5
    other = copy.deepcopy(layer)
    other.reset_parameters()
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


def test_copies_change_apart(x):
    layer = HarmonicConv2d(4, 6, 3, anchor=2)
    for twin in (copy.deepcopy(layer), copy.copy(layer)):
        twin.stride = (1, 2)
        assert layer.stride == (1, 1)
        assert torch.equal(twin(x), layer(x)[..., ::2])


def test_conv2d_checkpoints_load_and_are_loaded():
    layer, conv = HarmonicConv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
    layer.load_state_dict(conv.state_dict())
    conv.load_state_dict(layer.state_dict())


# -------------------------------------------------------------------- the ecosystem


@pytest.mark.parametrize(
    "normalise", [nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm]
)
def test_weight_and_spectral_norm(normalise, layer, x):
    layer.eval()
    before = layer(x)
    normalised = normalise(layer)
    after = normalised(x)
    after.sum().backward()
    if normalise is nn.utils.parametrizations.weight_norm:
        torch.testing.assert_close(after, before)
    assert any("weight" in name for name, p in normalised.named_parameters() if p.grad is not None)


def test_optimisers_fit_it(x):
    torch.manual_seed(0)
    teacher, student = (HarmonicConv2d(4, 2, 3, padding=1, anchor=(1, 2)) for _ in range(2))
    target = teacher(x).detach()
    optimiser = torch.optim.Adam(student.parameters(), 0.03)
    losses = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(student(x), target)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]


def test_vmap_over_weights_and_inputs(layer, x):
    weights = torch.stack([layer.weight, 2 * layer.weight, -layer.weight]).detach()
    batched = vmap(lambda w: functional_call(layer, {"weight": w}, (x,)))(weights)
    for y, w in zip(batched, weights, strict=True):
        torch.testing.assert_close(y, functional_call(layer, {"weight": w}, (x,)))
    per_sample = vmap(layer)(x)
    torch.testing.assert_close(per_sample, layer(x))


def test_forward_mode_and_per_sample_gradients(layer, x):
    tangent = torch.randn_like(x)
    _, along = jvp(layer, (x,), (tangent,))
    expected = layer(tangent) - layer(torch.zeros_like(tangent))
    torch.testing.assert_close(along, expected)
    assert along.abs().max() > 0

    def loss(weight, sample):
        return functional_call(layer, {"weight": weight}, (sample,)).square().sum()

    each = vmap(torch.func.grad(loss), (None, 0))(layer.weight.detach(), x)
    layer(x).square().sum().backward()
    torch.testing.assert_close(each.sum(0), layer.weight.grad, rtol=1e-4, atol=1e-4)


def test_plans_made_inside_transforms_do_not_leak():
    """A geometry first seen inside of vmap, grad or inference mode works outside afterwards."""
    for frames, run in enumerate(
        [
            lambda f, x: vmap(f)(x),
            lambda f, x: torch.func.grad(lambda t: f(t).sum())(x),
            lambda f, x: jvp(f, (x,), (x,)),
            lambda f, x: torch.inference_mode()(f)(x),
            lambda f, x: torch.export.export(f, (x,)),
        ]
    ):
        layer = HarmonicConv2d(1, 1, 3, anchor=3)
        x = torch.randn(2, 1, 100 + frames, 5)  # a number of bins that no other test has
        run(layer, x)
        layer(x.requires_grad_()).sum().backward()
        assert x.grad.shape == x.shape


class Around(nn.Module):
    """A layer in a network that tools take apart."""

    def __init__(self, layer, channels=6):
        super().__init__()
        self.layer = layer
        self.lowering = HarmonicLowering(2, freq_dim=getattr(layer, "freq_dim", -2))
        self.out = nn.Conv2d(2 * channels, 1, 1)

    def forward(self, x):
        return self.out(self.lowering(torch.relu(self.layer(x))))


@pytest.mark.parametrize("engine", ["auto", "lowering"])
@pytest.mark.parametrize("name", LAYERS)
def test_fx_traces_it(name, engine, x):
    network = Around(LAYERS[name](engine=engine))
    traced = torch.fx.symbolic_trace(network)
    called = [node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"]
    assert {"_convolve_recorded", "_lower_recorded"} <= set(called)
    again = pickle.loads(pickle.dumps(traced))
    for graph in (traced, copy.deepcopy(traced), again):
        for input in (x, x[..., :9], x[0]):
            assert torch.equal(graph(input), network(input))
    again(x).square().sum().backward()
    network(x).square().sum().backward()
    assert torch.equal(again.layer.weight.grad, network.layer.weight.grad)
    traced.layer.weight.data.zero_()  # parameters stay those of the network
    assert not network.layer.weight.any()


torch.fx.wrap("harmonic_conv2d")


def test_fx_takes_the_function_as_a_leaf(x):
    class Calling(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 4, 3, 3))

        def forward(self, x):
            return harmonic_conv2d(x, self.weight, padding=1, anchor=2)

    network = Calling()
    assert torch.equal(torch.fx.symbolic_trace(network)(x), network(x))


def test_a_traced_graph_compiles_to_one_graph(x):
    network = Around(LAYERS["anchors"]())
    torch._dynamo.reset()
    traced = torch.fx.symbolic_trace(network)
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), network(x))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_torchscript_is_refused_with_a_sentence(layer):
    for module in (layer, Around(layer), HarmonicLowering(2)):
        with pytest.raises(NotImplementedError, match=r"torch.jit.script cannot .* torch.export"):
            torch.jit.script(module)


@pytest.mark.parametrize("name", [*LAYERS, "lowering", "log lowering"])
def test_compiles_to_one_graph(name, x):
    modules = {
        **LAYERS,
        "lowering": lambda: HarmonicLowering(3, anchor=2),
        "log lowering": lambda: LogHarmonicLowering(3, bins_per_octave=2),
    }
    module = modules[name]()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True), warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), module(x))
        compiled(x + 1)


def test_the_function_compiles_to_one_graph(x):
    weight = torch.randn(6, 4, 6, 3, requires_grad=True)

    def call(x, weight):
        return harmonic_conv2d(x, weight, padding=1, anchor=(1, 2)) + harmonic_conv2d(
            x, weight, padding=1, anchor=(2, 3), origin=1
        )

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight), call(x, weight))
    compiled(x, weight).sum().backward()


def frames_compiled(module, sizes, **options):
    """Call a compiled module with inputs of some sizes, and count its graphs after each."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter, **options)
    counts = []
    for batch, bins, frames in sizes:
        y = torch.randn(batch, 4, bins, frames, requires_grad=True)
        z = y.detach().clone().requires_grad_()
        torch.testing.assert_close(compiled(y), module(z))
        compiled(y).square().sum().backward()
        module(z).square().sum().backward()
        torch.testing.assert_close(y.grad, z.grad, rtol=1e-4, atol=1e-4)
        counts.append(counter.frame_count)
    return counts


@pytest.mark.parametrize("engine", ["native"])
@pytest.mark.parametrize("name", ["harmonic", "anchors", "log"])
def test_one_graph_serves_every_size(name, engine):
    sizes = [(2, 16, 12), (3, 20, 13), (5, 24, 300), (4, 16, 14)]
    assert frames_compiled(LAYERS[name](engine=engine), sizes, dynamic=True) == [1, 1, 1, 1]


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", ["harmonic", "anchors", "log"])
@pytest.mark.slow
def test_stock_operations_compile_again_for_another_number_of_bins(name, dynamic):
    layer = LAYERS[name](engine="lowering")
    bins = [(2, bins, 12) for bins in (16, 20, 24)]
    # not dynamic: with these it learns that length and batch vary
    others = [(2, 24, 15), (3, 24, 15), (2, 24, 13), (5, 24, 31), (4, 24, 14)]
    counts = frames_compiled(layer, bins + others, dynamic=dynamic)
    assert len(set(counts[4:])) == 1
    assert dynamic is None or set(counts[2:]) == {3}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("anchor", [1, 2, 3, (1,), (2,)]),
        ("origin", [0, 1, 2, 0.5, 1 / 3, Fraction(1, 3), Fraction(2, 3)]),
        ("harmonics", [(1, 2, 3), (0.5, 1, 2), [1 / 3, 1, 4], (Fraction(1, 3), 1, 2.5)]),
        ("interpolation", ["nearest", "linear"]),
        ("bins_per_octave", [2, 3, 4, 2.5, 3.5]),
        ("shifts", [(0, 1, 2), (0, -1, 2.5), [1, 2, 3]]),
    ],
)
@pytest.mark.parametrize("dynamic", [None, True])
def test_arguments_of_a_compiled_function_choose_the_taps(name, values, dynamic, x):
    weight = torch.randn(6, 4, 3, 3)
    is_log = name in ("bins_per_octave", "shifts")
    convolve = log_harmonic_conv2d if is_log else harmonic_conv2d

    def call(x, value):
        return convolve(x, weight, **{name: value})

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="eager", dynamic=dynamic)
    with torch._dynamo.config.patch(recompile_limit=32):
        for value in values:
            torch.testing.assert_close(compiled(x, value), call(x, value))
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled(x, copy.deepcopy(values[-1]))  # an equal value needs no new graph
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


@pytest.mark.slow
def test_compiles_with_inductor(x):
    layer = HarmonicConv2d(4, 6, 3, padding=1, anchor=2)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    (expected,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    (got,) = torch.autograd.grad(compiled(x).square().sum(), layer.weight)
    torch.testing.assert_close(got, expected)


def test_export_runs_at_another_length(layer, x):
    time = torch.export.Dim("time", min=8)  # a shorter input has no output, without padding
    program = torch.export.export(layer, (x,), dynamic_shapes=({3: time},))
    longer = torch.randn(2, 4, 16, 31)
    torch.testing.assert_close(program.module()(longer), layer(longer))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("engine", ["native"])
def test_exported_operators_take_any_size(strict, engine, x):
    layer = LAYERS["anchors"](engine=engine)
    auto = torch.export.Dim.AUTO
    program = torch.export.export(
        layer, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},), strict=strict
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    for module in (program.module(), torch.export.load(buffer).module()):
        other = torch.randn(5, 4, 21, 31)
        torch.testing.assert_close(module(other), layer(other))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_stock_operations_fix_the_number_of_bins(strict, x):
    layer = LAYERS["harmonic"](engine="lowering")
    auto = torch.export.Dim.AUTO
    program = torch.export.export(
        layer, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},), strict=strict
    )
    other = torch.randn(5, 4, 16, 31)
    torch.testing.assert_close(program.module()(other), layer(other))
    with pytest.raises((AssertionError, RuntimeError), match="16"):
        program.module()(torch.randn(2, 4, 17, 12))


# its warnings that sizes become constants are right for the bins, and about checks for the others
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_jit_trace_runs_at_another_length(engine):
    layer = HarmonicConv2d(4, 6, 3, stride=(1, 2), anchor=(1, 2, 3), origin=1, engine=engine)
    traced = torch.jit.trace(layer, torch.randn(2, 4, 18, 12))  # bins that no other test has
    longer = torch.randn(3, 4, 18, 31)
    torch.testing.assert_close(traced(longer), layer(longer))


@pytest.mark.parametrize("name", ["harmonic", "anchors", "shifts", "time first"])
@pytest.mark.slow
def test_onnx_runs_at_another_length(name, x, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    layer = LAYERS[name]().eval()
    path = tmp_path / "layer.onnx"
    torch.onnx.export(
        layer,
        (x,),
        path,
        dynamo=True,
        dynamic_shapes=({-3 - layer.freq_dim + 4: torch.export.Dim("time")},),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    longer = torch.randn(2, 4, 16, 31) if layer.freq_dim == -2 else torch.randn(2, 4, 31, 12)
    (y,) = session.run(None, {session.get_inputs()[0].name: longer.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), layer(longer).detach(), rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------- dead taps


def test_the_warning_points_at_the_line_that_calls_the_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(LogHarmonicConv2d(1, 1, 3, bins_per_octave=40))

        def forward(self, x):
            return self.layers(x)  # here

    x = torch.randn(1, 1, 21, 5)
    for call in (
        lambda: log_harmonic_conv2d(x, torch.randn(1, 1, 3, 1), bins_per_octave=30),
        lambda: LogHarmonicLowering(3, bins_per_octave=31)(x),
        lambda: LogHarmonicConv2d(1, 1, 3, bins_per_octave=32)(x),
        lambda: torch.nn.Sequential(LogHarmonicConv2d(1, 1, 3, bins_per_octave=33))(x),
        lambda: Net()(x),
    ):
        with pytest.warns(DeadTapWarning) as caught:
            call()
        (warning,) = caught
        assert warning.filename == __file__
        line = Path(__file__).read_text().splitlines()[warning.lineno - 1]
        assert "lambda:" in line or "# here" in line


def test_rows_that_see_0_hz_alone_are_reported():
    x = torch.randn(1, 1, 6, 5)
    with pytest.warns(DeadTapWarning, match=r"1 of 6 .* or 0 Hz alone: row 5 \(reads bin 6·f\)"):
        HarmonicConv2d(1, 1, (6, 1))(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HarmonicConv2d(1, 1, 5)(x)
        HarmonicConv2d(1, 1, (6, 1), origin=0.25)(x)  # bin 0 is a frequency like any other
        HarmonicConv2d(1, 1, 3)(x[:, :, :1])


def test_a_dead_tap_warns_once_and_names_the_row():
    layer = LogHarmonicConv2d(1, 1, 3, bins_per_octave=17)
    x = torch.randn(1, 1, 20, 5)
    with pytest.warns(DeadTapWarning, match=r"1 of 3 kernel rows .* row 2 \(reads bin f \+ 26.9"):
        layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    with pytest.warns(DeadTapWarning):
        layer(x[:, :, :19])


@pytest.mark.usefixtures("unhinted")
@pytest.mark.parametrize(
    "layer",
    [
        lambda: HarmonicConv2d(1, 1, 3),
        lambda: HarmonicConv2d(1, 1, 3, anchor=[1], freq_dim=-1),
        lambda: LogHarmonicConv2d(1, 1, 3, bins_per_octave=2),
    ],
)
def test_a_layer_that_looks_up_alone_says_so_once_when_it_trains(layer):
    layer, x = layer(), torch.randn(1, 1, 20, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            layer(x)
        layer.eval()(x)
        pickle.loads(pickle.dumps(layer))(x)
    with pytest.warns(UpwardTapsWarning, match=r"harmonics=\(1/3, 1/2, 1, 2, 3\)") as caught:
        layer.train()(x)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
        HarmonicConv2d(1, 1, 3)(x)


@pytest.mark.usefixtures("unhinted")
@pytest.mark.parametrize(
    "layer",
    [
        lambda: HarmonicConv2d(1, 1, (1, 3)),
        lambda: HarmonicConv2d(1, 1, 3, anchor=2),
        lambda: HarmonicConv2d(1, 1, 3, anchor=(1, 2)),
        lambda: HarmonicConv2d(1, 1, 3, harmonics=(1, 2, 3)),
        lambda: LogHarmonicConv2d(1, 1, 3, shifts=(0, 2, 3)),
        lambda: harmonic_conv.SingleHarmonicConv2d(1, 1, 3),
        lambda: harmonic_conv.SingleLogHarmonicConv2d(1, 1, 3, 4),
    ],
)
def test_taps_that_are_meant_get_no_hint(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer()(torch.randn(1, 1, 20, 20))
