"""What is kept of a measurement, and how two tables are compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from ..common.tables import read_rows

__all__ = ["LayerRow", "read_csv", "regressions"]


@dataclass(frozen=True)
class LayerRow:
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
    ratio: float | None = None  # to the baseline, in the same rounds: see columns.baseline
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
    slowdown: float | None = None  # beside a busy process ÷ alone (part "busy")

    @property
    def key(self) -> tuple[object, ...]:
        """The fields that make rows of two runs comparable."""
        names = [field.name for field in fields(self)]
        return tuple(getattr(self, name) for name in names[: names.index("engine")])


def read_csv(path: Path) -> list[LayerRow]:
    """Read a table of this benchmark.

    Raises
    ------
    ValueError
        If the file is not one, or is empty.
    """
    rows = read_rows(path, LayerRow)
    if not rows:
        raise ValueError(f"{path}: holds no row; make a table with: make bench")
    return rows


def regressions(
    rows: Iterable[LayerRow], reference: Iterable[LayerRow], tolerance: float
) -> Iterator[tuple[LayerRow, float]]:
    """Yield the rows whose ratio is more than `tolerance` above the reference's, and that one.

    Times of two runs are never compared: machines differ, and so does one machine an hour later.
    A row that failed where the reference did not is a regression.

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
