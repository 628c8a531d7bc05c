"""A short run of `make fuzz`."""

import sys

import pytest

pytest.importorskip("soundfile")
if not sys.platform.startswith("linux"):
    pytest.skip("limits and /proc of Linux", allow_module_level=True)

from fuzz_audio import fuzz


@pytest.mark.slow
def test_damaged_files(tmp_path):
    assert fuzz(60, 1, tmp_path) == []
