"""Train the start of the prior: the weights that its fit to a recording begins with.

    python -m research.prior_start FOLDER [--steps N] [--seed S]

The loss is that of the fit itself: masked bins of |X|²/N are predicted from those around them. It
needs no clean sound, only N, which the generator of the noise knows. Every step's examples follow
from the seed and the step's number, so a run can be repeated, and one that was stopped goes on
where its last checkpoint was, with the same result. FOLDER gets `checkpoint.pt` and
`prior.safetensors`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harmonic_lowering.denoise.fit import WIDTHS, MaskedBins, prior_network
from harmonic_lowering.denoise.mask import LearntMask
from harmonic_lowering.denoise.mask_network import NOISE_FRAMES, NOISE_ROWS, split_rows
from harmonic_lowering.denoise.network import SpectrogramUNet
from harmonic_lowering.denoise.prior import LARGEST_RATIO, PriorEstimator
from harmonic_lowering.spectral import Stft
from harmonic_lowering.weights import write_weights

from .mask.canvas import Canvas
from .mask.examples import Example, draw_example
from .mask.train import rate_share

__all__ = ["backward", "power_ratio", "train"]

_LAYER = "harmonic"
_WINDOWS_S = PriorEstimator().settings("default", "learnt").windows_s
_RATES, _SHARES = (16000, 48000), (0.75, 0.25)
_SECONDS = 2.0  # of an example
_EXAMPLES, _WINDOWS = 4, 2  # in a step, and how many windows each is seen in
_ERROR_DB = 1.0  # standard deviation of the level of N: the fit only has an estimate
_TOLD = 50  # steps, whose mean loss is printed
_LEARNING_RATE, _DECAY = 3e-2, 0.998  # of Adam; of the moving average of the weights


def power_ratio(example: Example, sample_rate: int, transform: Stft) -> Tensor:
    """Return |X|²/N (F, T) of an example in a transform."""
    mixture = torch.from_numpy(example.sound + example.noise.waveform).float()
    power = transform(mixture).abs().square()
    known = LearntMask.transform(sample_rate)
    grid = torch.from_numpy(np.ascontiguousarray(example.noise.power)).float()
    rows = F.interpolate(
        grid[None, None].clamp_min(1e-30).log(),
        scale_factor=(NOISE_ROWS, NOISE_FRAMES),
        mode="bilinear",
    )[0].exp()
    noise = split_rows(rows, known.bins)[0]
    noise = noise[:, known.nearest(transform, power.shape[1], noise.shape[1])]
    noise = F.interpolate(noise.T[None], len(power), mode="linear", align_corners=True)[0].T
    noise = noise * transform.window_energy / known.window_energy
    return power / noise.clamp_min(1e-9 * float(power.mean()) + 1e-20)


def backward(network: SpectrogramUNet, seed: Sequence[int]) -> float:
    """Add the gradients of the examples of a seed to those of the network; return the mean loss."""
    random = np.random.default_rng(seed)
    sample_rate = int(random.choice(_RATES, p=_SHARES))
    canvas = Canvas(sample_rate, _SECONDS)
    masks = torch.Generator().manual_seed(int(random.integers(2**62)))
    losses = []
    for _ in range(_EXAMPLES):
        example = draw_example(random, canvas)
        for window_s in random.choice(_WINDOWS_S, _WINDOWS, replace=False):
            transform = Stft.for_rate(sample_rate, float(window_s))
            ratio = power_ratio(example, sample_rate, transform)
            ratio = ratio * 10 ** (random.normal(0, _ERROR_DB) / 10)
            bins = MaskedBins(ratio.clamp_max(LARGEST_RATIO), transform, sample_rate)
            first = int(random.integers(bins.shape[1] - bins.crop + 1))
            loss, known = bins.loss(network, first, masks)
            (loss / (_EXAMPLES * _WINDOWS)).backward()
            losses.append(float(loss.detach() - known))
    return float(np.mean(losses))


def train(
    folder: Path,
    steps: int,
    seed: int = 0,
    *,
    limit_s: float = math.inf,
    checkpoint_steps: int = 500,
) -> None:
    """Train until the last step or for `limit_s`, from where the folder's run stopped if it did."""
    torch.manual_seed(seed)
    network = prior_network(WIDTHS, _LAYER)
    average = {name: value.clone() for name, value in network.state_dict().items()}
    optimiser = torch.optim.Adam(network.parameters(), _LEARNING_RATE, (0.9, 0.98))
    step = 0
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if (saved["steps"], saved["seed"]) != (steps, seed):
            raise ValueError(
                f"{folder} holds a run of {saved['steps']} steps with seed {saved['seed']}: give "
                "the same, or another folder"
            )
        step, average = saved["step"], saved["average"]
        network.load_state_dict(saved["network"])
        optimiser.load_state_dict(saved["optimiser"])

    def save() -> None:
        beside = folder / "checkpoint.part"
        state = {
            "steps": steps,
            "seed": seed,
            "step": step,
            "network": network.state_dict(),
            "average": average,
            "optimiser": optimiser.state_dict(),
        }
        torch.save(state, beside)
        beside.replace(checkpoint)
        described = {"steps": str(step), "seed": str(seed), "layer": _LAYER}
        described["widths"] = ",".join(map(str, WIDTHS))
        write_weights(folder / "prior.safetensors", average, described)

    began, total = time.monotonic(), 0.0
    while step < steps and time.monotonic() - began < limit_s:
        optimiser.param_groups[0]["lr"] = _LEARNING_RATE * rate_share(step, steps)
        optimiser.zero_grad()
        total += backward(network, (seed, step))
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        decay = min(_DECAY, (step + 1) / (10 + step))
        step += 1
        with torch.no_grad():
            for name, value in network.state_dict().items():
                average[name].lerp_(value, 1 - decay)
        if step % _TOLD == 0:
            print(step, f"{total / _TOLD:.4f}", f"{time.process_time():.0f} s", flush=True)
            total = 0.0
        if step % checkpoint_steps == 0:
            save()
    save()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, from the beginning or from where the folder's run stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop, to go on later")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    train(options.folder, options.steps, options.seed, limit_s=60 * options.minutes)


if __name__ == "__main__":
    main()
