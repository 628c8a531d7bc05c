"""The Markdown page and its chart, made from the table of runs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import t as student

from ..common.tables import markdown
from . import data, features
from .measure import Run
from .networks import NETWORKS, PARAMETERS
from .training import Settings

CONFIDENCE = 0.95
SIZE_NAMES = {30: "30 s", 300: "5 min", 1800: "30 min"}


class Interval:
    """Mean of some runs, with Student's confidence interval from three runs on.

    That of two runs is twelve times their spread, and says nothing.
    """

    def __init__(self, values: Sequence[float]) -> None:
        self.count = len(values)
        self.mean = fmean(values)
        self.half = math.inf
        if self.count > 2:
            quantile = student.ppf((1 + CONFIDENCE) / 2, self.count - 1)
            self.half = float(quantile) * stdev(values) / math.sqrt(self.count)

    def __str__(self) -> str:
        return _points(self.mean) + (f" ± {_points(self.half)}" if self.count > 2 else "")


class Results:
    """Runs by network and size, then by seed."""

    def __init__(self, rows: Iterable[Run]) -> None:
        self.rows: dict[tuple[str, int], dict[int, Run]] = {}
        for row in rows:
            self.rows.setdefault((row.network, row.training_s), {})[row.seed] = row
        self.sizes = sorted({size for _, size in self.rows})

    def runs(self, network: str, size: int) -> dict[int, Run]:
        return self.rows.get((network, size), {})

    def interval(self, network: str, size: int, value: str) -> Interval | None:
        runs = self.runs(network, size).values()
        return Interval([getattr(run, value) for run in runs]) if runs else None

    def difference(self, a: str, b: str, size: int, value: str) -> Interval | None:
        """Interval of a − b over the seeds that both have: same excerpts, same music."""
        of_a, of_b = self.runs(a, size), self.runs(b, size)
        both = sorted(of_a.keys() & of_b.keys())
        values = [getattr(of_a[seed], value) - getattr(of_b[seed], value) for seed in both]
        return Interval(values) if values else None

    def overlaps(self, a: str, b: str, size: int, value: str) -> bool | None:
        """Return whether the intervals of a and b overlap; None without three runs of each."""
        first, second = self.interval(a, size, value), self.interval(b, size, value)
        if first is None or second is None or min(first.count, second.count) < 3:
            return None
        return abs(first.mean - second.mean) <= first.half + second.half


def _points(value: float) -> str:
    """Write .846, as such scores are quoted."""
    return f"{value:.3f}".replace("0.", ".", 1).replace("-", "−")


_COLUMNS = (
    ("B AP", "B_ap"),
    ("B F1", "B_f1"),
    ("B 10 dB", "B10_ap"),
    ("B 0 dB", "B0_ap"),
    ("R AP", "R_ap"),
    ("R F1", "R_f1"),
    ("R 10 dB", "R10_ap"),
    ("octave-like B / R", ""),
    ("training, s", "seconds"),
)


def page(rows: Iterable[Run], picture: str) -> str:
    """Return the page as Markdown."""
    rows = list(rows)
    results = Results(rows)
    parts = [
        "# Where harmonic taps help learning, measured",
        "This page is made from [results.csv](../benchmarks/learning/results.csv) by "
        "`make bench-learning`; do not edit it.",
        _introduction(results),
        *([found] if (found := _findings(results)) else []),
        f"![Average precision by amount of training sound]({picture})",
        "## Harmonic beside random shifts",
        _pair_text(),
        _pair(results),
        "## Harmonic beside Conv2d and the U-Net",
        "Difference in AP, harmonic − the other, over the seeds that both have.",
        _margins(results),
    ]
    for feature, title in (
        ("vqt", "On a variable-Q transform"),
        ("stft", "On an STFT: `HarmonicConv2d`"),
    ):
        names = [name for name, network in NETWORKS.items() if network.feature == feature]
        for size in results.sizes:
            if any(results.runs(name, size) for name in names):
                parts += [f"## {title}, {_size(size)} of training sound"]
                parts += [_table(results, names, size)]
    missing = _missing(results)
    if missing:
        parts += ["## Not measured", missing]
    parts += ["## What was measured, and on what", _conditions(rows)]
    return "\n\n".join(parts) + "\n"


def _introduction(results: Results) -> str:
    steps = sorted({run.steps for runs in results.rows.values() for run in runs.values()})
    return (
        "The task: say which notes sound in every frame of 32 ms, with up to four voices. Every "
        f"network is as wide as brings it nearest to {PARAMETERS:,} parameters, and has the same "
        f"training: {' or '.join(map(str, steps))} steps of AdamW on the same excerpts.\n\n"
        "- **B**: a soundfont and 16 instruments that no training saw; also in pink noise at 10 "
        "and 0 dB, though all training is clean.\n"
        "- **R**: chorales of Bach's, played with notes recorded from real instruments.\n"
        "- **AP**: average precision of frames and notes. **F1**: of the same, at the threshold "
        "that was best on the validation set. **Octave-like**: false notes at a harmonic or "
        "sub-harmonic of a true one ÷ true notes found.\n"
        f"- **±**: Student's {CONFIDENCE:.0%} interval of the mean over three or more seeds. A "
        "seed draws the first weights, the excerpts and which part of the training music is used.\n"
        "- **Training, s**: processor time on one thread."
    )


def _findings(results: Results) -> str:
    """Say in sentences what the tables show, whatever it is."""
    lines = []
    for size in results.sizes:
        phrases = []
        for name in ("conv", "unet", "dilated", "lowering", "upward"):
            on_b, on_r = (results.difference("harmonic", name, size, f"{t}_ap") for t in "BR")
            if on_b and on_r:
                title = NETWORKS[name].title
                phrases.append(f"{_signed(on_b.mean)} and {_signed(on_r.mean)} ({title})")
        if phrases:
            lines.append(
                f"- {_size(size)} of training sound: AP of the harmonic network on B and on R, "
                f"less that of another: {'; '.join(phrases)}."
            )
    less, more = (results.interval(*of, "B_ap") for of in (("harmonic", 30), ("conv", 300)))
    if less and more:
        lines.append(
            f"- On B the harmonic network reaches {_points(less.mean)} after 30 s of training "
            f"sound, Conv2d 3×3 {_points(more.mean)} after 5 min."
        )
    pairs = {
        f"{title} ({_size(size)})": results.overlaps("harmonic", "random", size, value)
        for size in results.sizes
        for title, value in _TESTS
    }
    apart = [name for name, overlaps in pairs.items() if overlaps is False]
    if set(pairs.values()) != {None}:
        lines.append(
            "- That the places are harmonic, and not only far apart and on both sides, makes a "
            f"difference beyond the intervals on: {', '.join(apart) or 'none of the tests'}."
        )
    return "\n".join(lines)


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "") + _points(value)


def _table(results: Results, names: Iterable[str], size: int) -> str:
    lines = []
    for name in names:
        runs = list(results.runs(name, size).values())
        if not runs:
            continue
        cells = [NETWORKS[name].title, f"{runs[0].parameters:,}", str(len(runs))]
        for _, value in _COLUMNS:
            if value == "":
                both = [results.interval(name, size, f"{on}_octave_like") for on in ("B", "R")]
                cells.append(" / ".join(_points(one.mean) for one in both if one))
            elif value == "seconds":
                cells.append(f"{fmean(run.seconds for run in runs):.0f}")
            else:
                cells.append(str(results.interval(name, size, value)))
        lines.append(cells)
    return markdown(["network", "parameters", "seeds", *(title for title, _ in _COLUMNS)], lines)


_TESTS = (
    ("B", "B_ap"), ("B 10 dB", "B10_ap"), ("B 0 dB", "B0_ap"), ("R", "R_ap"), ("R 10 dB", "R10_ap")
)  # fmt: skip


def _pair_text() -> str:
    return (
        "Both have the same layer, reach, parameters, excerpts and order of training; only the "
        "places that the rows read differ, drawn anew for every seed in the random one. A "
        "difference is claimed (**yes**) only where the two intervals of AP do not overlap; the "
        "difference itself is over pairs of runs with the same seed. Nothing corrects for the "
        "number of tests."
    )


def _pair(results: Results) -> str:
    lines = []
    for size in results.sizes:
        for title, value in _TESTS:
            a, b = (results.interval(name, size, value) for name in ("harmonic", "random"))
            difference = results.difference("harmonic", "random", size, value)
            if a is None or b is None or difference is None:
                continue
            overlaps = results.overlaps("harmonic", "random", size, value)
            verdict = "too few runs" if overlaps is None else "no" if overlaps else "**yes**"
            lines.append([_size(size), title, str(a), str(b), str(difference), verdict])
    return markdown(["training", "test", "harmonic AP", "random AP", "difference", "apart"], lines)


def _margins(results: Results) -> str:
    lines = []
    for size in results.sizes:
        for name in ("conv", "conv-deep", "same-shape", "dilated", "unet", "lowering", "upward"):
            cells = [results.difference("harmonic", name, size, value) for _, value in _TESTS]
            if cells[0] is not None:
                lines.append([_size(size), NETWORKS[name].title, *map(str, cells)])
    return markdown(["training", "harmonic −", *(title for title, _ in _TESTS)], lines)


def _missing(results: Results) -> str:
    lines = []
    for size in SIZE_NAMES:
        absent = [name for name in NETWORKS if not results.runs(name, size)]
        if len(absent) == len(NETWORKS):
            lines.append(f"- {_size(size)} of training sound: no network")
        elif absent:
            titles = (f"{NETWORKS[name].title} ({NETWORKS[name].feature})" for name in absent)
            lines.append(f"- {_size(size)} of training sound: {'; '.join(titles)}")
    return "\n".join(lines)


def _conditions(rows: Sequence[Run]) -> str:
    settings = Settings()
    machines = sorted({run.machine for run in rows})
    soundfonts = [f"{package} ({licence})" for package, _, licence in data.SOUNDFONTS.values()]
    recorded = sorted(package for package, _ in data.RECORDED.values())
    return "\n".join(
        [
            f"- Training: TimGM6mb, General MIDI programs {_programs(features.TRAINING)}; up to "
            f"{features.MOST_TRAINING_S // 60} minutes of random melodies in one to four voices, "
            "40 % of the notes begun while another sounds double it at an octave, a fifth, a "
            "twelfth or two octaves. Clean; every excerpt through a random equaliser of eight "
            f"bands (standard deviation {Settings.equaliser_db:g} dB).",
            f"- Validation: TimGM6mb, programs {_programs(features.VALIDATION)}, other melodies. "
            "It gives the thresholds of F1.",
            "- What was chosen on what: the generator of music, the dynamic range and the "
            "equaliser were set after four trial runs of the harmonic network, no other, whose "
            "scores on B and R were seen. Two instruments left B then: a drawbar organ, which "
            "sounds notes that are not played, and a harp, which rings on. After that nothing was "
            "changed.",
            f"- B: MuseScore General, programs {_programs(features.UNSEEN)}; melodies from "
            "the same generator as the training's.",
            f"- R: {len(data.CHORALES)} chorales from music21 ({', '.join(data.CHORALES)}), the "
            f"first 20 s of each, each voice by one of {', '.join(data.RECORDED)}; a note between "
            "recorded ones is the nearest, played faster or slower.",
            f"- Packages: {', '.join(soundfonts)} from Debian; music21 (BSD-3-Clause) from PyPI; "
            f"{', '.join(recorded)} from npm (samples: {data.RECORDED_LICENCE}).",
            f"- VQT of {features.VQT_BINS} bins, {features.BINS_PER_OCTAVE} per octave, from C2, "
            f"hop {features.HOP} at {data.SAMPLE_RATE} Hz; STFT with a window of "
            f"{features.STFT_WINDOW}, {features.STFT_BINS} bins. Magnitudes in dB, from "
            f"{features.DYNAMIC_RANGE_DB} dB below the recording's loudest bin (0) to it (1).",
            f"- AdamW, one-cycle learning rate up to {settings.learning_rate:g}, weight decay "
            f"{settings.weight_decay:g}, batches of {settings.batch} excerpts of "
            f"{settings.frames * features.HOP_S:.1f} s, binary cross-entropy.",
            *(f"- {machine}" for machine in machines),
        ]
    )


def _programs(programs: Collection[int]) -> str:
    """Write as General MIDI counts them: from 1."""
    return ", ".join(str(program + 1) for program in programs)


def _size(seconds: int) -> str:
    return SIZE_NAMES.get(seconds, f"{seconds} s")


# -------------------------------------------------------------------- chart

_COLOURS = {
    "harmonic": "#1f4e9c", "random": "#6d9be0", "upward": "#a9b8d9", "lowering": "#7a9a6a",
    "dilated": "#d9a441", "same-shape": "#b8a48c", "conv": "#8c8c8c", "conv-deep": "#5c5c5c",
    "unet": "#a23b72",
}  # fmt: skip


def draw(rows: Iterable[Run], path: Path) -> None:
    """Draw AP on B, B at 0 dB and R over the amount of training sound."""
    from matplotlib.figure import Figure

    results = Results(rows)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    tests = (("unseen instruments", "B_ap"), ("… at 0 dB", "B0_ap"), ("real notes", "R_ap"))
    for axis, (title, value) in zip(axes, tests, strict=True):
        for name, colour in _COLOURS.items():
            points = [
                (size, interval)
                for size in results.sizes
                if (interval := results.interval(name, size, value)) is not None
            ]
            if not points:
                continue
            axis.errorbar(
                [size for size, _ in points],
                [interval.mean for _, interval in points],
                [interval.half if math.isfinite(interval.half) else 0 for _, interval in points],
                color=colour,
                marker="o",
                markersize=4,
                capsize=3,
                label=NETWORKS[name].title,
            )
        axis.set_xscale("log")
        axis.set_xticks(results.sizes, [_size(size) for size in results.sizes])
        axis.set_xticks([], minor=True)
        axis.set_ylim(0, 1)
        axis.set_title(title)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("average precision")
    axes[1].set_xlabel("training sound")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
