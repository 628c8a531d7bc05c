"""Make the page and its pictures from a table of `harmonic-lowering bench`.

python -m benchmarks.page [TABLE.csv [PAGE.md]]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from harmonic_lowering.audio import replacing
from harmonic_lowering.benchmark import Row, read_csv
from harmonic_lowering.benchmark.columns import COLUMNS
from harmonic_lowering.benchmark.settings import PUBLISHED_S

DOCS = Path(__file__).parents[1] / "docs"
BOTH = "forward+backward"
# The original's two charts: which layer, and its colour; forward solid, backward pale.
CHARTS = {"harmonic": ("auto", "C0"), "log": ("log", "C2")}
PEERS = {"deform_conv2d": "C7", "stacking": "C1", "conv2d": "C3"}

HEAD = """\
# Benchmarks

This page is made from [{csv}]({csv}) by `make bench`; do not edit it.
How the engines work, and why those that lose do, is told in [engines](engines.md).

{machine}, {threads} threads, device {device}; torch {torch}, version {version}, commit {commit};
{date}. The paper's settings at batch {batch}, at least {repetitions} measurements of every row.
Measured peaks: {peaks}.

Columns are timed in turns after one run unmeasured; figures are medians, ± half the distance
between the quartiles. A ratio is to Conv2d of the same shape, dtype and memory format in the same
rounds: below 1 is faster than Conv2d, above 1 is slower and set in bold. `deform_conv2d` is too
slow for the whole batch: it and a Conv2d were timed at a smaller one in a process with a torch of
its own, and their ratio is shown. It and `stacking` were timed in one dtype and
memory format only.

{columns}
- `deform_conv2d`: torchvision's, with offsets that read where the taps read

"""


def write_page(rows: Sequence[Row], page: Path, table: str = "benchmarks.csv") -> None:
    """Write the page, and its pictures to the folder ``images`` beside it."""
    images = page.parent / "images"
    images.mkdir(exist_ok=True)
    settings = [r for r in rows if r.part == "settings"]
    peaks = {
        r.dtype: f"{r.dtype} {r.gemm_gmac_s:.0f} billion multiply-adds a second"
        for r in rows
        if r.gemm_gmac_s
    }
    copied = max((r.copy_gb_s or 0.0 for r in rows), default=0.0)
    first = rows[0]
    text = HEAD.format(
        csv=table,
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
        columns="\n".join(f"- `{name}`: {meaning}" for name, meaning in COLUMNS.items()),
    )
    text += "## Targets\n\n" + _table(["what", "target", "worst measured", ""], targets(rows))
    pictures = {f"bench-{name}.png": _bars(settings, *what) for name, what in CHARTS.items()}
    text += "## One step, forward and backward\n\n" + _show(pictures, images)
    text += "".join(_settings(settings)) + _call_and_anchors(rows)
    series = {"bench-series.png": _curves([r for r in rows if r.part == "series"])}
    text += "## How the time grows\n\n" + _show(series, images) + _published(settings)
    with replacing(page) as part:
        part.write_text(text.rstrip() + "\n", encoding="utf-8")


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return "Not measured in this run.\n\n"
    return (
        "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *lines)) + "\n"
    )


# -------------------------------------------------------------------- targets


def targets(rows: Sequence[Row]) -> list[list[str]]:
    """Return the lines of the table of targets: what, target, worst measured, met or missed."""
    auto = [r for r in rows if r.part == "settings" and r.column == "auto"]
    peer = {(_place(r), r.column): r for r in rows if r.part == "settings"}

    def ratios(found: Sequence[Row]) -> list[tuple[float, Row]]:
        return [(r.ratio, r) for r in found if r.ratio]

    def deform(direction: str) -> list[tuple[float, Row]]:
        return [
            (other.ratio / r.ratio, r)
            for r in auto
            if r.direction == direction and r.ratio
            if (other := peer.get((_place(r), "deform_conv2d"))) and other.ratio
        ]

    lines = []
    for direction, mean in (("forward", 0.75), (BOTH, 0.8)):
        found = ratios([r for r in auto if r.direction == direction and r.dtype == "float32"])
        what = f"{direction}, float32, HarmonicConv2d ÷ Conv2d"
        lines.append(_target(f"{what}, every setting and format", 1.0, found))
        averages = []
        for form in dict.fromkeys(r.memory_format for _, r in found):
            logs = [math.log(v) for v, r in found if r.memory_format == form]
            averages.append((math.exp(sum(logs) / len(logs)), form))
        lines.append(_target("the same, geometric mean", mean, averages))
    full = [r for r in auto if r.dtype == "float32"]
    lines.append(
        _target("Settings 1 and 2, float32", 0.6, ratios([r for r in full if r.setting in "12"]))
    )
    half = ratios([r for r in auto if r.dtype == "bfloat16"])
    lines.append(_target("bfloat16, ÷ Conv2d in bfloat16", 1.0, half))
    what = f"peak memory above inputs and results, {BOTH}, ÷ Conv2d's"
    for form in dict.fromkeys(r.memory_format for r in auto):
        # Conv2d may need nothing at all; then the ratio is infinite, and the tables have the MB.
        memory = [
            (r.peak_bytes / other.peak_bytes if other.peak_bytes else math.inf, r)
            for r in auto
            if r.direction == BOTH and r.memory_format == form and r.peak_bytes is not None
            if (other := peer.get((_place(r), "conv2d"))) and other.peak_bytes is not None
        ]
        lines.append(_target(f"{what}, {form.replace('_', ' ')}", 1.1, memory))
    for direction, goal in (("forward", 40), (BOTH, 60)):
        what = f"deform_conv2d ÷ HarmonicConv2d, {direction}"
        lines.append(_target(what, goal, deform(direction), least=True))
    calls = [r for r in full if r.setting == "9"]
    calls += [r for r in rows if r.part == "call" and r.column == "auto"]
    lines.append(_target("Setting 9, ÷ Conv2d: what a call costs", 1.3, ratios(calls)))
    mixed = ratios([r for r in rows if r.part == "anchors" and r.column == "auto"])
    lines.append(_target("seven anchors mixed ÷ seven separate layers", 0.5, mixed))
    return lines


def _place(row: Row) -> tuple[str, ...]:
    return row.setting, row.direction, row.dtype, row.memory_format


def _target(
    what: str, goal: float, found: Sequence[tuple[float, Row | str]], *, least: bool = False
) -> list[str]:
    target = f"{'≥' if least else '≤'} {goal:g}"
    if not found:
        return [what, target, "not measured", ""]
    sign = -1 if least else 1
    worst, row = max(found, key=lambda pair: sign * pair[0])
    missed = sum(sign * value > sign * goal for value, _ in found)
    if isinstance(row, Row):
        row = f"{row.setting}, {row.direction}, {row.memory_format}, batch {row.batch}"
    where = row.replace("_", " ")
    verdict = f"**missed** in {missed} of {len(found)}" if missed else f"met in all {len(found)}"
    return [what, target, f"{worst:.3g} ({where})", verdict]


# -------------------------------------------------------------------- tables


def _settings(rows: Sequence[Row]) -> list[str]:
    """Return a section for each dtype and memory format."""
    text = []
    for dtype, form in dict.fromkeys((r.dtype, r.memory_format) for r in rows):
        chosen = [r for r in rows if (r.dtype, r.memory_format) == (dtype, form)]
        named = dict.fromkeys(["conv2d", *(r.column for r in chosen)])
        directions = list(dict.fromkeys(r.direction for r in chosen))
        title = f"{dtype}, {form.replace('_', ' ')}"
        for what, show, wanted in (
            ("time (Conv2d in ms, others ÷ Conv2d)", _time, directions),
            ("time ÷ limit of the machine", _limit, directions),
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


def _time(row: Row) -> str:
    if row.median_ms is None or row.q1_ms is None or row.q3_ms is None:
        return "not installed" if "not installed" in row.note else "failed"
    spread = (row.q3_ms - row.q1_ms) / 2
    if row.column == "conv2d" or row.ratio is None:
        return f"{row.median_ms:.3g} ± {spread:.2g} ms"
    text = f"{row.ratio:.2f} ± {row.ratio * spread / row.median_ms:.2f}"
    return f"**{text}**" if row.ratio > 1 else text


def _memory(row: Row) -> str:
    return "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}"


def _error(row: Row) -> str:
    return "" if row.error is None else f"{row.error:.1e}"


def _limit(row: Row) -> str:
    return f"{row.median_ms / row.limit_ms:.1f}" if row.limit_ms and row.median_ms else ""


def _call_and_anchors(rows: Sequence[Row]) -> str:
    text = ""
    for part, title in (
        ("call", "What a call costs: Setting 9 with a batch of one"),
        ("anchors", "Seven anchors in one layer, and in seven layers"),
    ):
        lines = [
            [
                f"`{r.column}`",
                r.direction,
                r.note if r.median_ms is None else f"{r.median_ms:.3g}",
                "" if r.ratio is None else f"{r.ratio:.2f}",
                _memory(r),
            ]
            for r in rows
            if r.part == part
        ]
        text += f"## {title}\n\n" + _table(["column", "pass", "ms", "ratio", "memory, MB"], lines)
    return text


def _published(rows: Sequence[Row]) -> str:
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
        "## Beside the figures of the paper\n\n"
        "Time of one step ÷ Conv2d's. The paper's were read off its bar charts (GTX 1080 Ti, ± 1 "
        "%); its Setting 4 seems to have had a smaller batch.\n\n"
    ) + _table(head, lines)


# -------------------------------------------------------------------- pictures


def _show(pictures: dict[str, Figure | None], images: Path) -> str:
    """Save what was drawn and return the Markdown that shows it."""
    text = ""
    for name, figure in pictures.items():
        if figure is not None:
            with replacing(images / name) as part:
                figure.savefig(part, format="png", dpi=110)
            text += f"![{name.removesuffix('.png')}](images/{name})\n\n"
    return text or "Not measured in this run.\n\n"


def _bars(rows: Sequence[Row], layer: str, color: str) -> Figure | None:
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
        axes.bar(at, forward, width, color=colors[column], label=COLUMNS.get(column, column))
        axes.bar(at, backward, width, bottom=forward, color=colors[column], alpha=0.45)
    axes.set(
        xticks=range(len(names)), xticklabels=names, xlabel="setting", ylabel="ms", yscale="log",
        title=f"One step: forward (solid) and backward (pale), {dtype}, {form.replace('_', ' ')}",
    )  # fmt: skip
    axes.set_ylim(bottom=min(ms.values()) / 3)
    axes.legend(fontsize="small")
    return figure


def _curves(rows: Sequence[Row]) -> Figure | None:
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
