"""The documentation builds as a site, strictly; the search works offline, nothing is fetched."""

from __future__ import annotations

import importlib.util
import json
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
    denoise = (site / "reference/denoise.html").read_text("utf-8")
    assert 'id="harmonic_lowering.denoise.Denoiser.__call__"' in denoise
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


def open_in_browser(page: Path, query: str, folder: Path) -> tuple[str, set[str]]:
    """Return a page as Chromium shows it, and the hosts that the page asked for something.

    Requests of Chromium itself (for updates, say) belong to no page.
    """
    log = folder / "net.json"
    done = subprocess.run(
        [
            "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000",
            f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--dump-dom",
            f"{page.as_uri()}{query}",
        ],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    events = [event.get("params", {}) for event in json.loads(log.read_text("utf-8"))["events"]]
    urls = [
        str(event["url"])
        for event in events
        if str(event.get("network_isolation_key")).startswith("file://")
    ]
    return done.stdout, {urlsplit(url).hostname or "" for url in urls if url.startswith("http")}


@pytest.mark.browser
def test_the_search_works_from_a_disk_without_a_network(site: Path, tmp_path: Path) -> None:
    shown, hosts = open_in_browser(site / "index.html", "?q=anchor", tmp_path)
    found = re.search(r'class="md-search-result__meta">(\d+) matching documents<', shown)
    assert found is not None
    assert int(found[1]) > 5
    assert hosts == set()
    asks = tmp_path / "asks.html"
    asks.write_text('<script src="https://example.invalid/script.js"></script>')
    assert open_in_browser(asks, "", tmp_path)[1] == {"example.invalid"}
