"""Train the mask on synthetic sounds in synthetic noise.

    python -m research.mask.train FOLDER [--steps N] [--layer plain] [--seed S] ...

Every step's examples follow from the seed and the step's number, so a run can be repeated, and
one that was stopped goes on where its last checkpoint was, with the same result. FOLDER gets
`checkpoint.pt`, `log.csv` and, whenever a checkpoint is written, `mask.safetensors`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from harmonic_lowering.denoise.mask import LearntMask
from harmonic_lowering.denoise.mask_network import MaskNetwork, mask_features, merge_bins

from .examples import Batch, draw_batch

__all__ = ["Settings", "Trainer", "losses", "rate_share", "train"]

_MAGNITUDE, _NOISE = 4.0, 0.1  # weights of the losses beside the first
_LOWEST = 10**-3.5  # share of the error that the loss no longer counts
_QUIETEST = -11.5  # of ln N over the local level, −50 dB: below, all is clean
_FINE = 512  # bins up to 8 kHz
_WARM_UP, _DECAY = 50, 0.998  # steps; of the moving average of the weights


@dataclass(frozen=True)
class Settings:
    """What a run follows from."""

    layer: str = "harmonic"
    widths: tuple[int, ...] = (16, 32, 48, 64)
    steps: int = 20000
    batch: int = 4
    seconds: float = 4.0  # of each example
    learning_rate: float = 3e-3
    seed: int = 0
    bfloat16: bool = False  # only with widths that are multiples of 16, see `main`


def losses(network: MaskNetwork, batch: Batch, bfloat16: bool = False) -> Tensor:
    """Return the three losses of a batch: error, compressed magnitude, noise.

    The first is the logarithm of the error's share of the energy, as SI-SDR, so that near-clean
    examples matter; the second compares |X|^0.3, so that quiet parts do; the third is a robust
    distance of ln N from the truth.
    """
    mixture = batch.sound + batch.noise
    power = _power(mixture)
    scale = power.mean((1, 2), keepdim=True).clamp_min(1e-20)
    rows = merge_bins(power / scale)
    planes, level = mask_features(rows)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        mask, noise = network(planes.contiguous(memory_format=torch.channels_last))
    gain = _per_bin(mask, mixture.shape[1])
    estimate, sound = gain * mixture / scale.sqrt(), batch.sound / scale.sqrt()

    energy = _power(sound)
    error = _power(estimate - sound).mean((1, 2))
    share = torch.log10(error / energy.mean((1, 2)).clamp_min(1e-4) + _LOWEST)

    compressed = ((_power(estimate) + 1e-4) ** 0.15 - (energy + 1e-4) ** 0.15).square()
    magnitude = compressed[:, :_FINE].mean((1, 2))
    if compressed.shape[1] > _FINE + 1:
        magnitude = magnitude + 0.5 * compressed[:, _FINE:].mean((1, 2))

    bands = noise.shape[1]
    local = F.avg_pool1d(level, 2, ceil_mode=True)
    truth = batch.power[:, :bands] / scale / local
    truth = truth.clamp_min(math.exp(_QUIETEST)).log()
    distance = F.smooth_l1_loss(noise.clamp_min(_QUIETEST), truth, reduction="none").mean((1, 2))
    return torch.stack([share.mean(), magnitude.mean(), distance.mean()])


def _power(spectrum: Tensor) -> Tensor:
    """Squared magnitude, without the root that `abs` takes."""
    return torch.view_as_real(spectrum).square().sum(-1)


def _per_bin(rows: Tensor, bins: int) -> Tensor:
    """As `split_rows`, by repetition, whose gradient is faster than that of an index."""
    fine, high = rows[:, :_FINE], rows[:, _FINE:]
    gain = torch.cat([fine, high.repeat_interleave(16, 1)], 1)[:, :bins]
    return torch.cat([gain, gain[:, -1:].expand(-1, bins - gain.shape[1], -1)], 1)


def rate_share(step: int, steps: int) -> float:
    """Share of the learning rate at a step: a short rise, then half a cosine."""
    rise = min(1.0, (step + 1) / _WARM_UP)
    return rise * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)


class _Batches(Dataset[Batch]):
    """The batches of a run, by step, so that another process can draw them ahead."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __getitem__(self, step: int) -> Batch:
        settings = self.settings
        return draw_batch((settings.seed, step), settings.batch, settings.seconds)


class Trainer:
    """A network, its moving average, its optimiser, and the step it is at."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.step = 0
        torch.manual_seed(settings.seed)
        network = MaskNetwork(settings.widths, settings.layer)
        self.network = network.to(memory_format=torch.channels_last)
        self.average = {name: value.clone() for name, value in network.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            network.parameters(), settings.learning_rate, (0.9, 0.98), weight_decay=1e-3
        )

    def advance(self, batch: Batch | None = None) -> Tensor:
        """Take a step on its batch, which is drawn here unless it is given; return its losses."""
        settings = self.settings
        for group in self.optimiser.param_groups:
            group["lr"] = settings.learning_rate * rate_share(self.step, settings.steps)
        self.network.train()
        batch = batch or _Batches(settings)[self.step]
        parts = losses(self.network, batch, settings.bfloat16)
        loss = parts[0] + _MAGNITUDE * parts[1] + _NOISE * parts[2]
        self.optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient of step {self.step} is not finite: go on without --bfloat16, whose "
                "kernels fail for some widths"
            )
        self.optimiser.step()
        self.step += 1
        decay = min(_DECAY, self.step / (10 + self.step))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                if value.dtype.is_floating_point:
                    self.average[name].lerp_(value, 1 - decay)
        return parts.detach()

    def averaged(self) -> MaskNetwork:
        """Return the network with the average of its weights, folded."""
        network = MaskNetwork(self.settings.widths, self.settings.layer)
        network.load_state_dict(self.average)
        return network.eval().folded()

    def save(self, folder: Path) -> None:
        """Write the checkpoint and the weights beside, then rename."""
        beside = folder / "checkpoint.part"
        torch.save(
            {
                "settings": dataclasses.asdict(self.settings),
                "step": self.step,
                "network": self.network.state_dict(),
                "average": self.average,
                "optimiser": self.optimiser.state_dict(),
            },
            beside,
        )
        beside.replace(folder / "checkpoint.pt")
        described = {"steps": str(self.step), "seed": str(self.settings.seed)}
        LearntMask(self.averaged()).save(folder / "mask.safetensors", described)

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint.

        Raises
        ------
        ValueError
            If it belongs to a run with other settings.
        """
        saved = torch.load(folder / "checkpoint.pt", weights_only=True)
        settings = dataclasses.asdict(self.settings)
        other = [name for name, value in settings.items() if saved["settings"][name] != value]
        if other:
            raise ValueError(
                f"{folder} holds a run with another {', '.join(other)}: give the same, or "
                "another folder"
            )
        self.step, self.average = saved["step"], saved["average"]
        self.network.load_state_dict(saved["network"])
        self.optimiser.load_state_dict(saved["optimiser"])

    def start_from(self, checkpoint: Path) -> None:
        """Take the averaged weights of another run as the start of this one."""
        weights = torch.load(checkpoint, weights_only=True)["average"]
        self.network.load_state_dict(weights)
        self.average = {name: value.clone() for name, value in weights.items()}


def train(
    settings: Settings,
    folder: Path,
    start_from: Path | None = None,
    *,
    limit_s: float = math.inf,
    checkpoint_s: float = 180.0,
    ahead: bool = False,
) -> None:
    """Train until the last step or for `limit_s`, from where the folder's run stopped if it did.

    `ahead` lets a second process draw the batches, which changes nothing but the time.
    """
    trainer = Trainer(settings)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "checkpoint.pt").exists():
        trainer.resume(folder)
    elif start_from:
        trainer.start_from(start_from)
    began = saved = time.monotonic()
    total = torch.zeros(3)
    every = 50
    batches = DataLoader(
        _Batches(settings),
        batch_size=None,
        sampler=range(trainer.step, settings.steps),
        num_workers=int(ahead),
        prefetch_factor=4 if ahead else None,
    )
    with (folder / "log.csv").open("a", newline="") as file:
        log = csv.writer(file)
        for batch in batches:
            if time.monotonic() - began >= limit_s:
                break
            total += trainer.advance(batch)
            if trainer.step % every == 0:
                values = [f"{float(value) / every:.4f}" for value in total]
                log.writerow([trainer.step, *values, f"{time.process_time():.0f}"])
                file.flush()
                print(trainer.step, *values, f"{time.process_time():.0f} s", flush=True)
                total.zero_()
            if time.monotonic() - saved > checkpoint_s:
                trainer.save(folder)
                saved = time.monotonic()
    trainer.save(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, from the beginning or from where the folder's run stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    defaults = Settings()
    parser.add_argument("--layer", choices=("harmonic", "plain"), default=defaults.layer)
    parser.add_argument("--widths", type=int, nargs=4, default=defaults.widths)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--seconds", type=float, default=defaults.seconds)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--bfloat16", action="store_true", help="a third less time on AVX-512")
    parser.add_argument("--start-from", type=Path, help="checkpoint of another run")
    parser.add_argument("--ahead", action="store_true", help="draw examples on a second core")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop, to go on later")
    parser.add_argument("--checkpoint-minutes", type=float, default=3.0)
    options = parser.parse_args(arguments)
    if options.bfloat16 and any(width % 16 for width in options.widths):
        # Seen with torch 2.13 on AVX-512: not-a-number, and reads outside the tensor.
        parser.error(
            "--bfloat16 needs --widths that are multiples of 16: gradients of dilated "
            "convolutions of other widths are wrong"
        )
    torch.set_num_threads(1)
    settings = Settings(
        options.layer,
        tuple(options.widths),
        options.steps,
        options.batch,
        options.seconds,
        options.learning_rate,
        options.seed,
        options.bfloat16,
    )
    train(
        settings,
        options.folder,
        options.start_from,
        limit_s=60 * options.minutes,
        checkpoint_s=60 * options.checkpoint_minutes,
        ahead=options.ahead,
    )


if __name__ == "__main__":
    main()
