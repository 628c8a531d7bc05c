"""The core as operators of torch: every tool that sees operators, against stock operations."""

import pytest
import torch
from hypothesis import given, settings
from oracle import EVERY_ARGUMENT, cases
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vjp, vmap

from harmonic_lowering import HarmonicConv2d
from harmonic_lowering.engines import lowering
from harmonic_lowering.engines.geometry import geometry_of
from harmonic_lowering.engines.native import core, library
from harmonic_lowering.taps import harmonic_taps, log_harmonic_taps

pytestmark = [
    pytest.mark.skipif(
        bool(library.unsupported_reason()), reason=str(library.unsupported_reason())
    ),
    pytest.mark.filterwarnings("ignore::harmonic_lowering.DeadTapWarning"),
]
OPS = torch.ops.harmonic_lowering
OPTIONS = {"stride": (1, 2), "padding": 1, "anchor": 2, "groups": 2}


@pytest.fixture
def x():
    return torch.randn(2, 4, 9, 7, dtype=torch.float64)


@pytest.fixture
def layers():
    """The same layer, by the core and by stock operations."""
    native = HarmonicConv2d(4, 6, 3, engine="native", dtype=torch.float64, **OPTIONS)
    stock = HarmonicConv2d(4, 6, 3, engine="lowering", dtype=torch.float64, **OPTIONS)
    stock.load_state_dict(native.state_dict())
    return native, stock


def geometry(case):
    if case.kind == "harmonic":
        given = {"anchor": 1, "harmonics": None, "origin": 0, "interpolation": "linear"}
        taps = harmonic_taps(case.rows, *(given | case.taps).values())
    else:
        given = {
            "anchor": 1, "harmonics": None, "bins_per_octave": None, "shifts": None,
            "interpolation": "linear",
        }  # fmt: skip
        taps = log_harmonic_taps(case.rows, *(given | case.taps).values())
    distinct = taps.merged()[0]
    return geometry_of(
        distinct, case.stride, case.padding, (1, case.dilation), case.groups, case.frames
    )


def loss(layer):
    return lambda weight, sample: functional_call(layer, {"weight": weight}, (sample,)).pow(3).sum()


TRANSFORMS = {
    "grad": lambda layer, w, x: grad(loss(layer))(w, x),
    "vmap over inputs": lambda layer, w, x: vmap(layer)(x),
    "vmap over weights": lambda layer, w, x: vmap(
        lambda w: functional_call(layer, {"weight": w}, (x,))
    )(torch.stack([w, 2 * w])),
    "vmap over biases": lambda layer, w, x: vmap(
        lambda b: functional_call(layer, {"bias": b}, (x,))
    )(torch.stack([layer.bias, 2 * layer.bias])),
    "gradient of each sample": lambda layer, w, x: vmap(grad(loss(layer)), (None, 0))(w, x),
    "vjp": lambda layer, w, x: vjp(layer, x)[1](layer(x))[0],
    "jvp": lambda layer, w, x: jvp(layer, (x,), (x,)),
    "jacrev": lambda layer, w, x: jacrev(layer)(x[:1]),
    "jacfwd": lambda layer, w, x: jacfwd(layer)(x[:1]),
    "hessian": lambda layer, w, x: jacrev(grad(loss(layer)), 1)(w, x[:1]),
    "forward over reverse": lambda layer, w, x: jvp(
        lambda x: grad(loss(layer), 1)(w, x), (x,), (x,)
    ),
    "third order": lambda layer, w, x: grad(
        lambda x: grad(lambda x: grad(loss(layer), 1)(w, x).square().sum())(x).square().sum()
    )(x),
    "vectorised jacobian": lambda layer, w, x: torch.autograd.functional.jacobian(
        layer, x[:1], vectorize=True
    ),
    "vectorised hessian": lambda layer, w, x: torch.autograd.functional.hessian(
        lambda x: loss(layer)(w, x), x[:1], vectorize=True
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_function_transforms(name, layers, x):
    got, wanted = (TRANSFORMS[name](layer, layer.weight.detach(), x) for layer in layers)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", ["grad", "gradient of each sample", "vjp", "jvp", "hessian"])
def test_compiled_function_transforms(name, layers, x):
    native, stock = layers
    weight = native.weight.detach()
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: TRANSFORMS[name](native, weight, x), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(x), TRANSFORMS[name](stock, weight, x))


def test_batched_gradients(layers, x):
    def gradients(layer):
        leaf = x.clone().requires_grad_()
        output = layer(leaf)
        directions = torch.linspace(-1, 1, 3 * output.numel(), dtype=x.dtype).view(3, *output.shape)
        leaves = (leaf, layer.weight, layer.bias)
        return torch.autograd.grad(output, leaves, directions, is_grads_batched=True)

    torch.testing.assert_close(*map(gradients, layers))


@pytest.mark.parametrize("name", EVERY_ARGUMENT)
@pytest.mark.slow
def test_opcheck(name):
    case = EVERY_ARGUMENT[name]
    arguments = geometry(case).operator_arguments
    x, w, b = (t if t is None else t.requires_grad_() for t in case.tensors(torch.float64))
    w = w[:, :, : len(geometry(case).taps)].detach().requires_grad_()  # equal taps are one row
    y = OPS.tap_conv2d(x, w, b, *arguments).detach().requires_grad_()
    last = torch.channels_last
    for form in (lambda t: t, lambda t: t.contiguous(memory_format=last), _swapped):
        x, y = (form(t.detach()).requires_grad_() for t in (x, y))
        torch.library.opcheck(OPS.tap_conv2d.default, (x, w, b, *arguments))
        torch.library.opcheck(OPS.tap_conv2d_input_grad.default, (y, w, *arguments, *x.shape[2:]))
        for bias in (False, True):
            torch.library.opcheck(
                OPS.tap_conv2d_weight_grad.default, (x, y, *arguments, w.shape[3], bias)
            )


def _swapped(tensor):
    return tensor.permute(1, 3, 0, 2).contiguous().permute(2, 0, 3, 1)


@settings(max_examples=25)
@given(case=cases())
def test_without_the_core_operators_give_the_same(case):
    given = geometry(case)
    x, w, b = case.tensors(torch.float64)
    w = w[:, :, : len(given.taps)]

    def results():
        y = OPS.tap_conv2d(x, w, b, *given.operator_arguments)
        arguments = given.operator_arguments
        return (
            y,
            OPS.tap_conv2d_input_grad(y, w, *arguments, *x.shape[2:]),
            *OPS.tap_conv2d_weight_grad(x, y, *arguments, w.shape[3], True),
        )

    wanted = results()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "_core_is_missing", lambda *_: "it is away")
        got = results()
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(got[0], lowering.convolve(x, w, b, given))


def test_an_exported_program_runs_without_the_core(layers, x, monkeypatch):
    native, stock = layers
    program = torch.export.export(native, (x,))
    assert "tap_conv2d" in program.graph_module.code
    monkeypatch.setattr(core, "_core_is_missing", lambda *_: "it is away")
    torch.testing.assert_close(program.module()(x), stock(x))


def test_a_layer_set_to_lowering_exports_stock_operations(layers, x):
    native, stock = layers
    native.engine = "lowering"
    program = torch.export.export(native, (x,))
    assert "harmonic_lowering" not in program.graph_module.code
    torch.testing.assert_close(program.module()(x), stock(x))
