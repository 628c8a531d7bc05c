"""What a segment costs, what the cluster adds, what a second machine gains; and 10⁵ hours.

    python -m benchmarks.cluster                # measures, about six minutes on two cores
    python -m benchmarks.cluster --parts segments    # one part, the rest from docs/cluster.csv
    python -m benchmarks.cluster --parts             # only computes, from docs/cluster.csv

Both write docs/cluster.md between its markers. The figures are of an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # also of the processes that come from here
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import torch

from benchmarks.common.machine import ROOT, record
from benchmarks.common.memory import peak_bytes, reset_peak
from benchmarks.common.tables import markdown, read_rows, write_rows
from harmonic_lowering.audio import AudioFormat, AudioWriter
from harmonic_lowering.cli import main as command
from harmonic_lowering.cli.kept import Kept
from harmonic_lowering.denoise import Denoiser, Progress
from harmonic_lowering.denoise.segment import Cleaned, clean_in_turn

TABLE, PAGE = ROOT / "docs" / "cluster.csv", ROOT / "docs" / "cluster.md"
BEGIN, END = "<!-- measured by benchmarks.cluster -->", "<!-- end of what was measured -->"
RATE = 16000
FILES = 100  # of the target
FEW, MANY = 2, 6  # of those that are measured
LITTLE_WORK = ["--steps", "1", "--keep-hum", "--keep-rumble", "--noise-from", "0-1"]
SEGMENTS = [("fast", 16000, 1), ("default", 16000, 1), ("fast", 44100, 2)]

# Of the calculation, to be replaced by one's own.
HOURS = 1e5
CORES_PER_MACHINE, DOLLARS_PER_CORE_HOUR = 16, 0.02  # interruptible machines of the large clouds
DOLLARS_PER_GB_MONTH, DOLLARS_PER_1000_WRITES = 0.023, 0.005  # object stores of the same


@dataclass(frozen=True)
class Figure:
    """A measured number; `what` names it in the calculation."""

    what: str
    value: float
    unit: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = {"segments": segments, "overhead": overhead, "machines": machines}
    parser.add_argument(
        "--parts", nargs="*", choices=list(parts), default=list(parts), help="default: all"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = {f.what: f for f in (read_rows(TABLE, Figure) if TABLE.exists() else [])}
    for name in arguments.parts:
        for figure in parts[name]():
            print(f"{figure.what}: {figure.value:.4g} {figure.unit}", flush=True)
            figures[figure.what] = figure
    write_rows(TABLE, figures.values(), Figure)
    value = {figure.what: figure.value for figure in figures.values()}
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    told, _, tail = rest.partition(END)
    told = told.strip().partition("\n")[0]
    if arguments.parts:
        stamp = record()
        told = f"Measured on {stamp['machine']}, torch {stamp['torch']}, {stamp['commit']}, "
        told += f"{stamp['date']}; {', '.join(arguments.parts)}."
    tables = (table(value) for table in (segment_table, overhead_table, corpus_table))
    page = "\n\n".join([f"{head}{BEGIN}\n{told}", *tables, f"{END}{tail}"])
    PAGE.write_text(page, encoding="utf-8")


# Measurements


def sound(seconds: float, rate: int, channels: int, seed: int = 0) -> torch.Tensor:
    """Give notes of many harmonics, with rests, in noise."""
    noise = torch.Generator().manual_seed(seed)
    place = torch.arange(round(seconds * rate)) / rate
    pitch = 110 * 2 ** (torch.floor(place * 2) % 12 / 12)
    phase = 2 * torch.pi * torch.cumsum(pitch, 0) / rate
    tone = sum(torch.sin(k * phase) / k for k in range(1, 12)) * (place % 3 < 2)
    return 0.1 * tone + 0.02 * torch.randn(channels, len(place), generator=noise)


def segments() -> Iterator[Figure]:
    """Time, memory and bytes of one segment."""
    for quality, rate, channels in SEGMENTS:
        noisy = sound(120, rate, channels)
        seen = []

        def first(all_segments, progress, seen=seen):  # type: ignore[no-untyped-def]
            segment = next(all_segments)
            seen.append(segment)
            yield from clean_in_turn(iter([segment]), progress)

        steps: list[Progress] = []
        reset_peak()
        began = time.process_time()
        stream = Denoiser(quality=quality).stream(
            lambda a, b, noisy=noisy: noisy[:, a:b], noisy.shape[1], rate, steps.append, each=first
        )
        (block,) = stream
        took = time.process_time() - began
        name = f"{quality}, {rate} Hz, {channels} ch"
        whole = seen[0].noisy
        yield Figure(f"segment ({name}): sound", block.clean.shape[1] / rate, "s")
        yield Figure(f"segment ({name}): processor time", took, "s")
        yield Figure(f"segment ({name}): steps", len(steps), "")
        yield Figure(f"segment ({name}): memory", peak_bytes() / 2**20, "MiB")
        yield Figure(f"segment ({name}): sent each way", whole.nbytes / 1e6, "MB")
        with tempfile.TemporaryDirectory() as folder:
            kept = Kept(Path(folder) / "out.wav")
            began = time.process_time()
            told = [(p.step, p.loss, p.ended) for p in steps]
            kept.put("a", Cleaned(whole), told)
            kept.get("a")
            yield Figure(f"segment ({name}): keeping it", time.process_time() - began, "s")


def write_minutes(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number:03d}.flac"
        layout = AudioFormat("FLAC", "PCM_16", "FILE")
        with AudioWriter(path, RATE, 1, layout) as writer:
            writer.write(sound(60, RATE, 1, number))


def denoised(source: Path, *options: str) -> tuple[float, float]:
    """Run the command; return wall and processor seconds, of all processes of the machine."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        busy, began = busy_s(), time.monotonic()
        status = command(["denoise", str(source), "-o", out, "-q", *options])
        took = time.monotonic() - began, busy_s() - busy
        results = len(list(Path(out).glob("*.flac")))
    if status or results != len(list(source.iterdir())):
        sys.exit(f"the command failed with status {status}, {results} results")
    return took


def busy_s() -> float:
    """Return processor seconds of the whole machine: Ray's processes are not our children."""
    values = [int(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    idle = values[3] + values[4]
    return (sum(values[:8]) - idle) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def cluster(processors: list[int]) -> Iterator[str]:
    """Run Ray nodes with so many processors each, and give the address of the first."""
    from ray.cluster_utils import Cluster

    options = {"include_dashboard": False, "object_store_memory": 200 * 2**20}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": processors[0], **options})
    try:
        for count in processors[1:]:
            nodes.add_node(num_cpus=count, object_store_memory=200 * 2**20)
        nodes.wait_for_nodes()
        yield nodes.address
    finally:
        nodes.shutdown()


def overhead() -> Iterator[Figure]:
    """What the cluster adds to one-minute files, whatever the work at them is.

    So little work is done here that the difference of two runs tells. A few files and more of
    them tell the cost of the start from that of a file.
    """
    added = []
    with tempfile.TemporaryDirectory() as folder:
        for count in FEW, MANY:
            minutes = Path(folder) / str(count)
            write_minutes(minutes, count)
            alone, together = (
                denoised(minutes, *LITTLE_WORK, *where)[1] for where in ([], ["--cluster", "local"])
            )
            yield Figure(f"{count} files, one step, one process: processor time", alone, "s")
            yield Figure(f"{count} files, one step, cluster: processor time", together, "s")
            added.append(together - alone)
    each = (added[1] - added[0]) / (MANY - FEW)
    yield Figure("added by the cluster for each minute: processor time", each, "s")
    yield Figure("added by its start: processor time", added[0] - FEW * each, "s")


def machines() -> Iterator[Figure]:
    """How much sooner two nodes are done than one."""
    with tempfile.TemporaryDirectory() as folder:
        minutes = Path(folder) / "minutes"
        write_minutes(minutes, 2)
        took = []
        for processors in ([1], [1, 1]):
            with cluster(processors) as address:
                took.append(denoised(minutes, "--quality", "fast", "--cluster", address)[0])
                yield Figure(f"2 files, fast, {len(processors)} node(s): wall time", took[-1], "s")
    yield Figure("gain of the second node", took[0] / took[1], "times")


# The page


def segment_table(value: dict[str, float]) -> str:
    lines = []
    for quality, rate, channels in SEGMENTS:
        name = f"segment ({quality}, {rate} Hz, {channels} ch)"
        lines.append([
            f"{quality}, {rate / 1000:g} kHz, {channels} channel{'s' * (channels > 1)}",
            f"{value[f'{name}: sound']:.1f} s", f"{value[f'{name}: processor time']:.1f} s",
            f"{value[f'{name}: memory']:.0f} MiB", f"{value[f'{name}: sent each way']:.2f} MB",
            f"{1000 * value[f'{name}: keeping it']:.0f} ms",
        ])  # fmt: skip
    head = [
        "One segment",
        "sound",
        "processor time",
        "worker's memory",
        "sent each way",
        "keeping it",
    ]
    return markdown(head, lines)


def overhead_table(value: dict[str, float]) -> str:
    if "gain of the second node" not in value:
        return "What the cluster adds, and the gain of a second node: not measured yet."
    # Where it is less than two runs differ by, it may come out below nothing.
    each = max(0.0, value["added by the cluster for each minute: processor time"])
    added = FILES * each + value["added by its start: processor time"]
    lines = []
    for quality in ("fast", "default"):
        name = f"segment ({quality}, 16000 Hz, 1 ch)"
        work = FILES * 60 * value[f"{name}: processor time"] / value[f"{name}: sound"]
        lines.append([
            f"{FILES} files of one minute, {quality}", f"{work:.0f} s", f"{added:.0f} s",
            f"{added / work:.1%}",
        ])  # fmt: skip
    gain = value["gain of the second node"]
    text = markdown(["Overhead", "work", "added, all processes", "share"], lines)
    return f"{text}\n\nTwo nodes with a core each finish {gain:.2f} times as fast as one."


def corpus_table(value: dict[str, float]) -> str:
    """Compute what 10⁵ hours take, from the figures of a segment."""
    lines = []
    added = max(0.0, value.get("added by the cluster for each minute: processor time", 0.0)) / 60
    for quality, rate, channels in SEGMENTS:
        name = f"segment ({quality}, {rate} Hz, {channels} ch)"
        share = {what: value[f"{name}: {what}"] for what in ("sound", "processor time")}
        count = HOURS * 3600 / share["sound"]
        core_s = share["processor time"] / share["sound"]  # for each second of sound
        core_hours = HOURS * (core_s + added)
        for cores in (256, 2048):
            days = core_hours / cores / 24
            per_second = count / (days * 86400)
            mb = value[f"{name}: sent each way"] * per_second
            stored = HOURS * 3600 * rate * channels * 2 / 1e12  # of 16 bits, in and again out
            dollars = core_hours * DOLLARS_PER_CORE_HOUR
            dollars += 2 * stored * 1000 * DOLLARS_PER_GB_MONTH
            dollars += count * DOLLARS_PER_1000_WRITES / 1000
            lines.append([
                f"{quality}, {rate / 1000:g} kHz, {channels} ch", f"{cores}",
                f"{days:.1f}", f"{per_second:.0f}", f"{mb:.0f} MB/s",
                f"{2 * cores * value[f'{name}: sent each way'] / 1000:.1f} GB",
                f"{cores / CORES_PER_MACHINE:.0f} × "
                f"{CORES_PER_MACHINE * value[f'{name}: memory'] / 1024:.0f} GiB",
                f"{2 * stored:.0f} + {count * value[f'{name}: sent each way'] / 1e6:.0f} TB",
                f"{dollars:,.0f} $",
            ])  # fmt: skip
    head = [
        "100,000 hours", "cores", "days", "segments/s", "sent, each way", "under way",
        "machines × memory", "storage: sound + segments", "cost",
    ]  # fmt: skip
    return markdown(head, lines)


if __name__ == "__main__":
    main()
