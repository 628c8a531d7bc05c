"""torchvision's `deform_conv2d` with computed offsets, timed beside Conv2d in a Python that has it.

    python -m benchmarks.layers.peer < requests

answers each line, a JSON object, with another. torchvision requires a torch of its own, so both
functions are timed in that process, and only their ratio is used.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ..common.machine import ROOT
from .measure import Trial, interleaved, quartiles, step
from .settings import Setting

__all__ = ["Peer"]

INSTALL = "not installed (make bench-peers)"
SECONDS, AT_LEAST = 1.0, 2


class Peer:
    """A process of another Python that measures; it starts at the first question."""

    def __init__(self, python: str) -> None:
        self.python = python
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in close()

    def ask(self, trial: Trial) -> dict[str, Any]:
        """Return what the process measured; `error` if it failed."""
        request = {**asdict(trial), "threads": torch.get_num_threads()}
        try:
            process = self._process = self._process or self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            return dict(json.loads(process.stdout.readline()))
        except (OSError, ValueError) as error:  # it does not start, or it died
            self._stop()
            self._errors.seek(0)
            lines = self._errors.read().strip().splitlines() or [f"{self.python}: {error}"]
            return {"error": lines[-1]}

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.python, "-m", "benchmarks.layers.peer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))},
        )

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def close(self) -> None:
        """End the process."""
        self._stop()
        self._errors.close()


def smaller(setting: Setting) -> Setting:
    """Return the setting with a batch that deform_conv2d's scalar loops finish in seconds."""
    work = setting.bins * setting.frames * setting.kernel**2
    return replace(setting, batch=max(1, min(setting.batch, 16 * 64 * 64 * 9 // work)))


def offsets(setting: Setting) -> Tensor:
    """Return deform_conv2d's offsets (1, 2·K², F, T) that make it read where the taps read."""
    kernel, bins, pad = setting.kernel, setting.bins, setting.kernel // 2
    offset = torch.zeros(1, kernel, kernel, 2, bins, setting.frames, dtype=torch.float64)
    for row, positions in enumerate(setting.taps().positions(bins)):
        for f, position in enumerate(positions):
            # Far outside of the input it reads zero; near the edge it would blend with zero.
            inside = 0 <= position <= bins - 1
            offset[0, row, :, 0, f] = float(position - f if inside else -4 * bins) + pad - row
    return offset.reshape(1, -1, bins, setting.frames)


def deform(trial: Trial) -> Callable[[Tensor], Tensor]:
    """Return the trial's convolution by deform_conv2d, with the weights of its Conv2d."""
    try:
        from torchvision.ops import deform_conv2d
    except Exception as error:  # a torchvision that does not fit its torch raises anything
        raise RuntimeError(f"{INSTALL}: {error}") from error

    class Deform(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = trial.module()
            moved = offsets(trial.setting).to(trial.device, getattr(torch, trial.dtype))
            self.moved = moved.repeat(trial.setting.batch, 1, 1, 1)

        def forward(self, input: Tensor) -> Tensor:
            pad = trial.setting.kernel // 2
            return deform_conv2d(  # type: ignore[no-any-return]
                input, self.moved, self.conv.weight, self.conv.bias, padding=pad
            )

    return Deform()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Measure what a request asks for."""
    torch.set_num_threads(request.pop("threads"))
    try:
        asked = Setting(**request.pop("setting"))
        trial = Trial(**{**request, "column": "conv2d"}, setting=smaller(asked))
        input, grad = trial.tensors()
        runs = {
            "deform_conv2d": step(deform(trial), input, grad),
            "conv2d": step(trial.module(), input, grad),
        }
        result: dict[str, Any] = {"batch": trial.setting.batch, "torch": torch.__version__}
        for name, times in interleaved(runs, SECONDS, AT_LEAST).items():
            if isinstance(times, Exception):
                raise times
            result[name] = {"quartiles": quartiles(times), "repetitions": len(times)}
        return result
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
