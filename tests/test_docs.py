"""What the documentation says is true: its code runs, its commands, links and versions exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("research/*.md")])


class Block(NamedTuple):
    page: Path
    line: int
    code: str


def blocks(page: Path, language: str) -> list[Block]:
    """Return the fenced blocks of a page, each with the number of its first line."""
    text = page.read_text(encoding="utf-8")
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [
        Block(page, text.count("\n", 0, match.start(1)), match[1]) for match in fence.finditer(text)
    ]


def commands() -> list[str]:
    """Return every command line of the shell blocks, without comments and repetitions."""
    lines = (
        shlex.join(words)
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.code.replace("\\\n", " ").splitlines()
        if (words := shlex.split(line, comments=True))
    )
    return list(dict.fromkeys(lines))


@cache
def help_of(*subcommand: str) -> str:
    run = "import sys; from harmonic_lowering.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", run, *subcommand, "--help"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / "src",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", ["README.md", "docs/engines.md"])
def test_code_of_pages_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(ROOT / page, "python")
    assert found
    namespace: dict[str, object] = {"__name__": "page"}
    for block in found:
        # Blank lines in front, so that a traceback names the line of the page.
        exec(compile("\n" * block.line + block.code, str(block.page), "exec"), namespace)


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make ")])
def test_make_target_exists(command: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    asked = [word for word in shlex.split(command)[1:] if "=" not in word]
    assert asked
    assert set(asked) <= set(targets)


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("harmonic-lowering ")])
@pytest.mark.slow
def test_flags_of_the_command_exist(command: str) -> None:
    words = shlex.split(command)[1:]
    assert re.search(rf"\b{words[0]}\b", help_of())
    for flag in (word.partition("=")[0] for word in words if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", help_of(words[0])), f"no {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path = target.partition("#")[0]
        if path and "://" not in path:
            assert (page.parent / path).exists(), f"{target} in {page.name} leads nowhere"


def test_version_is_the_same_everywhere() -> None:
    version = re.search(
        r'^__version__ = "(.+)"$',
        (ROOT / "src/harmonic_lowering/__init__.py").read_text(encoding="utf-8"),
        re.M,
    )
    assert version
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version[1]}\n" in citation
    assert f"\n## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
