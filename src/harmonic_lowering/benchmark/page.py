"""The page and the pictures that are made from the rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..audio import replacing
from ..optional import need
from .columns import COLUMNS
from .records import Row
from .settings import PUBLISHED_S, SETTINGS

__all__ = ["check", "goals", "write_page"]

GROUPS = {"a": ("1", "2", "3", "1a", "2a", "3a"), "b": ("4", "5", "6", "7", "8", "9")}
COLORS = {"deform_conv2d": "C7", "stacking": "C1", "auto": "C0", "log": "C2", "conv2d": "C3"}


def check() -> None:
    """Raise an ImportError if pictures cannot be drawn."""
    need("matplotlib.figure", "drawing pictures", "harmonic-lowering[plot]")


class Goal:
    """One line of the table of goals: a limit, and the values that are held against it."""

    def __init__(self, text: str, limit: float, values: Iterable[float | None], least: bool = False):
        self.text, self.limit, self.least = text, limit, least
        self.values = [value for value in values if value is not None]

    def line(self) -> str:
        """Return the line, with the worst value and how many missed."""
        sign = "≥" if self.least else "≤"
        if not self.values:
            return f"| {self.text} | {sign} {self.limit:g} | not measured | |"
        worst = min(self.values) if self.least else max(self.values)
        missed = sum(v < self.limit if self.least else v > self.limit for v in self.values)
        verdict = "reached" if not missed else f"**missed** in {missed} of {len(self.values)}"
        return f"| {self.text} | {sign} {self.limit:g} | {worst:.3g} | {verdict} |"


def goals(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table of goals."""
    auto = [r for r in rows if r.part == "settings" and r.column == "auto"]
    conv = {r.key[:2] + r.key[3:]: r for r in rows if r.column == "conv2d"}
    own = {r.key[:2] + r.key[3:]: r for r in auto}
    result = []
    for direction, mean in (("forward", 0.75), ("forward+backward", 0.8)):
        found = [r.ratio for r in auto if r.direction == direction and r.dtype == "float32"]
        result.append(Goal(f"{direction}, ÷ Conv2d, every setting, float32", 1.0, found))
        result.append(Goal("the same, geometric mean", mean, [_mean(found)]))
    first = [r.ratio for r in auto if r.setting in ("1", "2") and r.dtype == "float32"]
    result.append(Goal("Settings 1 and 2, float32", 0.6, first))
    half = [r.ratio for r in auto if r.dtype == "bfloat16"]
    result.append(Goal("bfloat16, ÷ Conv2d in bfloat16", 1.0, half))
    memory = [
        r.peak_bytes / other.peak_bytes
        for r in auto
        if r.direction == "forward+backward"
        and (other := conv.get(r.key[:2] + r.key[3:]))
        and r.peak_bytes is not None
        and other.peak_bytes
    ]
    result.append(Goal("peak memory above inputs and results, ÷ Conv2d's", 1.1, memory))
    for direction, limit in (("forward", 40), ("forward+backward", 60)):
        ratios = [
            r.ratio / mine.ratio
            for r in rows
            if r.column == "deform_conv2d"
            and r.direction == direction
            and r.ratio
            and (mine := own.get(r.key[:2] + r.key[3:]))
            and mine.ratio
        ]
        result.append(Goal(f"deform_conv2d ÷ this layer, {direction}", limit, ratios, least=True))
    call = [r.ratio for r in auto if r.setting == "9" and r.dtype == "float32"]
    call += [r.ratio for r in rows if r.part == "call" and r.column == "auto"]
    result.append(Goal("Setting 9, ÷ Conv2d: what a call costs (batch 16 and 1)", 1.3, call))
    mixed = [r.ratio for r in rows if r.part == "anchors" and r.column == "auto"]
    result.append(Goal("seven anchors mixed, ÷ seven separate layers", 0.5, mixed))
    return [goal.line() for goal in result]


def _mean(values: Sequence[float | None]) -> float | None:
    found = [math.log(v) for v in values if v]
    return math.exp(sum(found) / len(found)) if found else None


def write_page(rows: Sequence[Row], page: Path) -> None:
    """Write the page, and its pictures to the folder ``images`` beside it."""
    images = page.parent / "images"
    images.mkdir(exist_ok=True)
    settings = [r for r in rows if r.part == "settings"]
    where = rows[0]
    text = [
        "# Benchmarks",
        "",
        "This page is made by the benchmark; do not edit it. Make it again:",
        "",
        "```sh",
        "make bench",
        "```",
        "",
        f"{where.machine}, {where.threads} threads, device {where.device}, torch {where.torch}, "
        f"version {where.version}, commit {where.commit or 'unknown'}, {where.date}.",
        "Columns are timed in turns, each after one run unmeasured; figures are medians, ± half the "
        "distance between the quartiles. Ratios are to Conv2d of the same shape, dtype and memory "
        "format in the same rounds; above 1 is slower and set in bold. `deform_conv2d` is too slow "
        "for the whole batch: it and a Conv2d were timed at a smaller one, and their ratio is shown.",
        "",
        *(f"- `{name}`: {meaning}" for name, meaning in COLUMNS.items()),
        "",
        "## Goals",
        "",
        "| what | goal | worst measured | |",
        "| --- | --- | --- | --- |",
        *goals(rows),
        "",
    ]
    for group, names in GROUPS.items():
        place = images / f"bench-{group}.png"
        if _bars([r for r in settings if r.setting in names], place):
            text += [f"![Time by setting]({images.name}/{place.name})", ""]
    for dtype in dict.fromkeys(r.dtype for r in settings):
        for form in dict.fromkeys(r.memory_format for r in settings):
            chosen = [r for r in settings if (r.dtype, r.memory_format) == (dtype, form)]
            text += _tables(f"{dtype}, {form.replace('_', ' ')}", chosen)
    text += _others(rows)
    if _curves([r for r in rows if r.part == "series"], images / "bench-series.png"):
        text += ["## How the time grows", "", f"![Series]({images.name}/bench-series.png)", ""]
    text += _published(settings)
    with replacing(page) as part:
        part.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")


def _tables(title: str, rows: Sequence[Row]) -> list[str]:
    columns = [c for c in dict.fromkeys(r.column for r in rows) if c != "conv2d"]
    text: list[str] = []
    for what, show in (("time", _time), ("peak memory, MB", _memory), ("error", _error),
                       ("time ÷ limit of the machine", _limit)):  # fmt: skip
        text += [f"## {title}: {what}", ""]
        text += ["| setting | pass | conv2d | " + " | ".join(columns) + " |"]
        text += ["| --- " * (len(columns) + 3) + "|"]
        for setting in dict.fromkeys(r.setting for r in rows):
            for direction in dict.fromkeys(r.direction for r in rows):
                found = {
                    r.column: r for r in rows if (r.setting, r.direction) == (setting, direction)
                }
                cells = [show(found.get(c)) for c in ("conv2d", *columns)]
                text.append(f"| {setting} | {direction} | " + " | ".join(cells) + " |")
        text.append("")
    notes = dict.fromkeys(f"- `{r.column}`: {r.note}" for r in rows if r.note)
    return [*text, *notes, ""]


def _time(row: Row | None) -> str:
    if row is None:
        return ""
    if row.median_ms is None or row.q1_ms is None or row.q3_ms is None:
        return "failed" if "not installed" not in row.note else "not installed"
    if row.column == "conv2d":
        return f"{row.median_ms:.3g} ± {(row.q3_ms - row.q1_ms) / 2:.2g} ms"
    if row.ratio is None:
        return f"{row.median_ms:.3g} ms"
    spread = row.ratio * (row.q3_ms - row.q1_ms) / 2 / row.median_ms
    text = f"{row.ratio:.2f} ± {spread:.2f}"
    return f"**{text}**" if row.ratio > 1 else text


def _memory(row: Row | None) -> str:
    return "" if row is None or row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}"


def _error(row: Row | None) -> str:
    return "" if row is None or row.error is None else f"{row.error:.1e}"


def _limit(row: Row | None) -> str:
    if row is None or not row.limit_ms or row.median_ms is None:
        return ""
    return f"{row.median_ms / row.limit_ms:.1f}"


def _others(rows: Sequence[Row]) -> list[str]:
    text: list[str] = []
    for part, title in (("call", "One call, Setting 9 with a batch of one"),
                        ("anchors", "Seven anchors")):  # fmt: skip
        found = [r for r in rows if r.part == part]
        if found:
            text += [f"## {title}", "", "| column | pass | ms | ratio |", "| --- | --- | --- | --- |"]
            for r in found:
                ms = r.note if r.median_ms is None else f"{r.median_ms:.3g}"
                ratio = "" if r.ratio is None else f"{r.ratio:.2f}"
                text.append(f"| {r.column} | {r.direction} | {ms} | {ratio} |")
            text.append("")
    return text


def _published(rows: Sequence[Row]) -> list[str]:
    text = [
        "## Beside the figures of the paper",
        "",
        "Time of one step ÷ Conv2d's. The paper's were read off its bar charts (GTX 1080 Ti, ± 1 %).",
        "",
        "| setting | paper: deformable | paper: lowering | paper: log | here | here: log |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, (deformable, lowering, log, conv) in PUBLISHED_S.items():
        here = [
            next((f"{r.ratio:.2f}" for r in rows if r.setting == name and r.column == column
                  and r.direction == "forward+backward" and r.ratio), "")
            for column in ("auto", "log")
        ]  # fmt: skip
        figures = [f"{value / conv:.1f}" for value in (deformable, lowering, log)]
        text.append(f"| {name} | " + " | ".join([*figures, *here]) + " |")
    return [*text, ""]


# -------------------------------------------------------------------- pictures


def _bars(rows: Sequence[Row], path: Path) -> bool:
    """Draw forward and backward stacked, one bar for each column and setting."""
    rows = [r for r in rows if r.dtype == "float32" and r.memory_format == "contiguous"]
    conv = {(r.setting, r.direction): r.median_ms for r in rows if r.column == "conv2d"}
    ms = {}
    for r in rows:
        base = conv.get((r.setting, r.direction))
        if base and r.ratio:
            ms[r.setting, r.column, r.direction] = r.ratio * base
    names = [n for n in SETTINGS if any(key[0] == n for key in ms)]
    columns = [c for c in COLORS if any(key[1] == c for key in ms)]
    if not ms:
        return False
    figure = need("matplotlib.figure", "pictures", "harmonic-lowering[plot]").Figure(
        figsize=(9, 4.2), layout="constrained"
    )
    axes = figure.subplots()
    width = 0.8 / len(columns)
    for number, column in enumerate(columns):
        for place, name in enumerate(names):
            forward = ms.get((name, column, "forward"), 0.0)
            both = ms.get((name, column, "forward+backward"), forward)
            at = place + (number - (len(columns) - 1) / 2) * width
            axes.bar(at, forward, width, color=COLORS[column],
                     label=column if place == 0 else None)  # fmt: skip
            axes.bar(at, max(0.0, both - forward), width, bottom=forward, alpha=0.45,
                     color=COLORS[column])  # fmt: skip
    axes.set(
        xticks=range(len(names)), xticklabels=names, xlabel="setting", ylabel="ms",
        yscale="log", title="One step: forward (solid) and backward (pale), float32",
    )  # fmt: skip
    axes.legend(ncols=len(columns), fontsize="small")
    _save(figure, path)
    return True


def _curves(rows: Sequence[Row], path: Path) -> bool:
    rows = [r for r in rows if r.median_ms is not None and r.direction == "forward+backward"]
    sizes = list(dict.fromkeys(r.setting.partition("=")[0] for r in rows))
    if not rows:
        return False
    figure = need("matplotlib.figure", "pictures", "harmonic-lowering[plot]").Figure(
        figsize=(3 * len(sizes), 3), layout="constrained"
    )
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        for column in dict.fromkeys(r.column for r in rows):
            points = [
                (int(r.setting.partition("=")[2]), r.median_ms)
                for r in rows
                if r.column == column and r.setting.startswith(f"{size}=")
            ]
            axes.plot(*zip(*points, strict=True), "o-", ms=3, color=COLORS[column], label=column)
        axes.set(xlabel="channels" if size == "in_channels" else size, xscale="log", yscale="log")
        axes.set_xticks([p[0] for p in points], [str(p[0]) for p in points], minor=False)
        axes.minorticks_off()
    figure.axes[0].set_ylabel("ms, forward and backward")
    figure.axes[0].legend(fontsize="small")
    _save(figure, path)
    return True


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110)
