"""The Markdown page and its chart, made from the table of measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from statistics import fmean

from ..common.tables import markdown
from .measure import DenoiserRow
from .methods import METHODS
from .mixtures import CLEAN, NOISES
from .recordings import LICENCES, RECORDINGS
from .recordings import NOISES as RECORDED

Condition = tuple[str, str, float]
OURS = ("prior", "prior-fast", "prior-best", "prior-plain", "dap")


class Results:
    """Rows by method and condition: only those of the current code, without failures."""

    def __init__(self, rows: Iterable[DenoiserRow]) -> None:
        self.rows: dict[str, dict[Condition, DenoiserRow]] = {name: {} for name in METHODS}
        self.failed: list[DenoiserRow] = []
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
        where: Callable[[DenoiserRow], bool] = lambda row: True,
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
        self, value: str, where: Callable[[DenoiserRow], bool] = lambda row: True
    ) -> tuple[float, str]:
        """Return the best mean among the methods without training data that are not ours."""
        means = {name: self.mean(name, value, where) for name in self.classical}
        name = max(means, key=lambda name: -math.inf if math.isnan(means[name]) else means[name])
        return means[name], name


def page(rows: Iterable[DenoiserRow], picture: str, conditions: str) -> str:
    """Return the page as Markdown."""
    results = Results(rows)
    parts = [
        "# Denoising, measured",
        "This page is made from [results.csv](../benchmarks/denoise/results.csv) by "
        "`make bench-denoise`; do not edit it.",
        conditions,
        f"![Gain in SI-SDR by noise]({picture})",
        "## All methods",
        "Means over all conditions: SI-SDR in dB, PESQ-wb and STOI of speech only. Time (s/s) is "
        "processor time on one thread per second of sound; memory (MiB) is the peak above what the "
        "process held before. An *oracle* was given the true noise or its level, which is unknown "
        "to a user with one recording. *trained*: on other sounds.",
        _overview(results, results.full, None),
    ]
    for name in results.partial:
        on = set(results.rows[name])
        parts += [
            f"## {name}, in the conditions where it ran",
            _overview(results, [*results.full, name], on),
        ]
    for kind, value, title in (
        ("speech", "si_sdr", "Speech, SI-SDR in dB"),
        ("music", "si_sdr", "Music and other pitched sounds, SI-SDR in dB"),
        ("speech", "pesq", "Speech, PESQ-wb"),
        ("speech", "stoi", "Speech, STOI"),
    ):
        parts += [f"## {title}", _by_noise(results, kind, value)]
    if "prior" in results.full and results.classical:
        parts += ["## Where the default loses", _losses(results)]
    if any(results.clean.values()):
        parts += [
            "## Clean recordings",
            "SI-SDR of the result to the recording, in dB, where no noise was added.",
            _clean(results),
        ]
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
        mark = "oracle" if method.oracle else "trained" if method.trained else ""
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
    return markdown(head, lines)


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
    return markdown(["method", *(f"{noise} {level:g} dB" for noise, level in columns)], lines)


def _clean(results: Results) -> str:
    """Say how much of clean recordings remains."""
    lines = []
    for name, rows in results.clean.items():
        if rows:
            worst = min(rows, key=lambda row: row.si_sdr)
            lines.append(
                [
                    name,
                    _number(fmean(row.si_sdr for row in rows), 1),
                    f"{worst.si_sdr:.1f} ({worst.recording})",
                    str(len(rows)),
                ]
            )
    return markdown(["method", "mean SI-SDR", "lowest", "recordings"], lines)


def _losses(results: Results) -> str:
    """List the conditions in which the default is not the best without training data."""
    lost = []
    for key, row in results.rows["prior"].items():
        found, name = max((results.rows[name][key].si_sdr, name) for name in results.classical)
        if found > row.si_sdr:
            lost.append((found - row.si_sdr, key, name))
    total = len(results.rows["prior"])
    if not lost:
        return f"In none of the {total} conditions does another method reach a higher SI-SDR."
    lines = [
        [recording, f"{noise} {level:g} dB", name, f"{by:.2f}"]
        for by, (recording, noise, level), name in sorted(lost, reverse=True)[:20]
    ]
    return (
        f"In {len(lost)} of {total} conditions the noisy sound itself or a method without training "
        f"data has a higher SI-SDR. The {len(lines)} largest differences:\n\n"
        + markdown(["recording", "noise", "method", "by dB"], lines)
    )


def _methods() -> str:
    head = ["method", "what", "oracle: is given"]
    return markdown(head, [[m.name, m.what, m.oracle] for m in METHODS.values()])


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
        markdown(["name", "kind", "what", "Debian package", "licence"], lines)
        + f"\n\nSynthetic noises: {made}."
    )


def draw(rows: Iterable[DenoiserRow], path: Path) -> None:
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
                hatch="///" if METHODS[name].oracle else None,
                edgecolor="white",
                linewidth=0,
            )
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_ylabel(f"{kind}: SI-SDR gain, dB")
        axis.set_xticks(range(len(noises)), noises)
        axis.spines[["top", "right"]].set_visible(False)
    # Values far below zero are in the tables; here they would flatten the rest.
    for axis in axes:
        axis.set_ylim(bottom=max(axis.get_ylim()[0], -6))
    axes[0].set_title("Mean over 0, 5 and 10 dB; hatched: given the noise or its level")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _colours(names: Sequence[str]) -> dict[str, str]:
    """Ours in blues, the others in greys and earth colours; variants share a colour."""
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


def _is(kind: str) -> Callable[[DenoiserRow], bool]:
    return lambda row: row.kind == kind


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
