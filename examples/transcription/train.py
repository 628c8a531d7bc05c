"""Train the network. Ctrl-C keeps what was learnt, and the same command goes on from there.

python -m examples.transcription.train --steps 2400 [--lightning]

With --lightning (pip install lightning) Lightning's trainer does the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harmonic_lowering.transcribe import Transcriber
from harmonic_lowering.transcribe.network import FRAME_S, LOWEST, PITCHES, TranscriptionNetwork

BATCH, FRAMES = 8, 160
RATE = 4e-3
ONSET_WEIGHT = 3.0
KEEP = 200  # steps between checkpoints
HELD_OUT = 20  # every so many clips, one is for validation


class Clips:
    """Clips in memory, and random stretches of them."""

    def __init__(self, folder: Path, held_out: bool = False) -> None:
        files = sorted(folder.glob("clips/[0-9]*[0-9].npz"))
        files = [file for file in files if (int(file.stem) % HELD_OUT == 0) == held_out]
        if not files:
            raise SystemExit(f"no clips in {folder}: python -m examples.transcription.data")
        self.clips = []
        for file in files:
            with np.load(file) as content:
                level = torch.from_numpy(content["level"])
                self.clips.append((level, targets(content["notes"], level.shape[-1])))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return levels (B, 288, T) and targets (B, 2, 88, T): the same for the same step."""
        random = np.random.default_rng(step)
        levels, wanted = [], []
        for _ in range(BATCH):
            level, target = self.clips[random.integers(len(self.clips))]
            start = random.integers(level.shape[-1] - FRAMES)
            level = level[:, start : start + FRAMES].float()
            target = target[..., start : start + FRAMES].float()
            shift = int(random.integers(-4, 5))  # semitones
            bins = len(level)
            curve = np.interp(range(bins), np.linspace(0, bins - 1, 7), random.normal(0, 3, 7))
            level = shifted(level, 3 * shift, -100.0) + random.uniform(-18, 4)
            levels.append(level + torch.from_numpy(curve).float()[:, None])
            wanted.append(shifted(target, shift, 0.0))
        return torch.stack(levels), torch.stack(wanted)


def targets(notes: np.ndarray, frames: int) -> Tensor:
    """Return which pitches sound in each frame and, nearest to 1, where they begin (2, 88, T)."""
    target = torch.zeros(2, PITCHES, frames, dtype=torch.float16)
    time = np.arange(frames) * FRAME_S
    for start, end, pitch in notes:
        row = int(pitch) - LOWEST
        if 0 <= row < PITCHES:
            target[0, row, (time >= start) & (time < end)] = 1
            near = torch.from_numpy(np.maximum(0, 1 - np.abs(time - start) / (1.5 * FRAME_S)))
            target[1, row] = torch.maximum(target[1, row], near.half())
    return target


def shifted(rows: Tensor, by: int, fill: float) -> Tensor:
    """Move rows along frequency, up if `by` is positive."""
    moved = F.pad(rows, (0, 0, max(0, by), max(0, -by)), value=fill)
    return moved[..., max(0, -by) : max(0, -by) + rows.shape[-2], :]


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of frames and onsets; onsets, which are rare, weigh more."""
    weight = 1 + ONSET_WEIGHT * target[:, 1]
    onset = F.binary_cross_entropy_with_logits(logits[:, 1], target[:, 1], weight)
    return F.binary_cross_entropy_with_logits(logits[:, 0], target[:, 0]) + onset


def optimiser_of(network: TranscriptionNetwork, steps: int) -> tuple[torch.optim.Optimizer, object]:
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-3)
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps, pct_start=0.1)


def train(folder: Path, steps: int) -> None:
    """Train in plain torch."""
    torch.manual_seed(0)
    network = TranscriptionNetwork()
    optimiser, schedule = optimiser_of(network, steps)
    parts = {"network": network, "optimiser": optimiser, "schedule": schedule}
    kept, step, losses = folder / "checkpoint.pt", 0, []
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        step = state["step"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
        print(f"going on after step {step}")
    clips, held_out = Clips(folder), Clips(folder, held_out=True)

    def keep() -> None:
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save({"step": step, **state}, kept.with_suffix(".part"))
        kept.with_suffix(".part").replace(kept)
        Transcriber(network).save(folder / "transcription.safetensors", {"step": str(step)})

    try:
        while step < steps:
            level, target = clips.batch(step)
            loss = loss_of(network.train()(level), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
            step += 1
            if step % KEEP == 0 or step == steps:
                keep()
                with torch.no_grad():
                    unseen = [held_out.batch(number) for number in range(8)]
                    network.eval()
                    validation = np.mean([float(loss_of(network(x), y)) for x, y in unseen])
                mean = np.mean(losses)
                print(f"step {step}: loss {mean:.4f}, validation {validation:.4f}", flush=True)
                losses.clear()
    except KeyboardInterrupt:
        keep()
        print(f"kept after step {step}; the same command goes on from there")


def train_with_lightning(folder: Path, steps: int) -> None:
    """Train the same with Lightning."""
    import lightning

    torch.manual_seed(0)
    clips = Clips(folder)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = TranscriptionNetwork()

        def training_step(self, number: Tensor, _: int) -> Tensor:
            level, target = clips.batch(int(number))
            loss = loss_of(self.network(level), target)
            self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> object:
            optimiser, schedule = optimiser_of(self.network, steps)
            return [optimiser], [{"scheduler": schedule, "interval": "step"}]

    last = folder / "lightning" / "last.ckpt"
    keeping = lightning.pytorch.callbacks.ModelCheckpoint(
        last.parent, save_last=True, every_n_train_steps=KEEP, save_on_exception=True
    )
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", callbacks=[keeping], logger=False
    )
    module = Module()
    numbers = torch.utils.data.DataLoader(torch.arange(steps), batch_size=None)
    trainer.fit(module, numbers, ckpt_path=last if last.exists() else None)
    state = {"step": trainer.global_step, "network": module.network.state_dict()}
    torch.save(state, folder / "checkpoint.pt")
    Transcriber(module.network).save(folder / "transcription.safetensors", {"step": str(steps)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("transcription"))
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--lightning", action="store_true")
    arguments = parser.parse_args()
    run = train_with_lightning if arguments.lightning else train
    run(arguments.folder, arguments.steps)


if __name__ == "__main__":
    main()
