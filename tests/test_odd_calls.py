"""Odd calls: torch's state, tensors that are not plain, and where torch itself is wrong."""

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from harmonic_lowering import FrequencyTaps, HarmonicConv2d, engines, functional, harmonic_conv2d
from harmonic_lowering.engines import blocked, lowering
from harmonic_lowering.engines.native import core

ENGINES = ["reference", "lowering", "blocked", "native", "auto"]
pytestmark = pytest.mark.filterwarnings("ignore::harmonic_lowering.DeadTapWarning")


def pair(engine, *arguments, dtype=torch.float32, **options):
    """Return a layer and the same in float64 by the definition."""
    layer = HarmonicConv2d(*arguments, engine=engine, **options).to(dtype)
    exact = HarmonicConv2d(*arguments, engine="reference", **options)
    exact.load_state_dict(layer.state_dict())
    return layer, exact.double().requires_grad_(True)


def results(layer, x):
    x = x.detach().requires_grad_()
    y = layer(x)
    grad = torch.linspace(-1, 1, y.numel()).view(y.shape).to(torch.bfloat16).to(y.dtype)
    y.backward(grad)
    found = [y.detach(), x.grad, layer.weight.grad, layer.bias.grad]
    layer.zero_grad()
    return found


def assert_right(layer, exact, x):
    eps = torch.finfo(x.dtype).eps
    exact.load_state_dict(layer.state_dict())
    # torch sums a bias's gradient itself, of 36000 numbers with 13 eps on two threads
    limits = [8 * eps, 8 * eps, 8 * eps, 16 * eps]
    pairs = zip(results(layer, x), results(exact, x.double()), limits, strict=True)
    for got, wanted, limit in pairs:
        assert got.isfinite().all()
        assert (got.double() - wanted).norm() <= limit * wanted.norm()


# -------------------------------------------------------------------- torch's state


@pytest.mark.parametrize("engine", ENGINES)
def test_another_default_device(engine):
    """Results, gradients and plans stay with the tensors; nothing is cached from before."""
    layer, exact = pair(engine, 2, 3, 3, anchor=2, padding=1)
    x = torch.randn(2, 2, 37, 11)
    with torch.device("meta"):
        got = results_on(layer, x)
    for one, wanted in zip(got, results(exact, x.double()), strict=True):
        torch.testing.assert_close(one.double(), wanted, rtol=1e-4, atol=1e-4)


def results_on(layer, x):
    x = x.detach().requires_grad_()
    y = layer(x)
    grad = torch.linspace(-1, 1, y.numel(), device="cpu").view(y.shape).bfloat16().float()
    y.backward(grad)
    return [y.detach(), x.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_in_batches(engine):
    layer, exact = pair(engine, 2, 3, 3, anchor=2, dtype=torch.float64)
    x = torch.randn(2, 2, 9, 7, dtype=torch.float64)
    jacobians = [
        torch.autograd.functional.jacobian(one, x, vectorize=True) for one in (layer, exact)
    ]
    torch.testing.assert_close(*jacobians)


@pytest.mark.parametrize("engine", ENGINES)
def test_vmap_of_channels_last_kernels(engine):
    x, w = torch.randn(3, 2, 4, 9, 8), torch.randn(5, 4, 3, 3)
    last = w.contiguous(memory_format=torch.channels_last)
    got = torch.func.vmap(lambda x: harmonic_conv2d(x, last, engine=engine))(x)
    wanted = torch.stack([harmonic_conv2d(one, w, engine="reference") for one in x])
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ["auto", "native"])
def test_half_types_compile(engine):
    """What asks the processor is not traced."""
    layer = HarmonicConv2d(2, 4, 3, dtype=torch.float16, engine=engine)
    x = torch.randn(2, 2, 9, 8).half()
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


def test_a_flop_counter_counts_live_rows_and_changes_nothing():
    if core.unsupported_reason(torch.ones(1)):
        pytest.skip("no native core here")
    layer, x = HarmonicConv2d(2, 4, 3, padding=1), torch.randn(2, 2, 9, 8, requires_grad=True)
    plain = layer(x)
    with FlopCounterMode(display=False) as counter:
        counted = layer(x)
        forward = counter.get_total_flops()
        counted.sum().backward()
    assert torch.equal(counted, plain)
    live_rows = 9 + 5 + 3
    assert forward == 2 * (2 * 4 * 2 * 3 * 8) * live_rows
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize("order", [("torch.utils.flop_counter", "harmonic_lowering"),
                                   ("harmonic_lowering", "torch.utils.flop_counter")])  # fmt: skip
def test_operators_are_counted_whatever_is_imported_first(order):
    code = f"""
import sys, {order[0]}
assert {order[0]!r} == "torch.utils.flop_counter" or not {{"triton"}} & set(sys.modules)
import {order[1]}
from torch.utils.flop_counter import flop_registry
assert sum("tap_conv2d" in str(operator) for operator in flop_registry) == 3
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# -------------------------------------------------------------------- torch's own faults


@pytest.mark.parametrize("engine", ["blocked", "native"])
@pytest.mark.parametrize("kernel_frames", [1, 2, 3])
def test_one_output_channel_trains_channels_last(engine, kernel_frames):
    layer, exact = pair(engine, 3, 1, (2, kernel_frames))
    layer = layer.to(memory_format=torch.channels_last)
    assert_right(layer, exact, torch.randn(2, 3, 9, 8).to(memory_format=torch.channels_last))


@pytest.mark.parametrize("engine", ["reference", "lowering", "blocked", "native"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kernel_frames", [1, 2, 3])
@pytest.mark.parametrize("stride", [2, 3, 50])
@pytest.mark.parametrize("frames", [3, 21])
def test_strides_in_time(engine, dtype, kernel_frames, stride, frames):
    """Few frames and one output frame included, with fewer frames than a step."""
    options = {"stride": (1, stride), "anchor": 2, "padding": 1, "dtype": dtype}
    layer, exact = pair(engine, 3, 4, (2, kernel_frames), **options)
    if engine == "native" and (why := core.unsupported_reason(layer.weight)):
        pytest.skip(why)
    assert_right(layer, exact, torch.randn(4, 3, 12, frames).to(dtype))


@pytest.mark.parametrize("engine", ["lowering", "blocked", "native"])
@pytest.mark.parametrize("padding", [4, 7, 20, 1000])
def test_padding_longer_than_the_input(engine, padding):
    layer, exact = pair(engine, 6, 6, (3, 1), padding=padding, groups=3, anchor=2)
    assert_right(layer, exact, torch.randn(2, 6, 9, 5))


HEAP = """
import torch
from harmonic_lowering import HarmonicConv2d
layer = HarmonicConv2d(2, 2, (2, 1), stride=(1, 2), anchor=2, engine={engine!r}).bfloat16()
for _ in range(60):
    x = torch.randn(8, 2, 33, 1000, dtype=torch.bfloat16, requires_grad=True)
    layer(x).sum().backward()
assert layer.weight.grad.isfinite().all()
"""


@pytest.mark.parametrize("engine", ["lowering", "blocked"])
@pytest.mark.slow
def test_the_heap_stays_whole(engine):
    environment = {**os.environ, "MALLOC_CHECK_": "3", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HEAP.format(engine=engine)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("engine", ["lowering", "blocked", "native"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel_frames", [1, 2, 3])
def test_nan_stays_where_it_is_read(engine, dtype, form, kernel_frames):
    for channels in (1, 2, 3, 5, 7):
        for out_channels in (1, 4):
            for groups in (1, 2):
                sizes = channels * groups, out_channels * groups, (3, kernel_frames)
                layer, exact = pair(engine, *sizes, anchor=2, groups=groups, dtype=dtype)
                if engine == "native" and (why := core.unsupported_reason(layer.weight)):
                    pytest.skip(why)
                x = torch.randn(2, sizes[0], 9, 6).to(dtype).contiguous(memory_format=form)
                x[:, :, 4, 2] = torch.nan
                assert torch.equal(layer(x).isnan(), exact(x.double()).isnan())


# -------------------------------------------------------------------- what is refused

X, W, B = torch.randn(2, 4, 9, 8), torch.randn(6, 4, 3, 3), torch.randn(6)


def released(tensor):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize("engine", ["auto", "lowering", "blocked", "reference"])
def test_released_memory_is_not_read(engine):
    harmonic_conv2d(X, W, B, engine=engine)  # also where such a call has passed before
    for tensors in ((released(X), W, B), (X, released(W), B), (X, W, released(B))):
        with pytest.raises(ValueError, match="has no memory any more: it was released"):
            harmonic_conv2d(*tensors, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_tensors_of_zeros_without_memory_are_zeros(engine):
    zeros = torch._efficientzerotensor(X.shape)
    wanted = B[:, None, None].expand(2, 6, 9, 6)
    torch.testing.assert_close(harmonic_conv2d(zeros, W, B, engine=engine), wanted)


def test_fake_and_real_tensors_are_not_mixed():
    fake = FakeTensorMode()
    for tensors in ((fake.from_tensor(X), W, B), (X, fake.from_tensor(W), B)):
        with pytest.raises(TypeError, match="must be all fake tensors or none, got both"):
            harmonic_conv2d(*tensors)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert harmonic_conv2d(mode.from_tensor(X), W, B).shape == (2, 6, 9, 6)


WRONG = [
    (
        lambda: harmonic_conv2d(X.numpy(), W),
        TypeError,
        r"input must be a torch.Tensor, got ndarray",
    ),
    (lambda: harmonic_conv2d(X, W.tolist()), TypeError, r"weight must be a torch.Tensor, got list"),
    (lambda: harmonic_conv2d(None, W), TypeError, r"input must be a torch.Tensor, got NoneType"),
    (lambda: harmonic_conv2d(X.to_sparse(), W), TypeError, r"dense tensor, got a torch.sparse_coo"),
    (lambda: harmonic_conv2d(X.to_mkldnn(), W), TypeError, r"dense tensor, got a torch._mkldnn"),
    (lambda: harmonic_conv2d(X.to(torch.float8_e5m2), W), TypeError, r"or bfloat16\), got.*float8"),
    (lambda: harmonic_conv2d(X, W[:0]), ValueError, r"weight must have at least one channel"),
    (
        lambda: harmonic_conv2d(torch.nn.UninitializedParameter(), W),
        TypeError,
        r"input is not initialized yet",
    ),
    (lambda: harmonic_conv2d(X, W, engine=["auto"]), ValueError, r"got \['auto'\]"),
    (lambda: harmonic_conv2d(X, W, origin=True), ValueError, r"origin must be.*got True"),
    (lambda: harmonic_conv2d(X, W, padding=2**60), ValueError, r"the output would have the shape"),
    (lambda: harmonic_conv2d(X, W, padding=2**61), ValueError, r"padding must be at most 2\*\*60"),
    (
        lambda: harmonic_conv2d(X, W, stride=(1, 2**64)),
        ValueError,
        r"stride must be at most 2\*\*60",
    ),
    (
        lambda: harmonic_conv2d(X, W, harmonics={1, 2, 3}),
        ValueError,
        r"harmonics must be a sequence",
    ),
    (lambda: harmonic_conv2d(X, W, anchor=b"1"), ValueError, r"anchor must be.*got b'1'"),
    (lambda: HarmonicConv2d(1, 1, 3, dtype="float32"), TypeError, r"dtype must be a torch.dtype"),
    (lambda: HarmonicConv2d(1, 1, 3, device="gpu"), ValueError, r"device must be.*got 'gpu'"),
    (lambda: HarmonicConv2d(1, 1, 3, device=1.5), TypeError, r"device must be.*got 1.5"),
    (
        lambda: HarmonicConv2d(1, 1, 3, bias="no"),
        TypeError,
        r"bias must be True or False, got 'no'",
    ),
    (lambda: FrequencyTaps.harmonic(2).dead(-1), ValueError, r"n_bins must be an int >= 0, got -1"),
    (lambda: FrequencyTaps.harmonic(2).describe(True), TypeError, r"tap must be an int, got True"),
    (lambda: FrequencyTaps(None, (1,)), ValueError, r"slopes must be a sequence.*got None"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "wrong", [{"stride": (1.0, 1)}, {"anchor": (True, 2)}, {"padding": (False, 1)}]
)
def test_what_equals_a_valid_argument_is_not_taken_for_it(wrong):
    """True and 1.0 equal 1, also as keys of a cache."""
    weight = torch.randn(6, 4, 6, 3)
    ((name, value),) = wrong.items()
    valid = {name: tuple(map(int, value))}
    rest = {"anchor": (1, 2)} if name != "anchor" else {}
    harmonic_conv2d(X, weight, **rest, **valid)
    with pytest.raises(ValueError, match=name):
        harmonic_conv2d(X, weight, **rest, **wrong)


def test_a_call_that_passed_says_nothing_about_another(monkeypatch):
    """With the same shapes: in training and not, on plain tensors and not, under autocast."""
    monkeypatch.setattr(functional, "_passed", {})
    monkeypatch.setattr(engines.native, "unsupported_reason", lambda *_: "it is away")
    monkeypatch.setattr(engines, "SMALL_BYTES", {"cpu": 0})
    used = []
    for engine in (lowering, blocked):
        name, convolve = engine.__name__.rpartition(".")[2], engine.convolve
        monkeypatch.setattr(
            engine, "convolve", lambda *a, n=name, c=convolve: used.append(n) or c(*a)
        )
    weight = W.clone().requires_grad_()
    for _ in range(2):  # as they are chosen, and as they were
        harmonic_conv2d(X, weight, anchor=2)
        with torch.no_grad():
            harmonic_conv2d(X, weight, anchor=2)
    assert used == ["lowering", "blocked"] * 2
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            assert harmonic_conv2d(X, weight, anchor=2).dtype == dtype


# -------------------------------------------------------------------- choosing without the core


@pytest.mark.parametrize(
    ("anchor", "trains", "n_frames", "engine"),
    [
        (1, False, 100, "lowering"),
        (1, False, 1000, "blocked"),
        (1, True, 1000, "blocked"),
        (3, True, 1000, "lowering"),
        (3, False, 1000, "blocked"),
        (3, True, 9000, "blocked"),
    ],
)
def test_without_the_core(monkeypatch, anchor, trains, n_frames, engine):
    monkeypatch.setattr(core.library, "load", lambda: None)
    layer = HarmonicConv2d(16, 8, 3, anchor=anchor).requires_grad_(trains)
    choice = layer.engine_for(torch.empty(1, 16, 257, n_frames))
    assert choice.engine == engine
    assert "the native core is missing" in choice.reason
    assert "build-native" in choice.reason


DISTRIBUTED = """
import torch
import torch.distributed as dist
from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
from harmonic_lowering import HarmonicConv2d

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = dist.init_device_mesh("cpu", (1,))
torch.manual_seed(0)
x = torch.randn(2, 2, 9, 8)
for engine in ("reference", "lowering", "blocked", "auto"):
    for placement in (Replicate(), Shard(0)):
        layer = HarmonicConv2d(2, 4, 3, padding=1, anchor=2, engine=engine)
        wanted = layer(x)
        (grad,) = torch.autograd.grad(wanted.square().mean(), layer.weight)
        got = distribute_module(layer, mesh)(distribute_tensor(x, mesh, [placement]))
        torch.testing.assert_close(got.full_tensor(), wanted)
        got.square().mean().backward()
        torch.testing.assert_close(layer.weight.grad.full_tensor(), grad)
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="a torch without distributed")
@pytest.mark.slow
def test_distributed_tensors():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", DISTRIBUTED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
