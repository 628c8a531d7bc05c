"""The Markdown page and the picture, made from the table of measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from statistics import fmean

from .measure import Row
from .methods import METHODS
from .mixtures import CLEAN, NOISES
from .recordings import LICENCES, RECORDINGS
from .recordings import NOISES as RECORDED

Condition = tuple[str, str, float]
OURS = ("prior", "prior-fast", "prior-best", "prior-plain", "dap")


class Results:
    """Rows by method and condition; only what current code measured, and nothing that failed."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows: dict[str, dict[Condition, Row]] = {name: {} for name in METHODS}
        self.failed: list[Row] = []
        for row in rows:
            method = METHODS.get(row.method)
            if method is None or not (method.missing() or method.version() == row.version):
                continue
            if row.error:
                self.failed.append(row)
            else:
                self.rows[row.method][row.recording, row.noise, row.level_db] = row
        self.clean = {
            name: [found.pop(key) for key in list(found) if key[1] == CLEAN]
            for name, found in self.rows.items()
        }
        self.rows = {name: found for name, found in self.rows.items() if found}
        most = max((len(found) for found in self.rows.values()), default=0)
        self.full = [name for name, found in self.rows.items() if len(found) == most]
        self.partial = [name for name in self.rows if name not in self.full]
        self.classical = [
            name for name in self.full if name not in OURS and not METHODS[name].trained
        ]

    def mean(
        self,
        method: str,
        value: str,
        where: Callable[[Row], bool] = lambda row: True,
        on: Collection[Condition] | None = None,
    ) -> float:
        """Mean of a column over the rows that have it; nan if none has."""
        values = [
            getattr(row, value)
            for key, row in self.rows.get(method, {}).items()
            if where(row) and (on is None or key in on)
        ]
        values = [x for x in values if not math.isnan(x)]
        return fmean(values) if values else math.nan

    def best(
        self, value: str, where: Callable[[Row], bool] = lambda row: True
    ) -> tuple[float, str]:
        """Return the best mean among the methods without training data that are not ours."""
        means = {name: self.mean(name, value, where) for name in self.classical}
        name = max(means, key=lambda name: -math.inf if math.isnan(means[name]) else means[name])
        return means[name], name


def page(rows: Iterable[Row], picture: str, conditions: str) -> str:
    """Return the page as Markdown."""
    results = Results(rows)
    parts = [
        "# Denoising, measured",
        "Made by `make bench-denoise`; do not edit. The rows behind it: "
        "[results.csv](../benchmarks/denoise/results.csv).",
        conditions,
        f"![Gain in SI-SDR by noise]({picture})",
        "## All methods",
        "Means over all conditions; SI-SDR in dB, PESQ-wb and STOI on speech only. Time is seconds "
        "of work on one thread per second of sound, memory the peak above what the process held "
        "before. *told*: the method was given the true noise or its level, which nobody with one "
        "recording has. *trained*: on other sounds.",
        _overview(results, results.full, None),
    ]
    for name in results.partial:
        on = set(results.rows[name])
        parts += [
            f"## {name}, on the conditions where it was run",
            _overview(results, [*results.full, name], on),
        ]
    if "prior" in results.full and "noisy" in results.full and results.classical:
        parts += ["## Targets", _targets(results)]
    for kind, value, title in (
        ("speech", "si_sdr", "Speech, SI-SDR in dB"),
        ("music", "si_sdr", "Music and other pitched sounds, SI-SDR in dB"),
        ("speech", "pesq", "Speech, PESQ-wb"),
        ("speech", "stoi", "Speech, STOI"),
    ):
        parts += [f"## {title}", _by_noise(results, kind, value)]
    if "prior" in results.full and results.classical:
        parts += ["## Where the default loses", _losses(results)]
    if results.failed:
        parts += [
            "## Failures",
            *(
                f"- {row.method}, {row.recording}, {row.noise} at {row.level_db:g} dB: {row.error}"
                for row in results.failed
            ),
        ]
    parts += ["## Methods", _methods(), "## Sounds", _sounds(results)]
    return "\n\n".join(parts) + "\n"


def _overview(results: Results, names: Sequence[str], on: Collection[Condition] | None) -> str:
    lines = []
    for name in names:
        method = METHODS[name]
        mark = "told" if method.told else "trained" if method.trained else ""
        speed = [
            row.seconds / row.sound_s
            for key, row in results.rows[name].items()
            if on is None or key in on
        ]
        lines.append(
            [
                name,
                mark,
                _number(results.mean(name, "si_sdr", on=on), 2),
                _number(results.mean(name, "si_sdr", _is("speech"), on), 2),
                _number(results.mean(name, "si_sdr", _is("music"), on), 2),
                _number(results.mean(name, "pesq", on=on), 2),
                _number(results.mean(name, "stoi", on=on), 3),
                _number(fmean(speed), 3),
                _number(results.mean(name, "peak_mib", on=on), 0),
                str(len(speed)),
            ]
        )
    head = ["method", "", "SI-SDR", "speech", "music", "PESQ", "STOI", "s/s", "MiB", "rows"]
    return table(head, lines)


def _by_noise(results: Results, kind: str, value: str) -> str:
    columns = sorted(
        {(row.noise, row.level_db) for found in results.rows.values() for row in found.values()},
        key=lambda column: (list(NOISES).index(column[0]), column[1]),
    )
    digits = 3 if value == "stoi" else 2 if value == "pesq" else 1
    lines = [
        [name]
        + [
            _number(
                results.mean(
                    name,
                    value,
                    lambda row, noise=noise, level=level: (
                        row.kind == kind and row.noise == noise and row.level_db == level
                    ),
                ),
                digits,
            )
            for noise, level in columns
        ]
        for name in results.full
    ]
    return table(["method", *(f"{noise} {level:g} dB" for noise, level in columns)], lines)


def _targets(results: Results) -> str:
    """Give the denoiser's targets and what came of them."""
    ours = results.rows["prior"]
    lines = []

    def line(what: str, target: str, found: str, met: bool) -> None:
        lines.append([what, target, found, "met" if met else "**missed**"])

    best, name = results.best("si_sdr")
    gain = results.mean("prior", "si_sdr") - best
    line(
        "mean SI-SDR over all",
        f"≥ 1.5 dB above the best classical ({name})",
        f"{gain:+.2f} dB",
        gain >= 1.5,
    )
    for value, digits in (("pesq", 2), ("stoi", 3)):
        best, name = results.best(value)
        found = results.mean("prior", value)
        line(
            f"{value.upper()}, speech",
            "best of all without training data",
            f"{found:.{digits}f}, {name} {best:.{digits}f}",
            found >= best,
        )
    music = {key: row for key, row in ours.items() if row.kind == "music"}
    if music:
        least, where = min(
            (row.si_sdr - results.rows["noisy"][key].si_sdr, key) for key, row in music.items()
        )
        line(
            "music",
            "never below the noisy input",
            f"least gain {least:+.2f} dB ({where[0]}, {where[1]} {where[2]:g} dB)",
            least >= 0,
        )
        both = [name for name in ("threshold", "threshold-white") if name in results.full]
        if both:
            best = max(results.mean(name, "si_sdr", _is("music")) for name in both)
            gain = results.mean("prior", "si_sdr", _is("music")) - best
            line("music", "≥ 1 dB above the threshold method", f"{gain:+.2f} dB", gain >= 1)
    lj = next(
        (
            row
            for key, row in ours.items()
            if key[0].startswith("LJ037") and key[1:] == ("white", 10.0)
        ),
        None,
    )
    if lj:
        line(
            "LJ037-0171, white, 10 dB",
            "17.5 dB, PESQ 2.0, STOI .955",
            f"{lj.si_sdr:.2f} dB, {lj.pesq:.2f}, {lj.stoi:.3f}",
            lj.si_sdr >= 17.5 and lj.pesq >= 2 and lj.stoi >= 0.955,
        )
    for name, most in (("prior", 5), ("prior-fast", 1)):
        if name in results.full:
            speed = fmean(row.seconds / row.sound_s for row in results.rows[name].values())
            line(
                f"time, {name}",
                f"≤ {most} s per second of sound",
                f"{speed:.2f} s (one thread)",
                speed <= most,
            )
    if results.clean.get("prior"):
        least_row = min(results.clean["prior"], key=lambda row: row.si_sdr)
        line(
            "clean input",
            "stays within 25 dB SI-SDR of itself",
            f"least {least_row.si_sdr:.1f} dB ({least_row.recording})",
            least_row.si_sdr >= 25,
        )
    return table(["what", "target", "measured", ""], lines)


def _losses(results: Results) -> str:
    """Name the conditions in which some classical method's SI-SDR is above the default's."""
    lost = []
    for key, row in results.rows["prior"].items():
        found, name = max((results.rows[name][key].si_sdr, name) for name in results.classical)
        if found > row.si_sdr:
            lost.append((found - row.si_sdr, key, name))
    total = len(results.rows["prior"])
    if not lost:
        return f"In none of the {total} conditions is a classical method's SI-SDR above it."
    lines = [
        [recording, f"{noise} {level:g} dB", name, f"{by:.2f}"]
        for by, (recording, noise, level), name in sorted(lost, reverse=True)[:20]
    ]
    return (
        f"In {len(lost)} of {total} conditions some classical method's SI-SDR is above it. "
        f"The {len(lines)} largest:\n\n" + table(["recording", "noise", "method", "by dB"], lines)
    )


def _methods() -> str:
    return table(["method", "what", "told"], [[m.name, m.what, m.told] for m in METHODS.values()])


def _sounds(results: Results) -> str:
    lines = [
        [r.name, r.kind, r.what, r.source[0], LICENCES[r.source[0]]]
        for r in (*RECORDINGS, *RECORDED)
    ]
    known = {recording.name for recording in RECORDINGS}
    others = {
        row.recording: row.kind
        for found in results.rows.values()
        for row in found.values()
        if row.recording not in known
    }
    lines += [[name, kind, "a file of the user's", "", ""] for name, kind in others.items()]
    made = ", ".join(
        f"{name}: {what}" for name, what in NOISES.items() if name not in {r.name for r in RECORDED}
    )
    return (
        table(["name", "kind", "what", "Debian package", "licence"], lines)
        + f"\n\nMade noises: {made}."
    )


def draw(rows: Iterable[Row], path: Path) -> None:
    """Draw the mean gain over the noisy sound, by noise, for speech and for music."""
    from matplotlib.figure import Figure

    results = Results(rows)
    names = [name for name in results.full if name != "noisy"]
    noises = [n for n in NOISES if any(key[1] == n for key in results.rows["noisy"])]
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    colours = _colours(names)
    width = 0.85 / max(1, len(names))
    for axis, kind in zip(axes, ("speech", "music"), strict=True):
        for i, name in enumerate(names):
            gains = []
            for noise in noises:
                of = lambda row, noise=noise: row.kind == kind and row.noise == noise  # noqa: B023, E731
                gains.append(results.mean(name, "si_sdr", of) - results.mean("noisy", "si_sdr", of))
            places = [x + (i - (len(names) - 1) / 2) * width for x in range(len(noises))]
            axis.bar(
                places,
                gains,
                width,
                color=colours[name],
                label=name,
                hatch="///" if METHODS[name].told else None,
                edgecolor="white",
                linewidth=0,
            )
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_ylabel(f"{kind}: SI-SDR gain, dB")
        axis.set_xticks(range(len(noises)), noises)
        axis.spines[["top", "right"]].set_visible(False)
    # What falls far below zero is in the tables; here it would flatten the rest.
    for axis in axes:
        axis.set_ylim(bottom=max(axis.get_ylim()[0], -6))
    axes[0].set_title("Mean over 0, 5 and 10 dB; hatched: told about the noise")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _colours(names: Sequence[str]) -> dict[str, str]:
    """Ours in blues, the others in greys and earth colours; a pair shares its colour."""
    palette = {
        "noisereduce": "#b8a48c",
        "logmmse": "#8c8c8c",
        "wiener": "#c9c9c9",
        "threshold": "#d9a441",
        "rnnoise": "#7a9a6a",
        "prior": "#1f4e9c",
        "prior-fast": "#6d9be0",
        "prior-best": "#0b2a5c",
        "prior-plain": "#a9b8d9",
        "dap": "#a23b72",
    }
    return {name: palette.get(name, palette.get(name.rsplit("-", 1)[0], "black")) for name in names}


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _is(kind: str) -> Callable[[Row], bool]:
    return lambda row: row.kind == kind


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
