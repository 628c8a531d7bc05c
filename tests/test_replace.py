"""Swapping the layers of an existing network."""

import copy
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

import harmonic_conv
from harmonic_lowering import (
    HarmonicConv2d,
    LogHarmonicConv2d,
    harmonic_conv2d,
    replace_conv2d,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, (5, 3), stride=2, padding=(2, 1), groups=2, bias=False),
        )
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.narrow = nn.Conv2d(8, 8, 3)
        self.mirrored = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.same = nn.Conv2d(8, 8, 3, padding="same", dilation=(1, 2))
        self.shared = self.same
        self.out = nn.Conv2d(8, 1, 1)
        self.lines = nn.Conv1d(8, 8, 3)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)

    def forward(self, x):
        x = self.encoder(x)
        return self.out(self.shared(self.same(self.mirrored(x))))


def test_every_layer_that_has_a_twin_is_swapped_and_the_others_are_explained():
    net, x = Net(), torch.randn(2, 1, 17, 12)
    shape = net(x).shape
    report = replace_conv2d(net, anchor=2)
    assert report.swapped == ("encoder.0", "encoder.2", "same")
    reasons = {layer.name: layer.reason for layer in report.layers}
    assert "dilated along frequency (by 2)" in reasons["dilated"]
    assert "changes the number of bins" in reasons["narrow"]
    assert "'reflect'" in reasons["mirrored"]
    assert "one row" in reasons["out"]
    assert "weight carried over" in reasons["encoder.0"]
    assert "Conv1d has no frequency axis" in reasons["lines"]
    assert "ConvTranspose2d has no harmonic twin" in reasons["up"]
    assert str(report).startswith("3 of 9 convolutions swapped\n  swap  encoder.0 ")
    assert net(x).shape == shape
    assert type(net.encoder[0]) is HarmonicConv2d
    assert net.encoder[2].groups == 2
    assert net.encoder[2].bias is None
    assert net.shared is net.same
    assert net.same.dilation == (1, 2)
    assert all(net.get_submodule(name).anchor == 2 for name in report.swapped)


def test_weights_stay_the_same_parameters():
    net = Net()
    before = dict(net.named_parameters())
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    replace_conv2d(net)
    after = dict(net.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    old = net.encoder[0].weight.detach().clone()
    net(torch.randn(1, 1, 17, 12)).sum().backward()
    optimiser.step()
    assert not torch.equal(net.encoder[0].weight, old)


def test_several_anchors_get_a_new_weight_and_say_so():
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1)).double().eval().requires_grad_(False)
    bias = net[0].bias
    report = replace_conv2d(net, anchor=(1, 2))
    assert not any(p.requires_grad for p in net.parameters())
    assert net[0].bias is bias
    assert net[0].weight.shape == (4, 2, 6, 3)
    assert "new weight of shape (4, 2, 6, 3)" in report.layers[0].reason
    assert "note: new weights are not in an optimiser made before" in str(report)
    assert not replace_conv2d(Net(), anchor=2).notes
    assert net[0].weight.dtype == torch.float64
    assert not net[0].training


def test_selection_by_name_pattern_and_predicate():
    for select, expected in [
        ("encoder.0", ("encoder.0",)),
        ("encoder.*", ("encoder.0", "encoder.2")),
        (["encoder.0", "same"], ("encoder.0", "same")),
        (lambda name, conv: conv.groups == 2, ("encoder.2",)),
        ("shared", ("same",)),
        (lambda name, conv: name == "shared", ("same",)),
    ]:
        report = replace_conv2d(Net(), select=select)
        assert report.swapped == expected
        kept = {layer.name: layer.reason for layer in report.layers if not layer.swapped}
        assert "it was not selected" in kept.values()


def test_origins_by_name():
    net = Net()
    replace_conv2d(net, origin={"encoder.0": 1, "same": 0.25})
    origins = (net.encoder[0].origin, net.encoder[2].origin, net.same.origin)
    assert origins == (1, 0, 0.25)
    replace_conv2d(other := Net(), origin=1)
    assert other.same.origin == 1
    replace_conv2d(other := Net(), origin={"shared": 2, "*": 3})
    assert (other.same.origin, other.encoder[0].origin) == (2, 3)


def test_a_dry_run_changes_nothing():
    net = Net()
    twin = copy.deepcopy(net)
    state = torch.get_rng_state()
    report = replace_conv2d(net, dry_run=True, anchor=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert str(report).startswith("3 of 9 convolutions would be swapped")
    assert [type(m) for m in net.modules()] == [type(m) for m in twin.modules()]
    assert replace_conv2d(net, anchor=2).swapped == report.swapped


def test_log_layers_take_their_own_arguments():
    net = Net()
    replace_conv2d(net, LogHarmonicConv2d, bins_per_octave=2)
    assert type(net.same) is LogHarmonicConv2d
    assert net.same.bins_per_octave == 2
    with pytest.raises(ValueError, match="origin belongs to a linear frequency axis"):
        replace_conv2d(Net(), LogHarmonicConv2d, bins_per_octave=2, origin=1)


def test_layers_with_the_originals_order_of_arguments():
    net = Net()
    report = replace_conv2d(net, harmonic_conv.SingleHarmonicConv2d, anchor=3)
    assert report.swapped == ("encoder.0", "encoder.2", "same")
    strided = net.encoder[2]
    assert type(strided) is harmonic_conv.SingleHarmonicConv2d
    assert (strided.anchor, strided.stride, strided.groups) == (3, (2, 2), 2)


def test_a_second_call_finds_harmonic_layers():
    net = Net()
    replace_conv2d(net, anchor=2)
    report = replace_conv2d(net, anchor=3)
    assert report.swapped == ()
    reasons = {layer.name: layer.reason for layer in report.layers}
    assert reasons["encoder.0"] == "it is a HarmonicConv2d already"
    assert net.encoder[0].anchor == 2


def test_whatever_holds_a_layer_goes_on_holding_it():
    """The module is the same afterwards: in lists, with hooks, and as the model itself."""
    net, calls = Net(), []
    held = [net.same]
    net.same.register_forward_hook(lambda *_: calls.append("forward"))
    net.same.register_full_backward_hook(lambda *_: calls.append("backward"))
    net.same.register_state_dict_pre_hook(lambda *_: calls.append("state dict"))
    net.same.mine = "a note"
    assert "same" in replace_conv2d(net, anchor=2).swapped
    assert net.same is held[0]
    assert net.same.mine == "a note"
    net(torch.randn(1, 1, 17, 12)).sum().backward()
    net.state_dict()
    assert calls == ["forward", "forward", "backward", "backward", "state dict", "state dict"]

    conv = nn.Conv2d(1, 2, 3, padding=1)
    report = replace_conv2d(conv, anchor=2)
    assert type(conv) is HarmonicConv2d
    assert "swap  (the model itself)  HarmonicConv2d" in str(report)


REPARAMETRISATIONS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda conv: prune.l1_unstructured(conv, "weight", 0.3),
}


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", REPARAMETRISATIONS)
def test_reparametrised_layers_are_swapped_underneath(name):
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1))
    REPARAMETRISATIONS[name](net[0])
    before = dict(net.named_parameters())
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    report = replace_conv2d(net, anchor=2)
    assert report.swapped == ("0",)
    assert isinstance(net[0], HarmonicConv2d)
    after = dict(net.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[key] is after[key] for key in before)

    x = torch.randn(2, 2, 9, 7)
    net.eval()
    net(x)  # hooks compute the weight in it
    weight = net[0].weight.detach()
    expected = harmonic_conv2d(x, weight, net[0].bias, padding=1, anchor=2)
    torch.testing.assert_close(net(x), expected)
    net(x).square().sum().backward()
    optimiser.step()
    assert not torch.allclose(net(x), expected)
    net.load_state_dict(copy.deepcopy(net.state_dict()))
    if name not in ("old weight_norm", "old spectral_norm", "pruned"):  # torch's own cannot
        twin = copy.deepcopy(net)
        torch.testing.assert_close(twin(x), net(x))
    if is_parametrized(net[0]):
        remove_parametrizations(net[0], "weight")
        assert type(net[0]) is HarmonicConv2d
        assert net[0].anchor == 2


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", REPARAMETRISATIONS)
def test_a_reparametrised_weight_of_another_shape_is_kept(name):
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1))
    REPARAMETRISATIONS[name](net[0])
    (layer,) = replace_conv2d(net, anchor=(1, 2)).layers
    assert not layer.swapped
    assert "reparametrised, and the new one has another shape" in layer.reason
    assert not isinstance(net[0], HarmonicConv2d)


def test_a_lazy_layer_is_explained():
    (layer,) = replace_conv2d(nn.Sequential(nn.LazyConv2d(4, 3, padding=1))).layers
    assert "its shape is not known before its first call" in layer.reason


# -------------------------------------------------------------------- (batch, channel, time, freq)


def test_time_before_frequency():
    def network():
        return nn.Sequential(
            nn.Conv2d(1, 4, (3, 5), padding=(1, 2), stride=(1, 2)),
            nn.Conv2d(4, 4, (1, 3), padding=(0, 1), dilation=(1, 1)),
            nn.Conv2d(4, 4, (3, 1), padding=(2, 0), dilation=(2, 1)),
        )

    net, x = network(), torch.randn(2, 1, 12, 33)
    shape = net(x).shape
    report = replace_conv2d(net, anchor=2, freq_dim=-1)
    assert report.swapped == ("0", "1")
    assert not report.notes
    assert net(x).shape == shape
    assert (net[0].freq_dim, net[0].stride, net[0].padding) == (-1, (1, 2), (1, 0))
    turned = HarmonicConv2d(1, 4, (5, 3), (2, 1), (0, 1), anchor=2)
    turned.load_state_dict(
        {k: v.transpose(2, 3) if k == "weight" else v for k, v in net[0].state_dict().items()}
    )
    torch.testing.assert_close(net[0](x), turned(x.transpose(2, 3)).transpose(2, 3))

    (note,) = replace_conv2d(network()).notes
    assert "every stride and pooling is along the last axis" in note
    assert note.endswith("If inputs are (batch, channel, time, freq), pass freq_dim=-1")
    with pytest.raises(ValueError, match="freq_dim must be -2"):
        replace_conv2d(network(), freq_dim=3)


def test_a_sample_with_an_stfts_bins_on_the_other_axis_is_noted():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1))
    (note,) = replace_conv2d(net, example_input=torch.randn(1, 1, 100, 257), dry_run=True).notes
    assert "the last axis has 257 = 512/2 + 1 entries" in note
    for sample, freq_dim in (((1, 1, 257, 100), -2), ((1, 1, 100, 257), -1), ((1, 1, 84, 99), -2)):
        found = replace_conv2d(
            net, example_input=torch.randn(sample), freq_dim=freq_dim, dry_run=True
        )
        assert not found.notes


# -------------------------------------------------------------------- a sample input


class Pooled(nn.Module):
    """What becomes of bins in networks of others."""

    def __init__(self):
        super().__init__()
        self.inlet = nn.Conv2d(1, 4, 3, padding=1)
        self.strided = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.even = nn.Conv2d(4, 4, 4, padding=1, stride=2)
        self.norm = nn.GroupNorm(2, 4)
        self.pooled = nn.Conv2d(4, 4, 3, padding=1)
        self.excite = nn.Linear(4, 4)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.joined = nn.Conv2d(8, 4, 3, padding=1)
        self.turned = nn.Conv2d(4, 4, 3, padding=1)
        self.unused = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = torch.relu_(self.inlet(x[:, :, 1:]))  # without 0 Hz: origin 1
        y = self.strided(x)  # 1/2
        z = self.norm(self.even(y))  # (1/2 + 1/2) / 2
        z = z * self.excite(z.mean((2, 3)))[:, :, None, None]
        z = self.pooled(F.max_pool2d(z, 2))  # (1/2 + 1/2) / 2 = 1/2
        z = F.interpolate(z, scale_factor=2, mode="bilinear")  # 2·1/2 − 1/2
        z = self.joined(torch.cat([self.up(z), y], 1))  # 2·1/2 − 1/2 = 1/2, as y
        z = F.dropout(z.permute(0, 1, 3, 2), 0.5, self.training)
        return self.turned(F.avg_pool2d(z, (1, 4)))  # (1/2 + 3/2) / 4


def test_origins_are_followed_through_the_network():
    net, x = Pooled(), torch.randn(2, 1, 65, 32)
    report = replace_conv2d(net, example_input=x)
    assert report.swapped == ("inlet", "strided", "pooled", "joined", "turned")
    found = {name: net.get_submodule(name).origin for name in report.swapped}
    half = Fraction(1, 2)
    assert found == {"inlet": 1, "strided": 1, "pooled": half, "joined": half, "turned": half}
    assert [net.get_submodule(name).freq_dim for name in report.swapped] == [-2] * 4 + [-1]
    reasons = {layer.name: layer.reason for layer in report.layers}
    assert reasons["pooled"] == "HarmonicConv2d, weight carried over, origin 1/2"
    assert reasons["turned"].endswith("origin 1/2, freq_dim -1")
    assert reasons["unused"] == "example_input does not reach it"
    net(x).sum().backward()


def receptive_centre(net, x, layer, output_bin):
    """Return the centre of the input bins that reach a bin of a layer's input, by gradients."""
    x = x.clone().requires_grad_()
    held = []
    hook = layer.register_forward_pre_hook(lambda _, arguments: held.append(arguments[0]))
    net(x)
    hook.remove()
    (grad,) = torch.autograd.grad(held[0][:, :, output_bin].sum(), x)
    reached = grad.abs().sum((0, 1, 3)).nonzero().flatten()
    return Fraction(int(reached[0] + reached[-1]), 2)


@pytest.mark.parametrize("build", [
    lambda: [nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1)],
    lambda: [nn.Conv2d(1, 1, 5, stride=3, padding=2), nn.Conv2d(1, 1, 4, 2, 1)],
    lambda: [nn.ZeroPad2d((0, 0, 2, 3)), nn.Conv2d(1, 1, (3, 1), dilation=(2, 1))],
    lambda: [nn.AvgPool2d(4), nn.ConvTranspose2d(1, 1, 4, 2, 1)],
    lambda: [nn.AvgPool2d(4), nn.Upsample(scale_factor=2, mode="bilinear")],
    lambda: [nn.AdaptiveAvgPool2d((16, 8)), nn.ConvTranspose2d(1, 1, 3, 1, 0, dilation=2)],
    lambda: [nn.ReflectionPad2d((0, 0, 3, 0)), nn.AvgPool2d((4, 1), ceil_mode=True)],
])  # fmt: skip
def test_origins_are_those_of_the_receptive_field(build):
    """Against autograd, which knows no rule: where the centre of what a bin sees lies."""
    target = nn.Conv2d(1, 1, 3, padding=1)
    net, x = nn.Sequential(*build(), target).double(), torch.randn(1, 1, 64, 16).double()
    centres = [receptive_centre(net, x, target, j) for j in range(6, 10)]  # away from the ends
    # An upsampling sees from even bins upwards and from odd ones downwards, so two at a time.
    low, high = (centres[0] + centres[1]) / 2, (centres[2] + centres[3]) / 2
    scale = (high - low) / 2
    origin = (low + 3) / scale - Fraction(13, 2)  # bin 0 of the input stands for 3
    replace_conv2d(net, origin=3, example_input=x, select=lambda name, conv: conv is target)
    assert target.origin == origin


def test_the_axis_of_an_stft_inside_of_the_network_is_found():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(2, 4, 3, padding=1)
            self.dropped = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, sound):
            spectrum = torch.stft(sound, 128, window=torch.hann_window(128), return_complex=True)
            parts = torch.view_as_real(spectrum).permute(0, 3, 2, 1)  # (B, 2, T, F)
            return self.dropped(self.first(parts)[..., 2:])

    net = Spectral()
    replace_conv2d(net, example_input=torch.randn(2, 4000))
    assert (net.first.freq_dim, net.first.origin) == (-1, 0)
    assert (net.dropped.freq_dim, net.dropped.origin) == (-1, 2)


@pytest.mark.parametrize(
    ("lose", "reason"),
    [
        (lambda x: x.flip(2), "flip has no rule"),
        (lambda x: x @ torch.eye(x.shape[3]), "has no rule"),
        (lambda x: x.flatten(2).unflatten(2, (-1, 32)), "view merges it with another axis"),
        (lambda x: x.mean(2, keepdim=True).expand_as(x), "no frequency axis of"),
        (lambda x: x[:, :, 2:] + x[:, :, :-2], "bins stand for different frequencies"),
        (lambda x: x.permute(2, 1, 0, 3), "neither as its last axis"),
    ],
)
def test_an_axis_that_cannot_be_followed_is_explained(lose, reason):
    class Losing(nn.Module):
        def __init__(self):
            super().__init__()
            self.before = nn.Conv2d(1, 1, 3, padding=1)
            self.after = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x):
            return self.after(lose(self.before(x)))

    x = torch.randn(1, 1, 32, 32)
    report = replace_conv2d(Losing(), example_input=x)
    assert report.swapped == ("before",)
    assert reason in report.layers[1].reason
    if "neither" in reason:
        return
    named = Losing()
    report = replace_conv2d(named, example_input=x, origin={"after": 2})
    assert named.after.origin == 2


def test_a_layer_in_two_places_needs_one_origin():
    conv = nn.Conv2d(1, 1, 3, padding=1)
    net, x = nn.Sequential(conv, nn.AvgPool2d(2), conv), torch.randn(1, 1, 32, 8)
    (layer,) = replace_conv2d(net, example_input=x).layers
    assert "used in places whose bins stand for different frequencies (0, 1/4)" in layer.reason


def test_a_sample_leaves_no_trace():
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), nn.Conv2d(1, 1, 3, padding=1))
    net[1].eval()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    flags = [module.training for module in net.modules()]
    replace_conv2d(net, example_input=torch.randn(1, 1, 9, 9).mul(0), dry_run=True)
    torch.set_rng_state(state)
    replace_conv2d(net, example_input=torch.zeros(1, 1, 9, 9), dry_run=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in net.modules()] == flags
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not net[2]._forward_hooks
    assert not net[2]._forward_pre_hooks
    with pytest.raises(RuntimeError):
        replace_conv2d(net, example_input=torch.zeros(1, 3, 9, 9))
    assert [module.training for module in net.modules()] == flags
    assert not net[2]._forward_pre_hooks


# -------------------------------------------------------------------- logarithmic axes


@pytest.mark.parametrize("freq_dim", [-2, -1])
@pytest.mark.parametrize(("rows", "padding"), [(3, "same"), (3, 7), (4, "same"), (5, "same")])
def test_a_conv2d_dilated_along_frequency_is_a_layer_of_shifts(freq_dim, rows, padding):
    def order(frequency, time):
        return (frequency, time) if freq_dim == -2 else (time, frequency)

    padding = padding if padding == "same" else order(padding, 0)
    conv = nn.Conv2d(2, 4, order(rows, 3), padding=padding, dilation=order(7, 2), groups=2)
    net, x = nn.Sequential(conv), torch.randn(2, 2, 40, 40)
    before = net(x)
    report = replace_conv2d(net, LogHarmonicConv2d, freq_dim=freq_dim)
    assert report.swapped == ("0",)
    assert "computes the same as before" in report.layers[0].reason
    torch.testing.assert_close(net(x), before)


def test_resolutions_follow_strides_and_dilations_are_exact():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.Conv2d(2, 2, 3, padding=(5, 1), dilation=(5, 1)),
        nn.AvgPool2d((3, 1)),
        nn.Conv2d(2, 2, 3, padding=1),
    )
    twin = copy.deepcopy(net)
    x = torch.randn(1, 1, 60, 10)
    report = replace_conv2d(net, LogHarmonicConv2d, bins_per_octave=12, example_input=x)
    assert report.swapped == ("0", "1", "3")
    assert (net[0].bins_per_octave, net[3].bins_per_octave) == (12, 4)
    assert net[1].shifts == (-5, 0, 5)
    assert "bins_per_octave 4" in report.layers[2].reason
    report = replace_conv2d(twin, LogHarmonicConv2d)
    assert report.swapped == ("1",)
    assert "give bins_per_octave= or shifts=" in report.layers[0].reason


def test_nonsense_changes_nothing():
    net = Net()
    with pytest.raises(ValueError, match=r"'decoder', but no .*encoder.0"):
        replace_conv2d(net, select="decoder")
    with pytest.raises(ValueError, match=r"origin names 'decoder', but no .*encoder.0.*shared"):
        replace_conv2d(net, origin={"encoder.0": 1, "decoder": 2})
    with pytest.raises(ValueError, match="anchor must be an int >= 1"):
        replace_conv2d(net, anchor=0)
    with pytest.raises(ValueError, match="dtype, padding cannot be given: each layer keeps"):
        replace_conv2d(net, padding=1, dtype=torch.float64)
    for layer in (nn.Conv2d, nn.ReLU(), "HarmonicConv2d"):
        with pytest.raises(TypeError, match=r"layer must be HarmonicConv2d, .*, got "):
            replace_conv2d(net, layer)
    for given in ({"origin": 1}, {"freq_dim": -1}):
        (name,) = given
        with pytest.raises(ValueError, match=f"SingleHarmonicConv2d has no {name}"):
            replace_conv2d(net, harmonic_conv.SingleHarmonicConv2d, **given)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        replace_conv2d([nn.Conv2d(1, 1, 3)])
    with pytest.raises(ValueError, match="a logarithmic frequency axis needs its resolution"):
        replace_conv2d(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1)), LogHarmonicConv2d)
    assert not any(isinstance(module, HarmonicConv2d) for module in net.modules())
