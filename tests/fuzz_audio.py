"""Damaged files: read as far as they decode or refused in one sentence, never anything else.

`make fuzz` runs this: `python tests/fuzz_audio.py --count 10000`. Files of every kind, made by real
encoders, are damaged at random (bytes, sizes in headers, cuts, stretches that are doubled, removed
or exchanged between files) and read and copied in a child process under a memory limit. Whatever is
no AudioError is a finding: another exception, a crash, a child that stands still, a changed input,
something left beside the output. The file that did it is kept.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 1 << 30  # bytes of memory beyond what the libraries take
STILL_S = 180
INTERESTING = [
    0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
]  # fmt: skip
TITLE = ["-metadata", "title=x"]
KINDS = {
    "a.wav": [], "f.wav": ["-c:a", "pcm_f32le"], "ms.wav": ["-c:a", "adpcm_ms"],
    "gsm.wav": ["-ac", "1", "-ar", "8000", "-c:a", "gsm_ms"],
    "b.wav": ["-write_bext", "1", *TITLE, "-metadata", "time_reference=5"], "a.w64": [],
    "a.aiff": ["-write_id3v2", "1", *TITLE], "a.au": [], "a.caf": [], "a.flac": TITLE,
    "a.mp3": TITLE, "v.mp3": ["-q:a", "5"], "a.ogg": ["-c:a", "libvorbis", *TITLE],
    "a.opus": ["-c:a", "libopus"], "a.m4a": ["-c:a", "aac", *TITLE], "l.m4a": ["-c:a", "alac"],
    "a.wma": ["-c:a", "wmav2"], "a.webm": ["-c:a", "libopus"], "a.wv": [], "a.aac": [],
}  # fmt: skip


def make(folder: Path) -> list[Path]:
    """Files of every kind; without ffmpeg those that libsndfile writes."""
    import numpy as np
    import soundfile

    source = folder / "source.wav"
    soundfile.write(source, np.random.default_rng(0).normal(0, 0.1, (3000, 2)), 16000)
    if shutil.which("ffmpeg"):
        for name, options in KINDS.items():
            subprocess.run(
                ["ffmpeg", "-nostdin", "-v", "error", "-i", source, *options, folder / name],
                check=True,
            )
        return [folder / name for name in KINDS]
    made = [
        folder / name for name in ("a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff", "a.caf", "a.w64")
    ]
    for path in made:
        soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, (3000, 2)), 16000)
    return made


def damage(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Change a file in up to six places."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        size = len(changed) or 1
        # Headers are where most goes wrong.
        at = rng.randrange(min(size, 200)) if rng.random() < 0.6 else rng.randrange(size)
        way = rng.randrange(7)
        if way == 0:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif way == 1:
            number = rng.choice(INTERESTING)
            order = rng.choice("<>")
            changed[at : at + 4] = struct.pack(order + "I", number)
        elif way == 2:
            del changed[at:]
        elif way == 3:
            del changed[at : at + rng.randrange(1, 64)]
        elif way == 4:
            changed[at:at] = changed[at : at + rng.randrange(1, 400)]
        elif way == 5:
            start = rng.randrange(len(other))
            changed[at : at + 64] = other[start : start + rng.randrange(1, 64)]
        else:
            changed[at : at + 8] = struct.pack(
                "<Q", rng.choice([2**63 - 1, 2**64 - 1, 2**40, 2**31])
            )
    return bytes(changed)


def child(folder: Path, first: int, last: int, seed: int) -> None:
    """Read and copy damaged files; say each number before and after."""
    import torch

    from harmonic_lowering.audio import AudioError, AudioReader, AudioWriter

    torch.set_num_threads(1)
    files = sorted(path for path in (folder / "made").iterdir() if path.name != "source.wav")
    contents = [path.read_bytes() for path in files]
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, used + LIMIT))
    place = folder / "work"
    for number in range(first, last):
        rng = random.Random(f"{seed} {number}")
        which = rng.randrange(len(files))
        data = damage(contents[which], rng.choice(contents), rng)
        path = place / f"in{files[which].suffix}"
        path.write_bytes(data)
        print(number, path.name, flush=True)
        target = place / f"out{rng.choice(('.wav', '.flac', '.mp3', '.ogg', files[which].suffix))}"
        if target.suffix in (".wma", ".webm", ".aac"):
            target = target.with_suffix(".wav")
        finding, what = "", "refused"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with AudioReader(path) as reader:
                    length = min(reader.length, 200_000)
                    block = reader.read(0, length)
                    assert block.shape == (reader.channels, length)
                    layout = reader.sample_rate, reader.channels, reader.format
                    with AudioWriter(target, *layout, metadata=reader.metadata) as writer:
                        writer.write(block)
                what = "read"
        except AudioError as error:
            if "\n" in str(error) or not str(error).startswith(str(place)):
                finding = f"no sentence: {error}"
        except MemoryError:
            finding = "out of memory"
        except BaseException:
            finding = traceback.format_exc()
        left = {item.name for item in place.iterdir()} - {path.name, target.name}
        if path.read_bytes() != data:
            finding = "the input was changed"
        if left:
            finding = f"left behind: {left}"
        for item in place.iterdir():
            item.unlink()
        if finding:
            (folder / "found").mkdir(exist_ok=True)
            (folder / "found" / f"{number}{path.suffix}").write_bytes(data)
            line = " / ".join(finding.split("\n")[-4:])
            print(f"FOUND {number} {path.suffix} -> {target.suffix}: {line}", flush=True)
        print("done", number, what, flush=True)


def fuzz(count: int, seed: int, folder: Path) -> list[str]:
    """Run children until all files are through; give the findings."""
    for name in ("made", "work"):
        (folder / name).mkdir()
    make(folder / "made")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    findings, next_one, read = [], 0, 0
    while next_one < count:
        process = subprocess.Popen(
            [sys.executable, __file__, "--child", folder, str(next_one), str(count), str(seed)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True,
        )  # fmt: skip
        finding, name = [], "?"
        assert process.stdout is not None
        while True:
            if not select.select([process.stdout], [], [], STILL_S)[0]:
                process.kill()
                finding.append(f"{next_one} {name}: stood still for {STILL_S} s")
                break
            line = process.stdout.readline()
            if not line:
                break
            word = line.split()
            if word[0] == "done":
                next_one = int(word[1]) + 1
                read += word[2] == "read"
                if next_one % 500 == 0:
                    print(
                        f"{next_one} of {count}: {read} read, {len(findings)} findings", flush=True
                    )
            elif word[0] == "FOUND":
                findings.append(line)
                print(line, end="", flush=True)
            else:
                name = word[1]
        process.wait()
        process.stdout.close()
        if next_one < count:
            finding = finding or [f"{next_one} {name}: the child ended ({process.returncode})"]
            findings += finding
            print(*finding, sep="\n", flush=True)
            (folder / "found").mkdir(exist_ok=True)
            for item in (folder / "work").iterdir():
                item.rename(folder / "found" / f"{next_one}-{item.name}")
            next_one += 1
    print(f"{count} damaged files: {read} read, {count - read} refused, {len(findings)} findings")
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--child", nargs=4, metavar="X", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, first, last, seed = arguments.child
        child(Path(folder), int(first), int(last), int(seed))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        findings = fuzz(arguments.count, arguments.seed, Path(folder))
        if findings and (Path(folder) / "found").exists():
            shutil.copytree(Path(folder) / "found", arguments.keep, dirs_exist_ok=True)
            print(f"the files are in {arguments.keep}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
