"""What all tests share."""

import pytest
import torch
from hypothesis import HealthCheck, settings

# The same examples at every run, so that a red build can be repeated; no time is asserted.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
