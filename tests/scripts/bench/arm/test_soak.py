"""A short soak: random faults in a real session on the virtual arm."""

from __future__ import annotations

import pytest

from saccade.scripts.bench.arm.soak import Soak

pytestmark = pytest.mark.real_time


@pytest.mark.slow
def test_short_soak_is_safe(tmp_path):
    metrics = Soak(tmp_path, 0.4, seed=3).run()
    assert metrics.unsafe == []
    assert metrics.moving_seconds > 1.0
    assert sum(metrics.faults.values()) > 3
