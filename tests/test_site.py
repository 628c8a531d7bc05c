"""The documentation builds as a site, strictly. Its search works offline, and it fetches nothing."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import harmonic_lowering

ROOT = Path(__file__).parents[1]
NEEDED = ("mkdocs", "material", "mkdocstrings_handlers", "latex2mathml")
# What Chromium asks its maker about itself, whatever the page.
CHROMIUMS_OWN = re.compile(r"(accounts|clients\d?|www)\.google\.com|update\.googleapis\.com")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(module) is None for module in NEEDED),
        reason="building the site needs pip install 'harmonic-lowering[docs]'",
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_the_reference_shows_docstrings(site: Path) -> None:
    pages = [page.read_text("utf-8") for page in (site / "reference").glob("*.html")]
    for name in harmonic_lowering.__all__:
        assert any(f'id="harmonic_lowering.{name}"' in page for page in pages), name
    layers = (site / "reference/layers.html").read_text("utf-8")
    assert "<math" in layers
    assert 'href="taps.html#harmonic_lowering.origin_after_pooling"' in layers
    command = (site / "reference/command.html").read_text("utf-8")
    assert "--skip-existing" in command
    for page in pages:
        assert "arithmatex" not in page
        assert ".. math::" not in page


def test_pages_name_no_file_on_another_host(site: Path) -> None:
    loads = re.compile(r"<(?:script|link|img|iframe|source|audio)\b[^>]*?(?:src|href)=[\"']?(\S+)")
    fetched = {
        target
        for page in site.rglob("*.html")
        for target in loads.findall(page.read_text("utf-8"))
        if "//" in target
    }
    assert fetched == set()


@pytest.mark.browser
def test_the_search_works_from_a_disk_without_a_network(site: Path, tmp_path: Path) -> None:
    log = tmp_path / "net.json"
    done = subprocess.run(
        [
            "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update",
            "--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'profile'}",
            f"--log-net-log={log}", "--dump-dom", f"{(site / 'index.html').as_uri()}?q=anchor",
        ],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    found = re.search(r'class="md-search-result__meta">(\d+) matching documents<', done.stdout)
    assert found is not None, done.stderr
    assert int(found[1]) > 5
    urls = re.findall(r'"url":"(https?://[^"]+)"', log.read_text("utf-8"))
    hosts = {urlsplit(url).hostname or "" for url in urls}
    assert {host for host in hosts if not CHROMIUMS_OWN.fullmatch(host)} == set()
