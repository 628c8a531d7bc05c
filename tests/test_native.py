"""Building, finding and calling the native core. Its results are tested with the other engines'."""

import hashlib
import os
import platform
import pwd
import resource
import shutil
import stat
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from harmonic_lowering import HarmonicConv2d, harmonic_conv2d
from harmonic_lowering.cli.main import main
from harmonic_lowering.engines.native import build, library

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which("c++")
INSTALLED = library.info().path
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C++ compiler here")
needs_core = pytest.mark.skipif(not INSTALLED, reason="the native core is not built")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
not_root = pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="about x86-64")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Give a cache folder of its own, and a wheel without libraries."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "PACKAGED", tmp_path / "lib")
    library.forget()
    made = tmp_path / "cache" / "harmonic-lowering"
    made.mkdir(parents=True, mode=0o755)
    yield made
    library.forget()


def store(folder, content, name=None):
    """Write a library as if it had been built, whole."""
    digest = hashlib.sha256(content).hexdigest()[:16]
    path = folder / f"{name or library.built_name()}-{digest}{library.SUFFIX}"
    path.write_bytes(content)
    path.chmod(0o755)
    return path


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def layer_runs():
    """The default engine works, whatever the state of the core."""
    layer = HarmonicConv2d(2, 3, 3, padding=1, anchor=2)
    output = layer(torch.randn(1, 2, 16, 8))
    output.sum().backward()
    return output.shape == (1, 3, 16, 8)


def python(*arguments, env=None, **more):
    more = {"capture_output": True, "text": True, "check": True, **more}
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **(env or {})}
    return subprocess.run([sys.executable, *arguments], env=environment, **more)


# ------------------------------------------------------------------------ building


@needs_compiler
@pytest.mark.slow
def test_one_command_builds_it(folder, capsys):
    assert library.load() is None
    assert main(["build-native", "--status"]) == 1
    assert "harmonic-lowering build-native" in capsys.readouterr().out
    assert main(["build-native"]) == 0
    info = library.info()
    assert str(info.path) in capsys.readouterr().out
    assert (info.origin, info.candidates) == ("built here", ())
    assert library.unsupported_reason() is None
    assert main(["build-native", "--status"]) == 0
    assert list(folder.iterdir()) == [info.path]
    needs = subprocess.run(["ldd", info.path], capture_output=True, text=True, check=True).stdout
    assert "torch" not in needs
    assert "gomp" not in needs
    assert "stdc++" not in needs


def test_a_failing_compiler_is_quoted_and_leaves_nothing(tmp_path, folder, monkeypatch, capsys):
    failing = script(tmp_path / "cxx", "echo 'tap_conv.cpp:1: error: no such thing' >&2; exit 1")
    monkeypatch.setenv("CXX", failing)
    assert main(["build-native"]) == 1
    said = capsys.readouterr().err
    assert "error: no such thing" in said
    assert "Everything works without it" in said
    assert list(folder.iterdir()) == []


def test_no_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler"):
        build.build()
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(build.BuildError, match="nowhere"):
        build.build()


def test_what_does_not_load_is_not_kept(tmp_path, folder, monkeypatch):
    silent = script(tmp_path / "cxx", 'while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"')
    monkeypatch.setenv("CXX", silent)
    with pytest.raises(build.BuildError, match="Everything works without it"):
        build.build()
    assert list(folder.iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(build.BuildError, match="Everything works without it"):
        build.build()


@pytest.mark.slow
def test_killed_builds_do_not_accumulate(tmp_path, folder, monkeypatch):
    hanging = script(tmp_path / "cxx", "sleep 600")
    running = subprocess.Popen(
        [sys.executable, "-m", "harmonic_lowering", "build-native"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "CXX": hanging},
        start_new_session=True,
    )
    while not (left := list(folder.glob(".build-*"))):
        assert running.poll() is None
        time.sleep(0.1)
    os.killpg(running.pid, 9)
    running.wait()
    assert left[0].exists()
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(build.BuildError):
        build.build()
    assert left[0].exists(), "it may be another process's"
    os.utime(left[0], (time.time() - 7200,) * 2)
    with pytest.raises(build.BuildError):
        build.build()
    assert list(folder.iterdir()) == []


# ------------------------------------------------------------------------ finding


def truncated(folder, content):
    path = store(folder, content)
    path.write_bytes(content[: len(content) // 2])
    return "damaged or half-written"


def empty(folder, content):
    store(folder, content).write_bytes(b"")
    return "damaged or half-written"


def not_a_library(folder, content):
    store(folder, b"nonsense")
    return ""  # in the words of the system


def of_another_processor(folder, content):
    assert content[:4] == b"\x7fELF"
    store(folder, content[:18] + b"\xf3\x00" + content[20:])  # RISC-V
    return ""


def writable_by_others(folder, content):
    store(folder, content).chmod(0o777)
    return "can be written by others"


def in_a_folder_writable_by_others(folder, content):
    store(folder, content)
    folder.chmod(0o777)
    return "can be written by others"


def of_another_user(folder, content):
    os.chown(store(folder, content), 12345, 12345)
    return "belongs to another user"


def unreadable(folder, content):
    store(folder, content).chmod(0)
    return "ermission denied"


def in_an_unreadable_folder(folder, content):
    store(folder, content)
    folder.chmod(0)
    return "ermission denied"


def a_folder_in_its_place(folder, content):
    path = store(folder, content)
    path.unlink()
    path.mkdir()
    return "directory"


FAULTS = [
    truncated,
    empty,
    not_a_library,
    pytest.param(
        of_another_processor,
        marks=pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="ELF"),
    ),
    writable_by_others,
    in_a_folder_writable_by_others,
    pytest.param(of_another_user, marks=needs_root),
    pytest.param(unreadable, marks=not_root),
    pytest.param(in_an_unreadable_folder, marks=not_root),
    a_folder_in_its_place,
]


@needs_core
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_library_is_passed_over_with_its_reason(folder, fault):
    reason = fault(folder, INSTALLED.read_bytes())
    assert library.load() is None
    ((path, why),) = library.info().candidates
    assert str(folder) in path
    assert why
    assert reason in why
    assert why in library.unsupported_reason()
    assert "harmonic-lowering build-native" in library.unsupported_reason()
    assert layer_runs()


@needs_core
def test_a_good_library_is_found_behind_a_bad_one(folder):
    store(folder, b"nonsense")
    good = store(folder, INSTALLED.read_bytes())
    os.utime(good, (1, 1))
    info = library.info()
    assert (info.path, info.origin) == (good, "built here")
    assert len(info.candidates) == 1


@needs_compiler
def test_another_interface(tmp_path, folder):
    source = tmp_path / "other.c"
    names = ("apply", "grad_weight", "call_size", "instruction_set")
    for more in ("int tap_conv_abi(void) { return 99; }", ""):
        source.write_text(more + "".join(f"int tap_conv_{n}(void) {{ return 0; }}" for n in names))
        made = tmp_path / "other.so"
        subprocess.run(["cc", "-shared", "-fPIC", source, "-o", made], check=True)
        store(folder, made.read_bytes())
    assert library.load() is None
    reasons = sorted(why for _, why in library.info().candidates)
    assert "interface (99, 0)" in reasons[0]
    assert "another library" in reasons[1]


def test_no_home(monkeypatch):
    def nobody(_):
        raise KeyError

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert library.load() is None
    assert "home" in library.unsupported_reason()
    assert layer_runs()
    with pytest.raises(build.BuildError, match="home"):
        build.build()


@pytest.mark.parametrize("cache", ["/dev/null", "/nowhere/at/all", "relative", ""])
def test_a_cache_folder_that_is_none(monkeypatch, tmp_path, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert library.load() is None
    assert layer_runs()


def test_it_is_searched_for_once(folder, monkeypatch):
    searches = []
    monkeypatch.setattr(library, "_candidates", lambda: iter(searches.append(1) or ()))
    for _ in range(3):
        assert layer_runs()
        assert library.info().path is None
    assert searches == [1]


@needs_core
def test_another_source_or_processor_is_another_library(folder, monkeypatch):
    store(folder, INSTALLED.read_bytes())
    assert library.load() is not None
    library.forget()
    monkeypatch.setattr(library, "_processor_flags", lambda: "abacus")
    assert library.load() is None


@x86
@needs_core
def test_what_the_user_built_comes_before_the_best_of_the_wheel(tmp_path, folder, monkeypatch):
    wheel = tmp_path / "lib"
    wheel.mkdir()
    content = INSTALLED.read_bytes()
    for name in library.INSTRUCTION_SETS["x86_64"]:
        store(wheel, content, f"tap_conv-{name}")
    best = library._instruction_sets()[0]
    assert library.info().path.name.startswith(f"tap_conv-{best}-")
    assert library.info().origin == "wheel"
    built = store(folder, content)
    library.forget()
    assert (library.info().path, library.info().origin) == (built, "built here")


@x86
@pytest.mark.parametrize(
    ("capability", "more", "names"),
    [
        ("AVX512", "avx512_bf16", ["x86-64-v4-bf16", "x86-64-v4", "x86-64-v3"]),
        ("AVX512", "", ["x86-64-v4", "x86-64-v3"]),
        ("AVX2", "avx512_bf16", ["x86-64-v3"]),
        ("DEFAULT", "avx512_bf16", []),
    ],
)
def test_instruction_sets_are_the_processors_and_torchs(monkeypatch, capability, more, names):
    flags = "avx2 bmi1 bmi2 f16c fma movbe abm avx512f avx512bw avx512cd avx512dq avx512vl"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(library, "_processor_flags", lambda: f"{flags} {more}")
    assert library._instruction_sets() == names
    monkeypatch.setattr(library, "_processor_flags", lambda: "sse4_2")
    assert library._instruction_sets() == []


@needs_core
def test_without_threads_of_torch_the_stock_engines_run(folder, monkeypatch):
    store(folder, INSTALLED.read_bytes())
    monkeypatch.setattr(library, "_threads", lambda: None)
    assert "does not lend its threads" in library.unsupported_reason()
    assert layer_runs()


@needs_core
@pytest.mark.slow
def test_eight_processes_at_once_while_one_builds(folder):
    run = (
        "import torch; from harmonic_lowering import HarmonicConv2d as C; "
        "print(C(2, 3, 3, padding=1)(torch.ones(1, 2, 16, 8)).shape[1])"
    )
    store(folder, INSTALLED.read_bytes())
    command = [sys.executable, "-W", "ignore", "-c", run]
    build_too = [sys.executable, "-m", "harmonic_lowering", "build-native"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(c, env=env, stdout=subprocess.PIPE, text=True)
        for c in [build_too, *[command] * 8]
    ]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * 9
    assert said[1:] == ["3\n"] * 8


# ------------------------------------------------------------------------ calling


@pytest.fixture
def core(folder):
    """The core that is installed, in a cache folder of its own."""
    if not INSTALLED:
        pytest.skip("the native core is not built")
    store(folder, INSTALLED.read_bytes())
    if reason := library.unsupported_reason():
        pytest.skip(reason)


FAR = [
    (10**7, 1, 0),
    (10**12, 1, 1),
    (1, 10**7, 10**7),
    (1, 10**12, 10**12),
    (10**12, 10**12, 2 * 10**12),
]


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize(("stride", "dilation", "padding"), FAR)
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_far_strides_and_dilations_cost_nothing(stride, dilation, padding, form):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    x = torch.randn(2, 3, 5, 7).to(memory_format=form).requires_grad_()
    w = torch.randn(20, 3, 2, 3 if padding else 1, requires_grad=True)
    y = harmonic_conv2d(
        x, w, anchor=2, stride=(1, stride), padding=padding, dilation=dilation, engine="native"
    )
    expected = torch.zeros_like(y)
    for t in range(y.shape[3]):
        for k in range(w.shape[3]):
            s = t * stride + k * dilation - padding
            if 0 <= s < 7:
                part = harmonic_conv2d(x[..., [s]], w[..., [k]], anchor=2, engine="reference")
                expected = expected + torch.nn.functional.pad(part, (t, y.shape[3] - t - 1))
    torch.testing.assert_close(y, expected)
    seed = torch.randn_like(y)
    for got, want in zip(
        torch.autograd.grad(y, (x, w), seed),
        torch.autograd.grad(expected, (x, w), seed),
        strict=True,
    ):
        torch.testing.assert_close(got, want)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 256 << 10  # kB


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("argument", ["stride", "dilation"])
def test_integers_beyond_64_bits_are_refused(argument):
    x, w = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1, 2 if argument == "dilation" else 1)
    far = {"dilation": {"dilation": 2**64, "padding": 2**63}, "stride": {"stride": (1, 2**64 + 1)}}
    with pytest.raises(ValueError, match="must be at most"):
        harmonic_conv2d(x, w, engine="native", **far[argument])


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("frames", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 3])
def test_a_nan_that_no_gradient_meets(frames, stride):
    if library.unsupported_reason(torch.bfloat16):
        pytest.skip("no bfloat16 here")
    x = torch.ones(1, 1, 1, 3 * frames + 1 if stride == 3 else frames + 1)
    x[..., -1] = torch.nan
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.ones(1, 1, 1, 2, dtype=dtype, requires_grad=True)
        y = harmonic_conv2d(x.to(dtype), weight, stride=(1, stride), engine="native")
        y.backward(torch.ones_like(y))
        found[dtype] = weight.grad.float()
    assert torch.equal(found[torch.float32].isnan(), found[torch.bfloat16].isnan())
    assert not found[torch.float32][..., 0].isnan()


@pytest.mark.usefixtures("core")
def test_openmps_threads_give_the_same(monkeypatch):
    gomp = library._find_threads(("GOMP_parallel",))
    if gomp is None:
        pytest.skip("this torch does not use GNU OpenMP")
    layer = HarmonicConv2d(3, 5, 3, padding=1, anchor=2, engine="native")
    x = torch.randn(2, 3, 30, 40, requires_grad=True)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (library._threads(), gomp):
            monkeypatch.setattr(library, "_threads", lambda threads=threads: threads)
            for n in (1, 2, 3):
                torch.set_num_threads(n)
                y = layer(x)
                results.append((y, *torch.autograd.grad(y.square().sum(), (x, layer.weight))))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.usefixtures("core")
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_too_little_memory_is_a_memory_error():
    done = python(
        "-W",
        "ignore",
        "-c",
        "import resource, torch\n"
        "from harmonic_lowering import harmonic_conv2d\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), -1))\n"
        "w = torch.ones(1).expand(8192, 8192, 3, 3)\n"
        "try: harmonic_conv2d(torch.ones(1, 8192, 4, 4), w, engine='native')\n"
        "except MemoryError as error: print(error)\n"
        "w = torch.ones(2, 2, 3, 3)\n"
        "print(harmonic_conv2d(torch.ones(1, 2, 4, 4), w, engine='native').shape)\n",
    )
    assert "could not get the memory" in done.stdout
    assert "[1, 2, 4, 2]" in done.stdout


@pytest.mark.usefixtures("core")
@pytest.mark.slow
def test_the_gradient_of_a_large_weight_takes_little_beside_it():
    done = python(
        "-W",
        "ignore",
        "-c",
        "import resource, torch\n"
        "from harmonic_lowering import harmonic_conv2d\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "w = torch.randn(512, 512, 7, 3, requires_grad=True)\n"
        "y = harmonic_conv2d(torch.randn(8, 512, 4, 64), w, padding=1, engine='native')\n"
        "grad, before = torch.ones_like(y), peak()\n"
        "y.backward(grad)\n"
        "print(peak() - before)\n",
    )
    assert int(done.stdout) < 100  # MB, of which the gradient is 21


@needs_compiler
@pytest.mark.slow
def test_random_calls_agree_with_plain_loops(tmp_path):
    command = [COMPILER, "-std=c++17", "-O1", "-march=native", "-pthread", "-o", tmp_path / "fuzz"]
    subprocess.run([*command, ROOT / "tests" / "native_fuzz.cpp"], check=True)
    seed = str(int.from_bytes(os.urandom(4)))
    done = subprocess.run([tmp_path / "fuzz", "3000", seed], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# ------------------------------------------------------------------------ the wheel


@pytest.fixture(scope="module")
def make_wheel(tmp_path_factory):
    pytest.importorskip("hatchling")
    root = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "src", root / "src")

    def make(**env):
        target = tmp_path_factory.mktemp("wheel")
        done = python("-m", "hatchling", "build", "-t", "wheel", "-d", target, cwd=root, env=env)
        (wheel,) = target.iterdir()
        return wheel, done.stdout + done.stderr

    return make


def installed(wheel, folder):
    """A fresh environment with the wheel, and with the torch of this one."""
    venv.create(folder, with_pip=True)
    executable = folder / "bin" / "python"
    subprocess.run(
        [executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True
    )
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "torch.pth").write_text(sysconfig.get_path("purelib"))
    return executable


ASK = """
import torch
from harmonic_lowering import HarmonicConv2d
from harmonic_lowering.engines.native import library
info = library.info()
print(info.origin, info.instruction_set, library.__file__)
layer = HarmonicConv2d(2, 20, 3, padding=1, anchor=2)
x = torch.randn(1, 2, 40, 30)
y = layer(x)
layer.engine = "reference"
torch.testing.assert_close(y, layer(x))
"""


@x86
@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="paths of POSIX")
def test_a_wheel_needs_nothing_and_serves_each_instruction_set(tmp_path, make_wheel):
    wheel, _ = make_wheel()
    assert wheel.name.endswith("py3-none-linux_x86_64.whl")
    assert wheel.stat().st_size < 4 << 20
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if name.endswith(".so")]
        for name in libraries:
            content = archive.read(name)
            assert b"/tmp/" not in content
            assert str(ROOT).encode() not in content
    assert sorted(Path(name).name.rpartition("-")[0] for name in libraries) == [
        f"tap_conv-{name}" for name in sorted(library.INSTRUCTION_SETS["x86_64"])
    ]
    executable = installed(wheel, tmp_path / "venv")
    best = library._instruction_sets()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for capability, expected in (("", best[:1]), ("avx2", ["x86-64-v3"]), ("default", [""])):
        more = {"ATEN_CPU_CAPABILITY": capability} if capability else {}
        done = subprocess.run(
            [executable, "-W", "ignore", "-c", ASK],
            env={**env, **more},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        origin, instruction_set, file = done.stdout.rstrip("\n").split(" ")
        assert [instruction_set] == expected
        assert origin == ("wheel" if instruction_set else "")
        assert file.startswith(str(tmp_path))


@pytest.mark.slow
def test_without_a_compiler_the_wheel_is_for_any_platform(make_wheel):
    wheel, said = make_wheel(CXX="/nowhere/c++")
    assert wheel.name.endswith("py3-none-any.whl")
    assert "Without the native core (/nowhere/c++: No such file or directory)" in said
    with zipfile.ZipFile(wheel) as archive:
        assert not any(name.endswith(".so") for name in archive.namelist())
