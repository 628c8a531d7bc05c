"""torchvision's `deform_conv2d` with computed offsets, timed beside Conv2d in a Python that has it.

    python -m harmonic_lowering.benchmark.peer < requests

reads one JSON object a line and answers each with one. torchvision comes with a torch of its own,
so both are timed in that process, and only their ratio is carried over.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .measure import Case, interleaved, quartiles, step
from .settings import Setting

__all__ = ["ask", "batch_for"]


def batch_for(setting: Setting) -> int:
    """Return a batch that its scalar loops can do in a few seconds."""
    work = setting.bins * setting.frames * setting.kernel**2
    return max(1, min(setting.batch, (16 * 64 * 64 * 9) // work))


def ask(python: str, setting: Setting, dtype: str, backward: bool, threads: int) -> dict[str, Any]:
    """Let another Python time one setting; the answer has `error` if that failed."""
    request = {
        "setting": asdict(replace(setting, batch=batch_for(setting))),
        "dtype": dtype,
        "backward": backward,
        "threads": threads,
    }
    folder = str(Path(__file__).parents[2])
    try:
        done = subprocess.run(
            [python, "-m", __name__],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": folder},
        )
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except OSError as error:
        return {"error": f"{python}: {error.strerror}"}
    except (IndexError, ValueError):
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"error": last[0]}


def deform(case: Case) -> Callable[[], None]:
    """Return one pass of deform_conv2d that reads where the taps read."""
    try:
        from torchvision.ops import deform_conv2d
    except Exception as error:  # a torchvision that does not fit its torch raises anything
        raise RuntimeError(f"not installed (make bench-peers): {error}") from error
    s = case.setting
    like = replace(case, column="conv2d").module()
    input, pad = case.input(), s.kernel // 2
    offset = torch.zeros(1, s.kernel, s.kernel, 2, s.bins, 1, dtype=input.dtype)
    for tap, positions in enumerate(s.taps().positions(s.bins)):
        for f, position in enumerate(positions):
            # outside of the input is zero, without the slope that deform_conv2d has there
            place = float(position) if 0 <= position <= s.bins - 1 else -4.0 * s.bins
            offset[0, tap, :, 0, f] = place - (f - pad + tap)
    shape = (s.batch, s.kernel, s.kernel, 2, s.bins, s.frames)
    moved = offset.expand(shape).reshape(s.batch, -1, s.bins, s.frames).contiguous()
    grad = case.grad()

    def run() -> None:
        with torch.set_grad_enabled(case.backward):
            output = deform_conv2d(input, moved, like.weight, like.bias, padding=pad)
        if case.backward:
            input.grad = None
            like.zero_grad()
            output.backward(grad)

    return run


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Time what a request asks for."""
    torch.set_num_threads(request["threads"])
    setting = Setting(**request["setting"])
    case = Case("conv2d", setting, request["dtype"], backward=request["backward"])
    try:
        times = interleaved({"deform": deform(case), "conv2d": step(case)}, 1.0, 2)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    result: dict[str, Any] = {"batch": setting.batch, "torch": torch.__version__}
    for name, value in times.items():
        if isinstance(value, Exception):
            return {"error": f"{type(value).__name__}: {value}".splitlines()[0]}
        result[name], result[f"{name} n"] = quartiles(value), len(value)
    return result


def main(lines: Iterator[str]) -> None:
    """Answer every line."""
    for line in lines:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(iter(sys.stdin))
