"""The record of where, when and with which code something was measured."""

from __future__ import annotations

import platform
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch

import harmonic_lowering

__all__ = ["ROOT", "record"]

ROOT = Path(__file__).resolve().parents[2]


def record(device: str = "cpu") -> dict[str, Any]:
    """Return device, machine, threads, torch, version, commit and date."""
    return {
        "device": device,
        "machine": _processor(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "version": harmonic_lowering.__version__,
        "commit": _commit(),
        "date": date.today().isoformat(),
    }


def _processor(device: str) -> str:
    if torch.device(device).type != "cpu":
        module = torch.get_device_module(device)
        named = getattr(module, "get_device_name", None)
        return str(named()) if named else device
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        name = next(line for line in text.splitlines() if line.startswith("model name"))
        return f"{name.partition(':')[2].strip()}, {torch.backends.cpu.get_cpu_capability()}"
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str:
    """Return the commit of this checkout; empty if it is not one."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
