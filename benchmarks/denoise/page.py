"""The Markdown page and its charts, made from the table of measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean

from ..common.tables import markdown
from .measure import DenoiserRow
from .methods import METHODS, OURS, Method
from .mixtures import FAULTS, KEPT, NOISES, PARTS, SWELLING, Mixture, reference
from .recordings import LICENCES, SOUNDS, load, periodicity, swell_db
from .recordings import NOISES as RECORDED

__all__ = ["Results", "draw", "overview", "page", "results_of"]

Where = Callable[[DenoiserRow], bool]
_OUR_NAMES = tuple(method.name for method in OURS)


class Results:
    """Rows of one part by method and mixture: only those of the current code, without failures."""

    def __init__(self, rows: Iterable[DenoiserRow]) -> None:
        self.rows: dict[str, dict[Mixture, DenoiserRow]] = {name: {} for name in METHODS}
        for row in rows:
            if not row.error:
                self.rows[row.method][row.mixture] = row
        self.rows = {name: found for name, found in self.rows.items() if found}
        self.noisy = self.rows.get("noisy", {})
        full = [name for name, found in self.rows.items() if found.keys() >= self.noisy.keys()]
        self.full = full if self.noisy else []
        self.partial = [name for name in self.rows if name not in self.full]

    def values(self, method: str, column: str, where: Where = lambda row: True) -> list[float]:
        """Return a column of the rows that have it."""
        found = [getattr(r, column) for r in self.rows.get(method, {}).values() if where(r)]
        return [value for value in found if not math.isnan(value)]

    def mean(self, method: str, column: str, where: Where = lambda row: True) -> float:
        """Mean of a column over the rows that have it; nan if none has."""
        values = self.values(method, column, where)
        return fmean(values) if values else math.nan

    def gains(self, method: str, where: Where = lambda row: True) -> dict[Mixture, float]:
        """SI-SDR of the results less that of the noisy sounds."""
        return {
            mixture: row.si_sdr - self.noisy[mixture].si_sdr
            for mixture, row in self.rows.get(method, {}).items()
            if where(row) and mixture in self.noisy
        }


def results_of(rows: Iterable[DenoiserRow], *parts: str) -> Results:
    """Return the current results of these parts."""
    return Results(row for row in rows if row.part in parts and _is_current(row))


def _is_current(row: DenoiserRow) -> bool:
    """Whether the present code has given the row; that of a package that is not here counts."""
    return row.method in METHODS and _version(row.method) in (None, row.version)


@cache
def _version(name: str) -> str | None:
    """Return the version of a method that can run here."""
    return None if METHODS[name].missing() else METHODS[name].version()


def page(
    rows: Sequence[DenoiserRow], pictures: Mapping[str, str], conditions: str, cache: Path
) -> str:
    """Return the page as Markdown."""
    steady, real, stereo = (results_of(rows, part) for part in ("steady", "real", "stereo"))
    kinds = results_of(rows, "kinds", "steady")
    text = [
        "# Denoising, measured",
        "This page is made from [results.csv](../benchmarks/denoise/results.csv) by "
        "`make bench-denoise`; do not edit it.",
        conditions,
        "SI-SDR in dB is the mean over all mixtures, PESQ (wide band) and STOI that of speech. "
        "*Worst* is the mixture where a method gains least over the noisy sound, or loses most. "
        "s/s is processor time of one thread for a second of sound. An *oracle* was given "
        "something about the noise that a user with one recording does not know; *trained* "
        "methods have learnt from other sounds (this package's mask from synthetic ones alone).",
        _which_are_reported(),
    ]
    for part, results, words in (
        ("steady", steady, "White and pink noise, hum, and the hiss of a record, at 0, 5 and "
         "10 dB, in excerpts of up to 4 s at 16 kHz."),
        ("real", real, "Recorded noises at 5 and 10 dB."),
    ):  # fmt: skip
        if not results.noisy:
            continue
        text += [f"## {_title(part)}", words, overview(results)]
        if part == "real":
            text += [
                f"Only the noises that swell by 3 dB and more, {', '.join(SWELLING)}:",
                overview(results, where=lambda row: row.noise in SWELLING),
            ]
        if part in pictures:
            text.append(f"![Gain in SI-SDR by noise]({pictures[part]})")
        text += ["Gain in SI-SDR by noise, speech / music, in dB:", _by_noise(results)]
        if part == "real" and (found := _noises(cache, results)):
            text += [
                "How much each noise swells (distance of its quiet and loud quarter seconds), and "
                "how periodic it is (the median peak of the autocorrelation at 70 to 600 Hz; "
                "Gaussian noise has 0.16, singing 0.8):",
                found,
            ]
        text += _few(results)
    if kinds.noisy:
        text += _kinds(kinds)
    if any(row.part == "clean" for row in rows):
        text += [
            "## Clean recordings",
            "SI-SDR of the result to the recording, where no noise was added; and by how much the "
            "level of the sound has changed where it changed most.",
            _clean(results_of(rows, "clean")),
        ]
    if stereo.noisy:
        text += [
            f"## {_title('stereo')}",
            "White noise and wind, other in each channel. The scores take both channels as one "
            "sound. Methods for one channel were given one after the other.",
            overview(stereo),
            *_few(stereo),
        ]
    text += ["## Where this package loses", _losses([steady, real, stereo])]
    if failed := [row for row in rows if row.error and _is_current(row)]:
        text += [
            "## Failures",
            *(
                f"- {r.method}, {r.recording}, {r.noise} at {r.level_db:g} dB: {r.error}"
                for r in failed
            ),
        ]
    text += ["## Methods", _methods(), "## Sounds", _sounds(rows)]
    return "\n\n".join(text) + "\n"


def _which_are_reported() -> str:
    chosen = [one.name for one in (*SOUNDS, *RECORDED) if one.use == "choose"]
    return (
        "The recordings of this page and those that the learnt mask was chosen by are different "
        f"ones; the latter ({', '.join(chosen)}) are the part `choose` of the bench, which is not "
        "reported. Nothing was trained on either. The settings of the prior are older: they were "
        "chosen on fifteen of the mixtures in steady noise "
        "([log](../research/denoising-log.md))."
    )


def overview(results: Results, names: Sequence[str] = (), where: Where = lambda row: True) -> str:
    """Return the table of all methods, or of some on some mixtures; empty without rows."""
    lines = []
    for name in names or results.full:
        gains = results.gains(name, where)
        if not gains:
            continue
        worst = min(gains, key=gains.__getitem__)
        mean = lambda column, kind, name=name: results.mean(  # noqa: E731
            name, column, lambda row: where(row) and row.kind == kind
        )
        speed = [r.seconds / r.sound_s for r in results.rows[name].values() if where(r)]
        lines.append(
            [
                name,
                _mark(METHODS[name]),
                _number(mean("si_sdr", "speech"), 1),
                _number(mean("pesq", "speech"), 2),
                _number(mean("stoi", "speech"), 3),
                _number(mean("si_sdr", "music"), 1),
                "" if name == "noisy" else f"{gains[worst]:+.1f} ({_described(worst)})",
                _number(fmean(speed), 3),
                str(len(gains)),
            ]
        )
    head = ["method", "", "speech: SI-SDR", "PESQ", "STOI", "music: SI-SDR", "worst", "s/s", "of"]
    return markdown(head, lines) if lines else ""


def _few(results: Results) -> list[str]:
    """Return a table of what ran on some mixtures only, beside all others there."""
    parts = []
    for mixtures in dict.fromkeys(frozenset(results.rows[name]) for name in results.partial):
        names = [name for name in results.partial if results.rows[name].keys() == mixtures]
        where = lambda row, mixtures=mixtures: row.mixture in mixtures  # noqa: E731
        if table := overview(results, [*results.full, *names], where):
            which = ", ".join(sorted({_described(mixture) for mixture in mixtures})[:4])
            more = " …" if len(mixtures) > 4 else ""
            parts += [f"On few mixtures ({which}{more}), with {', '.join(names)}:", table]
    return parts


def _by_noise(results: Results) -> str:
    noises = [n for n in NOISES if any(mixture.noise == n for mixture in results.noisy)]
    lines = []
    for name in results.full:
        cells = []
        for noise in noises:
            pair = [
                results.gains(name, _where(noise=noise, kind=kind)).values()
                for kind in ("speech", "music")
            ]
            cells.append(" / ".join(_number(fmean(x), 1) if x else "–" for x in pair))
        if name != "noisy":
            lines.append([name, *cells])
    return markdown(["method", *noises], lines)


def _kinds(results: Results) -> list[str]:
    """Return what faults cost, what becomes of basses, drones and drums, and clicks."""
    faulty = [name for name in results.rows if results.gains(name, lambda r: r.noise in FAULTS)]
    lines = []
    for name in faulty:
        losses = {fault: _fault_losses(results, name, fault) for fault in FAULTS}
        if name != "noisy" and all(losses.values()):
            cells = [f"{fmean(x):+.1f} ({min(x):+.1f})" for x in losses.values()]
            lines.append([name, *cells])
    parts = [
        "## Recordings that trouble denoisers",
        "Two voices, a guitar and a tabla in white noise at 10 dB, then damaged. How much more or "
        "less a method gains than on the same sound undamaged, the mean and the worst of the four, "
        "in dB; what a gate or a fade made inaudible is not scored. "
        + "; ".join(f"*{name}*: {what}" for name, what in FAULTS.items())
        + ".",
        markdown(["method", *FAULTS], lines),
    ]
    lines = []
    for name in faulty:
        cells = []
        for noise in KEPT:
            gains = results.gains(name, _where(noise=noise))
            changes = results.values(name, "level_change_db", _where(noise=noise))
            if gains and changes:
                cells.append(f"{min(gains.values()):+.1f} / {max(changes, key=abs):+.1f}")
        if name != "noisy" and len(cells) == len(KEPT):
            lines.append([name, *cells])
    parts += [
        "Sustained and struck sounds in white noise at 10 to 20 dB: the least gain in SI-SDR / the "
        "largest change of the level of the sound, in dB.",
        markdown(["method", *KEPT], lines),
    ]
    lines = []
    for name in results.rows:
        gains = {
            kind: results.gains(name, _where(noise="clicks", kind=kind)).values()
            for kind in ("speech", "music")
        }
        if name != "noisy" and all(gains.values()):
            means = [f"{fmean(x):+.1f}" for x in gains.values()]
            lines.append([name, *means, f"{min(map(min, gains.values())):+.1f}"])
    return [
        *parts,
        "Twenty clicks a second at 10 dB, nothing else: gain in SI-SDR.",
        markdown(["method", "speech", "music", "worst"], lines),
    ]


def _fault_losses(results: Results, name: str, fault: str) -> list[float]:
    gains = results.gains(name)
    pairs = [(one, reference(one)) for one in gains if one.noise == fault]
    return [gains[one] - gains[plain] for one, plain in pairs if plain in gains]


def _clean(results: Results) -> str:
    lines = []
    for name, rows in results.rows.items():
        found = [row for row in rows.values() if not math.isinf(row.si_sdr)]
        if not found:
            continue
        worst = min(found, key=lambda row: row.si_sdr)
        changes = results.values(name, "level_change_db")
        lines.append(
            [
                name,
                _mark(METHODS[name]),
                _number(fmean(row.si_sdr for row in found), 1),
                f"{worst.si_sdr:.1f} ({worst.recording})",
                f"{max(changes, key=abs):+.1f}" if changes else "–",
                str(len(rows)),
            ]
        )
    return markdown(["method", "", "mean", "lowest", "level, dB", "of"], lines)


def _losses(parts: Iterable[Results]) -> str:
    """List where another method without training, or the noisy sound, has a higher SI-SDR."""
    lines, total = [], 0
    for results in parts:
        others = [
            name
            for name in results.full
            if name not in _OUR_NAMES and not METHODS[name].trained and not METHODS[name].oracle
        ]
        ours = next((name for name in ("default", "prior") if name in results.full), None)
        if ours is None or not others:
            continue
        for mixture, row in results.rows[ours].items():
            found, name = max((results.rows[name][mixture].si_sdr, name) for name in others)
            total += 1
            if found > row.si_sdr:
                lines.append((found - row.si_sdr, ours, _described(mixture), name))
    if not total:
        return "Not measured yet."
    head = ["method of this package", "mixture", "better is", "by dB"]
    table = [[ours, mixture, name, f"{by:.2f}"] for by, ours, mixture, name in sorted(lines)[::-1]]
    return (
        f"In {len(lines)} of {total} mixtures with noise another method that was neither trained "
        "nor given the noise, or the noisy sound itself, has a higher SI-SDR"
        + (f"; the largest differences:\n\n{markdown(head, table[:20])}" if lines else ".")
    )


def _noises(cache: Path, results: Results) -> str:
    """Describe the recorded noises of a part, if they are here."""
    lines = []
    for noise in RECORDED:
        used = any(mixture.noise == noise.name for mixture in results.noisy)
        if used and all((cache / path).is_file() for path in noise.paths):
            sound = load(noise, cache)
            about = [f"{swell_db(sound):.1f} dB", f"{periodicity(sound):.2f}"]
            lines.append([noise.name, noise.what, *about])
    return markdown(["noise", "what", "swells by", "periodicity"], lines) if lines else ""


def _methods() -> str:
    head = ["method", "what", "oracle: is given", "needs"]
    return markdown(head, [[m.name, m.what, m.oracle, m.needs] for m in METHODS.values()])


def _sounds(rows: Iterable[DenoiserRow]) -> str:
    lines = [
        [r.name, r.kind, r.use, r.what, r.source[0], LICENCES[r.source[0]]]
        for r in (*SOUNDS, *RECORDED)
    ]
    known = {recording.name for recording in SOUNDS}
    others = {row.recording: row.kind for row in rows if row.recording not in known}
    others.pop("saw", None)
    lines += [
        [name, kind, "report", "a file of the user's", "", ""] for name, kind in others.items()
    ]
    recorded = {r.name for r in RECORDED}
    made = ", ".join(f"{name}: {what}" for name, what in NOISES.items() if name not in recorded)
    return (
        markdown(["name", "kind", "use", "what", "Debian package", "licence"], lines)
        + f"\n\nSynthetic noises: {made}. *saw* is a synthetic sawtooth of 41.2 Hz."
    )


def draw(rows: Iterable[DenoiserRow], part: str, path: Path) -> bool:
    """Draw the mean gain over the noisy sound, by noise, for speech and for music."""
    from matplotlib.figure import Figure

    results = results_of(rows, part)
    names = [n for n in results.full if n != "noisy" and not METHODS[n].oracle]
    noises = [n for n in NOISES if any(mixture.noise == n for mixture in results.noisy)]
    if not names:
        return False
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    width = 0.85 / len(names)
    for axis, kind in zip(axes, ("speech", "music"), strict=True):
        for i, name in enumerate(names):
            gains = []
            for noise in noises:
                found = results.gains(name, _where(noise=noise, kind=kind)).values()
                gains.append(fmean(found) if found else math.nan)
            places = [x + (i - (len(names) - 1) / 2) * width for x in range(len(noises))]
            axis.bar(places, gains, width, color=_COLOURS.get(name, "black"), label=name)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_ylabel(f"{kind}: SI-SDR gain, dB")
        axis.set_xticks(range(len(noises)), noises)
        axis.spines[["top", "right"]].set_visible(False)
        # Values far below zero are in the tables; here they would flatten the rest.
        axis.set_ylim(bottom=max(axis.get_ylim()[0], -6))
    axes[0].set_title(f"{_title(part)}: mean gain")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return True


# Ours in blues, classical filters in greys and earth colours, trained networks in greens.
_COLOURS = {
    "noisereduce": "#b8a48c",
    "logmmse": "#8c8c8c",
    "afftdn": "#5c5047",
    "wiener": "#c9c9c9",
    "threshold": "#d9a441",
    "block": "#b5651d",
    "rnnoise": "#b9cf9a",
    "gtcrn": "#8fb573",
    "conv-tasnet": "#5e8c4a",
    "deepfilternet3": "#2f5d33",
    "fast": "#7fc4e8",
    "prior": "#4a7fd1",
    "default": "#123a8c",
}


def _where(**wanted: str) -> Where:
    """Return a condition on a row's fields."""
    return lambda row: all(getattr(row, name) == value for name, value in wanted.items())


def _title(part: str) -> str:
    return PARTS[part][0].upper() + PARTS[part][1:]


def _mark(method: Method) -> str:
    return "oracle" if method.oracle else "trained" if method.trained else ""


def _described(mixture: Mixture) -> str:
    return f"{mixture.recording}, {mixture.noise} {mixture.level_db:g} dB"


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
