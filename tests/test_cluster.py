"""A corpus on a Ray cluster and in other storage: the same bits, and nothing lost by a kill."""

import http.server
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harmonic_lowering.cli import cluster as cluster_module
from harmonic_lowering.cli import main
from harmonic_lowering.cli.kept import Kept, digest
from harmonic_lowering.denoise import Denoiser
from harmonic_lowering.denoise.noise_recording import RecordingNoise
from harmonic_lowering.denoise.noise_sample import NoiseSample
from harmonic_lowering.denoise.segment import Cleaned, Found

soundfile = pytest.importorskip("soundfile")

ROOT = Path(__file__).parents[1]
RATE = 8000


@pytest.fixture(autouse=True)
def _one_thread():
    """Workers have one thread each; with several, sums may differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ray_cluster():
    """Two machines, as Ray sees it, with a processor each."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.second = cluster.add_node(**node)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def denoise(*arguments, steps=2):
    try:
        return main(["denoise", *map(str, arguments), "--steps", str(steps), "--quiet"])
    except SystemExit as stop:  # argparse
        return stop.code


def recording(path, seconds, rate=RATE, channels=1, **options):
    """A tone that comes and goes, in noise that begins alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = np.arange(round(seconds * rate)) / rate
    rng = np.random.default_rng(channels)
    tone = 0.3 * np.sin(2 * np.pi * 440 * place) * (np.sin(place) > 0.5) * (place > 1)
    sound = tone[:, None] + rng.normal(0, 0.03, (len(place), channels))
    soundfile.write(path, sound, rate, **options)
    return path


def reports(capsys):
    found = {}
    for line in capsys.readouterr().out.splitlines():
        report = json.loads(line)
        report.pop("seconds", None)
        name = Path(report.pop("output")).name
        found[name] = report
    return found


def below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def segments_in(folder):
    return [p for p in folder.glob(".harmonic-lowering-*.segments/*") if p.name[0] != "."]


# The same bits


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("more", [[], ["--channels", "separate", "--noise-from", "0-1"]])
def test_results_are_those_of_one_machine(tmp_path, capsys, ray_cluster, more):
    tapes = tmp_path / "tapes"
    recording(tapes / "long.wav", 21, subtype="PCM_16")
    recording(tapes / "side" / "stereo.flac", 7, 44100, 2, subtype="PCM_24")
    whole = recording(tapes / "damaged.flac", 2).read_bytes()
    (tapes / "damaged.flac").write_bytes(whole[:40] + bytes(len(whole) - 40))
    (tapes / "none.wav").write_text("no sound")
    folders = [tmp_path / "here", tmp_path / "there"]
    told = []
    for folder, where in zip(folders, ([], ["--cluster", ray_cluster.address]), strict=True):
        folder.mkdir()
        outputs = ["-o", folder, "--noise-out", folder / "removed-{stem}{suffix}"]
        assert denoise(tapes, *outputs, "--json", *more, *where) == 1
        told.append(reports(capsys))
    assert below(folders[0]) == below(folders[1])
    assert {"long.wav", "side/stereo.flac"} < set(below(folders[0]))
    for name in below(folders[0]):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    assert told[0] == told[1]
    assert told[1]["none.wav"]["status"] == "failed"
    assert told[1]["long.wav"]["steps"] == 3 * 2  # segments, steps of each


# What dies on the way

STEPS = 12  # long enough to be interrupted


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    """A recording of four segments, and the result of one machine."""
    torch.set_num_threads(1)
    source = recording(tmp_path_factory.mktemp("tape") / "in.wav", 35)
    assert denoise(source, "-o", source.with_name("here.wav"), steps=STEPS) == 0
    return source, source.with_name("here.wav")


def workers():
    """Processes at work on a segment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_clean"):
                found.append(int(path.parent.name))
        except OSError:  # it ended meanwhile
            continue
    return found


@pytest.mark.slow
@pytest.mark.cluster
def test_a_worker_and_a_machine_are_lost(tmp_path, ray_cluster, tape):
    source, here = tape
    died = []

    def kill():
        while not (found := workers()):
            time.sleep(0.05)
        os.kill(found[0], signal.SIGKILL)
        died.append("worker")
        while len(segments_in(tmp_path)) < 1:
            time.sleep(0.05)
        ray_cluster.remove_node(ray_cluster.second, allow_graceful=False)
        died.append("machine")

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    there = tmp_path / "there.wav"
    assert denoise(source, "-o", there, "--cluster", ray_cluster.address, steps=STEPS) == 0
    killer.join(60)
    assert died == ["worker", "machine"]
    assert there.read_bytes() == here.read_bytes()
    assert below(tmp_path) == ["there.wav"]
    ray_cluster.second = ray_cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)


def start(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from harmonic_lowering.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, "denoise", *map(str, arguments)],
        env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("end", ["SIGKILL", "SIGINT"])
def test_the_command_is_ended_and_goes_on(tmp_path, ray_cluster, tape, end):
    (source, here), result = tape, tmp_path / "out.wav"
    arguments = [source, "-o", result, "--steps", STEPS, "--cluster", ray_cluster.address]
    with start(*arguments) as process:
        try:
            deadline = time.monotonic() + 120
            while not segments_in(tmp_path):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline, "no segment was finished"
                time.sleep(0.05)
            if end == "SIGINT":  # as a terminal sends it
                os.killpg(process.pid, signal.SIGINT)
            else:
                process.send_signal(getattr(signal, end))
            errors = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == {"SIGKILL": -9, "SIGINT": 130}[end]
    assert "Traceback" not in errors
    while any(name.endswith(".part") for name in below(tmp_path)) and end != "SIGKILL":
        time.sleep(0.1)  # who wrote it cleans up
    assert not result.exists()
    assert (tmp_path / "out.partial.wav").exists() == (end == "SIGINT")
    # What is kept is used again: one segment is replaced by something to know it by.
    first = segments_in(tmp_path)[0]
    kept = Kept(result)
    cleaned, steps = kept.get(first.name)
    kept.put(first.name, cleaned._replace(clean=torch.full_like(cleaned.clean, 0.125)), steps)
    assert denoise(source, "-o", result, "--cluster", ray_cluster.address, steps=STEPS) == 0
    marked = soundfile.read(result)[0] == 0.125
    assert 7 * RATE < marked.sum() < 10 * RATE
    assert not segments_in(tmp_path)
    assert set(below(tmp_path)) <= {"out.wav", "out.partial.wav"}
    same = soundfile.read(here)[0] == soundfile.read(result)[0]
    overlap = RATE
    assert (same | marked).sum() >= len(same) - 2 * overlap


@pytest.mark.slow
@pytest.mark.cluster
def test_what_is_under_way_is_bounded(ray_cluster):
    ray = pytest.importorskip("ray")
    rng = np.random.default_rng(0)
    sound = torch.from_numpy(rng.normal(0, 0.1, (1, 16 * RATE)).astype("f4"))
    read, ahead = [], []

    def reading(start, stop):
        read.append(start)
        return sound[:, start:stop]

    def counted(segments):
        for segment in segments:
            if segment.index == 1:  # the stretches that the noise was estimated from went before
                del read[:-1]
            yield segment

    def each(segments, progress):
        return there.each(None, lambda: False)(counted(segments), progress)

    denoiser = Denoiser(steps=1, segment_s=1, overlap_s=0.2)
    try:
        there = cluster_module.Cluster(ray_cluster.address, files=1)
        stream = denoiser.stream(reading, sound.shape[1], RATE, each=each)
        parts = []
        for number, block in enumerate(stream):
            ahead.append(len(read) - number)
            parts.append(block.clean)
    finally:
        ray.shutdown()
    assert max(ahead) <= 2 * 2
    here = torch.cat([block.clean for block in denoiser.stream(reading, sound.shape[1], RATE)], 1)
    assert torch.equal(torch.cat(parts, 1), here)


# What is kept


def test_a_name_for_everything_that_a_result_depends_on():
    sound = 0.1 * torch.randn(1, 9000)
    segments = []

    def each(segments_of_one, progress):
        for segment in segments_of_one:
            segments.append(segment)
            yield segment, Cleaned(segment.noisy)

    list(Denoiser().stream(lambda a, b: sound[:, a:b], 9000, RATE, each=each))
    (segment,) = segments
    sample = NoiseSample(sound, RATE, RATE)
    known, louder = (
        RecordingNoise.of([(0.5, noise)], RATE, (0.064,)) for noise in (sound, 1.1 * sound)
    )
    others = [
        replace(segment, noisy=-segment.noisy),
        replace(segment, noisy=segment.noisy.double()),
        replace(segment, noisy=segment.noisy.reshape(2, -1)),
        replace(segment, sample_rate=16000),
        replace(segment, method="dap"),
        replace(segment, settings=replace(segment.settings, seed=1)),
        replace(segment, kept=0.5),
        replace(segment, noise=sample),
        replace(segment, noise=sample.scaled(2.0)),
        replace(segment, noise=known),
        replace(segment, noise=known.at(1.0)),
        replace(segment, noise=louder),
        replace(segment, time_limit=1.0),
    ]
    assert len({digest(other) for other in [segment, *others]}) == len(others) + 1
    assert digest(segment) == digest(replace(segment, noisy=sound.clone(), index=3, count=7))


def test_a_damaged_segment_is_not_used(tmp_path):
    kept = Kept(tmp_path / "out.wav")
    cleaned = Cleaned(torch.randn(2, 100), Found(200, 1.0, 0.5, 0.1, None))
    assert kept.get("a") is None
    kept.put("a", cleaned, [(1, 0.5, ""), (2, 0.25, "steps")])
    got, steps = kept.get("a")
    assert torch.equal(got.clean, cleaned.clean)
    assert (got.found, steps) == (cleaned.found, [(1, 0.5, ""), (2, 0.25, "steps")])
    file = kept.folder / "a"
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:10], b"", whole[:500] + b"\0" + whole[501:]):
        file.write_bytes(damaged)
        assert kept.get("a") is None or damaged == whole
    kept.clear()
    assert below(tmp_path) == []


# Wrong usage


@pytest.mark.cluster
def test_no_cluster_is_one_sentence(tmp_path, capsys):
    source = recording(tmp_path / "in.wav", 1)
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        unused = f"127.0.0.1:{nobody.getsockname()[1]}"
    for address, match in [
        (unused, f"--cluster {unused}: no cluster answers there (Connection refused)"),
        ("ray://10.0.0.1:10001", "an address is HOST:PORT, as 10.0.0.1:6379, or the word local"),
        ("nowhere.invalid:6379", "--cluster nowhere.invalid:6379: no cluster answers there"),
        ("head", "an address is HOST:PORT"),
        (f"127.0.0.1:{web.server_address[1]}", "whoever listens there is not Ray"),
    ]:
        assert denoise(source, "--cluster", address) == 2
        sentence = capsys.readouterr().err.strip().splitlines()[-1]
        assert match in sentence
    web.shutdown()
    web.server_close()
    assert denoise(source, "--cluster", "local", "--device", "cpu:0") == 2
    assert "--device must be cpu" in capsys.readouterr().err
    assert below(tmp_path) == ["in.wav"]


def test_the_extra_is_named(tmp_path, capsys, monkeypatch):
    pytest.importorskip("fsspec")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert denoise(recording(tmp_path / "in.wav", 1), "--cluster", "local") == 1
    assert "pip install 'harmonic-lowering[cluster]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "s3fs", None)
    loaded = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(loaded, "s3", raising=False)
    assert denoise("s3://tapes/a.wav") == 1
    assert "pip install 'harmonic-lowering[s3]'" in capsys.readouterr().err
    assert denoise("tape://a.wav") == 2
    assert "tape:// is no storage that is known here" in capsys.readouterr().err


# Other storage


@pytest.fixture
def bucket(monkeypatch):
    """An object store on this machine, with one bucket."""
    moto = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    # What it stores belongs to the process, and a test before may have left some.
    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", b"")).close()
    for name, value in {
        "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    storage = s3fs.S3FileSystem()
    storage.mkdir("tapes")
    storage.server, storage.url = server, url
    yield storage
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_recordings_in_other_storage(tmp_path, capsys, bucket):
    recording(tmp_path / "a.wav", 1)
    recording(tmp_path / "b.flac", 0.5, 16000, 2)
    for name, key in (("a.wav", "a.wav"), ("b.flac", "side/b.flac"), ("a.wav", ".hidden/a.wav")):
        bucket.put_file(str(tmp_path / name), f"tapes/in/{key}")
    bucket.pipe_file("tapes/in/bad.wav", b"no sound")
    bucket.pipe_file("tapes/in/notes.txt", b"no sound")
    assert denoise(tmp_path, "--noise-out", str(tmp_path / "{stem}-removed{suffix}")) == 0
    capsys.readouterr()
    outputs = ["-o", "s3://tapes/out", "--noise-out", "s3://tapes/out/{stem}-removed{suffix}"]
    assert denoise("s3://tapes/in", *outputs) == 1
    said = capsys.readouterr()
    assert said.out.splitlines() == ["s3://tapes/out/a.wav", "s3://tapes/out/side/b.flac"]
    assert "s3://tapes/in/bad.wav: not a sound file that can be read" in said.err
    found = bucket.find("tapes/out")
    assert [name.removeprefix("tapes/out/") for name in found] == [
        "a-removed.wav", "a.wav", "b-removed.flac", "side/b.flac",
    ]  # fmt: skip
    for there, here in zip(
        found,
        ("a-removed.wav", "a-denoised.wav", "b-removed.flac", "b-denoised.flac"),
        strict=True,
    ):
        assert bucket.cat_file(there) == (tmp_path / here).read_bytes()
    assert denoise("s3://tapes/in/a.wav", "-o", "s3://tapes/out/") == 1
    assert "s3://tapes/out/a.wav: exists already; allow replacing it" in capsys.readouterr().err
    assert denoise("s3://tapes/in", *outputs, "--skip-existing") == 1
    assert "2 skipped, 1 of 3 recordings failed" in capsys.readouterr().err
    # From there to here, and the other way round.
    assert denoise("s3://tapes/in/a.wav", "-o", tmp_path / "c.wav") == 0
    assert (tmp_path / "c.wav").read_bytes() == (tmp_path / "a-denoised.wav").read_bytes()
    assert denoise(tmp_path / "a.wav", "-o", "s3://tapes/x.flac") == 0
    assert bucket.cat_file("tapes/x.flac")[:4] == b"fLaC"


def refuse_after(bucket, requests):
    """Have the store check keys, none of which it knows, after so many requests."""
    url, header = f"{bucket.url}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(url, str(requests).encode(), header)).close()


def test_storage_says_no(tmp_path, capsys, bucket):
    source = recording(tmp_path / "a.wav", 1)
    for inputs, output, match in [
        (["s3://tapes/none.wav"], "s3://tapes/out", "s3://tapes/none.wav"),
        (["s3://nobucket/a.wav"], "s3://tapes/out", "s3://nobucket/a.wav"),
        ([source], "s3://nobucket/out", "s3://nobucket/out/a.wav"),
    ]:
        assert denoise(*inputs, "-o", output) == 1
        sentence = capsys.readouterr().err.strip().splitlines()[-1]
        assert sentence.startswith(match)
        assert sentence.endswith("no such file, or no such bucket")
    refuse_after(bucket, 0)  # keys that it does not know
    try:
        assert denoise("s3://tapes/a.wav", source, "-o", "s3://tapes/out") == 1
    finally:
        refuse_after(bucket, math.inf)
    errors = capsys.readouterr().err
    assert errors.count("the storage denies access") == 2
    assert "Traceback" not in errors
    bucket.server.stop()
    assert denoise("s3://tapes/a.wav", source, "-o", str(tmp_path / "{stem}-x.wav")) == 1
    errors = capsys.readouterr().err
    assert "s3://tapes/a.wav: the storage does not answer" in errors
    assert "1 denoised, 1 of 2 recordings failed" in errors


def test_a_server_with_folders(tmp_path, capsys):
    """fsspec's name for the files of this machine, used as if they were elsewhere."""
    source = recording(tmp_path / "in" / "side" / "a.wav", 1)
    assert denoise(f"local://{tmp_path}/in", "-o", f"local://{tmp_path}/out") == 0
    assert capsys.readouterr().out.strip() == f"local://{tmp_path}/out/side/a.wav"
    assert below(tmp_path) == ["in/side/a.wav", "out/side/a.wav"]
    assert denoise(source, "-o", tmp_path / "here.wav") == 0
    assert (tmp_path / "out/side/a.wav").read_bytes() == (tmp_path / "here.wav").read_bytes()


@pytest.mark.slow
@pytest.mark.cluster
def test_a_bucket_on_a_cluster(tmp_path, capsys, bucket, ray_cluster):
    source = recording(tmp_path / "a.wav", 12)
    for number in range(11):
        bucket.pipe_file(f"tapes/in/bad{number}.wav", b"no sound")
    bucket.put_file(str(source), "tapes/in/a.wav")
    assert denoise(source, "-o", tmp_path / "here.wav") == 0
    there = ["s3://tapes/in", "-o", "s3://tapes/out", "--cluster", ray_cluster.address]
    assert denoise(*there) == 1
    errors = capsys.readouterr().err.splitlines()
    table = [line for line in errors if line.startswith("failed  ")]
    assert len(table) == 11
    assert table[0].startswith("failed  s3://tapes/in/bad0.wav   not a sound file")
    assert "1 denoised, 11 of 12 recordings failed" in errors[-1]
    assert bucket.find("tapes/out") == ["tapes/out/a.wav"]  # and no segments
    assert bucket.cat_file("tapes/out/a.wav") == (tmp_path / "here.wav").read_bytes()
