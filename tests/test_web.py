"""`harmonic-lowering web` as it is used: over HTTP, and in a browser that has no network."""

from __future__ import annotations

import html
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[web]'")
sf = pytest.importorskip("soundfile")
mutagen = pytest.importorskip("mutagen")

import torch  # noqa: E402

from harmonic_lowering.audio import AudioError  # noqa: E402
from harmonic_lowering.cli import main  # noqa: E402
from harmonic_lowering.web import Limits  # noqa: E402
from harmonic_lowering.web.recordings import Line  # noqa: E402

ROOT = Path(__file__).parent.parent
SPEECH = ROOT / "examples" / "amiable.wav"
PATIENCE_S = 120.0  # for what must come; nothing is measured
# Writes down where the page connects to, and which names it looks up.
WATCH = """
import os, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        with open(os.environ["CONNECTIONS"], "a") as file:
            print(event, repr(arguments[0 if "get" in event else -1]), file=file)
sys.addaudithook(watch)
"""


def until(condition):
    """Wait for something that must happen, and give it."""
    ends = time.monotonic() + PATIENCE_S
    while not (result := condition()):
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.05)
    return result


def environment(*folders):
    paths = [*map(str, folders), str(ROOT / "src")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def command(*words, env):
    return subprocess.run(
        [sys.executable, "-m", "harmonic_lowering", *map(str, words)],
        env=env, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip


class Page:
    """The command at work, in a temporary folder where it can be watched."""

    def __init__(self, folder, *words):
        self.temporary = folder / "t"  # short: a socket's path has at most 107 letters
        self.connections = folder / "connections"
        self.temporary.mkdir()
        (folder / "watch").mkdir()
        (folder / "watch" / "sitecustomize.py").write_text(WATCH)
        env = environment(folder / "watch")
        env |= {"TMPDIR": str(self.temporary), "CONNECTIONS": str(self.connections)}
        self.stderr = folder / "stderr"
        with self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "harmonic_lowering", "web", "--port", "0", "--no-browser",
                 *words],
                env=env, stdout=subprocess.PIPE, stderr=stderr, text=True,
            )  # fmt: skip
        line = self.process.stdout.readline()
        assert line.startswith("the page is at http://127.0.0.1:"), self.stderr.read_text()
        self.url = line.split()[-1]

    @property
    def folder(self):
        (folder,) = self.temporary.glob("harmonic-lowering-web-*")
        return folder

    def files(self):
        """What holds anything; gradio leaves an empty file for each upload."""
        files = []
        for path in self.folder.rglob("*"):
            with suppress(FileNotFoundError):  # it is deleted while this looks
                if path.is_file() and path.stat().st_size:
                    files.append(path)
        return files

    def workers(self):
        """Processes that denoise: children of the process that workers are forked from."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                ours = str(self.connections).encode() in path.read_bytes()
                command = (path.parent / "cmdline").read_bytes()
                parent = int((path.parent / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            if ours and b"forkserver" in command:
                found.append((int(path.parent.name), parent))
        pids = {pid for pid, _ in found}
        return [pid for pid, parent in found if parent in pids]

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def get(self, path, **headers):
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


@contextmanager
def served(folder, *words):
    page = Page(folder, *words)
    try:
        yield page
    finally:
        if page.process.poll() is None:
            page.end()
        page.process.stdout.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with served(
        tmp_path_factory.mktemp("page"), "--max-size", "2", "--max-length", "0.2", "--waiting", "1"
    ) as page:
        yield page


class Visitor:
    """What the page's script does, without a browser."""

    def __init__(self, page):
        self.page, self.key = page, secrets.token_hex(6)
        config = json.loads(page.get("/config")[1])
        self.functions = {d["api_name"]: d for d in config["dependencies"]}
        self.components = {c["id"]: c for c in config["components"]}
        self.choices = {}

    def upload(self, *paths):
        """Send files; give the status, and what the page calls them."""
        boundary = secrets.token_hex(8)
        body = b""
        for path in paths:
            head = f'Content-Disposition: form-data; name="files"; filename="{path.name}"'
            body += f"--{boundary}\r\n{head}\r\n\r\n".encode() + path.read_bytes() + b"\r\n"
        request = urllib.request.Request(
            f"{self.page.url}/gradio_api/upload", body + f"--{boundary}--\r\n".encode(),
            {"Content-Type": f"multipart/form-data; boundary={boundary}"},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def begin(self, name, *data):
        function = self.functions[name]
        data = list(data)
        for number in function["inputs"][len(data) :]:  # as the page sets them
            properties = self.components[number]["props"]
            data.append(self.choices.get(properties["label"], properties.get("value")))
        body = {"data": data, "fn_index": function["id"], "session_hash": self.key}
        request = urllib.request.Request(
            f"{self.page.url}/gradio_api/queue/join", json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return json.load(answer)["event_id"]

    def messages(self):
        url = f"{self.page.url}/gradio_api/queue/data?session_hash={self.key}"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as stream:
            for line in stream:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    def call(self, name, *data):
        """Give all that the page showed until it was done, as one text."""
        self.begin(name, *data)
        texts = []
        for message in self.messages():
            texts.append(json.dumps(message.get("output"), ensure_ascii=False))
            if message["msg"] == "process_completed":
                assert message["success"], message
                return html.unescape("\n".join(texts).replace('\\"', '"').replace("\\\\", "\\"))
        raise AssertionError("the page broke off")

    def add(self, *paths):
        status, names = self.upload(*paths)
        assert status == 200, names
        files = [{"path": name, "meta": {"_type": "gradio.FileData"}} for name in names]
        return self.call("add", files, None, None)

    def download(self, shown, suffix):
        (address,) = set(re.findall(rf'gradio_api/file=[^"?]*{re.escape(suffix)}', shown))
        status, content = self.page.get(f"/{address}")
        assert status == 200
        return content


@pytest.fixture
def visitor(page):
    return Visitor(page)


@pytest.fixture(scope="session")
def noisy(tmp_path_factory):
    """Give a second and a half of speech in noise, with a title."""
    path = tmp_path_factory.mktemp("noisy") / "Grüße & co.flac"
    speech, rate = sf.read(SPEECH, dtype="float32")
    noise = torch.randn(len(speech), generator=torch.Generator().manual_seed(1))
    sf.write(path, (speech + 0.03 * noise.numpy())[: int(1.5 * rate)], rate, subtype="PCM_16")
    tagged = mutagen.File(path)
    tagged["title"] = "Ein Titel"
    tagged.save()
    return path


# The command


def test_without_gradio(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ImportError('not here')")
    done = command("web", "--port", "0", "--no-browser", env=environment(tmp_path))
    assert done.returncode == 1
    assert done.stderr == (
        "harmonic-lowering: the page needs gradio: pip install 'harmonic-lowering[web]'\n"
    )


def test_port_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["web", "--no-browser", "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"harmonic-lowering: port {port} is taken; choose another")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--port", "65536"), 2, "must be a number in 0 … 65535"),
        (("--port", "-1"), 2, "must be a number in 0 … 65535"),
        (("--jobs", "0"), 2, "must be a whole number in 1 … 999"),
        (("--max-size", "nan"), 2, "must be a positive number"),
        (("--max-length", "-3"), 2, "must be a positive number"),
        (("--host", "no such name"), 1, "no such address"),
        (("--host", "192.0.2.1"), 1, "is no address of this machine"),
    ],
)
def test_wrong_usage(words, status, said, capsys):
    try:
        ended = main(["web", "--no-browser", *words])
    except SystemExit as end:
        ended = end.code
    assert ended == status
    assert said in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_ends_amid_work(number, status, tmp_path, noisy):
    with served(tmp_path) as page:
        visitor = Visitor(page)
        visitor.add(noisy)
        visitor.choices["Quality"] = "best"
        visitor.begin("denoise", None, None)
        workers = until(page.workers)
        assert page.end(number) == status
        assert not [path for path in page.temporary.rglob("*") if path.is_file()]
        assert not list(page.temporary.glob("harmonic-lowering-*"))
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
        assert "Traceback" not in page.stderr.read_text()


# What it does, over HTTP


def test_gives_what_the_command_gives(visitor, noisy, tmp_path):
    visitor.choices |= {"Quality": "fast", "Strength": 0.9}
    assert "1.5 s, 16 kHz, 1 channel" in visitor.add(noisy)
    shown = visitor.call("denoise", 0.0, 0.4)
    assert "noise -" in shown
    assert '"After"' in shown
    wanted, removed = tmp_path / "wanted.flac", tmp_path / "removed.flac"
    done = command(
        "denoise", noisy, "-o", wanted, "--noise-out", removed, "--quality", "fast",
        "--strength", "0.9", "--noise-from", "0-0.4", env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name = urllib.parse.quote(noisy.stem)
    result = visitor.download(shown, f"{name}-denoised.flac")
    assert result == wanted.read_bytes()
    assert visitor.download(shown, f"removed/{name}.flac") == removed.read_bytes()
    assert visitor.download(shown, f"{name}-denoised.png").startswith(b"\x89PNG")
    (tmp_path / "got.flac").write_bytes(result)
    assert mutagen.File(tmp_path / "got.flac")["title"] == ["Ein Titel"]


def test_refusals(visitor, tmp_path):
    text, empty, long = tmp_path / "not.wav", tmp_path / "empty.mp3", tmp_path / "long.wav"
    text.write_text("no sound at all\n" * 99)
    empty.touch()
    sf.write(long, torch.zeros(13 * 8000).numpy(), 8000, subtype="PCM_U8")
    shown = visitor.add(text, empty, long)
    assert "not.wav: " in shown
    assert "empty.mp3: the file is empty" in shown
    assert "long.wav: lasts 0.2 minutes, more than the 0.2 that this page takes" in shown
    assert str(visitor.page.folder) not in shown
    large = tmp_path / "large.wav"
    sf.write(large, torch.zeros(1_100_000).numpy(), 48000, subtype="PCM_16")
    status, said = visitor.upload(large)
    assert (status, "maximum allowed size of 2000000 bytes" in said) == (413, True)
    assert not [path for path in visitor.page.files() if path.name in ("large.wav", "long.wav")]


@pytest.mark.parametrize("numbers", [(0.4, 0.2), (0, 99), (1, None), (None, 1)])
def test_no_sample_of_the_noise(visitor, noisy, numbers):
    visitor.add(noisy)
    shown = visitor.call("denoise", *numbers)
    assert "the noise alone must begin before it ends, both between 0 and 1.500 s" in shown
    assert not visitor.page.workers()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_cancel_ends_the_work(visitor, noisy):
    visitor.add(noisy)
    visitor.choices["Quality"] = "best"
    visitor.begin("denoise", None, None)
    until(visitor.page.workers)
    other = Visitor(visitor.page)
    other.key = visitor.key
    other.begin("stop")
    shown = ""
    for message in visitor.messages():
        shown += json.dumps(message.get("output"))
        if message["msg"] == "process_completed" and message["output"].get("data"):
            break
    assert "cancelled" in shown
    until(lambda: not visitor.page.workers())


def test_everybody_waits_in_line(page, noisy):
    first, second, third = visitors = [Visitor(page) for _ in range(3)]
    for visitor in visitors:
        visitor.choices["Quality"] = "fast"
        visitor.add(noisy)
    first.choices["Quality"] = "best"
    first.begin("denoise", None, None)
    until(page.workers)
    second.begin("denoise", None, None)
    messages = second.messages()
    until(lambda: "waiting for 1 visitor" in json.dumps(next(messages)))
    assert "2 visitors are being served or wait already" in third.call("denoise", None, None)
    first.begin("stop")
    until(lambda: "-denoised.flac" in json.dumps(next(messages), ensure_ascii=False))


def test_line():
    line = Line(Limits(jobs=1, waiting=1))
    with line.place() as first:
        with line.place() as second:
            assert (first(), second()) == (0, 1)
            with pytest.raises(AudioError, match="2 visitors"), line.place():
                pass
        with line.place() as third:
            assert third() == 1
    with line.place() as fourth:
        assert fourth() == 0


def test_a_closed_page_leaves_nothing(visitor, noisy):
    until(lambda: not visitor.page.workers())
    before = set(visitor.page.files())
    address = urllib.parse.urlsplit(visitor.page.url)
    heart = http.client.HTTPConnection(address.hostname, address.port)
    heart.request("GET", f"/gradio_api/heartbeat/{visitor.key}")
    heart.getresponse().read1()
    visitor.add(noisy)
    assert set(visitor.page.files()) > before
    heart.sock.shutdown(socket.SHUT_RDWR)
    heart.close()
    until(lambda: not set(visitor.page.files()) - before)


# Who may read what


def test_folder_is_private(page):
    assert stat.S_IMODE(page.folder.stat().st_mode) == 0o700
    outside = [path for path in page.temporary.rglob("*") if not path.is_relative_to(page.folder)]
    assert not [path for path in outside if path.is_file()]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/file=%2Fetc%2Fpasswd",
        "/gradio_api/file={folder}/../../../../../../../../etc/passwd",
        "/gradio_api/file={folder}/sessions/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/gradio_api/file={folder}/sessions/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/gradio_api/file=file:///etc/passwd",
        "/gradio_api/file={link}",
        "/gradio_api/file={folder}",
        "/gradio_api/file={url}/config",
        "/gradio_api/proxy={url}/config",
        "/static/../../../../../../../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/gradio_api/custom_component/x/y/z/w",
        "/gradio_api/vibe-code/",
        "/monitoring",
    ],
)
def test_no_other_file(page, path):
    link = page.folder / "sessions" / "link"
    link.unlink(missing_ok=True)
    link.symlink_to("/etc/passwd")
    try:
        status, content = page.get(path.format(folder=page.folder, url=page.url, link=link))
    finally:
        link.unlink()
    assert status >= 400
    assert b"root:" not in content
    assert b"dependencies" not in content


@pytest.mark.parametrize("path", ["/etc/passwd", "{page}/config", "{folder}/../../etc/passwd"])
def test_no_other_file_as_an_upload(visitor, path):
    path = path.format(page=visitor.page.url, folder=visitor.page.folder)
    visitor.begin("add", [{"path": path, "meta": {"_type": "gradio.FileData"}}], None, None)
    for message in visitor.messages():
        if message["msg"] == "process_completed":
            assert not message["success"]
            break


@pytest.mark.parametrize(
    "headers",
    [{"Host": "attacker.example"}, {"Origin": "http://attacker.example"}, {"Origin": "null"}],
)
def test_other_sites_are_not_answered(page, headers):
    assert page.get("/config", **headers)[0] == 403


def test_a_visitor_sees_only_his_own(page, noisy):
    first, second = Visitor(page), Visitor(page)
    shown = first.add(noisy)
    assert noisy.name in shown
    assert noisy.name not in second.call("select", None, None, None)


def test_nothing_comes_from_elsewhere(page, visitor, noisy):
    status, content = page.get("/")
    assert status == 200
    assert not re.findall(rb'(?:src|href)\s*=\s*["\'](?:https?:)?//[^"\']*', content)
    theme = page.get("/theme.css")[1]
    assert not re.findall(rb"(?:url\(|@import)\s*[\"']?(?:https?:)?//", theme)
    connected = page.connections.read_text() if page.connections.exists() else ""
    for line in connected.splitlines():
        local = ("127.0.0.1", "::1", "localhost", "\\x00", "/")
        assert any(name in line for name in local) or "''" in line, line


# In a browser


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=[
                "--no-sandbox", "--autoplay-policy=no-user-gesture-required",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
            ],
        )  # fmt: skip
        browser.expect = playwright.expect
        yield browser
        browser.close()


@contextmanager
def opened(chromium, page, **how):
    """Give a tab with the page; all that it asked for came from the page."""
    context = chromium.new_context(**{"viewport": {"width": 1200, "height": 900}} | how)
    context.set_default_timeout(1000 * PATIENCE_S)
    chromium.expect.set_options(timeout=1000 * PATIENCE_S)
    tab = context.new_page()
    asked, errors = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(page.url)
    start(tab).wait_for()
    yield tab
    context.close()
    strangers = [url for url in asked if not url.startswith((page.url, "data:", "blob:"))]
    assert not strangers
    assert not errors


def start(tab):
    return tab.get_by_role("button", name="Remove the noise")


def drop(tab, *paths):
    tab.set_input_files("#upload input[type=file]", [str(path) for path in paths])


def player(tab, expression):
    return tab.evaluate(f"(() => {{ const p = document.querySelector('sound-compare'); "
                        f"return {expression}; }})()")  # fmt: skip


@pytest.mark.browser
def test_upload_listen_compare_download(chromium, page, noisy, tmp_path):
    with opened(chromium, page) as tab:
        drop(tab, noisy)
        tab.locator("sound-compare canvas").wait_for()
        tab.get_by_role("radio", name="Fast").check()
        start(tab).click()
        tab.locator("#results progress").wait_for()
        tab.get_by_role("radio", name="After").wait_for()

        # The same place before and after.
        tab.get_by_role("button", name="Play", exact=True).click()
        until(lambda: player(tab, "p.place") > 0.3)
        before = player(tab, "p.place")
        tab.get_by_role("radio", name="After").check()
        until(lambda: player(tab, "!p.tracks[1].sound.paused && p.tracks[0].sound.paused"))
        assert player(tab, "p.tracks[1].sound.currentTime") >= before
        until(lambda: player(tab, "p.sound.ended"))
        assert [player(tab, f"p.tracks[{i}].sound.error") for i in range(3)] == [None] * 3
        durations = [player(tab, f"p.tracks[{i}].sound.duration") for i in (0, 1)]
        assert durations == pytest.approx([1.5, 1.5], abs=0.01)

        picture = tab.get_by_alt_text("Spectrograms")
        until(lambda: picture.evaluate("image => image.naturalWidth") > 400)
        with tab.expect_download() as download:
            tab.get_by_role("link", name="Download").click()
        assert download.value.suggested_filename == "Grüße & co-denoised.flac"
        download.value.save_as(tmp_path / "got.flac")
        assert mutagen.File(tmp_path / "got.flac")["title"] == ["Ein Titel"]
        assert sf.info(tmp_path / "got.flac").frames == sf.info(noisy).frames


@pytest.mark.browser
def test_noise_is_selected_by_dragging_and_by_keys(chromium, page, noisy):
    with opened(chromium, page) as tab:
        drop(tab, noisy)
        canvas = tab.locator("sound-compare canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        y = box["y"] + box["height"] / 2
        tab.mouse.move(box["x"] + 0.1 * box["width"], y)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 0.3 * box["width"], y, steps=5)
        tab.mouse.up()
        numbers = [tab.locator(f"#noise-{end} input") for end in ("from", "to")]
        values = [float(number.input_value()) for number in numbers]
        assert values == pytest.approx([0.15, 0.45], abs=0.01)

        canvas.focus()
        tab.keyboard.press("End")
        tab.keyboard.press("ArrowLeft")
        tab.keyboard.press("[")
        tab.keyboard.press("End")
        tab.keyboard.press("]")
        values = [float(number.input_value()) for number in numbers]
        assert values == pytest.approx([0.5, 1.5], abs=0.01)
        tab.get_by_role("radio", name="Fast").check()
        start(tab).click()
        tab.get_by_role("radio", name="After").wait_for()
        assert [float(number.input_value()) for number in numbers] == pytest.approx([0.5, 1.5])
        tab.get_by_role("button", name="Clear the sample").click()
        assert [number.input_value() for number in numbers] == ["", ""]


@pytest.mark.browser
def test_cancel_in_the_browser(chromium, page, noisy):
    with opened(chromium, page) as tab:
        drop(tab, noisy)
        tab.get_by_role("radio", name="Best").check()
        start(tab).click()
        until(lambda: float(tab.locator("#results progress").get_attribute("value")) > 0)
        tab.get_by_role("button", name="Cancel").click()
        tab.get_by_text("cancelled").wait_for()
        chromium.expect(start(tab)).to_be_enabled()
        until(lambda: not page.workers())


@pytest.mark.browser
def test_refusals_in_the_browser(chromium, page, tmp_path):
    text, large = tmp_path / "not.wav", tmp_path / "large.wav"
    text.write_text("no sound at all\n" * 99)
    sf.write(large, torch.zeros(1_100_000).numpy(), 48000, subtype="PCM_16")
    with opened(chromium, page) as tab:
        drop(tab, text)
        tab.get_by_role("alert").filter(has_text="not.wav: ").wait_for()
        chromium.expect(start(tab)).to_be_disabled()
        drop(tab, large)
        tab.get_by_text("maximum").first.wait_for()


@pytest.mark.browser
def test_two_visitors_at_once(chromium, page, noisy, tmp_path):
    second = tmp_path / "another.wav"
    sf.write(second, sf.read(noisy)[0], 16000)
    with opened(chromium, page) as one, opened(chromium, page) as two:
        for tab, path in ((one, noisy), (two, second)):
            drop(tab, path)
            tab.get_by_role("radio", name="Fast").check()
            tab.locator("sound-compare canvas").wait_for()
        start(one).click()
        start(two).click()
        for tab, mine, other in ((one, noisy, second), (two, second, noisy)):
            tab.get_by_role("radio", name="After").wait_for()
            assert mine.name in tab.inner_text("#results")
            assert other.name not in tab.inner_text("#results")


@pytest.mark.browser
def test_names_are_text(chromium, page, noisy, tmp_path):
    strange = tmp_path / "{{1+1}} ${1+1} <img src=x onerror=document.title=1> &amp;.flac"
    strange.write_bytes(noisy.read_bytes())
    with opened(chromium, page) as tab:
        drop(tab, strange, noisy)
        tab.locator("#chooser").wait_for()
        assert "&amp;.flac (1.5 s" in tab.inner_text("#results")
        assert "&amp;.flac" in tab.inner_text("#chooser")
        assert "2 2" not in tab.inner_text("#results")
        assert tab.locator("#results img, #chooser img").count() == 0
        assert tab.title() != "1"
        tab.locator("#chooser input").first.check()


@pytest.mark.browser
def test_microphone(chromium, page):
    with opened(chromium, page, permissions=["microphone"]) as tab:
        tab.get_by_text("Record with the microphone").click()
        tab.locator("#record").get_by_role("button", name="Record").click()
        tab.wait_for_timeout(1000)
        tab.locator("#record").get_by_role("button", name="Stop").first.click()
        tab.locator("sound-compare canvas").wait_for()
        assert "kHz" in tab.inner_text("#results")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone(chromium, page, noisy, scheme):
    how = {"viewport": {"width": 390, "height": 844}, "color_scheme": scheme, "has_touch": True}
    with opened(chromium, page, **how) as tab:
        drop(tab, noisy)
        tab.locator("sound-compare canvas").wait_for()
        width = tab.evaluate("document.scrollingElement.scrollWidth")
        assert width <= 390
