"""Serving the page: to this machine only, out of a private folder that is deleted afterwards."""

from __future__ import annotations

import errno
import functools
import os
import socket
import sys
import tempfile
import threading
import warnings
import webbrowser
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import resources
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..optional import import_optional
from .page import build
from .recordings import Limits, Visitors, workers

__all__ = ["Limits", "PageError", "serve"]

_INSTALL = "harmonic-lowering[web]"
_ENVIRONMENT = {
    # gradio says nothing to its makers, remembers no runs and offers no other doors.
    "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SSR_MODE": "False", "GRADIO_MCP_SERVER": "False",
    "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    # Threads that spin while they wait would take the time of the server.
    "OMP_WAIT_POLICY": "passive",
}  # fmt: skip
# What the page asks for. gradio has more: it would fetch addresses, for one.
_PAGES = ("/", "/config", "/theme.css", "/manifest.json", "/favicon.ico")
_FILES = ("/assets/", "/static/", "/svelte/")
_CALLS = (
    "startup-events", "upload", "upload_progress", "queue/join", "queue/data",
    "cancel", "reset", "info", "theme.css",
)  # fmt: skip
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; media-src 'self' blob:; worker-src 'self' blob:; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
_HEADERS = {
    "content-security-policy": _POLICY, "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer", "cross-origin-resource-policy": "same-origin",
}  # fmt: skip

_Scope = MutableMapping[str, Any]
_Send = Callable[[_Scope], Awaitable[None]]


class PageError(Exception):
    """The page cannot be served; the text is one sentence a user can act on."""


def serve(
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    limits: Limits | None = None,
    browser: bool = True,
    say: Callable[[str], object] | None = None,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Parameters
    ----------
    host : str
        Address of this machine to listen on; "0.0.0.0" lets other machines in.
    port : int in [0, 65535]
        0 takes any that is free.
    limits : Limits, optional
    browser : bool
        Whether to open the page.
    say : callable, optional
        Is told the address, and what should be known about it. By default it is printed.

    Raises
    ------
    PageError
        If the address cannot be listened on.
    ImportError
        If gradio is not installed.
    """
    say = say or functools.partial(print, flush=True)
    with (
        _listening(host, port) as listening,
        tempfile.TemporaryDirectory(
            prefix="harmonic-lowering-web-", ignore_cleanup_errors=True
        ) as name,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # what a visitor should know is on the page
        folder = Path(name).resolve()
        os.environ.update(_ENVIRONMENT, GRADIO_TEMP_DIR=str(folder / "uploads"))
        gradio, uvicorn, fastapi = (
            import_optional(name, "the page", _INSTALL) for name in ("gradio", "uvicorn", "fastapi")
        )
        import_optional("matplotlib.figure", "drawing pictures", _INSTALL)
        _warm_up()
        url, local = _address(host, listening)

        class Server(uvicorn.Server):  # type: ignore[misc, name-defined]
            async def startup(self, sockets: Any = None) -> None:
                await super().startup(sockets)
                say(f"the page is at {url}")
                if not local:
                    say(
                        "note: other machines can reach it, without a password or encryption; "
                        "their browsers allow no microphone without https"
                    )
                if browser and _has_browser():
                    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

        sessions = folder / "sessions"
        sessions.mkdir(0o700)
        visitors = Visitors(sessions)
        app = _application(gradio, fastapi, visitors, limits or Limits(), sessions)
        hosts = {"localhost", "127.0.0.1", "::1", host.lower()} if local else None
        config = uvicorn.Config(
            _Guard(app, folder, hosts), log_level="warning", timeout_graceful_shutdown=1
        )
        try:
            Server(config).run(sockets=[listening])
        finally:
            visitors.end_all()


def _address(host: str, listening: socket.socket) -> tuple[str, bool]:
    """Return the address to open on this machine, and whether others cannot reach it."""
    place, port = listening.getsockname()[:2]
    local = ip_address(place).is_loopback
    shown = host if local else {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(place, place)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}", local


def _application(
    gradio: Any, fastapi: Any, visitors: Visitors, limits: Limits, sessions: Path
) -> Any:
    here = resources.files(__package__)
    script = here.joinpath("page.js").read_text("utf-8")
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return gradio.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        build(gradio, visitors, limits),
        path="/",
        footer_links=[],
        allowed_paths=[str(sessions)],
        max_file_size=round(1e6 * limits.size_mb),
        theme=gradio.themes.Default(primary_hue="teal", **fonts),
        css=here.joinpath("page.css").read_text("utf-8"),
        head=f"<script>{script}</script>",
    )


def _listening(host: str, port: int) -> socket.socket:
    """Listen, so that a port that is taken is told at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise PageError(f"--host {host}: no such address") from error
    listening = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two programs share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        why = {
            errno.EADDRINUSE: f"port {port} is taken; choose another with --port, or any free one "
            "with --port 0",
            errno.EACCES: f"port {port} needs rights that you do not have; choose one above 1023 "
            "with --port",
            errno.EADDRNOTAVAIL: f"--host {host}: is no address of this machine",
        }
        known = why.get(error.errno or 0, f"cannot listen on {host}: {error.strerror or error}")
        raise PageError(known) from error
    return listening


def _has_browser() -> bool:
    """Whether one with windows can be opened; one in the terminal would take it over."""
    if sys.platform in ("win32", "darwin") or os.environ.get("BROWSER"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _warm_up() -> None:
    """Import what workers need before the first one is asked for."""
    context = workers()
    if context is not None:
        from multiprocessing import forkserver

        forkserver.ensure_running()


class _Guard:
    """Lets in what the page itself asks for, and lets the browser load nothing from elsewhere.

    A page of another site could otherwise send requests to this one (its origin gives it away), or
    read it under a name of its own that points here (its host does).
    """

    def __init__(self, app: Any, folder: Path, hosts: set[str] | None) -> None:
        self._app, self._folder, self._hosts = app, folder, hosts

    async def __call__(self, scope: _Scope, receive: Any, send: _Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http" or not self._allows(scope):
            await _refuse(scope, send)
            return

        async def send_guarded(message: _Scope) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        await self._app(scope, receive, send_guarded)

    def _allows(self, scope: _Scope) -> bool:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        try:
            if self._hosts is not None and urlsplit(f"//{host}").hostname not in self._hosts:
                return False
            if origin is not None and urlsplit(origin).netloc != host:
                return False
        except ValueError:
            return False
        path = scope["path"]
        if path.startswith("/gradio_api/"):
            return self._allows_call(path.removeprefix("/gradio_api/"))
        return path in _PAGES or path.startswith(_FILES)

    def _allows_call(self, call: str) -> bool:
        if call.startswith("file="):
            place = Path(os.path.realpath(call.removeprefix("file=")))
            return ".." not in call and place.is_relative_to(self._folder)
        return call.startswith("heartbeat/") or call in _CALLS


async def _refuse(scope: _Scope, send: _Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": b"this page does not serve that"})
