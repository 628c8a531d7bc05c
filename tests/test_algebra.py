"""Properties that hold whatever the arguments are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import cases, fixed_case

from harmonic_lowering import HarmonicConv2d, engines, harmonic_conv2d

ENGINES = sorted(engines.ENGINES)
pytestmark = pytest.mark.filterwarnings("ignore::harmonic_lowering.DeadTapWarning")


@pytest.mark.parametrize("engine", ENGINES)
@given(case=cases(largest=20), scale=st.floats(-3, 3))
def test_linear_in_the_input_and_in_the_weight(engine, case, scale):
    (x1, w1, _), (x2, w2, _) = case.tensors(), case.tensors()
    x2, w2 = x2.flip(-1), w2.flip(0) + 1
    for a, b in [((x1, w1), (x2, w1)), ((x1, w1), (x1, w2))]:
        mixed = [p if p is q else p + scale * q for p, q in zip(a, b, strict=True)]
        expected = case.call(*a, None, engine) + scale * case.call(*b, None, engine)
        torch.testing.assert_close(case.call(*mixed, None, engine), expected)


@pytest.mark.parametrize("engine", ENGINES)
@given(case=cases(largest=20), shift=st.integers(1, 4))
def test_a_later_sound_gives_a_later_output(engine, case, shift):
    x, w, b = case.tensors()
    step = case.stride[1]
    gap = torch.zeros(*x.shape[:3], shift * step, dtype=x.dtype)
    later = case.call(torch.cat([gap, x], -1), w, b, engine)
    now = case.call(x, w, b, engine)
    reach = -(-case.padding // step)  # frames at the left edge see padding there, zeros here
    torch.testing.assert_close(later[..., shift + reach :], now[..., reach:])


@pytest.mark.parametrize("engine", ENGINES)
@given(case=cases(largest=20))
def test_the_input_gradient_is_the_adjoint(engine, case):
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩, which a gradient that is only nearly right does not pass."""
    x, w, _ = case.tensors()
    x.requires_grad_()
    ax = case.call(x, w, None, engine)
    y = torch.randn_like(ax)
    (aty,) = torch.autograd.grad(ax, x, y)
    torch.testing.assert_close((ax * y).sum(), (x * aty).sum())


@given(case=cases(largest=20))
def test_anchors_are_the_weighted_sum_of_their_convolutions(case):
    case = fixed_case(shape=case.shape, rows=case.rows, seed=case.seed, taps={"anchor": (1, 3, 2)})
    x, w, _ = case.tensors()
    amounts = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    mixed = harmonic_conv2d(x, w, padding=1, anchor=(1, 3, 2), anchor_weight=amounts)
    apart = [
        amount * harmonic_conv2d(x, kernel, padding=1, anchor=n)
        for amount, kernel, n in zip(amounts, w.chunk(3, dim=2), (1, 3, 2), strict=True)
    ]
    torch.testing.assert_close(mixed, sum(apart))


def test_a_harmonic_sound_excites_the_bin_of_its_fundamental():
    """The reason why the layer exists: all partials of one pitch meet in one output bin."""
    layer = HarmonicConv2d(1, 1, (5, 1), bias=False, dtype=torch.float64)
    torch.nn.init.ones_(layer.weight)
    x = torch.zeros(1, 1, 129, 1, dtype=torch.float64)
    x[0, 0, 20:101:20] = 1
    y = layer(x)[0, 0, :, 0]
    assert y.argmax() == 20
    assert y[20] == 5
