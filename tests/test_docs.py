"""What the documentation says is true: its code runs, its commands, links and versions exist.

The Python blocks of a page run one after another, as a reader would run them in the root of a
checkout. A block of text right behind one is what it prints.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("research/*.md")])


# Pages that take more than about five seconds.
SLOW = {"docs/start.md", "docs/tutorials/export.md"}
NEEDED = {
    "docs/tutorials/export.md": ["onnxscript", "onnxruntime"],
    "docs/tutorials/frequency-axes.md": ["librosa", "matplotlib"],
}
# What is copied from these has taps that are good for something, so no layer hints at others.
COPIED = {
    "README.md",
    "docs/engines.md",
    "docs/recipes.md",
    "docs/start.md",
    "docs/tutorials/training.md",
}
UNDOCUMENTED = {"FILE_TYPES"}  # a tuple; docs/formats.md has what is in it


class Block(NamedTuple):
    page: Path
    line: int
    code: str
    printed: str | None


def blocks(page: Path, language: str) -> list[Block]:
    """Return the fenced blocks of a page: number of the first line, code, what it prints."""
    text = page.read_text(encoding="utf-8")
    fence = re.compile(
        rf"^( *)```{language}\n(.*?)^ *```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL
    )
    return [
        Block(page, text.count("\n", 0, found.start(2)), textwrap.dedent(found[2]), found[3])
        for found in fence.finditer(text)
    ]


def pages_with_code() -> list[object]:
    """Return the path of every page that has Python blocks."""
    names = [str(page.relative_to(ROOT)) for page in PAGES if blocks(page, "python")]
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(name, marks=marks[name in SLOW]) for name in names]


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


@pytest.mark.parametrize("page", pages_with_code())
def test_code_of_pages_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if page in COPIED:
        request.getfixturevalue("unhinted")
    for module in NEEDED.get(page, ()):
        pytest.importorskip(module)
    (tmp_path / "examples").symlink_to(ROOT / "examples", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    for block in blocks(ROOT / page, "python"):
        printed = io.StringIO()
        # Blank lines in front, so that a traceback names the line of the page.
        code = compile("\n" * block.line + block.code, str(block.page), "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        if block.printed is not None:
            lines = [line.rstrip() for line in printed.getvalue().splitlines()]
            assert lines == block.printed.splitlines(), f"{page}:{block.line}"


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


def test_the_reference_has_every_public_name() -> None:
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    documented = set(re.findall(r"^::: (\S+)$", pages, re.M))
    packages = [
        "",
        ".audio",
        ".denoise",
        ".metrics",
        ".plotting",
        ".replace",
        ".spectral",
        ".transcribe",
    ]
    for name in [*(f"harmonic_lowering{package}" for package in packages), "harmonic_conv"]:
        public = importlib.import_module(name).__all__
        assert {entry.rpartition(".")[2] for entry in documented} >= set(public) - UNDOCUMENTED
    for entry in documented:
        module, _, name = entry.rpartition(".")
        assert hasattr(importlib.import_module(module), name), f"there is no {entry}"


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
