"""Docstrings as the site shows them (an extension of Griffe; see mkdocs.yml).

Docstrings are written for `help()`: formulas stand under ``.. math::`` and public names between
single backticks. The site needs ``$$`` for the former, and links for the latter.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

PAGES = Path(__file__).parents[1] / "reference"
_DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)
_MATH = re.compile(r"^( *)\.\. math::[ \n]*((?:.+\n?)+)", re.MULTILINE)
_NAME = re.compile(r"(?<![`\w\[])`([A-Za-z_][\w.]*)`(?!`)")
_SEVERAL = re.compile(r"^(\w+(?:, \w+)+)( : .*)?\n((?:    .*\n?)+)", re.MULTILINE)
_FOOTNOTE = re.compile(r"\[(\d)\]_")
_FOOTNOTE_TEXT = re.compile(r"^\.\. \[(\d)\] ", re.MULTILINE)


def documented() -> dict[str, str]:
    """Return the names that have an entry in the reference, each with its path."""
    text = "\n".join(page.read_text("utf-8") for page in sorted(PAGES.glob("*.md")))
    return {path.rpartition(".")[2]: path for path in _DIRECTIVE.findall(text)}


class Docstrings(griffe.Extension):
    """Rewrite each docstring before it is parsed."""

    def __init__(self) -> None:
        self._links = documented()

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object that was collected."""
        if obj.docstring is not None:
            obj.docstring.value = self._rewritten(obj.docstring.value, obj.name)

    def _rewritten(self, text: str, own_name: str) -> str:
        def link(found: re.Match[str]) -> str:
            name = found[1].rpartition(".")[2]
            path = self._links.get(name) if name != own_name else None
            return f"[`{found[1]}`][{path}]" if path else found[0]

        text = _SEVERAL.sub(_one_by_one, _MATH.sub(_formula, text))
        text = _FOOTNOTE_TEXT.sub(r"\1. ", _FOOTNOTE.sub(r"\\[\1\\]", text))
        return _NAME.sub(link, text)


def _one_by_one(found: re.Match[str]) -> str:
    """Describe parameters apart that share a line: each has a default of its own."""
    names, type_, text = found[1].split(", "), found[2] or "", found[3].rstrip("\n")
    return "".join(f"{name}{type_}\n{text}\n" for name in names)


def _formula(found: re.Match[str]) -> str:
    lines = " ".join(line.strip() for line in found[2].splitlines())
    for sign, command in (("−", "-"), ("²", "^2"), ("‖", r"\|")):
        lines = lines.replace(sign, command)
    # Side by side they would not fit on a page.
    formulas = [part.strip().rstrip(",") for part in lines.split(r"\qquad")]
    return "\n\n".join(f"{found[1]}$$ {formula} $$" for formula in formulas) + "\n"
