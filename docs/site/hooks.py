"""What turns the repository's Markdown into a site (hooks of MkDocs; see mkdocs.yml).

The pages are plain Markdown that reads well on a code host, where a relative link may lead anywhere
in the repository. On the site, files outside of docs/ that a page links to stand under repository/.
"""

from __future__ import annotations

import html
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OUTSIDE = "repository/"
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_CODE = re.compile(r"^(```+).*?^\1$|``.+?``|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_HELP = re.compile(r"^<!-- help: (\S+) -->$", re.MULTILINE)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside of docs/ that pages link to, and what those link to in turn."""
    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    for entry in _outside_of_docs(config.nav):
        files.append(_file(_named(entry), config))
        pages.append(_named(entry))
    seen = set(pages)
    while pages:
        page = pages.pop()
        for _, target, _ in _LINK.findall(_CODE.sub("", (ROOT / page).read_text("utf-8"))):
            path = _repository_path(page, target)
            if path is None or path in seen or path.startswith("docs/"):
                continue
            seen.add(path)
            files.append(_file(path, config))
            if path.endswith(".md"):
                pages.append(path)
    return files


def _outside_of_docs(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav] if nav.startswith(OUTSIDE) else []
    entries = nav.values() if isinstance(nav, dict) else nav
    return [path for entry in entries for path in _outside_of_docs(entry)]


def _named(src_uri: str) -> str:
    """Return the path in the repository of a file of the site."""
    return src_uri.removeprefix(OUTSIDE) if src_uri.startswith(OUTSIDE) else f"docs/{src_uri}"


def _src_uri(path: str) -> str:
    """Return what the site calls a file of the repository."""
    return path.removeprefix("docs/") if path.startswith("docs/") else OUTSIDE + path


def _file(path: str, config: Any) -> File:
    return File.generated(config, _src_uri(path), abs_src_path=str(ROOT / path))


def _repository_path(page: str, target: str) -> str | None:
    """Return the file of the repository that a link of a page leads to, if it leads to one."""
    if "://" in target or target.startswith("mailto:"):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    if (ROOT / path).is_dir():
        path = posixpath.join(path, "README.md")
    return path if (ROOT / path).is_file() else None


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links at the places that files of the repository have on the site."""
    src_uri = page.file.src_uri
    source = _named(src_uri)
    markdown = _HELP.sub(lambda found: _help(found[1]), markdown)

    def rewritten(link: re.Match[str]) -> str:
        path = _repository_path(source, link[2])
        if path is None:
            return link[0]
        return f"{link[1]}{os.path.relpath(_src_uri(path), posixpath.dirname(src_uri))}{link[3]}"

    return _outside_code(markdown, lambda text: _LINK.sub(rewritten, text))


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Change what is neither in a fenced block nor between backticks.

    Links whose text is code keep their brackets outside of it, so they are changed as well.
    """
    pieces, end = [], 0
    for code in _CODE.finditer(markdown):
        pieces += [change(markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, change(markdown[end:])])


def _help(subcommand: str) -> str:
    """Return what a subcommand prints with --help, as a block of text."""
    run = "import sys; from harmonic_lowering.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", run, subcommand, "--help"],
        cwd=ROOT / "src", env={**os.environ, "COLUMNS": "92"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    text = done.stdout.replace("usage: -c ", "usage: harmonic-lowering ")
    return f"```text\n{text}```"


def on_page_content(content: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers draw without a script."""

    def drawn(formula: re.Match[str]) -> str:
        display = "block" if formula[1] == "div" else "inline"
        return convert(html.unescape(formula[2]), display=display)

    return _FORMULA.sub(drawn, content)
