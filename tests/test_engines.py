"""The engines `blocked` and `native`: when they fall back, formats, and that results are steady."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import fixed_case

from harmonic_lowering import HarmonicConv2d, _torch, engines, functional, harmonic_conv2d
from harmonic_lowering.engines import blocked, plans
from harmonic_lowering.engines.native import engine as native
from harmonic_lowering.engines.native import library
from harmonic_lowering.taps import FrequencyTaps

FAST = ["blocked", "native"]
pytestmark = pytest.mark.filterwarnings("ignore::harmonic_lowering.DeadTapWarning")


def tensors(dtype=torch.float64, channels=3, out_channels=4, rows=3):
    x = torch.randn(2, channels, 9, 21, dtype=torch.float64)
    w = torch.randn(out_channels, channels, rows, 3, dtype=torch.float64)
    return x.to(dtype), w.to(dtype), torch.randn(out_channels, dtype=torch.float64).to(dtype)


def backward_name(y):
    return type(y.grad_fn).__name__


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("anchor", [1, 2, 3])
def test_second_derivatives_agree_with_lowering(engine, anchor):
    x, w, b = (t.requires_grad_() for t in tensors())
    assert backward_name(harmonic_conv2d(x, w, b, anchor=anchor, engine=engine)) == (
        "_ConvolutionBackward"
    )

    def penalty(engine):
        y = harmonic_conv2d(x, w, b, anchor=anchor, padding=1, engine=engine)
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), (x, w, b))

    for got, wanted in zip(penalty(engine), penalty("lowering"), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("engine", FAST)
def test_function_transforms_agree_with_lowering(engine):
    x, w, b = tensors()

    def f(x, engine=engine):
        return harmonic_conv2d(x, w, b, padding=1, engine=engine)

    def slow(x):
        return f(x, "lowering")

    one = x[0]
    torch.testing.assert_close(torch.func.vmap(f)(x), slow(x))
    tangent = torch.randn_like(x)
    for got, wanted in zip(
        torch.func.jvp(f, (x,), (tangent,)), torch.func.jvp(slow, (x,), (tangent,)), strict=True
    ):
        torch.testing.assert_close(got, wanted)
    total = torch.func.grad(lambda x: f(x).square().sum())(one)
    torch.testing.assert_close(total, torch.func.grad(lambda x: slow(x).square().sum())(one))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        got = torch.autograd.forward_ad.unpack_dual(f(dual)).tangent
    torch.testing.assert_close(got, torch.func.jvp(slow, (x,), (tangent,))[1])


def test_blocked_falls_back_to_lowering_in_graphs():
    layer = HarmonicConv2d(3, 4, 3, padding=1, engine="blocked")
    x = torch.randn(2, 3, 9, 21)
    torch.compiler.reset()  # what other tests compiled makes sizes dynamic
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    exported = torch.export.export(layer, (x,))
    torch.testing.assert_close(exported.module()(x), layer(x))


@pytest.mark.parametrize("engine", FAST)
def test_meta_tensors_have_shapes(engine):
    with torch.device("meta"):
        layer = HarmonicConv2d(3, 4, 3, padding=1, engine=engine)
        assert layer(torch.empty(2, 3, 9, 21)).shape == (2, 4, 9, 21)


@pytest.mark.parametrize("engine", [*FAST, "lowering"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_memory_format_is_conv2ds(engine, dtype):
    x, w, b = tensors(dtype, channels=5)
    for x_format in (torch.contiguous_format, torch.channels_last):
        for w_format in (torch.contiguous_format, torch.channels_last):
            a = x.contiguous(memory_format=x_format).requires_grad_()
            k = w.contiguous(memory_format=w_format)
            y = harmonic_conv2d(a, k, b, padding=1, engine=engine)
            like = torch.nn.functional.conv2d(a, k, b, padding=1)
            assert y.stride() == like.stride()
            (grad,) = torch.autograd.grad(y.sum(), a)
            # an engine of stock operations leaves the format of its gradient to them
            assert engine == "lowering" or grad.stride() == a.stride()


@pytest.mark.parametrize("engine", FAST)
def test_any_strides_are_read(engine):
    x, w, b = tensors()
    wanted = harmonic_conv2d(x, w, b, engine="reference")
    odd = [
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([x, x], -1)[..., 0],
        x.flip(3).flip(3),
        torch.cat([x, x], 1)[:, :3],
        (-x).conj_physical()._neg_view(),
    ]
    for view in odd:
        torch.testing.assert_close(harmonic_conv2d(view, w, b, engine=engine), wanted)
    kernel = w.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    torch.testing.assert_close(harmonic_conv2d(x, kernel, b, engine=engine), wanted)


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("shape", [(0, 3, 9, 21), (2, 3, 1, 21), (2, 3, 9, 3)])
def test_small_and_empty_inputs(engine, shape):
    x = torch.randn(shape, requires_grad=True)
    layer = HarmonicConv2d(3, 4, 3, engine=engine)
    y = layer(x)
    y.sum().backward()
    assert y.shape == (shape[0], 4, shape[2], shape[3] - 2)
    assert x.grad.shape == shape
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_and_returns_what_conv2d_does(engine, dtype):
    x, w, b = (t.float().requires_grad_() for t in tensors())
    with torch.autocast("cpu", dtype=dtype):
        y = harmonic_conv2d(x, w, b, anchor=2, engine=engine)
    assert y.dtype == dtype
    assert backward_name(y) == "_ConvolutionBackward"
    y.float().square().sum().backward()
    assert [t.grad.dtype for t in (x, w, b)] == [torch.float32] * 3
    exact = harmonic_conv2d(x, w, b, anchor=2, engine="reference")
    assert (y.float() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("engine", FAST)
def test_results_do_not_depend_on_the_number_of_threads(engine):
    x, w, b = tensors(torch.float32, channels=8, out_channels=20)
    before = torch.get_num_threads()

    def run(threads):
        torch.set_num_threads(threads)
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        y = harmonic_conv2d(*leaves, anchor=2, padding=1, engine=engine)
        return y, *torch.autograd.grad(y.square().sum(), leaves)

    try:
        if engine == "native":
            first, second = run(1), run(3)
        else:  # torch's own convolutions promise it only for one number of threads
            first, second = run(2), run(2)
    finally:
        torch.set_num_threads(before)
    for a, b_ in zip(first, second, strict=True):
        assert torch.equal(a, b_)


@pytest.mark.parametrize("engine", FAST)
def test_nothing_but_the_arguments_is_kept_for_the_backward_pass(engine):
    x, w, b = (t.requires_grad_() for t in tensors())
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        harmonic_conv2d(x, w, b, engine=engine)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in (x, w, b)}


def test_long_recordings_are_cut_in_time_and_large_results_bypass_the_cache():
    """Sizes at which the native core takes its other roads, in both memory formats."""
    taps = {"anchor": 2, "origin": 1}
    case = fixed_case(
        shape=(1, 16, 65, 3072), out_channels=16, rows=5, frames=3, padding=1, taps=taps
    )
    x, w, b = case.tensors(torch.float32)
    wanted = case.call(x, w, b, engine="lowering")
    for engine in FAST[: 2 if native.unsupported_reason(x, w, b) is None else 1]:
        for form in (torch.contiguous_format, torch.channels_last):
            got = case.call(x.contiguous(memory_format=form), w, b, engine=engine)
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.fixture
def high_precision():
    """Allow what torch calls high, and not the highest, precision of float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("engine", ["native"])
@pytest.mark.parametrize("frames", range(1, 9))
@pytest.mark.parametrize("channels", [(8, 16), (16, 32), (17, 33)])
def test_transforms_along_time(engine, frames, channels, high_precision):
    """Where they are allowed they are used, and are as exact as the documentation says."""
    used = []
    for anchor, groups, form in [(1, 1, FORMATS[0]), (3, 1, FORMATS[1]), ((1, 2), 2, FORMATS[1])]:
        case = fixed_case(
            shape=(2, channels[0], 9, 150), out_channels=channels[1], rows=3, frames=frames,
            padding=2, groups=groups, taps={"anchor": anchor},
        )  # fmt: skip
        x, w, b = case.tensors(torch.float32)
        results = []
        for precision, dtype in [("high", torch.float32), ("highest", torch.float64)]:
            torch.set_float32_matmul_precision(precision)
            leaves = [t.to(dtype).contiguous(memory_format=form) for t in (x, w)] + [b.to(dtype)]
            leaves = [t.detach().requires_grad_() for t in leaves]
            y = case.call(*leaves, engine=engine)
            grad = torch.linspace(-1, 3, y.numel()).reshape(y.shape).sin().to(dtype)
            y.backward(grad.contiguous(memory_format=form))
            results.append([y.detach(), *(leaf.grad for leaf in leaves)])
        errors = [
            ((got.double() - wanted).norm() / wanted.norm()).item()
            for got, wanted in zip(*results, strict=True)
        ]
        assert max(errors) < 5e-6
        torch.set_float32_matmul_precision("highest")
        x, w = (t.contiguous(memory_format=form) for t in (x, w))
        used.append(not torch.equal(case.call(x, w, b, engine=engine), results[0][0]))
    series, *channels_last = used
    assert series == (4 <= frames <= 7)
    assert channels_last == [3 <= frames <= 7] * 2


@pytest.mark.parametrize("engine", ["native"])
def test_transforms_need_to_be_allowed(engine):
    case = fixed_case(shape=(1, 16, 9, 100), out_channels=16, rows=3, frames=7)
    x, w, b = case.tensors(torch.float32)
    x[..., 50] = torch.nan
    assert torch.get_float32_matmul_precision() == "highest"
    assert case.call(x, w, b, engine=engine).isnan().any((0, 1, 2)).sum() == 7


FORMATS = (torch.contiguous_format, torch.channels_last)
FORMS = st.sampled_from(FORMATS)
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@given(
    sizes=st.tuples(
        st.sampled_from([1, 2, 3, 8, 16, 17]),
        st.sampled_from([1, 3, 8, 16, 20, 32, 33]),
        st.integers(5, 45),
        st.integers(1, 3),
    ),
    time=st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(1, 2)),
    groups=st.integers(1, 2),
    anchor=st.sampled_from([1, 2, 3, (1, 3)]),
    forms=st.tuples(FORMS, FORMS),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_native_tiles_of_every_size_type_and_format(sizes, time, groups, anchor, forms, dtype):
    """Vectors that are full and not, odd numbers of frames, gradients in another format."""
    channels, out_channels, frames, kernel_time = sizes
    stride, padding, dilation = time
    case = fixed_case(
        shape=(2, channels, 7, frames), out_channels=out_channels, rows=3, frames=kernel_time,
        stride=(1, stride), padding=padding, dilation=dilation, groups=groups,
        taps={"anchor": anchor},
    )  # fmt: skip
    x, w, b = case.tensors(dtype)
    if native.unsupported_reason(x, w, b):
        pytest.skip(native.unsupported_reason(x, w, b))
    x = x.contiguous(memory_format=forms[0])
    results = []
    for engine, wide in (("native", dtype), ("lowering", torch.float64)):
        leaves = [t.detach().to(wide).requires_grad_() for t in (x, w, b)]
        y = case.call(*leaves, engine=engine)
        grad = torch.linspace(-1, 3, y.numel()).reshape(y.shape).to(dtype).to(wide)
        y.backward(grad.contiguous(memory_format=forms[1]))
        results.append([y, *(leaf.grad for leaf in leaves)])
    for got, wanted in zip(*results, strict=True):
        assert (got.double() - wanted).norm() <= TOLERANCE[dtype] * wanted.norm() + 1e-9


# -------------------------------------------------------------------- choosing


def test_auto_says_why(monkeypatch):
    x, w, b = tensors(torch.float32)
    with torch.device("meta"):
        assert engines.choose("auto", torch.empty(x.shape), torch.empty(w.shape)).engine == (
            "lowering"
        )
    monkeypatch.setattr(native, "unsupported_reason", lambda *_: "it is away")
    small = engines.choose("auto", x, w, b)
    assert small.engine == "lowering"
    assert "small" in small.reason
    assert "it is away" in small.reason
    large = engines.choose("auto", x.repeat(64, 1, 9, 9), w, b)
    assert large.engine == "blocked"
    assert "bytes" in large.reason
    monkeypatch.setattr(native, "unsupported_reason", lambda *_: None)
    assert engines.choose("auto", x, w, b).engine == "native"


def test_the_reason_names_the_argument():
    x, w, b = tensors(torch.float32)
    assert "dtypes differ" in blocked.unsupported_reason(x, w.double(), b)
    assert "float32" in native.unsupported_reason(x, w.double(), b)
    assert "on meta" in native.unsupported_reason(x.to("meta"), w, b)
    assert blocked.unsupported_reason(x, w, b) is None


def test_an_engine_that_is_not_built_says_how_to_build_it(monkeypatch):
    x, w, b = tensors(torch.float32)
    monkeypatch.setattr(library, "load", lambda: None)
    monkeypatch.setattr(functional, "_passed", {})
    with pytest.raises(RuntimeError, match="harmonic-lowering build-native"):
        harmonic_conv2d(x, w, b, engine="native")
    torch.testing.assert_close(
        harmonic_conv2d(x, w, b), harmonic_conv2d(x, w, b, engine="reference")
    )


def test_bands_hold_what_lives_and_nothing_twice():
    plan = blocked.layout(FrequencyTaps.harmonic(4, anchor=2), 60, 1)
    assert [tap for tap, _, _ in plan.convolved_first] == [0]
    assert plan.convolved_first[0][1:] == (0, 31)
    assert [(band.start, band.stop) for band in plan.bands] == [(0, 30), (30, 40), (40, 60)]
    assert [band.taps for band in plan.bands] == [(1, 2, 3), (1, 2), (1,)]


# -------------------------------------------------------------------- plans


def test_plans_are_kept_up_to_a_number(monkeypatch):
    monkeypatch.setattr(plans, "_MOST_PLANS", 2)
    made = []
    kept = plans.byte_bounded_cache(lambda key: (made.append(key), key))
    for key in (1, 2, 1, 3, 2, 1):
        assert kept(key) == (None, key)
    assert made == [1, 2, 3, 1]
    kept.forget()
    kept(1)
    assert made == [1, 2, 3, 1, 1]


def test_plans_are_kept_up_to_a_number_of_bytes(monkeypatch):
    monkeypatch.setattr(plans, "KEPT_BYTES", 1000)
    made = []

    @plans.cached_on_device
    def plan(taps, size):
        made.append(size)
        return (torch.zeros(size, dtype=torch.uint8),)

    def ask(size):
        (tensor,) = plan(FrequencyTaps.harmonic(2), torch.device("cpu"), size)
        assert tensor.shape == (size,)

    for size in (300, 400, 300, 400):
        ask(size)
    assert made == [300, 400]
    ask(500)  # 1200 bytes: the oldest goes
    ask(400)
    assert made == [300, 400, 500]
    ask(300)  # 1200 bytes again
    ask(400)
    assert made == [300, 400, 500, 300, 400]
    ask(2000)  # more than fits is kept alone
    ask(2000)
    assert made[5:] == [2000]
    ask(300)
    assert made[5:] == [2000, 300]


def test_eager_calls_leave_nothing_behind():
    """Only a compiler needs names for taps."""
    x, w, b = tensors()
    before = len(vars(_torch._objects))
    for step in range(300):
        harmonic_conv2d(x, w, b, origin=step / 300)
    assert len(vars(_torch._objects)) == before


@pytest.mark.parametrize(
    ("memory", "most"), [(0, 256 << 20), (6 << 30, 256 << 20), (80 << 30, 2560 << 20)]
)
def test_how_large_a_lowered_tensor_may_be_on_an_accelerator(memory, most, monkeypatch):
    card = SimpleNamespace(total_memory=memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert engines._small_bytes.__wrapped__(torch.device("cuda")) == most
