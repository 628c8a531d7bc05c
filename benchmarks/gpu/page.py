"""The page, its charts and the report that a run on a card makes.

python -m benchmarks.gpu.page [TABLE.csv [PAGE.md]]
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harmonic_lowering.audio import replacing

from ..common.machine import ROOT
from ..common.tables import markdown
from ..layers.page import bars, show
from ..layers.rows import LayerRow, read_csv
from ..layers.settings import SETTINGS
from .run import BOTH, COLUMNS

__all__ = ["TABLE", "report", "write_page"]

TABLE = ROOT / "docs" / "gpu-benchmarks.csv"
TOY = "**Toy sizes, which test the benchmark: nothing here says how fast anything is.**"
CHARTS = {"gpu-harmonic": ("triton", "C0"), "gpu-log": ("log", "C2")}

HEAD = """\
# Benchmarks on a GPU

This page is made from {source} by `make bench-gpu`; do not edit it. [On GPUs](gpu.md) explains the
engine.

{card}; torch {torch}, version {version}, commit {commit}; {date}. Measured peaks: {peaks}.

Columns are timed in turns, some calls back to back. Figures are medians ± half the interquartile
range; a ratio is the time ÷ `Conv2d`'s in the same rounds, in bold where it is slower. `tf32` and
`float32` are the same dtype with and without TF32. `graph` is a replayed CUDA graph. A run stops
when its time is up: what is missing was not measured.

{columns}

"""


def write_page(rows: Sequence[LayerRow], page: Path, table: str, *, toy: bool = False) -> None:
    """Write the page, and its charts to the folder ``images`` beside it."""
    images = page.parent / "images"
    images.mkdir(exist_ok=True)
    first = rows[0]
    lines = [[f"`{c}`", what] for c, what in COLUMNS.items() if any(r.column == c for r in rows)]
    text = HEAD.format(
        source=f"[{table}]({table})", card=first.machine, torch=first.torch, version=first.version,
        commit=first.commit or "unknown", date=first.date, peaks=_peaks(rows),
        columns=markdown(["column", "what"], lines),
    )  # fmt: skip
    if toy:
        text = f"{TOY}\n\n{text}"
    text += "## Summary\n\n" + _summary(rows) + "\n\n"
    charts = {
        f"{name}.png": bars(_charted(rows, layer), layer, color)
        for name, (layer, color) in CHARTS.items()
    }
    text += "## One step, forward and backward\n\n" + show(charts, images)
    for title, chosen in (
        ("Eager calls", [r for r in rows if r.part == "eager"]),
        ("CUDA graphs", [r for r in rows if r.part == "graph"]),
    ):
        if chosen:
            text += f"## {title}\n\n{_table(chosen)}\n\n"
    with replacing(page) as part:
        part.write_text(text.rstrip() + "\n", encoding="utf-8")


def report(rows: Sequence[LayerRow], environment: dict[str, str], *, toy: bool = False) -> str:
    """Return all that matters of a run as one text, to be sent."""
    lines = [TOY, ""] if toy else []
    lines += [f"{name:12}{value}" for name, value in environment.items()]
    lines += ["", f"peaks       {_peaks(rows)}", "", _summary(rows), "", _table(rows)]
    return "\n".join(lines)


def _charted(rows: Sequence[LayerRow], layer: str) -> list[LayerRow]:
    """Return the eager rows of the dtype and format in which a layer ran in most settings."""
    usual = [r for r in rows if r.part == "eager"]
    ran = [r for r in usual if r.column == layer and r.ratio and r.direction == BOTH]
    places = Counter((r.dtype, r.memory_format) for r in ran)
    if not places:
        return []
    place = places.most_common(1)[0][0]
    names = {r.setting for r in ran if (r.dtype, r.memory_format) == place}
    chosen = [r for r in usual if (r.dtype, r.memory_format) == place and r.setting in names]
    return sorted(chosen, key=lambda r: list(SETTINGS).index(r.setting))


def _peaks(rows: Sequence[LayerRow]) -> str:
    found = {r.dtype: f"{r.dtype} {r.gemm_gmac_s / 1e3:.3g} tera multiply-adds/s" for r in rows
             if r.gemm_gmac_s}  # fmt: skip
    copied = max((r.copy_gb_s or 0.0 for r in rows), default=0.0)
    return ", ".join([*found.values(), f"copying {copied:.0f} GB/s"])


def _summary(rows: Sequence[LayerRow]) -> str:
    """Give the geometric mean of the ratios of each column, and the worst."""
    columns = [c for c in COLUMNS if c != "conv2d" and any(r.column == c and r.ratio for r in rows)]
    lines = []
    for place in dict.fromkeys((r.part, r.dtype, r.memory_format, r.direction) for r in rows):
        line = [part.replace("_", " ") for part in place]
        for column in columns:
            ratios = [
                r.ratio
                for r in rows
                if (r.part, r.dtype, r.memory_format, r.direction) == place
                and r.column == column
                and r.ratio
            ]
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 0
            line.append(f"{mean:.2f} ({max(ratios):.2f}, {len(ratios)})" if ratios else "")
        lines.append(line)
    head = ["mode", "precision", "memory format", "pass", *columns]
    return (
        "Time ÷ `Conv2d`'s: geometric mean over the settings that were measured, in brackets the "
        "worst and how many.\n\n" + markdown(head, lines)
    )


def _table(rows: Sequence[LayerRow]) -> str:
    head = ["mode", "setting", "precision", "format", "pass", "column", "ms", "÷ Conv2d",
            "÷ limit", "memory, MB", "error", ""]  # fmt: skip
    return markdown(head, map(_line, rows))


def _line(row: LayerRow) -> list[str]:
    place = [row.part, row.setting, row.dtype, row.memory_format.replace("_", " "),
             "both" if row.direction == BOTH else row.direction, f"`{row.column}`"]  # fmt: skip
    if row.median_ms is None or row.q1_ms is None or row.q3_ms is None:
        return [*place, "failed", "", "", "", "", row.note]
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    return [
        *place,
        f"{row.median_ms:.3g} ± {(row.q3_ms - row.q1_ms) / 2:.1g}",
        f"**{ratio}**" if (row.ratio or 0) > 1 else ratio,
        f"{row.median_ms / row.limit_ms:.1f}" if row.limit_ms else "",
        "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}",
        "" if row.error is None else f"{row.error:.1e}",
        row.note or (row.engine if row.column == "auto" else ""),
    ]


if __name__ == "__main__":
    source = Path(sys.argv[1]) if sys.argv[1:] else TABLE
    page = Path(sys.argv[2]) if sys.argv[2:] else source.with_suffix(".md")
    write_page(read_csv(source), page, source.name)
