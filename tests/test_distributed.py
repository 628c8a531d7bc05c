"""PyTorch's tools for training and deployment with the real thing: the core runs inside of them."""

import copy
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from harmonic_lowering import HarmonicConv2d, LogHarmonicConv2d
from harmonic_lowering.engines.native import library

pytestmark = pytest.mark.skipif(
    bool(library.unsupported_reason()), reason=str(library.unsupported_reason())
)
WORLD = 2


class Net(nn.Module):
    """A small U-Net with every kind of layer."""

    def __init__(self):
        super().__init__()
        self.first = HarmonicConv2d(1, 4, 3, padding=1, anchor=2)
        self.down = HarmonicConv2d(4, 8, 3, stride=2, padding=1, anchor=(1, 2))
        self.norm = nn.BatchNorm2d(8)
        self.middle = LogHarmonicConv2d(8, 8, 3, padding=1, shifts=(-2, 0, 2))
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.last = HarmonicConv2d(8, 1, (3, 3), padding=(1, 0), freq_dim=-1)

    def forward(self, x):
        a = F.relu(self.first(x))
        b = F.relu(self.norm(self.down(a)))
        c = self.up(F.relu(self.middle(b)))
        return self.last(torch.cat([a, c], 1).transpose(2, 3)).transpose(2, 3)


@pytest.fixture
def x():
    return torch.randn(4, 1, 16, 12)


def operators(call):
    """Return what a call computes with, as the profiler sees it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return {event.key for event in profile.key_averages()}


EAGER = {"_Convolution", "_ConvolutionBackward"}
COMPILED = {f"harmonic_lowering::tap_conv2d{end}" for end in ("", "_input_grad", "_weight_grad")}


def gradients(net, x):
    net.zero_grad()
    net(x).square().mean().backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


# -------------------------------------------------------------------- one process


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant, x):
    net = Net().eval()
    expected = {name: grad.clone() for name, grad in gradients(net, x).items()}
    x = x.requires_grad_()

    def call():
        net.zero_grad()
        checkpoint(net, x, use_reentrant=use_reentrant).square().mean().backward()

    assert operators(call) >= EAGER
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


OPTIMISERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "fused AdamW": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "foreach RMSprop": lambda p: torch.optim.RMSprop(p, 0.001, foreach=True),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.1),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers_train_a_network(name, x):
    net = Net()
    before = copy.deepcopy(net.state_dict())
    optimiser = OPTIMISERS[name](list(net.parameters()))
    losses = []

    def closure():
        optimiser.zero_grad()
        loss = F.mse_loss(net(x), x)
        loss.backward()
        losses.append(loss.item())
        return loss

    for _ in range(10):
        optimiser.step(closure)
    assert losses[-1] < losses[0]
    weights = [name for name in before if name.endswith("weight")]
    assert not any(torch.equal(before[name], net.get_parameter(name)) for name in weights)


@pytest.mark.slow
def test_a_network_compiles_as_users_do(x):
    net = Net()
    twin = copy.deepcopy(net)
    torch.compiler.reset()
    compiled = torch.compile(net)
    found = {}
    assert operators(lambda: found.update(gradients(compiled, x))) >= COMPILED
    expected = gradients(twin, x)
    for name, grad in expected.items():
        torch.testing.assert_close(found[f"_orig_mod.{name}"], grad, rtol=1e-3, atol=1e-4)
    optimiser = torch.optim.Adam(compiled.parameters(), 0.01)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = F.mse_loss(compiled(x), x)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_network_exports(x):
    net = Net().eval()
    auto = torch.export.Dim.AUTO
    program = torch.export.export(net, (x,), dynamic_shapes=({0: auto, 3: auto},))
    for input in (x, torch.randn(3, 1, 16, 20)):
        torch.testing.assert_close(program.module()(input), net(input))
    assert "harmonic_lowering::tap_conv2d" in operators(lambda: program.module()(x))


@pytest.mark.slow
def test_aot_inductor_packages_run_in_python(x, tmp_path):
    net = Net().eval()
    program = torch.export.export(net, (x,))
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "net.pt2")
        )
        package = torch._inductor.aoti_load_package(path)
        torch.testing.assert_close(package(x), net(x))
        assert "harmonic_lowering::tap_conv2d" in operators(lambda: package(x))


# -------------------------------------------------------------------- two processes


def reference(x):
    """Return a network, and the gradients that one process computes with the whole batch."""
    torch.manual_seed(0)
    net = Net().eval()  # the statistics of a batch norm are those of each half
    expected = gradients(net, x)
    net.zero_grad(set_to_none=True)
    return net, expected


def ddp(net, rank):
    return DistributedDataParallel(net)


def fsdp(net, rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in (net.first, net.down, net.middle):
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def compiled(wrap):
    def wrapped(net, rank):
        return torch.compile(wrap(net, rank))

    return wrapped


def train(rank, folder, wrap, wanted, x):
    """Check in one of two processes that half a batch each gives the gradients of the whole."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD
    )
    try:
        net, expected = reference(x)
        module = wrap(net, rank)
        half = x.chunk(WORLD)[rank]
        names = operators(lambda: module(half).square().mean().backward())
        assert names >= wanted, names
        for name, parameter in net.named_parameters():
            grad = parameter.grad
            grad = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
            torch.testing.assert_close(grad, expected[name], rtol=1e-3, atol=1e-5)
    finally:
        dist.destroy_process_group()


WRAPPED = {
    "DDP": (ddp, EAGER),
    "FSDP2": (fsdp, EAGER),
    "compiled DDP": (compiled(ddp), COMPILED),
}


def work(rank, folder, name, x):
    train(rank, folder, *WRAPPED[name], x)


EXAMPLE = Path(__file__).parents[1] / "examples" / "distributed.py"


def losses(folder, *arguments, processes=2):
    """Run the example under torchrun, and return the loss of each step that it prints."""
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, "-m", *launch, EXAMPLE, "--batch", "4", *arguments],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (folder / "run.pt").exists()
    found = re.findall(r"step (\d+): loss (\S+)", done.stdout)
    return {int(step): float(loss) for step, loss in found}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    found = losses(tmp_path_factory.mktemp("alone"), "--steps", "20", processes=1)
    assert list(found) == [10, 20]
    assert found[20] < found[10]
    return found


@pytest.mark.slow
def test_the_example_trains_alike_and_resumes_with_ddp_and_fsdp(alone, tmp_path):
    assert losses(tmp_path, "--steps", "10") == pytest.approx({10: alone[10]}, rel=1e-3)
    again = ("--steps", "20", "--resume", "run.pt", "--strategy", "fsdp")  # DDP wrote it
    assert losses(tmp_path, *again) == pytest.approx({20: alone[20]}, rel=1e-3)


@pytest.mark.slow
def test_the_example_trains_alike_with_lightning(alone, tmp_path):
    pytest.importorskip("lightning")
    found = losses(tmp_path, "--steps", "10", "--lightning")
    assert found == pytest.approx({10: alone[10]}, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPED)
def test_two_processes_get_the_gradients_of_one(name, x, tmp_path):
    spawn(functools.partial(work, folder=str(tmp_path), name=name, x=x), nprocs=WORLD)
