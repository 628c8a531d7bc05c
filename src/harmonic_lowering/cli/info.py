"""`harmonic-lowering info`: what this machine has, which engines can run, and how fast they are."""

from __future__ import annotations

import argparse
import getpass
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__, engines
from ..engines.native import library
from ..modules import HarmonicConv2d

__all__ = ["Timing", "report", "time_layers", "timing_table"]

# What makes a difference to convolutions, and to the half types.
_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "asimd", "asimdhp", "sve", "sve2", "bf16", "i8mm",
)  # fmt: skip
_PACKAGES = {  # each with what installs it
    "numpy": "harmonic-lowering[audio]",
    "soundfile": "harmonic-lowering[audio]",
    "tqdm": "harmonic-lowering[audio]",
    "matplotlib": "harmonic-lowering[plot]",
    "pesq": "pesq",
    "pystoi": "pystoi",
}
_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CXX")
_BATCH, _CHANNELS, _SIZE = 2, (16, 32), 256


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "info",
        help="show versions, processor and engines, and time the layer beside Conv2d",
        description="Show what this machine has, which engines can run and why others cannot, and "
        "time one layer beside Conv2d, which takes about ten seconds.",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON, for a bug report; no user name is in it"
    )
    parser.add_argument("--no-time", action="store_true", help="leave the timing out")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report."""
    found = report()
    if arguments.json:
        if not arguments.no_time:
            found["timings"] = [timing.as_dict() for timing in time_layers()]
        print(json.dumps(found, indent=2))
        return 0
    print("\n".join(_text(found)), flush=True)
    if not arguments.no_time:
        print()
        for line in timing_table():
            print(line, flush=True)
    return 0


# -------------------------------------------------------------------- the machine


def report() -> dict[str, Any]:
    """Return everything but the timings; paths are without user names."""
    found = {
        "harmonic_lowering": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "engines": {name: engines.unsupported_reason(name) for name in engines.ENGINES},
        "native_core": _native_core(),
        "accelerators": _accelerators(),
        "triton_by_auto": _triton_by_auto(),
        "packages": {name: _package(name) for name in _PACKAGES},
        "programs": {"ffmpeg": _program("ffmpeg", "-version"), "c++": _compiler()},
    }
    return {name: _anonymous(value) for name, value in found.items()}


def _processor() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    fields = {
        name.strip(): value.strip()
        for name, _, value in (line.partition(":") for line in reversed(lines))
    }
    flags = fields.get("flags", fields.get("Features", "")).split()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": fields.get("model name") or platform.processor() or "unknown",
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
        "flags": [flag for flag in _FLAGS if flag in flags],
    }


def _native_core() -> dict[str, Any]:
    core = library.info()
    return {
        "path": None if core.path is None else str(core.path),
        "origin": core.origin,
        "instruction_set": core.instruction_set,
        "threads": core.threads,
        "passed_over": [{"path": str(path), "reason": why} for path, why in core.candidates],
    }


def _accelerators() -> list[str]:
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    if accelerator is None:
        return []
    name_of = getattr(torch.get_device_module(accelerator), "get_device_name", None)
    return [
        f"{accelerator.type}:{index}" + (f" {name_of(index)}" if name_of else "")
        for index in range(torch.accelerator.device_count())
    ]


def _triton_by_auto() -> str | None:
    """Return whether ``engine="auto"`` uses Triton's kernels on the accelerator, or why not."""
    if not torch.accelerator.is_available():
        return None
    sample = torch.empty(0, device=torch.accelerator.current_accelerator())
    reason = engines.ENGINES["triton"].auto_reason(sample)  # type: ignore[attr-defined]
    return f"no: {reason}" if reason else "yes"


def _package(name: str) -> str | None:
    """Return the version of a package, None if it is not installed, or what keeps it from use."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken package raises anything
        return f"{version}, cannot be imported: {_first_line(str(error))}"
    return version


def _compiler() -> str | None:
    words = os.environ.get("CXX", "c++").split()
    return _program(*words, "--version") if words else None


def _program(name: str, *arguments: str) -> str | None:
    """Return the first line that a program prints about its version, or None if it is missing."""
    path = shutil.which(name)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *arguments], capture_output=True, text=True, errors="replace", timeout=20,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return f"cannot be run: {_first_line(str(error))}"
    return _first_line(done.stdout or done.stderr)


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[0]


def _anonymous(value: Any) -> Any:
    """Replace the home folder by ~ and the user's name in a path by USER, in every string."""
    if isinstance(value, dict):
        return {name: _anonymous(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_anonymous(item) for item in value]
    if not isinstance(value, str):
        return value
    try:
        homes = {str(Path.home()), str(Path.home().resolve())}
        user = getpass.getuser()
    except (KeyError, OSError, RuntimeError):  # a user without an entry in the system's table
        return value
    for home in sorted(homes, key=len, reverse=True):
        if home.strip("/\\"):
            value = re.sub(re.escape(home) + r"(?![\w-])", "~", value)
    return re.sub(rf"(?<=[/\\]){re.escape(user)}(?=[/\\]|$)", "USER", value)


def _text(found: dict[str, Any]) -> Iterator[str]:
    yield (
        f"harmonic-lowering {found['harmonic_lowering']}, Python {found['python']}, torch "
        f"{found['torch']}"
    )
    processor = found["processor"]
    yield f"platform      {found['platform']}"
    yield (
        f"processor     {processor['name']}, {processor['architecture']}, {processor['cores']} "
        f"cores ({processor['usable_cores']} usable)"
    )
    yield f"              torch uses {processor['torch_instruction_set']}; " + (
        " ".join(processor["flags"]) or "flags not known"
    )
    variables = ", ".join(f"{name}={value}" for name, value in found["environment"].items())
    yield f"threads       {found['threads']}" + (f" ({variables})" if variables else "")
    yield f"accelerators  {', '.join(found['accelerators']) or 'none'}"
    yield ""
    yield "engines"
    for name, reason in found["engines"].items():
        yield f"  {name:12}" + (f"cannot run: {reason}" if reason else "can run")
    if found["triton_by_auto"]:
        yield f"  on the accelerator 'auto' uses triton: {found['triton_by_auto']}"
    core = found["native_core"]
    details = [core.get(key, "") for key in ("origin", "instruction_set", "threads")]
    yield "native core   " + ", ".join(filter(None, [core["path"] or "none", *details]))
    for other in core["passed_over"]:
        yield f"  passed over {other['path']}: {other['reason']}"
    yield ""
    yield "optional"
    for name, version in found["packages"].items():
        yield f"  {name:12}{version or f'missing: pip install {_PACKAGES[name]!r}'}"
    for name, version in found["programs"].items():
        yield f"  {name:12}{version or 'missing'}"


# -------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Timing:
    """A layer beside `Conv2d` of the same shape, in milliseconds for forward and backward."""

    kernel: int
    anchor: int
    engine: str
    reason: str
    layer_ms: float
    conv2d_ms: float

    @property
    def ratio(self) -> float:
        """The layer's time ÷ `Conv2d`'s."""
        return self.layer_ms / self.conv2d_ms

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and the ratio."""
        return {**self.__dict__, "ratio": self.ratio}


def time_layers(seconds: float = 8.0) -> Iterator[Timing]:
    """Time four layers beside `Conv2d`, in turns, about `seconds` in all; medians.

    Enough to see that something is wrong. `make bench`, in a checkout, measures carefully.
    """
    shapes = ((3, 1), (3, 3), (5, 1), (7, 1))
    input = torch.randn(_BATCH, _CHANNELS[0], _SIZE, _SIZE, requires_grad=True)
    for kernel, anchor in shapes:
        ours = HarmonicConv2d(
            *_CHANNELS, kernel, padding=kernel // 2, anchor=anchor
        ).eval()  # no hint
        plain = torch.nn.Conv2d(*_CHANNELS, kernel, padding=kernel // 2)
        times: dict[torch.nn.Module, list[float]] = {ours: [], plain: []}
        for layer in times:
            layer(input).sum().backward()
        end = time.perf_counter() + seconds / len(shapes)
        while len(times[plain]) < 3 or time.perf_counter() < end:
            for layer, measured in times.items():
                began = time.perf_counter()
                layer(input).sum().backward()
                measured.append(1000 * (time.perf_counter() - began))
        choice = ours.engine_for(input)
        medians = (statistics.median(measured) for measured in times.values())
        yield Timing(kernel, anchor, choice.engine, choice.reason, *medians)


def timing_table() -> Iterator[str]:
    """Yield the lines of a table of `time_layers`, each as soon as it is measured."""
    yield (
        f"One layer, {_BATCH} spectrograms of {_SIZE} x {_SIZE}, {_CHANNELS[0]} to {_CHANNELS[1]} "
        f"channels, float32, {torch.get_num_threads()} threads;"
    )
    yield "milliseconds for forward and backward, median"
    yield f"{'kernel':>8}{'anchor':>8}{'HarmonicConv2d':>16}{'Conv2d':>10}{'ratio':>8}  engine"
    reasons: dict[str, str] = {}
    for t in time_layers():
        shape = f"{t.kernel} x {t.kernel}"
        yield (
            f"{shape:>8}{t.anchor:>8}{t.layer_ms:>16.1f}{t.conv2d_ms:>10.1f}{t.ratio:>8.2f}"
            f"  {t.engine}"
        )
        reasons[t.engine] = t.reason
    for engine, reason in reasons.items():
        yield f"{engine}: {reason}"
