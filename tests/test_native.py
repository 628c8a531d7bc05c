"""Building and finding the native core. Its results are tested with every other engine's."""

import shutil
import stat

import pytest

from harmonic_lowering.cli.main import main
from harmonic_lowering.engines.native import build, library

pytestmark = pytest.mark.usefixtures("cache")
needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler here")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "_cache_folder", lambda: tmp_path / "cache")
    library.load.cache_clear()
    yield
    library.load.cache_clear()


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.slow
@needs_compiler
def test_one_command_builds_it(capsys):
    assert library.load() is None
    assert main(["build-native", "--status"]) == 1
    assert "harmonic-lowering build-native" in capsys.readouterr().out
    assert main(["build-native"]) == 0
    assert str(library.library_path()) in capsys.readouterr().out
    assert library.unsupported_reason() is None
    assert main(["build-native", "--status"]) == 0
    assert [p.name for p in library.library_path().parent.iterdir()] == [
        library.library_path().name
    ]


def test_a_failing_compiler_is_quoted_and_nothing_is_lost(tmp_path, monkeypatch, capsys):
    failing = script(tmp_path / "cxx", "echo 'tap_conv.cpp:1: error: no such thing' >&2; exit 1")
    monkeypatch.setenv("CXX", failing)
    assert main(["build-native"]) == 1
    said = capsys.readouterr().err
    assert "error: no such thing" in said
    assert "Everything works without it" in said
    assert library.load() is None


def test_no_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler"):
        build.build()
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(build.BuildError, match="nowhere"):
        build.build()


def test_what_does_not_load_is_not_kept(tmp_path, monkeypatch):
    silent = script(tmp_path / "cxx", 'while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"')
    monkeypatch.setenv("CXX", silent)
    with pytest.raises(build.BuildError, match="Everything works without it"):
        build.build()
    assert not library.library_path().exists()


def test_a_broken_library_is_no_error(capsys):
    library.library_path().parent.mkdir(parents=True)
    library.library_path().write_text("nonsense")
    assert library.load() is None
    assert "does not load" in library.unsupported_reason()


def test_another_torch_or_processor_is_another_library(monkeypatch):
    here = library.library_path()
    monkeypatch.setattr(library.torch, "__version__", "0.0")
    there = library.library_path()
    assert here != there
    monkeypatch.setattr(library, "_processor", lambda: "abacus")
    assert there != library.library_path()
