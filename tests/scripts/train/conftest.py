"""Fixtures of the tests of `saccade train`: demonstrations, a small preset, and a finished training."""

import pytest
from accelerate.state import AcceleratorState

from saccade.policy.network.presets import PRESETS
from saccade_testing.toy_training import record, train


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    return record(tmp_path_factory.mktemp("recorded") / "toy")


@pytest.fixture(autouse=True)
def small_preset_and_fresh_state(monkeypatch, tmp_path_factory, small_architecture):
    """Use a small network as the preset, a temporary frame cache, and a fresh Accelerate."""
    monkeypatch.setitem(PRESETS, "tiny", small_architecture)
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def trained(demonstrations, tmp_path_factory, small_architecture):
    """The folder of a finished training, to be copied."""
    out = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", small_architecture)
        patch.setenv("SACCADE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        train(demonstrations, out, threads=1)
    AcceleratorState._reset_state(reset_partial_state=True)
    return out
