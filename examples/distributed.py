"""Train a network of harmonic layers on several processes, with DDP, FSDP2 or Lightning.

    torchrun --standalone --nproc-per-node 2 examples/distributed.py [--strategy fsdp | --lightning]

The network predicts clean spectrograms of synthetic tones from noisy ones: no data is needed.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from harmonic_lowering import HarmonicConv2d
from harmonic_lowering.optional import import_optional
from harmonic_lowering.spectral import Stft

RATE, TRANSFORM = 16000, Stft(512, 128)
WHOLE = states.StateDictOptions(full_state_dict=True, cpu_offload=True)  # not shards


class Tones(Dataset[tuple[Tensor, Tensor]]):
    """Log-spectrograms of harmonic tones, with noise and without; each index is another tone."""

    def __init__(self, indices: range) -> None:
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(self.indices[item])
        pitch = 80 + 320 * torch.rand(1, generator=random)
        phase = 2 * torch.pi * pitch * torch.arange(RATE // 4) / RATE
        clean = torch.stack([(k * phase).sin() / k for k in range(1, 11)]).sum(0)
        noisy = clean + 0.5 * torch.randn(clean.shape, generator=random)
        spectra = TRANSFORM(torch.stack([noisy, clean])).abs().log1p()
        return spectra[:1], spectra[1:]


def network() -> nn.Sequential:
    torch.manual_seed(0)  # the same in every process
    return nn.Sequential(
        HarmonicConv2d(1, 16, 3, padding=1, anchor=3), nn.ReLU(),
        HarmonicConv2d(16, 16, 3, padding=1, anchor=(1, 2, 3)), nn.GroupNorm(4, 16), nn.ReLU(),
        nn.Conv2d(16, 1, 1),
    )  # fmt: skip


def train(args: argparse.Namespace) -> None:
    kind, backend = ("cuda", "nccl") if torch.cuda.is_available() else ("cpu", "gloo")
    if dist.is_torchelastic_launched():
        dist.init_process_group(backend)
    else:  # without torchrun there is one process
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0)) if kind == "cuda" else 0)
    if kind == "cuda":
        torch.cuda.set_device(device)

    model: nn.Module = network().to(device)
    if args.strategy == "fsdp":
        mesh = init_device_mesh(kind, (world,))
        for module in model.children():
            if isinstance(module, HarmonicConv2d):
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    start = 0
    if args.resume:
        state = torch.load(args.resume, map_location="cpu", weights_only=True)
        states.set_model_state_dict(model, state["model"], options=WHOLE)
        states.set_optimizer_state_dict(model, optimizer, state["optimizer"], options=WHOLE)
        start = min(state["step"], args.steps)
    tones = Tones(range(start * args.batch, args.steps * args.batch))
    sampler = DistributedSampler(tones, shuffle=False)
    loader = DataLoader(tones, args.batch // world, sampler=sampler)
    for step, pair in enumerate(loader, start + 1):
        noisy, clean = (spectrogram.to(device) for spectrogram in pair)
        loss = nn.functional.mse_loss(model(noisy), clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == args.steps:
            mean = loss.detach() / world
            dist.all_reduce(mean)
            if rank == 0:
                print(f"step {step}: loss {mean:.5f}", flush=True)

    weights, moments = states.get_state_dict(model, optimizer, options=WHOLE)  # by all processes
    state = {"model": weights, "optimizer": moments, "step": args.steps}
    if rank == 0:
        torch.save(state, f"{args.checkpoint}.part")
        os.replace(f"{args.checkpoint}.part", args.checkpoint)
    dist.destroy_process_group()


def train_with_lightning(args: argparse.Namespace) -> None:
    lightning = import_optional("lightning", "--lightning", "lightning")
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))

    class Task(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, pair: tuple[Tensor, Tensor], index: int) -> Tensor:
            loss = nn.functional.mse_loss(self.network(pair[0]), pair[1])
            self.log("loss", loss, sync_dist=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 3e-3)

    trainer = lightning.Trainer(  # it finds the processes that torchrun started
        strategy="ddp" if world > 1 else "auto", devices=local, num_nodes=world // local,
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        use_distributed_sampler=False,  # Lightning's shuffles
    )  # fmt: skip
    tones = Tones(range(args.steps * args.batch))
    sampler = DistributedSampler(tones, world, int(os.environ.get("RANK", 0)), shuffle=False)
    trainer.fit(Task(), DataLoader(tones, args.batch // world, sampler=sampler))
    trainer.save_checkpoint(args.checkpoint)
    if trainer.is_global_zero:
        print(f"step {args.steps}: loss {trainer.callback_metrics['loss']:.5f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--lightning", action="store_true", help="use Lightning, with ddp")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=16, help="of all processes together")
    parser.add_argument("--checkpoint", default="run.pt", help="to write at the end")
    parser.add_argument("--resume", help="a checkpoint of an earlier run, not of Lightning")
    args = parser.parse_args()
    if args.batch % int(os.environ.get("WORLD_SIZE", 1)) or min(args.batch, args.steps) < 1:
        parser.error("--steps must be positive, and --batch a multiple of the processes")
    if args.lightning and (args.resume or args.strategy != "ddp"):
        parser.error("--lightning goes without --resume and --strategy: Lightning has its own")
    (train_with_lightning if args.lightning else train)(args)
