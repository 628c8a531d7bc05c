"""What every test shares: a seed, and a reason when something it needs is missing."""

from __future__ import annotations

import importlib
import os
import shutil
import warnings
from collections.abc import Callable

import hypothesis
import pytest
import torch

# Where there is no card, Triton interprets its kernels on the CPU. It decides that when it is
# imported, which this package does: so before that.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A deadline would be an assertion about time. CI tries the same examples every time.
hypothesis.settings.register_profile(
    "project",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("project")


def _accelerator() -> str | None:
    return None if torch.accelerator.is_available() else "no accelerator here"


def _peer() -> str | None:
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # a torchvision that does not fit its torch raises anything
        return f"torchvision cannot be used: {error}"
    return None


def _cluster() -> str | None:
    try:
        importlib.import_module("ray")
    except ImportError:
        return "ray is not installed here (harmonic-lowering[cluster])"
    return None


def _browser() -> str | None:
    return None if shutil.which("chromium") else "no chromium here"


def _ffmpeg() -> str | None:
    return None if shutil.which("ffmpeg") else "the program ffmpeg is not installed here"


MISSING: dict[str, Callable[[], str | None]] = {
    "gpu": _accelerator,
    "peer": _peer,
    "browser": _browser,
    "cluster": _cluster,
    "ffmpeg": _ffmpeg,
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    from harmonic_lowering.engines.native import library

    for marker, reason in MISSING.items():
        if item.get_closest_marker(marker) and (why := reason()):
            pytest.skip(why)
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if "native" in parameters.values() and (why := library.unsupported_reason()):
        pytest.skip(why)
    if "triton" in parameters.values():
        pytest.skip("Triton's kernels need a card and have no float64: see tests/test_triton.py")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _hinted() -> None:
    """Have the hint that is given once behind us: most tests use the simplest taps."""
    from harmonic_lowering import functional

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        functional._hint_once_at_upward_taps()


@pytest.fixture
def unhinted(_hinted: None) -> None:
    """Let a layer of upward taps give its hint again."""
    from harmonic_lowering import functional

    functional._hint_once_at_upward_taps.cache_clear()
