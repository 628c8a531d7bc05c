"""Which recordings are meant, and what each one's outputs are called."""

from __future__ import annotations

import os
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from ..audio import FILE_TYPES, AudioError
from .storage import Address, Place, files_below, forget, is_folder, place, real

__all__ = ["PARTIAL", "PIPE", "Job", "Plan", "plan"]

PIPE = Path("-")  # standard input or output
PARTIAL = ".partial"  # before the suffix of what an interrupted run wrote
_MADE = "-denoised"
_LONGEST_NAME = 255  # bytes, on all common file systems
# Read with the help of ffmpeg, and not written.
_FOREIGN = (
    "3g2", "3gp", "aac", "ac3", "adts", "amr", "ape", "asf", "avi", "dsf", "dts", "eac3", "flv",
    "gsm", "m2ts", "mka", "mkv", "mov", "mp2", "mp4", "mpc", "mpeg", "mpg", "mts", "mxf", "oma",
    "ra", "rm", "shn", "spx", "tak", "ts", "tta", "voc", "webm", "wma", "wmv", "nist", "sph",
    "ircam", "sf", "avr", "iff", "8svx", "pvf", "paf", "sds",
)  # fmt: skip
_FIELDS = ("stem", "suffix", "name", "folder", "ext", "sub")


@dataclass(frozen=True)
class Job:
    """One recording and the files that it gives; `noise` and `picture` where they are wanted."""

    source: Place
    target: Place
    noise: Place | None = None
    picture: Place | None = None
    makes_folder: bool = False  # whether folders of the outputs may be made

    @property
    def outputs(self) -> list[Place]:
        """Every file that is to be written."""
        wanted = (self.target, self.noise, self.picture)
        return [path for path in wanted if path is not None and path != PIPE]

    def partial(self) -> Job:
        """The names of what is written when the work is interrupted: never those of the whole."""
        if self.target == PIPE:
            return self
        named = [_with_partial(path) if path else None for path in (self.noise, self.picture)]
        return replace(self, target=_with_partial(self.target), noise=named[0], picture=named[1])


@dataclass(frozen=True)
class Plan:
    """All jobs, and what cannot be one: a path with the reason."""

    jobs: list[Job] = field(default_factory=list)
    refused: list[tuple[Place, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Source:
    path: Place
    sub: PurePath = Path()  # where it lies below the folder that was given
    found: bool = False  # in a folder, not named


def plan(
    inputs: Sequence[str],
    output: str | None,
    noise_out: str | None = None,
    *,
    plot: bool,
    result: str | None = None,
    sample: Path | None = None,
) -> Plan:
    """Name all outputs, and refuse before any work what would lose a file.

    Outputs are sound files, or all of the suffix `result`; `sample` is read besides the inputs.

    Raises
    ------
    ValueError
        If a name is wrong, or two outputs share a file, or an output is one of the inputs.
    """
    forget()
    sources, refused = _sources(inputs)
    if len(sources) > 1 and any(source.path == PIPE for source in sources):
        raise ValueError("- (standard input) cannot be mixed with other inputs")
    jobs = []
    for source in sources:
        target = _named("--output", output, source, len(sources), result)
        noise = None
        if noise_out is not None:
            noise = _named("--noise-out", noise_out, source, len(sources))
            if noise == PIPE:
                raise ValueError("--noise-out cannot be -, only the result goes to a pipe")
        if plot and target == PIPE:
            raise ValueError("--plot draws beside the output, so --output cannot be -")
        picture = target.with_suffix(".png") if plot else None
        jobs.append(
            Job(source.path, target, noise, picture, source.found or "{sub}" in (output or ""))
        )
    # A folder also holds what an earlier run wrote into it or below it: no inputs.
    made = {real(path) for job in jobs for path in job.outputs}
    kept = [
        job
        for job, source in zip(jobs, sources, strict=True)
        if not (source.found and real(job.source) in made)
    ]
    _refuse_losses(kept, sample)
    return Plan(kept, refused)


def _sources(inputs: Sequence[str]) -> tuple[list[_Source], list[tuple[Place, str]]]:
    """Replace folders by the recordings in and below them, but for results of earlier runs."""
    sources: list[_Source] = []
    refused: list[tuple[Place, str]] = []
    for name in inputs:
        if not name:
            raise ValueError("an input's name is empty")
        path = place(name)
        unreadable: list[OSError] = []
        try:
            if name == "-" or not is_folder(path):
                sources.append(_Source(path))
                continue
            found = list(_below(path, unreadable))
        except AudioError as error:  # other storage
            refused.append((path, str(error).removeprefix(f"{path}: ")))
            continue
        refused += [
            (Path(os.fsdecode(error.filename)), f"may not be read ({error.strerror})")
            for error in unreadable
        ]
        if not found and not unreadable:
            if len(inputs) == 1:
                raise ValueError(f"{path}: no sound files in this folder")
            refused.append((path, "no sound files in this folder"))
        sources += found
    # A file that is meant twice is one; by another name, as a link to it, it has another output.
    once: dict[tuple[str, str], _Source] = {}
    for source in sources:
        once.setdefault((real(source.path), source.path.name), source)
    return list(once.values()), refused


def _below(folder: Place, unreadable: list[OSError]) -> Iterator[_Source]:
    below: Iterator[Place]
    below = _walk(folder, unreadable) if isinstance(folder, Path) else files_below(folder)
    for path in below:
        known = path.suffix.lower().lstrip(".") in (*FILE_TYPES, *_FOREIGN)
        ours = path.stem.endswith((_MADE, PARTIAL))
        if known and not ours:
            yield _Source(path, path.parent.relative_to(folder), found=True)


def _walk(folder: Path, unreadable: list[OSError]) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _named(
    option: str, pattern: str | None, source: _Source, count: int, result: str | None = None
) -> Place:
    """Give the path that `pattern`, a file, folder or template, means for a recording."""
    path = source.path
    # A type that can be read with ffmpeg's help only cannot be written; WAV holds everything.
    extension = path.suffix.lstrip(".")
    kept = extension.lower() in FILE_TYPES
    suffix = result or (path.suffix if kept else ".wav")
    stem = "stdin" if path == PIPE else path.stem
    # So that talk.mp4 and talk.wav, denoised one after the other, do not meet in one name.
    label = stem if kept or not extension or path == PIPE else path.name
    if pattern is None:
        return PIPE if path == PIPE else path.with_name(_fitting(label, (result or _MADE + suffix)))
    if pattern == "-":
        if count > 1:
            raise ValueError(f"{option} -: a pipe takes one recording, got {count}")
        return PIPE
    whole = place(pattern)
    folder = _is_output_folder(pattern, whole)
    if "{" in pattern:
        fields = {
            "stem": stem, "suffix": suffix, "name": stem + suffix, "folder": str(path.parent),
            "ext": extension, "sub": str(source.sub),
        }  # fmt: skip
        named = place(_filled(option, pattern, fields))
    elif folder:
        named = whole / source.sub / _fitting(label, suffix)
    elif count > 1:
        raise ValueError(
            f"{option} {pattern}: several inputs need an existing folder; make it first "
            f"(mkdir -p {pattern}), or a template, as '{{stem}}-clean{{suffix}}'"
        )
    elif not pattern or pattern.endswith(os.sep) or not whole.suffix:
        raise ValueError(
            f"{option} {pattern}: no such folder; make it first (mkdir -p {pattern}), or name a "
            f"file with its type, as {result or '.wav'}"
        )
    else:
        named = whole
    mirrored = folder or "{sub}" in pattern or isinstance(named, Address)
    if not mirrored and not os.path.isdir(named.parent):
        raise ValueError(
            f"{option} {pattern}: there is no folder {named.parent}; make it first "
            f"(mkdir -p {named.parent})"
        )
    types = (result.lstrip("."),) if result else FILE_TYPES
    if named.suffix.lower().lstrip(".") not in types:
        raise ValueError(
            f"{option} {named}: cannot write the file type '{named.suffix}'; name it one of "
            f"{', '.join(types)}"
        )
    if len(os.fsencode(named.name)) > _LONGEST_NAME:
        raise ValueError(
            f"{option} {pattern}: the name for {path.name} is longer than {_LONGEST_NAME} bytes"
        )
    return named


def _is_output_folder(pattern: str, path: Place) -> bool:
    """Whether outputs go into it; in other storage folders need not be made."""
    if isinstance(path, Address):
        return pattern.endswith("/") or path.suffix.lower().lstrip(".") not in FILE_TYPES
    return os.path.isdir(path)


def _filled(option: str, pattern: str, fields: dict[str, str]) -> str:
    """Fill in a template that has names of fields only: no attributes, widths or conversions."""
    known = f"a template may use {', '.join(f'{{{name}}}' for name in _FIELDS)}"
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise ValueError(f"{option} {pattern}: {known} ({error})") from error
    text = ""
    for literal, name, form, conversion in parts:
        text += literal
        if name is not None:
            if name not in fields or form or conversion:
                raise ValueError(f"{option} {pattern}: {known}")
            text += fields[name]
    return text


def _fitting(stem: str, end: str) -> str:
    """Join a name, shortened at the end of its stem if the file system could not hold it."""
    while stem and len(os.fsencode(stem + end)) > _LONGEST_NAME:
        stem = stem[:-1]
    return stem + end


def _with_partial(path: Place) -> Place:
    return path.with_name(_fitting(path.stem, PARTIAL + path.suffix))


def _refuse_losses(jobs: Sequence[Job], sample: Path | None) -> None:
    inputs = {real(job.source): "input" for job in jobs}
    if sample is not None:
        inputs.setdefault(real(sample), "sample of the noise")
    taken: dict[str, Job] = {}
    for job in jobs:
        for path in job.outputs:
            name = real(path)
            if name in inputs:
                raise ValueError(
                    f"{path}: the output would replace the {inputs[name]}; name another"
                )
            if isinstance(path, Path) and os.path.isdir(path):
                raise ValueError(f"{path}: is a folder, expected a name for a file")
            if name in taken:
                raise ValueError(
                    f"{path}: would be written for {taken[name].source} and for {job.source}; "
                    "name outputs apart, as with --output '{folder}/{stem}-{ext}{suffix}'"
                )
            taken[name] = job
