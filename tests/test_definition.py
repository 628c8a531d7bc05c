"""Every engine against the formula in plain loops: values and all gradients."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from oracle import EVERY_ARGUMENT, cases, fixed_case, solve

from harmonic_lowering import engines

ENGINES = sorted(engines.ENGINES)
pytestmark = pytest.mark.filterwarnings("ignore::harmonic_lowering.DeadTapWarning")


def gradients(case, x, w, b, engine, grad):
    leaves = [t.clone().requires_grad_() for t in (x, w, b) if t is not None]
    y = case.call(*leaves, *([None] if b is None else []), engine=engine)
    return y, torch.autograd.grad(y, leaves, grad.to(y.dtype))


@pytest.mark.parametrize("engine", ENGINES)
@given(case=cases())
def test_engine_follows_the_definition_in_float64(engine, case):
    x, w, b = case.tensors()
    y = case.call(x, w, b, engine=engine)
    grad = torch.randn(y.shape, dtype=torch.float64)
    expected, *expected_grads = solve(case, x, w, b, grad)
    y, grads = gradients(case, x, w, b, engine, grad)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    for got, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", EVERY_ARGUMENT)
def test_engine_follows_the_definition_in_float32(engine, name):
    case = EVERY_ARGUMENT[name]
    x, w, b = case.tensors()
    grad = torch.randn(case.call(x, w, b).shape, dtype=torch.float64)
    expected = solve(case, x, w, b, grad)
    x, w, b = case.tensors(torch.float32)
    y, grads = gradients(case, x, w, b, engine, grad)
    for got, wanted in zip((y, *grads), expected, strict=True):
        error = (got.double() - wanted).norm() / wanted.norm().clamp(min=1e-30)
        assert got.dtype == torch.float32
        assert error < 1e-5


# The bound is half a unit in the last place of each type, twice for the two roundings of the blend.
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-10)])
@pytest.mark.parametrize("name", EVERY_ARGUMENT)
def test_engine_follows_the_definition_in_half_types(engine, name, dtype, bound):
    case = EVERY_ARGUMENT[name]
    x, w, b = case.tensors(dtype)
    y = case.call(x, w, b, engine=engine)
    grad = torch.randn(y.shape, dtype=torch.float64)
    up = [None if t is None else t.double() for t in (x, w, b)]
    expected = solve(case, *up, grad.to(dtype).double())
    y, grads = gradients(case, x, w, b, engine, grad.to(dtype))
    for got, wanted in zip((y, *grads), expected, strict=True):
        assert got.dtype == dtype
        assert (got.double() - wanted).norm() <= 2 * bound * wanted.norm() + 1e-12


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", EVERY_ARGUMENT)
@pytest.mark.slow
def test_gradcheck(engine, name):
    case = replace(EVERY_ARGUMENT[name], shape=(1, 2, 5, 5))
    leaves = [t for t in case.tensors() if t is not None]
    leaves = [t.requires_grad_() for t in leaves]

    def call(x, w, b=None):
        return case.call(x, w, b, engine=engine)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("engine", [e for e in ENGINES if e != "reference"])
@pytest.mark.parametrize("kind", ["harmonic", "log"])
def test_engines_agree_at_a_size_that_people_use(engine, kind):
    taps = {"anchor": (1, 3), "origin": 1} if kind == "harmonic" else {"bins_per_octave": 36}
    case = fixed_case(
        shape=(2, 8, 257, 40), out_channels=16, rows=5, frames=5, padding=2, kind=kind, taps=taps
    )
    x, w, b = case.tensors()
    grad = torch.randn(case.call(x, w, b).shape, dtype=torch.float64)
    expected, expected_grads = gradients(case, x, w, b, "reference", grad)
    y, grads = gradients(case, x, w, b, engine, grad)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    for got, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_only_the_gradients_asked_for(engine):
    case = fixed_case()
    for asked in range(3):
        leaves = list(case.tensors())
        leaves[asked].requires_grad_()
        case.call(*leaves, engine=engine).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [i == asked for i in range(3)]


@pytest.mark.parametrize("engine", ENGINES)
def test_infinities_stay_where_they_are_read(engine):
    """0·∞ must not leak NaN out of rows that are not read, or read with weight 0."""
    case = fixed_case(taps={"anchor": 1}, bias=False)
    x, w, _ = case.tensors()
    x[:, :, 3] = torch.inf
    y = case.call(x, w.abs(), None, engine=engine)
    reads_3 = [any(case.position(j, f) == 3 for j in range(3)) for f in range(7)]
    assert [bool(y[:, :, f].isfinite().all()) for f in range(7)] == [not r for r in reads_3]


@pytest.mark.parametrize("engine", [e for e in ENGINES if e != "reference"])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
@pytest.mark.parametrize("name", EVERY_ARGUMENT)
def test_an_infinity_is_blended_as_in_the_definition(engine, value, name):
    """(1 − w)·∞ + w·x is ∞, also where w is 0: no blend of the kind x + w·(y − x)."""
    case = EVERY_ARGUMENT[name]
    x, w, b = case.tensors()
    for rows in ([2], [4, 5]):
        y = x.clone()
        y[:, :, rows, 2] = value
        for kernel in (w, w.abs()):
            expected = case.call(y, kernel, b, engine="reference")
            got = case.call(y, kernel, b, engine=engine)
            torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("groups", [1, 2])
def test_one_row_is_an_ordinary_convolution(engine, groups):
    case = fixed_case(rows=1, groups=groups, stride=(2, 2), dilation=2, taps={"anchor": 1})
    x, w, b = case.tensors()
    expected = torch.nn.functional.conv2d(
        x, w, b, stride=(2, 2), padding=(0, 1), dilation=(1, 2), groups=groups
    )
    torch.testing.assert_close(case.call(x, w, b, engine=engine), expected)
