"""What all tests share: a rendering backend, chosen before anything imports MuJoCo, and the smallest network."""

import sys

import pytest

from saccade.policy.network.architecture import Architecture
from saccade.sim.rendering import choose_backend

choose_backend()


def pytest_collection_modifyitems(items):
    """Let tests in real time be tried again: where a machine stands still for a while, so does what they look at."""
    for item in items:
        if item.get_closest_marker("real_time"):
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=1))


@pytest.fixture(scope="session")
def small_architecture():
    """The least of everything that still prunes, points and cross-attends: a step takes milliseconds."""
    return Architecture(
        text_length=24,
        condition_width=16,
        stem_width=16,
        stem_blocks=1,
        points=3,
        tower_width=16,
        tower_blocks=1,
        tower_heads=2,
        aggregation_tokens=4,
        trunk_width=16,
        trunk_layers=3,
        trunk_heads=2,
        trunk_feed_forward=32,
        expert_width=16,
        expert_blocks=2,
        expert_heads=2,
    )


@pytest.fixture(autouse=True)
def no_accelerator_left_over():
    """Accelerate keeps one state for a whole process; a test that trains must not decide how the next one does."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
