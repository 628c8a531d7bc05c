"""Which recordings are meant, and what each one's outputs are called."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..audio import FILE_TYPES

__all__ = ["PIPE", "Job", "plan"]

PIPE = Path("-")  # standard input or output
_FOREIGN = ("m4a", "mp4", "aac", "wma", "webm", "mka", "mkv", "amr", "ac3", "m4b")  # by ffmpeg
_FIELDS = ("stem", "suffix", "name", "folder")
_DEFAULT = "{folder}/{stem}-denoised{suffix}"


@dataclass(frozen=True)
class Job:
    """One recording and the files that it gives; `noise` and `picture` where they are wanted."""

    source: Path
    target: Path
    noise: Path | None = None
    picture: Path | None = None

    @property
    def outputs(self) -> list[Path]:
        """Every file that is to be written."""
        return [
            path for path in (self.target, self.noise, self.picture) if path not in (None, PIPE)
        ]


def plan(
    inputs: Sequence[str], output: str | None, noise_out: str | None, *, plot: bool
) -> list[Job]:
    """Name all outputs, and refuse before any work what would lose a file.

    Raises
    ------
    ValueError
        If a name is wrong, or two outputs share a file, or an output is one of the inputs.
    """
    sources = _sources(inputs)
    if len(sources) > 1 and PIPE in sources:
        raise ValueError("- (standard input) cannot be mixed with other inputs")
    if output is None:
        output = "-" if sources == [PIPE] else _DEFAULT
    jobs = []
    for source in sources:
        target = _named("--output", output, source, len(sources))
        noise = None
        if noise_out is not None:
            noise = _named("--noise-out", noise_out, source, len(sources))
            if noise == PIPE:
                raise ValueError("--noise-out cannot be -, only the result goes to a pipe")
        if plot and target == PIPE:
            raise ValueError("--plot draws beside the output, so --output cannot be -")
        jobs.append(Job(source, target, noise, target.with_suffix(".png") if plot else None))
    _refuse_losses(jobs)
    return jobs


def _sources(inputs: Sequence[str]) -> list[Path]:
    """Replace folders by the recordings in them, but for results of earlier runs."""
    sources = []
    for name in inputs:
        if not name:
            raise ValueError("an input's name is empty")
        path = Path(name)
        if name != "-" and path.is_dir():
            found = [
                inside
                for inside in sorted(path.iterdir())
                if inside.suffix.lower().lstrip(".") in (*FILE_TYPES, *_FOREIGN)
                and not inside.stem.endswith("-denoised")
                and not inside.name.startswith(".")
                and inside.is_file()
            ]
            if not found:
                raise ValueError(f"{path}: no sound files in this folder")
            sources += found
        else:
            sources.append(path)
    return sources


def _named(option: str, pattern: str, source: Path, count: int) -> Path:
    """Give the path that `pattern`, a file, folder or template, means for a recording."""
    if pattern == "-":
        if count > 1:
            raise ValueError(f"{option} -: a pipe takes one recording, got {count}")
        return PIPE
    # A type that can be read with ffmpeg's help only cannot be written; WAV holds everything.
    kept = source.suffix.lower().lstrip(".") in FILE_TYPES
    suffix = source.suffix if kept else ".wav"
    stem = "stdin" if source == PIPE else source.stem
    place = Path(pattern)
    if "{" in pattern:
        fields = {"stem": stem, "suffix": suffix, "name": stem + suffix}
        try:
            path = Path(pattern.format(**fields, folder=source.parent))
        except (KeyError, ValueError, IndexError) as error:
            known = ", ".join(f"{{{field}}}" for field in _FIELDS)
            raise ValueError(f"{option} {pattern}: a template may use {known}") from error
    elif place.is_dir():
        path = place / (stem + suffix)
    elif count > 1:
        raise ValueError(
            f"{option} {pattern}: several inputs need an existing folder; make it first "
            f"(mkdir -p {pattern}), or a template, as '{{stem}}-clean{{suffix}}'"
        )
    elif not pattern or pattern.endswith(os.sep) or not place.suffix:
        raise ValueError(
            f"{option} {pattern}: no such folder; make it first (mkdir -p {pattern}), or name a "
            "file with its type, as .wav"
        )
    else:
        path = place
    if not path.parent.is_dir():
        raise ValueError(
            f"{option} {pattern}: there is no folder {path.parent}; make it first "
            f"(mkdir -p {path.parent})"
        )
    if path.suffix.lower().lstrip(".") not in FILE_TYPES:
        raise ValueError(
            f"{option} {path}: cannot write the file type '{path.suffix}'; name it one of "
            f"{', '.join(FILE_TYPES)}"
        )
    return path


def _refuse_losses(jobs: Sequence[Job]) -> None:
    inputs = {os.path.realpath(job.source) for job in jobs}
    taken: dict[str, Job] = {}
    for job in jobs:
        for path in job.outputs:
            real = os.path.realpath(path)
            if real in inputs:
                raise ValueError(f"{path}: the output would replace the input; name another")
            if path.is_dir():
                raise ValueError(f"{path}: is a folder, expected a name for a file")
            if real in taken:
                raise ValueError(
                    f"{path}: would be written for {taken[real].source} and for {job.source}; "
                    "name outputs apart, as with --output '{folder}/{stem}-clean{suffix}'"
                )
            taken[real] = job
