"""Swapping the layers of an existing network."""

import copy

import pytest
import torch
from torch import nn

import harmonic_conv
from harmonic_lowering import HarmonicConv2d, LogHarmonicConv2d, replace_conv2d


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
    assert str(report).startswith("3 of 7 Conv2d layers swapped\n  swap  encoder.0 ")
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
    report = replace_conv2d(net, anchor=(1, 2))
    assert not any(p.requires_grad for p in net.parameters())
    assert "new weight of shape (4, 2, 6, 3)" in report.layers[0].reason
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
    assert str(report).startswith("3 of 7 Conv2d layers would be swapped")
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


@pytest.mark.parametrize(
    "register",
    [
        lambda conv: conv.register_forward_hook(lambda *_: None),
        lambda conv: conv.register_forward_pre_hook(lambda *_: None),
        lambda conv: conv.register_full_backward_hook(lambda *_: None),
        lambda conv: conv.register_full_backward_pre_hook(lambda *_: None),
        lambda conv: conv.register_state_dict_pre_hook(lambda *_: None),
        lambda conv: conv.register_load_state_dict_post_hook(lambda *_: None),
    ],
)
def test_hooks_are_not_lost(register):
    net = Net()
    register(net.same)
    report = replace_conv2d(net)
    assert "same" in report.kept
    assert "has hooks" in str(report)


def test_harmonic_and_reparametrised_layers_are_left_alone():
    net = Net()
    nn.utils.parametrizations.weight_norm(net.same)
    replace_conv2d(net, anchor=2)
    report = replace_conv2d(net, anchor=3)
    assert report.swapped == ()
    assert net.encoder[0].anchor == 2
    reasons = {layer.name: layer.reason for layer in report.layers}
    assert "reparametrised" in reasons["same"]


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
    with pytest.raises(ValueError, match="cannot be swapped in place"):
        replace_conv2d(nn.Conv2d(1, 1, 3))
    assert not any(isinstance(module, HarmonicConv2d) for module in net.modules())
