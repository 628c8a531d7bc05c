"""Make the page and its charts from a table of this benchmark.

python -m benchmarks.layers.page [TABLE.csv [PAGE.md]]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from harmonic_lowering.audio import replacing

from ..common.machine import ROOT
from ..common.tables import markdown
from .columns import COLUMNS
from .rows import LayerRow, read_csv
from .run import PARTS
from .settings import PUBLISHED_S

DOCS = ROOT / "docs"
BOTH = "forward+backward"
# The original's two charts: which layer, and its colour; forward solid, backward pale.
CHARTS = {"harmonic": ("auto", "C0"), "log": ("log", "C2")}
LABELS = {
    "auto": "HarmonicConv2d",
    "log": "LogHarmonicConv2d",
    "triton": "HarmonicConv2d, Triton",
    "stacking": "the paper's method in stock operations",
    "conv2d": "Conv2d",
    "deform_conv2d": "deform_conv2d",
}
PEERS = {"deform_conv2d": "C7", "stacking": "C1", "conv2d": "C3"}

HEAD = """\
# Benchmarks

This page is made from {source} by `make bench`; do not edit it.
[Engines](engines.md) explains how each engine works and why some lose.

{machine}, {threads} threads, device {device}; torch {torch}, version {version}, commit {commit};
{date}. The paper's settings with batch {batch}, at least {repetitions} measurements for each row.
Measured peaks: {peaks}.

Columns are timed in turns, after one call that is not measured. Figures are medians ± half the
interquartile range. A ratio is the time ÷ the time of `Conv2d` with the same shape, dtype and
memory format in the same rounds: below 1 is faster than `Conv2d`; above 1 is slower, in bold.

`deform_conv2d` is too slow for the whole batch: it and a `Conv2d` were timed with a smaller batch
in a separate process with its own torch, and the ratio is theirs. {slow} were timed
in one dtype and memory format only.

| column | what |
| --- | --- |
{columns}

"""


def write_page(rows: Sequence[LayerRow], page: Path, table: str = "benchmarks.csv") -> None:
    """Write the page, and its charts to the folder ``images`` beside it."""
    images = page.parent / "images"
    images.mkdir(exist_ok=True)
    settings = [r for r in rows if r.part == "settings"]
    peaks = {
        r.dtype: f"{r.dtype} {r.gemm_gmac_s:.0f} billion multiply-adds per second"
        for r in rows
        if r.gemm_gmac_s
    }
    copied = max((r.copy_gb_s or 0.0 for r in rows), default=0.0)
    measured = {r.column for r in rows}
    slow = [f"`{c}`" for c in ("stacking", "compiled", "compiled_conv2d") if c in measured]
    first = rows[0]
    text = HEAD.format(
        source=f"[{table}]({table})" if table else "a table that was not kept",
        machine=first.machine,
        threads=first.threads,
        device=first.device,
        torch=first.torch,
        version=first.version,
        commit=first.commit or "unknown",
        date=first.date,
        batch=max((r.batch for r in settings), default=0),
        repetitions=min((r.repetitions for r in rows if r.repetitions), default=0),
        peaks=", ".join([*peaks.values(), f"copying {copied:.0f} GB/s"]),
        slow=", ".join(["It", *slow[:-1]]) + (f" and {slow[-1]}" if slow else ""),
        columns="\n".join(f"| `{c}` | {what} |" for c, what in COLUMNS.items() if c in measured),
    )
    text += "## Summary\n\n" + _summary(settings) + _losses(rows)
    charts = {f"bench-{name}.png": bars(settings, *what) for name, what in CHARTS.items()}
    text += "## One step, forward and backward\n\n" + show(charts, images)
    text += "".join(_settings(settings)) + _small_parts(rows)
    series = {"bench-series.png": _curves([r for r in rows if r.part == "series"])}
    text += "## How the time grows\n\n" + show(series, images) + _published(settings)
    with replacing(page) as part:
        part.write_text(text.rstrip() + "\n", encoding="utf-8")


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return (markdown(head, lines) if lines else "Not measured in this run.") + "\n\n"


# -------------------------------------------------------------------- tables


def _summary(rows: Sequence[LayerRow]) -> str:
    """Give the geometric mean and the worst of the ratios of each column, over all settings."""
    columns = [c for c in COLUMNS if any(r.column == c and r.ratio for r in rows) and c != "conv2d"]
    lines = []
    for dtype, form, direction in dict.fromkeys(
        (r.dtype, r.memory_format, r.direction) for r in rows
    ):
        line = [dtype, form.replace("_", " "), direction]
        for column in columns:
            ratios = [
                r.ratio
                for r in rows
                if (r.dtype, r.memory_format, r.direction) == (dtype, form, direction)
                and r.column == column
                and r.ratio
            ]
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 0
            line.append(f"{mean:.2f} ({max(ratios):.2f})" if ratios else "")
        lines.append(line)
    return (
        "Time ÷ `Conv2d`'s: geometric mean over the paper's settings, the worst in brackets.\n\n"
        + _table(["dtype", "memory format", "pass", *(f"`{c}`" for c in columns)], lines)
    )


def _losses(rows: Sequence[LayerRow]) -> str:
    """List where the layers as users get them are slower or need more memory than Conv2d."""
    chosen = [
        r
        for r in rows
        if r.column in ("auto", "log", "compiled") and r.part not in ("anchors", "busy")
    ]
    slower = sorted((r for r in chosen if (r.ratio or 0) > 1), key=lambda r: -(r.ratio or 0))
    timed = sum(r.ratio is not None for r in chosen)
    text = "## Where the layers lose\n\n"
    text += f"In {len(slower)} of {timed} rows a layer takes longer than `Conv2d`"
    text += " (forward and backward are rows of their own).\n\n"
    if slower:
        lines = [
            [r.part, r.setting, f"`{r.column}`", r.direction, r.dtype,
             r.memory_format.replace("_", " "), f"{r.ratio:.2f}"]
            for r in slower
        ]  # fmt: skip
        head = ["part", "setting", "column", "pass", "dtype", "memory format", "ratio"]
        text += _table(head, lines)
    conv = {_place(r): r.peak_bytes for r in rows if r.column == "conv2d"}
    pairs = [
        (r.peak_bytes, other, r)
        for r in chosen
        if r.part == "settings" and r.column == "auto" and r.peak_bytes is not None
        if (other := conv.get(_place(r))) is not None
    ]
    more = [(ours, other, r) for ours, other, r in pairs if ours > other]
    if pairs:
        text += f"In {len(more)} of {len(pairs)} rows `auto` needs more memory than `Conv2d`"
        if more:
            ours, other, row = max(more, key=lambda pair: pair[0] - pair[1])
            text += (
                f", at most {(ours - other) / 1e6:.1f} MB more: {ours / 1e6:.1f} MB for "
                f"{other / 1e6:.1f} MB (Setting {row.setting}, {row.dtype}, "
                f"{row.memory_format.replace('_', ' ')})"
            )
        text += ".\n\n"
    return text


def _place(row: LayerRow) -> tuple[str, ...]:
    return row.part, row.setting, row.direction, row.dtype, row.memory_format


def _settings(rows: Sequence[LayerRow]) -> list[str]:
    """Return a section for each dtype and memory format."""
    text = []
    for dtype, form in dict.fromkeys((r.dtype, r.memory_format) for r in rows):
        chosen = [r for r in rows if (r.dtype, r.memory_format) == (dtype, form)]
        named = dict.fromkeys(["conv2d", *(r.column for r in chosen)])
        directions = list(dict.fromkeys(r.direction for r in chosen))
        title = f"{dtype}, {form.replace('_', ' ')}"
        for what, show, wanted in (
            ("time (Conv2d in ms, others ÷ Conv2d)", _time, directions),
            ("time ÷ the machine's limit", _limit, directions),
            (f"peak memory in MB, {directions[-1]}", _memory, directions[-1:]),
            (f"error against float64, {directions[-1]}", _error, directions[-1:]),
        ):
            lines = []
            for setting in dict.fromkeys(r.setting for r in chosen):
                for direction in wanted:
                    found = {
                        r.column: r
                        for r in chosen
                        if (r.setting, r.direction) == (setting, direction)
                    }
                    shown = [show(found[c]) if c in found else "" for c in named]
                    lines.append([setting, direction, *shown])
            text.append(f"## {title}: {what}\n\n" + _table(["setting", "pass", *named], lines))
        notes = dict.fromkeys(f"- `{r.column}`: {r.note}\n" for r in chosen if r.note)
        text.append("".join(notes) + "\n" if notes else "")
    return text


def _time(row: LayerRow) -> str:
    if row.median_ms is None or row.q1_ms is None or row.q3_ms is None:
        return "not installed" if "not installed" in row.note else "failed"
    spread = (row.q3_ms - row.q1_ms) / 2
    if row.column == "conv2d" or row.ratio is None:
        return f"{_digits(row.median_ms)} ± {_digits(spread, 2)} ms"
    text = f"{row.ratio:.2f} ± {row.ratio * spread / row.median_ms:.2f}"
    return f"**{text}**" if row.ratio > 1 else text


def _digits(value: float, significant: int = 3) -> str:
    return f"{value:.0f}" if value >= 10**significant else f"{value:.{significant}g}"


def _memory(row: LayerRow) -> str:
    return "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}"


def _error(row: LayerRow) -> str:
    return "" if row.error is None else f"{row.error:.1e}"


def _limit(row: LayerRow) -> str:
    return f"{row.median_ms / row.limit_ms:.1f}" if row.limit_ms and row.median_ms else ""


def _small_parts(rows: Sequence[LayerRow]) -> str:
    text = ""
    for part, title in (
        ("calls", "What a call costs"),
        ("anchors", "Seven anchors in one layer, and in seven layers"),
        ("busy", "While another process keeps one core busy"),
    ):
        found = [r for r in rows if r.part == part]
        columns: dict[str, Callable[[LayerRow], str]] = {
            "setting": lambda r: r.setting,
            "column": lambda r: f"`{r.column}`",
            "pass": lambda r: r.direction,
            "ms": lambda r: r.note if r.median_ms is None else _digits(r.median_ms),
            "ratio": _ratio,
        }
        if part == "busy":
            conv = {_place(r): r.slowdown for r in found if r.column == "conv2d"}
            columns["÷ alone"] = lambda r: f"{r.slowdown:.2f}" if r.slowdown else ""
            columns["that ÷ Conv2d's"] = lambda r, conv=conv: (  # type: ignore[misc]
                f"{r.slowdown / base:.2f}" if r.slowdown and (base := conv.get(_place(r))) else ""
            )
        else:
            columns["memory, MB"] = _memory
        lines = [[show(r) for show in columns.values()] for r in found]
        what = PARTS[part].what
        text += f"## {title}\n\n{what[0].upper()}{what[1:]}.\n\n" + _table(list(columns), lines)
        notes = dict.fromkeys(f"- {r.note}\n" for r in found if r.note and r.median_ms is not None)
        text += "".join(notes) + "\n" if notes else ""
    return text


def _ratio(row: LayerRow) -> str:
    if row.ratio is None:
        return ""
    return f"**{row.ratio:.2f}**" if row.ratio > 1 else f"{row.ratio:.2f}"


def _published(rows: Sequence[LayerRow]) -> str:
    ratio = {
        (r.setting, r.column): f"{r.ratio:.2f}"
        for r in reversed(rows)  # of several dtypes and formats, the first stays
        if r.direction == BOTH and r.ratio
    }
    lines = []
    for name, (deformable, lowering, log, conv) in PUBLISHED_S.items():
        theirs = [f"{value / conv:.1f}" for value in (deformable, lowering, log)]
        ours = [ratio.get((name, column), "") for column in ("deform_conv2d", "auto", "log")]
        lines.append([name, *theirs, *ours])
    head = ["setting", "paper: deformable", "paper: lowering", "paper: log"]
    head += ["here: deformable", "here: harmonic", "here: log"]
    return (
        "## Compared with the paper's figures\n\n"
        "Time of one step ÷ `Conv2d`'s. The paper's were read off its bar charts (GTX 1080 Ti, "
        "± 1 %); its Setting 4 seems to have had a smaller batch.\n\n"
    ) + _table(head, lines)


# -------------------------------------------------------------------- charts


def show(charts: dict[str, Figure | None], images: Path) -> str:
    """Save the charts and return the Markdown that shows them."""
    text = ""
    for name, figure in charts.items():
        if figure is not None:
            with replacing(images / name) as part:
                figure.savefig(part, format="png", dpi=110)
            text += f"![{name.removesuffix('.png')}](images/{name})\n\n"
    return text or "Not measured in this run.\n\n"


def bars(rows: Sequence[LayerRow], layer: str, color: str) -> Figure | None:
    """Draw one of the original's charts: a layer beside its peers, forward and backward stacked."""
    dtype, form = next(((r.dtype, r.memory_format) for r in rows), ("", ""))
    rows = [r for r in rows if (r.dtype, r.memory_format) == (dtype, form)]
    conv = {(r.setting, r.direction): r.median_ms for r in rows if r.column == "conv2d"}
    # deform_conv2d ran at a smaller batch: its bar is its ratio, at the height of this Conv2d
    ms = {
        (r.setting, r.column, r.direction): r.ratio * base
        for r in rows
        if r.ratio and (base := conv.get((r.setting, r.direction)))
    }
    colors = {"deform_conv2d": PEERS["deform_conv2d"], "stacking": PEERS["stacking"], layer: color,
              "conv2d": PEERS["conv2d"]}  # fmt: skip
    columns = [c for c in colors if any(key[1] == c for key in ms)]
    names = list(dict.fromkeys(key[0] for key in ms))
    if layer not in columns:
        return None
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(columns)
    for number, column in enumerate(columns):
        at = [place + (number - (len(columns) - 1) / 2) * width for place in range(len(names))]
        forward = [ms.get((name, column, "forward"), 0.0) for name in names]
        both = [ms.get((name, column, BOTH), 0.0) for name in names]
        backward = [max(0.0, b - f) for b, f in zip(both, forward, strict=True)]
        axes.bar(at, forward, width, color=colors[column], label=LABELS[column])
        axes.bar(at, backward, width, bottom=forward, color=colors[column], alpha=0.45)
    axes.set(
        xticks=range(len(names)), xticklabels=names, xlabel="setting", ylabel="ms", yscale="log",
        title=f"One step: forward (solid) and backward (pale), {dtype}, {form.replace('_', ' ')}",
    )  # fmt: skip
    axes.set_ylim(bottom=min(ms.values()) / 3)
    axes.legend(fontsize="small")
    return figure


def _curves(rows: Sequence[LayerRow]) -> Figure | None:
    """Draw the time over each size."""
    points: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for r in rows:
        size, _, value = r.setting.partition("=")
        if r.median_ms is not None:
            points.setdefault(size, {}).setdefault(r.column, []).append((int(value), r.median_ms))
    if not points:
        return None
    colors = {"auto": CHARTS["harmonic"][1], **PEERS}
    figure = Figure(figsize=(3 * len(points), 3), layout="constrained")
    for axes, (size, columns) in zip(
        figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True
    ):
        for column, found in columns.items():
            axes.plot(*zip(*found, strict=True), "o-", ms=3, color=colors[column], label=column)
        axes.set(xlabel="channels" if size == "in_channels" else size, xscale="log", yscale="log")
        values = [value for value, _ in next(iter(columns.values()))]
        axes.set_xticks(values, map(str, values), minor=False)
        axes.minorticks_off()
    figure.axes[0].set_ylabel(f"ms, {rows[-1].direction}")
    figure.axes[0].legend(fontsize="small")
    return figure


if __name__ == "__main__":
    source = Path(sys.argv[1]) if sys.argv[1:] else DOCS / "benchmarks.csv"
    write_page(
        read_csv(source),
        Path(sys.argv[2]) if sys.argv[2:] else source.with_suffix(".md"),
        source.name,
    )
