"""What is kept of a measurement: rows of a CSV file, and how two files are compared."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

import torch

import harmonic_lowering

__all__ = ["Row", "Writer", "machine", "read_csv", "worse"]


@dataclass(frozen=True)
class Row:
    """One column of one setting, one dtype, one memory format and one pass."""

    part: str
    setting: str
    column: str
    direction: str
    dtype: str
    memory_format: str
    batch: int
    in_channels: int
    out_channels: int
    kernel: int
    anchor: str
    bins: int
    frames: int
    engine: str = ""
    repetitions: int = 0
    median_ms: float | None = None
    q1_ms: float | None = None
    q3_ms: float | None = None
    ratio: float | None = None  # to the baseline, Conv2d, in the same rounds
    peak_bytes: int | None = None
    error: float | None = None
    multiplications: int | None = None
    bytes: int | None = None
    limit_ms: float | None = None
    note: str = ""
    gemm_gmac_s: float | None = None
    copy_gb_s: float | None = None
    device: str = ""
    machine: str = ""
    threads: int = 0
    torch: str = ""
    version: str = ""
    commit: str = ""
    date: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """What makes rows of two runs comparable."""
        names = [field.name for field in fields(self)]
        return tuple(getattr(self, name) for name in names[: names.index("engine")])


def machine(device: str) -> dict[str, Any]:
    """Return the fields that say where and with what a row was measured."""
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
    """Return the commit of the checkout that this package runs from, if it runs from one."""
    place = Path(__file__).parent
    command = ["git", "-C", str(place), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        inside = subprocess.run(
            ["git", "-C", str(place), "ls-files", "--error-unmatch", "../__init__.py"],
            capture_output=True,
            check=False,
        )
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return "" if inside.returncode else done.stdout.strip()


class Writer:
    """Write rows as they come to ``PATH.part``; `finish` gives the file its name."""

    def __init__(self, path: Path) -> None:
        self.path, self.part = path, self.beside(path)
        self._file = self.part.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, [field.name for field in fields(Row)])
        self._writer.writeheader()
        self._rows = 0

    @staticmethod
    def beside(path: Path) -> Path:
        """Return where the rows are until they are complete."""
        return path.with_name(path.name + ".part")

    def write(self, row: Row) -> None:
        """Append a row; it is on its way to the disk when this returns."""
        self._writer.writerow({k: "" if v is None else v for k, v in asdict(row).items()})
        self._file.flush()
        self._rows += 1

    def close(self) -> None:
        """Leave what was written under the name of the part, if there is anything."""
        self._file.close()
        if not self._rows:
            self.part.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the complete file its name."""
        self._file.close()
        os.replace(self.part, self.path)


def read_csv(path: Path) -> list[Row]:
    """Read rows again.

    Raises
    ------
    ValueError
        If the file is not one of this benchmark's.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [_row(record) for record in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a table of this benchmark ({type(error).__name__}: {error}); "
            "make one with: harmonic-lowering bench --output FILE.csv"
        ) from error
    if not rows:
        raise ValueError(f"{path}: holds no row; it should come from harmonic-lowering bench")
    return rows


def _row(record: dict[str, str]) -> Row:
    values: dict[str, Any] = {}
    for field in fields(Row):
        text, kind = record[field.name], str(field.type)
        if kind == "str":
            values[field.name] = text
        elif text == "" and "None" in kind:
            values[field.name] = None
        else:
            values[field.name] = float(text) if kind.startswith("float") else int(text)
    return Row(**values)


def worse(
    rows: Iterable[Row], reference: Iterable[Row], tolerance: float
) -> Iterator[tuple[Row, float]]:
    """Yield the rows whose ratio is more than `tolerance` above the reference's, and that one.

    Times of two runs are never compared: machines differ, and so does the same one an hour later.
    A row that failed where the reference did not is worse.

    Raises
    ------
    ValueError
        If the two have no row in common.
    """
    known = {row.key: row.ratio for row in reference}
    pairs = [(row, ratio) for row in rows if (ratio := known.get(row.key)) is not None]
    if not pairs:
        raise ValueError("the reference has no row in common with this run: nothing to compare")
    for row, ratio in pairs:
        if row.ratio is None or row.ratio > ratio * (1 + tolerance):
            yield row, ratio
