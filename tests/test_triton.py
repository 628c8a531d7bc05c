"""The Triton engine without a card: its kernels in the interpreter, and compiled for cards.

With a card, the tests marked `gpu` run the same kernels on it.
"""

import ctypes
import gc
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle import EVERY_ARGUMENT, Case, cases, fixed_case

from harmonic_lowering import HarmonicConv2d, engines, harmonic_conv2d
from harmonic_lowering.denoise import Denoiser, dap, fit
from harmonic_lowering.engines import lowering, plans
from harmonic_lowering.engines.geometry import geometry_of
from harmonic_lowering.engines.native import core as native_core
from harmonic_lowering.engines.triton import cards, core, launches, plan
from harmonic_lowering.taps import harmonic_taps

ROOT = Path(__file__).parents[1]
MISSING = cards._triton_is_missing()
pytestmark = pytest.mark.filterwarnings("ignore::harmonic_lowering.DeadTapWarning")
needs_triton = pytest.mark.skipif(bool(MISSING), reason=str(MISSING))
# What short rows and few channels do not show: several tiles of frames, chunks of channels.
LONG = {
    "tiles": fixed_case(shape=(1, 3, 4, 140), taps={"anchor": 1}),
    "seven columns": fixed_case(shape=(1, 2, 3, 140), frames=7, padding=3, out_channels=5),
    "dilated tiles": fixed_case(shape=(2, 1, 3, 140), dilation=2, padding=1, groups=2),
    "no padding": fixed_case(shape=(1, 2, 3, 131), padding=0, bias=False),
    "many channels, not blended": fixed_case(
        shape=(1, 34, 3, 9), out_channels=18, taps={"anchor": 1}
    ),
    "many channels": fixed_case(shape=(1, 18, 3, 9), out_channels=18),
    "many reads": fixed_case(shape=(2, 17, 7, 9), out_channels=16, frames=5),
    "two frames a row": fixed_case(shape=(1, 16, 3, 131), out_channels=5),
}
CASES = {**EVERY_ARGUMENT, **LONG}
# Float16 takes the same paths; the interpreter gets bfloat16 wrong (triton issue 11584).
IN_FLOAT16 = ("plain", "stride", "groups", "shifts", "tiles", "many channels")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture
def interpreted(monkeypatch):
    """Run the kernels on the CPU, and return the launches that are made."""
    if not cards.is_interpreted():
        pytest.skip("with a card its own tests run the kernels")
    monkeypatch.setattr(cards, "failures", {})
    monkeypatch.setattr(cards, "have_launched", set())
    core.forget_launches()  # with what they remember of earlier tests
    launched, launch = [], launches.Launch.__call__

    def counted(self, *tensors):
        launched.append(self.name)
        launch(self, *tensors)

    monkeypatch.setattr(launches.Launch, "__call__", counted)
    return launched


def layout(tensor, form):
    """Return the same values in another memory layout."""
    if form == "channels last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if form == "every other":
        return tensor.repeat_interleave(2, 3)[..., ::2]
    return tensor


def results(case, engine, dtype, device="cpu", form="contiguous", sign=lambda grad: grad):
    """Return the output and all gradients of one call."""
    tensors = [t if t is None else t.to(device) for t in case.tensors(torch.float64)]
    given = [t if t is None else layout(t.to(dtype), form if t.ndim == 4 else "") for t in tensors]
    x, w, b = (t if t is None else t.detach().requires_grad_() for t in given)
    y = case.call(x, w, b, engine)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(device, dtype)
    grad = sign(grad)
    leaves = [t for t in (x, w, b) if t is not None]
    return [y, *torch.autograd.grad(y, leaves, layout(grad, form))]


def assert_parity(case, dtype, device="cpu", form="contiguous"):
    got = results(case, "triton", dtype, device, form)
    # the same rounded numbers, computed exactly
    x, w, b = (t if t is None else t.to(dtype).double() for t in case.tensors(torch.float64))
    rounded = fixed_case(**{**case.__dict__})
    rounded.tensors = lambda _: (x, w, b)
    wanted = results(rounded, "reference", torch.float64)
    rounded.tensors = lambda _: tuple(t if t is None else t.abs() for t in (x, w, b))
    sizes = results(rounded, "reference", torch.float64, sign=torch.abs)
    for ours, exact, size in zip(got, wanted, sizes, strict=True):
        assert ours.dtype == dtype
        error = (ours.cpu().double() - exact).abs()
        close = error.norm() < TOLERANCE[dtype] * exact.norm().clamp_min(1e-30)
        # Where terms cancel, as in a result of one number, they were still rounded.
        rounding = 4 * torch.finfo(dtype).eps * size
        assert close or bool((error <= rounding).all())


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_kernels_agree_with_the_reference(name, interpreted):
    assert_parity(CASES[name], torch.float32)
    assert interpreted == ["apply", "weight_grad", "total", "apply"]


@needs_triton
@pytest.mark.parametrize("name", IN_FLOAT16)
def test_kernels_agree_with_the_reference_in_float16(name, interpreted):
    assert_parity(CASES[name], torch.float16)


# How many tensors a training step copies: in float32, in float16.
COPIES = {
    "groups": {"contiguous": (0, 0), "channels last": (2, 0), "every other": (2, 0)},
    "many channels": {"contiguous": (2, 3), "channels last": (2, 0), "every other": (4, 3)},
    "many reads": {"contiguous": (2, 3), "channels last": (2, 0), "every other": (4, 3)},
    "two frames a row": {"contiguous": (1, 1), "channels last": (2, 0), "every other": (3, 1)},
}


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("form", ["contiguous", "channels last", "every other"])
@pytest.mark.parametrize("name", COPIES)
def test_large_tensors_are_copied(name, form, dtype, interpreted, monkeypatch):
    """Into the layout that is read fastest, and weights are packed."""
    monkeypatch.setattr(core, "_COPIED_FROM", 0)
    core.forget_launches()
    assert_parity(CASES[name], dtype, form=form)
    core.forget_launches()
    assert interpreted.count("copy") == COPIES[name][form][dtype == torch.float16]


@needs_triton
@pytest.mark.skipif(not cards.is_interpreted(), reason="a card is here")
@pytest.mark.slow
@settings(max_examples=10)
@given(
    case=cases(largest=5),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    form=st.sampled_from(["contiguous", "channels last", "every other"]),
)
@example(  # whose one number is a small difference
    case=Case(
        shape=(1, 1, 1, 3),
        out_channels=1,
        rows=1,
        frames=1,
        stride=(1, 1),
        padding=1,
        dilation=1,
        groups=1,
        bias=False,
        taps={"interpolation": "linear", "anchor": 1, "origin": 0},
        kind="harmonic",
        seed=1000,
    ),
    dtype=torch.float32,
    form="contiguous",
)
def test_random_calls_agree_with_the_reference(case, dtype, form):
    assert_parity(case, dtype, form=form)


@needs_triton
@pytest.mark.parametrize("form", ["channels last", "every other"])
@pytest.mark.parametrize("name", ["plain", "tiles"])
def test_memory_layouts(name, form, interpreted):
    assert_parity(CASES[name], torch.float32, form=form)
    y, of_input, *_ = results(CASES[name], "triton", torch.float32, form=form)
    wanted = "channels last" if form == "channels last" else "contiguous"
    assert all(t.stride() == layout(t.contiguous(), wanted).stride() for t in (y, of_input))


@needs_triton
def test_only_the_gradients_that_are_needed(interpreted):
    x, w, b = CASES["plain"].tensors(torch.float32)
    for needs, kernels in (
        ((True, False, False), ["apply"]),
        ((False, True, False), ["weight_grad", "total"]),
        ((False, False, True), []),
    ):
        leaves = [t.detach().requires_grad_(need) for t, need in zip((x, w, b), needs, strict=True)]
        y = CASES["plain"].call(*leaves, "triton")
        interpreted.clear()
        y.sum().backward()
        assert interpreted == kernels
        assert [leaf.grad is not None for leaf in leaves] == list(needs)


@needs_triton
@pytest.mark.parametrize("of_torch", [False, True], ids=["summed with parts", "by torch"])
@pytest.mark.parametrize("form", ["contiguous", "channels last", "every other"])
def test_many_parts_of_a_weights_gradient(form, of_torch, interpreted, monkeypatch):
    """As many as a card has processors for, and a bias's gradient of several tiles."""
    monkeypatch.setattr(core, "_programs_wanted", lambda device: 400)
    monkeypatch.setattr(core, "_SUMMED_WITH_PARTS", 0 if of_torch else 1 << 15)
    core.forget_launches()
    case = fixed_case(shape=(9, 4, 5, 70), out_channels=6, groups=2)
    assert_parity(case, torch.float32, form=form)
    core.forget_launches()


@needs_triton
def test_two_runs_are_bitwise_equal(interpreted):
    first, again = (results(CASES["tiles"], "triton", torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@needs_triton
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")  # beyond the channels
def test_an_infinity_in_a_row_that_is_not_read_stays_there(interpreted):
    x, w = torch.zeros(1, 1, 6, 66), torch.ones(1, 1, 2, 3)
    x[..., 5, :] = torch.inf
    for frames in (5, 66):
        y = harmonic_conv2d(x[..., :frames], w, padding=1, anchor=2, engine="triton")
        wanted = harmonic_conv2d(x[..., :frames], w, padding=1, anchor=2, engine="reference")
        torch.testing.assert_close(y, wanted)
        assert y[0, 0, :5].isfinite().all()


@needs_triton
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_with_two_frames_a_row_an_infinity_reaches_one_frame_more(interpreted):
    x, w = torch.zeros(1, 16, 2, 140), torch.ones(1, 16, 2, 3)
    x[..., 50] = torch.inf
    for engine, frames in ("reference", [49, 50, 51]), ("triton", [48, 49, 50, 51]):
        y = harmonic_conv2d(x, w, padding=1, engine=engine)
        assert y[0, 0, 0].isfinite().logical_not().nonzero().flatten().tolist() == frames


@needs_triton
def test_operators_take_the_kernels(interpreted, monkeypatch):
    """What torch.compile, torch.export and double backward call."""
    monkeypatch.setattr(native_core, "unsupported_reason", lambda *_: "it is away")
    case = CASES["plain"]
    x, w, b = case.tensors(torch.float32)
    given = geometry_of(harmonic_taps(3, 2, None, 0, "linear"), 1, 1, 1, 1, 3)
    arguments = given.operator_arguments
    operators = torch.ops.harmonic_lowering
    y = operators.tap_conv2d(x, w, b, *arguments)
    torch.testing.assert_close(y, lowering.convolve(x, w, b, given))
    of_input = operators.tap_conv2d_input_grad(y, w, *arguments, *x.shape[2:])
    torch.testing.assert_close(of_input, lowering.input_grad(y, w, given, x.shape))
    of_weight, of_bias = operators.tap_conv2d_weight_grad(x, y, *arguments, 3, True)
    torch.testing.assert_close(of_weight, lowering.weight_grad(x, y, given, w.shape))
    torch.testing.assert_close(of_bias, y.sum((0, 2, 3)))
    assert interpreted == ["apply", "apply", "weight_grad", "total"]


@needs_triton
def test_compiled_and_second_derivatives(interpreted, monkeypatch):
    monkeypatch.setattr(native_core, "unsupported_reason", lambda *_: "it is away")
    layer = HarmonicConv2d(2, 2, 3, padding=1, anchor=2, engine="triton")
    x = torch.randn(1, 2, 5, 6, requires_grad=True)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    assert len(interpreted) == 2

    def penalty():
        (g,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), (x, layer.weight))

    got = penalty()
    layer.engine = "lowering"
    for ours, wanted in zip(got, penalty(), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------- refusals


@needs_triton
def test_a_kernel_that_does_not_compile(interpreted, monkeypatch):
    """One clear sentence for whoever requested the engine; `auto` goes on, forward and backward."""
    real = launches._kernels()
    broken = type("Broken", (), {"apply": None, "weight_grad": None})
    monkeypatch.setattr(launches, "_kernels", lambda: broken)
    case = CASES["plain"]
    with pytest.raises(NotImplementedError, match="could not compile or launch the kernel 'apply'"):
        results(case, "triton", torch.float32)
    # it is remembered: the next call does not try again
    with pytest.raises(NotImplementedError, match="or use engine='auto'"):
        results(case, "triton", torch.float32)

    cards.failures.clear()
    core.forget_launches()
    x, w, b = (t.requires_grad_() for t in case.tensors(torch.float32))
    given = geometry_of(harmonic_taps(3, 2, None, 0, "linear"), 1, 1, 1, 1, 3)
    wanted = lowering.convolve(x, w, b, given)
    convolve = engines.triton.or_stock(engines.triton.convolve)
    with pytest.warns(RuntimeWarning, match="kernel 'apply'.* goes on with stock operations"):
        y = convolve(x, w, b, given)
    torch.testing.assert_close(y, wanted)
    cards.failures.clear()
    core.forget_launches()
    partly = type("Partly", (), {"apply": real.apply, "weight_grad": None})
    monkeypatch.setattr(launches, "_kernels", lambda: partly)
    y = convolve(x, w, b, given)
    with pytest.warns(RuntimeWarning, match="kernel 'weight_grad'.* goes on with stock"):
        got = torch.autograd.grad(y.sum(), (x, w, b))
    for ours, theirs in zip(got, torch.autograd.grad(wanted.sum(), (x, w, b)), strict=True):
        torch.testing.assert_close(ours, theirs)
    # What has launched goes on.
    assert not cards.failures
    torch.testing.assert_close(engines.triton.convolve(x, w, b, given), wanted)


@needs_triton
def test_not_enough_memory(interpreted, monkeypatch):
    """Blocked needs less beside a large input, and `auto` uses it, forward and backward."""
    x, w, b = (t.requires_grad_() for t in CASES["plain"].tensors(torch.float32))
    given = geometry_of(harmonic_taps(3, 2, None, 0, "linear"), 1, 1, 1, 1, 3)
    wanted = lowering.convolve(x, w, b, given)
    convolve = engines.triton.or_stock(engines.triton.convolve)
    y = convolve(x, w, b, given)

    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(core, "weight_grad", full)
    got = torch.autograd.grad(y.sum(), (x, w, b))
    for ours, theirs in zip(got, torch.autograd.grad(wanted.sum(), (x, w, b)), strict=True):
        torch.testing.assert_close(ours, theirs)
    monkeypatch.setattr(core, "output", full)
    torch.testing.assert_close(convolve(x, w, b, given), wanted)
    with pytest.raises(torch.OutOfMemoryError):
        engines.triton.convolve(x, w, b, given)


def test_an_error_survives_a_worker_process():
    error = cards.CannotRunError("no card")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert "cannot run: no card; or use" in str(error)


def test_auto_takes_it_only_where_it_was_measured(monkeypatch):
    x, w, b = (t.to("meta") for t in CASES["plain"].tensors(torch.float32))
    monkeypatch.setattr(cards, "_unsupported_machine", lambda: None)
    monkeypatch.setattr(cards, "_unsupported_device", lambda device: None)
    monkeypatch.setattr(cards, "_capability", lambda device: (8, 0))
    choice = engines.choose("auto", x, w, b)
    assert choice.engine == "lowering"
    assert "has not been measured on cards of capability 8.0" in choice.reason

    @torch.compile(fullgraph=True, backend="eager")
    def is_chosen(x):
        return x + (cards.auto_reason(x) is None)

    torch.compiler.reset()
    assert is_chosen(torch.zeros(1)) == 0
    monkeypatch.setattr(cards, "MEASURED_CAPABILITIES", {(8, 0)})
    torch.compiler.reset()
    assert is_chosen(torch.zeros(1)) == 1
    assert engines.choose("auto", x, w, b).engine == "triton"
    monkeypatch.setattr(cards, "_unsupported_device", lambda device: "it is too old")
    assert "it is too old" in engines.choose("auto", x, w, b).reason


@needs_triton
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": (1, 1 << 31)}, "stride, dilation or padding reaches 2\\*\\*31"),
        ({"dilation": 1 << 32, "padding": 1 << 32}, "padding reaches 2\\*\\*31"),
        ({"dilation": 1 << 29, "padding": 1 << 29, "form": torch.channels_last}, "2\\*\\*31"),
        ({"groups": 70000}, "70000.* programs .*at most .*65535"),
    ],
    ids=str,
)
def test_numbers_that_kernels_do_not_count_to(arguments, message, interpreted):
    arguments = dict(arguments)
    form = arguments.pop("form", torch.contiguous_format)
    groups = arguments.get("groups", 1)
    x, w = torch.randn(1, 4 * groups, 4, 5), torch.randn(groups, 4, 2, 3)
    with pytest.raises(NotImplementedError, match=message):
        harmonic_conv2d(x.to(memory_format=form), w, engine="triton", **arguments)
    assert not cards.failures


@needs_triton
def test_sizes_that_kernels_do_not_count_to():
    """Of tensors that are larger than this machine: nothing but their shapes is asked."""
    with pytest.raises(NotImplementedError, match=r"it takes .* programs"):
        ways((65536, 64, 512, 1), groups=64)
    with pytest.raises(NotImplementedError, match=r"a sum has 2\*\*31 steps or more"):
        ways((1_500_000, 1, 1024, 1))


@needs_triton
def test_what_is_kept_is_bounded(monkeypatch):
    """By the bytes of its tables, with any number of sizes."""
    monkeypatch.setattr(plans, "KEPT_BYTES", 1 << 16)
    before = {id(found) for found in tables()}
    for n_bins in range(200, 260):
        ways((1, 1, n_bins, 1))
    kept = [sum(t.nbytes for t in found[:4]) for found in tables() if id(found) not in before]
    assert max(kept) < sum(kept) <= 4 * (1 << 16)  # two kinds of tables, two of launches


def ways(shape, groups=1):
    """Return how the output and the weight's gradient would be computed."""
    x, weight = (torch.empty(n, device="meta") for n in (shape, (shape[1], 1, 1, 1)))
    geometry = geometry_of(harmonic_taps(1, 2, None, 0, "linear"), 1, 0, 1, groups, 1)
    given = geometry, torch.device("cpu"), torch.float16, "ieee", x.shape, x.stride()
    layout = weight.shape, weight.stride()
    return (
        core._output_way(*given, *layout, False),
        core._weight_grad_way(*given, x.shape, x.stride(), *layout, False),
    )


def tables():
    gc.collect()
    return [found for found in gc.get_objects() if type(found) is plan.Reads]


TENSORS = {
    "another dtype": ((1, 9), torch.float64, "meta", r"takes one of .*float16.*got .*float64"),
    "another device": ((1, 9), torch.float32, "cpu", "on different devices: .*cpu.*meta"),
    "a huge batch item": ((1 << 16, 1 << 15), torch.float32, "meta", "2\\*\\*31 elements"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_it_does_not_take(name, monkeypatch):
    plane, dtype, device, reason = TENSORS[name]
    monkeypatch.setattr(cards, "_unsupported_machine", lambda: None)
    monkeypatch.setattr(cards, "_unsupported_device", lambda device: None)
    x = torch.empty(1, 2, *plane, dtype=dtype, device="meta")
    weight = torch.ones(1, 2, 3, 3, dtype=dtype, device=device)
    assert re.search(reason, cards.unsupported_reason(x, weight))


@needs_triton
def test_bfloat16_is_refused_where_kernels_are_interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x, weight = (torch.ones(1, 1, 9, 9).bfloat16() for _ in range(2))
    with pytest.raises(NotImplementedError, match=r"gets bfloat16 wrong.*float16 or float32"):
        harmonic_conv2d(x, weight, engine="triton")


def test_a_machine_whose_cards_are_all_too_old(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(cards, "_triton_is_missing", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for capabilities, reason in (
        (((7, 5), (6, 1)), "it needs a card of capability 8.0, and the best here has 7.5"),
        (((7, 5), (8, 6)), None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
        assert engines.unsupported_reason("triton") == reason


def test_machines_and_cards_that_it_does_not_run_on(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.ones(1, 1, 9, 6)
    if not MISSING and not torch.cuda.is_available():
        with pytest.raises(NotImplementedError, match="cannot run: it needs an NVIDIA card"):
            harmonic_conv2d(x, torch.ones(1, 1, 3, 3), engine="triton")
    monkeypatch.setattr(cards, "_triton_is_missing", lambda: "the package triton is not here")
    assert cards.unsupported_reason(x) == "the package triton is not here"
    monkeypatch.setattr(cards, "_unsupported_machine", lambda: None)
    assert "a tensor is on cpu" in cards.unsupported_reason(x)
    monkeypatch.setattr(cards, "_capability", lambda device: (7, 5))
    card = torch.device("cuda:0")
    assert cards._unsupported_device(card) == (
        "cuda:0 has the capability 7.5, and its kernels need 8.0"
    )
    monkeypatch.setattr(cards, "_capability", lambda device: (8, 0))
    assert cards._unsupported_device(card) is None


# -------------------------------------------------------------------- compiled for other machines


def compiled(*arguments):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "compile_triton.py"), *arguments],
        env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_triton
@pytest.mark.parametrize(
    "arguments",
    [["--quick", "90"], *(pytest.param([n], marks=pytest.mark.slow) for n in ("80", "90", "100"))],
    ids=" ".join,
)
def test_kernels_compile_without_spilling(arguments):
    found = compiled(*arguments)
    assert {row["kernel"] for row in found} == {"apply", "copy", "total", "weight_grad"}
    assert {row["phases"] for row in found} == {1, 2, None}
    for row in found:
        assert row["spilled"] == 0, row
        assert row["tensor_cores"] == (row["kernel"] in ("apply", "weight_grad")), row
        assert row["shared"] <= 99 << 10, row  # what the smallest card since 8.0 has


@needs_triton
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler here")
def test_the_structure_that_the_driver_is_given(tmp_path):
    """As the driver's own header has it, which Triton brings."""
    import triton

    names = {
        "gridDimX": "grid_x", "gridDimZ": "grid_z", "blockDimX": "block_x", "blockDimZ": "block_z",
        "sharedMemBytes": "shared_bytes", "hStream": "stream", "attrs": "attributes",
        "numAttrs": "n_attributes",
    }  # fmt: skip
    prints = "".join(f'printf("%zu ", offsetof(CUlaunchConfig, {name}));' for name in names)
    code = f"""#include <stddef.h>
    #include <stdio.h>
    #include "cuda.h"
    int main(void) {{ {prints} printf("%zu", sizeof(CUlaunchConfig)); }}"""
    (tmp_path / "layout.c").write_text(code)
    header = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    subprocess.run(["cc", f"-I{header}", "layout.c", "-o", "layout"], cwd=tmp_path, check=True)
    printed = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True)
    ours = [getattr(launches.LaunchConfig, name).offset for name in names.values()]
    assert [*map(int, printed.stdout.split())] == [*ours, ctypes.sizeof(launches.LaunchConfig)]


# -------------------------------------------------------------------- the denoiser's loop


@pytest.mark.parametrize(
    ("method", "read"), [(dap, {1, 4, 8, 9}), (fit, {1, 5, 9})], ids=["dap", "prior"]
)
def test_reading_losses_rarely_changes_nothing_else(method, read, monkeypatch):
    """As on a card, which every reading waits for."""
    reads = []
    for name in ("__float__", "tolist"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda tensor, real=real: (reads.append(0), real(tensor))[1]
        )
    sound = torch.sin(torch.arange(4000) / 20) / 2 + torch.randn(4000) / 20
    denoiser = Denoiser(method="dap" if method is dap else "prior", steps=9, widths=(4, 4))
    found, counts, seen = [], [], []
    for wait in (1, 4):
        monkeypatch.setattr(method, "losses_wait", lambda device, wait=wait: wait)
        reads.clear()
        found.append(denoiser(sound, 16000, progress=seen.append).waveform)
        counts.append(len(reads))
    assert torch.equal(*found)
    assert counts[0] - counts[1] == 9 - len(read)
    assert len({(progress.step, progress.ended) for progress in seen}) == 9


# -------------------------------------------------------------------- with a card


@pytest.fixture
def card():
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA card here")
    if reason := cards.unsupported_reason(torch.empty(0, device="cuda")):
        pytest.skip(reason)
    return "cuda"


@pytest.fixture
def exact_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


# Each of these compiles three kernels, a second for each: all together within a minute.
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in ("stride", "groups", "shifts", "many channels")),
        *((name, dtype) for name in ("tiles", "dilation") for dtype in TOLERANCE),
    ],
)
def test_parity_on_a_card(name, dtype, card, exact_float32):
    assert_parity(CASES[name], dtype, card)


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["channels last", "every other"])
def test_memory_layouts_on_a_card(form, card, exact_float32):
    assert_parity(CASES["tiles"], torch.float32, card, form)


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["contiguous", "channels last"])
@pytest.mark.parametrize(
    ("kernel", "given", "tolerance"),
    [(3, torch.float32, 2e-3), (7, torch.float32, 2e-3), (5, torch.bfloat16, 2e-2)],
)
def test_the_papers_shapes_on_a_card(kernel, given, tolerance, form, card):
    """In TF32 and bfloat16, beside the same in float64; twice, and bitwise equal."""
    layer = HarmonicConv2d(16, 32, kernel, padding=kernel // 2, anchor=kernel, device=card)
    layer = layer.to(given)
    x = layout(torch.randn(16, 16, 128, 128, device=card, dtype=given), form)
    found = []
    for engine, dtype in (("triton", given),) * 2 + (("lowering", torch.float64),):
        layer.engine = engine
        wide, leaf = layer.to(dtype), x.detach().to(dtype).requires_grad_()
        y = wide(leaf)
        found.append([y, *torch.autograd.grad(y.square().sum(), (leaf, *wide.parameters()))])
    once, again, exact = found
    for ours, same, truth in zip(once, again, exact, strict=True):
        assert torch.equal(ours, same)
        assert (ours - truth).norm() / truth.norm() < tolerance


@pytest.mark.gpu
def test_a_cuda_graph_captures_training_steps(card):
    layer = HarmonicConv2d(4, 8, 3, padding=1, anchor=3, engine="triton", device=card)
    x = torch.randn(2, 4, 33, 100, device=card, requires_grad=True)
    other = torch.randn_like(x).requires_grad_()
    y = layer(other)
    wanted = [y.detach(), *torch.autograd.grad(y.sum(), (other, *layer.parameters()))]
    del y  # whose graph would bind the capture to this stream
    graphed = torch.cuda.make_graphed_callables(layer, (x,))
    for _ in range(2):
        y = graphed(other)
        got = [y, *torch.autograd.grad(y.sum(), (other, *layer.parameters()))]
        torch.testing.assert_close(got, wanted)


@pytest.mark.gpu
def test_the_driver_launches_what_was_compiled(card, monkeypatch):
    """From any thread and stream; tensors that are not aligned are left to Triton."""
    layer = HarmonicConv2d(4, 8, 3, padding=1, anchor=3, engine="triton", device=card)
    x = torch.randn(2, 4, 33, 100, device=card)

    def step(x):
        x = x.detach().requires_grad_()
        y = layer(x)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))]

    wanted = step(x)
    shifted = torch.empty(x.numel() + 1, device=card)[1:].view(x.shape).copy_(x)
    torch.testing.assert_close(step(shifted), wanted, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(launches.Launch, "_launch_by_triton", lambda *_: pytest.fail("by Triton"))
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(step, [x] * 64):
            assert all(torch.equal(ours, same) for ours, same in zip(found, wanted, strict=True))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = step(x)
    stream.synchronize()
    assert all(torch.equal(ours, same) for ours, same in zip(found, wanted, strict=True))


@pytest.mark.gpu
def test_reduce_overhead_compiles_on_a_card(card):
    layer = HarmonicConv2d(4, 8, 3, padding=1, engine="triton", device=card)
    x = torch.randn(2, 4, 33, 100, device=card)
    compiled_layer = torch.compile(layer, mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(compiled_layer(x), layer(x))


@pytest.mark.gpu
def test_memory_on_a_card_is_at_most_conv2ds(card):
    peaks = {}
    for name, layer in (
        ("ours", HarmonicConv2d(16, 32, 3, padding=1, engine="triton", device=card)),
        ("conv2d", torch.nn.Conv2d(16, 32, 3, padding=1, device=card)),
    ):
        x = torch.randn(8, 16, 256, 256, device=card, requires_grad=True)
        for _ in range(2):
            y = layer(x)
            grad = torch.ones_like(y)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            y.backward(grad)
            x.grad = None
            peaks[name] = torch.cuda.max_memory_allocated() - before
    assert peaks["ours"] <= 1.1 * peaks["conv2d"] + (20 << 20)  # the partial sums


@pytest.mark.gpu
def test_seeds_give_the_same_draws_on_a_card(card):
    """The denoiser draws on the CPU, so that a card starts from the same numbers."""
    sound = torch.sin(torch.arange(16000) / 20) / 2 + torch.randn(16000) / 20
    on_cpu, on_card = (
        Denoiser(method="dap", steps=2, device=device)(sound, 16000).waveform
        for device in ("cpu", card)
    )
    torch.testing.assert_close(on_cpu, on_card.cpu(), rtol=1e-2, atol=1e-2)
