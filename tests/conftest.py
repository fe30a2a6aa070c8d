"""Choose a rendering backend before MuJoCo is imported, order the tests, and build the smallest network."""

import fcntl
import os
import sys
import tempfile
from pathlib import Path

import pytest

from saccade.machine import usable_cores
from saccade.sim.rendering import choose_backend

choose_backend()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Use a worker for each core for the whole suite, and none for chosen tests: those begin sooner without."""
    chosen = [each for each in config.invocation_params.args if not str(each).startswith("-")]
    named = any(Path(str(each).split("::")[0]).exists() for each in chosen)
    whole = not (named or config.option.keyword or getattr(config.option, "lf", False) or config.option.collectonly)
    return min(usable_cores(), 4) if whole else 0


def pytest_collection_modifyitems(items):
    """Run modules with slow tests first, so that workers end together, and tests against the clock after all others."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (is_real_time(item), item.path not in slow))
    for item in items:
        if is_real_time(item):
            # A machine that stands still for a second spoils what they look at: they are tried again.
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=1))


def is_real_time(item):
    """Tell whether a test runs against the clock."""
    return item.get_closest_marker("real_time") is not None


class Phase:
    """Keeps tests against the clock from running beside others in another worker of the same run.

    Every worker holds a shared lock while it runs ordinary tests. Before its first test against the clock it gives that
    lock back and waits until no worker holds it any more.
    """

    def __init__(self, path):
        self.path = path
        self.lock = None
        self.in_real_time = False

    def enter(self, real_time):
        if real_time and not self.in_real_time:
            self.leave()
            with self.path.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
            self.in_real_time = True
        elif not real_time and self.lock is None:
            self.lock = self.path.open()
            fcntl.flock(self.lock, fcntl.LOCK_SH)

    def leave(self):
        if self.lock is not None:
            self.lock.close()
            self.lock = None


LOCK = "SACCADE_TESTS_LOCK"
PHASE = pytest.StashKey()


def pytest_configure(config):
    """Make the file of the lock in the process that starts the workers; they find it in their environment."""
    if hasattr(config, "workerinput"):
        config.stash[PHASE] = Phase(Path(os.environ[LOCK]))
    else:
        handle, os.environ[LOCK] = tempfile.mkstemp(prefix="saccade-tests-", suffix=".lock")
        os.close(handle)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    if PHASE in item.config.stash:
        item.config.stash[PHASE].enter(is_real_time(item))


def pytest_unconfigure(config):
    if PHASE in config.stash:
        config.stash[PHASE].leave()
    else:
        Path(os.environ[LOCK]).unlink(missing_ok=True)


@pytest.fixture(scope="session")
def small_architecture():
    """The least of everything that still prunes, points and cross-attends: a step takes milliseconds."""
    from saccade.policy.network.architecture import Architecture

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
    """Reset Accelerate's state after each test: it is global, and would carry over to the next training."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
