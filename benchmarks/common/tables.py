"""Tables: dataclass rows in CSV files, and Markdown."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from harmonic_lowering.audio import replacing

__all__ = ["markdown", "read_rows", "write_rows"]

Row = TypeVar("Row")


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Read rows of a dataclass whose fields are str, int, float or an optional number.

    A column that an older table lacks takes the field's default.

    Raises
    ------
    ValueError
        If the file is not such a table.
    """
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    required = {field.name for field in fields if field.default is dataclasses.MISSING}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames and (missing := required - set(reader.fieldnames)):
            raise ValueError(f"{path}: not a table of this benchmark (no {sorted(missing)[0]!r})")
        try:
            return [
                kind(**{f.name: _value(record[f.name], f.type) for f in fields if f.name in record})
                for record in reader
            ]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def write_rows(path: Path, rows: Iterable[Any], kind: type[Any]) -> None:
    """Write the whole table beside `path`, then rename it, so that it is never half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        names = [field.name for field in dataclasses.fields(kind)]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _text(value) for name, value in dataclasses.asdict(row).items()})


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def _value(text: str, kind: Any) -> Any:
    if text is None:
        raise ValueError("the line is incomplete")
    if kind == "str":
        return text
    if text == "" and "None" in kind:
        return None
    return float(text) if kind.startswith("float") else int(text)


def _text(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
