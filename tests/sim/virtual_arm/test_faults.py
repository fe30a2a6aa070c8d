"""Faults of the virtual arm: validation, times, counts and probabilities."""

import pytest

from saccade.errors import InputError
from saccade.sim.virtual_arm.faults import FAULT_KINDS, Fault, FaultInjector


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def faults(clock):
    return FaultInjector(clock)


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_every_kind_has_a_default_value(kind):
    assert Fault(kind).value == FAULT_KINDS[kind].value


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "dorp"},
        {"kind": "drop", "joint": "elbow"},
        {"kind": "drop", "camera": "front"},
        {"kind": "drop", "value": 1.0},
        {"kind": "camera_black", "joint": "gripper"},
        {"kind": "camera_black", "camera": "top"},
        {"kind": "delay", "value": -1.0},
        {"kind": "delay", "value": float("nan")},
        {"kind": "voltage", "value": 300},
        {"kind": "drop", "after": -1.0},
        {"kind": "drop", "after": float("inf")},
        {"kind": "drop", "seconds": 0.0},
        {"kind": "drop", "count": 0},
        {"kind": "stuck", "count": 3},
        {"kind": "drop", "probability": 0.0},
        {"kind": "stuck", "probability": 0.5},
    ],
)
def test_invalid_faults_are_refused(fields):
    with pytest.raises(InputError):
        Fault(**fields)


def test_unknown_kind_gets_a_suggestion():
    with pytest.raises(InputError, match="'drop'"):
        Fault("dorp")


def test_fault_begins_and_ends_on_time(faults, clock):
    faults.schedule(Fault("stuck", joint="gripper", after=1.0, seconds=2.0))
    assert not faults.active("stuck", "gripper")
    clock.now += 1.0
    assert faults.active("stuck", "gripper") and not faults.active("stuck", "wrist_roll")
    clock.now += 2.0
    assert not faults.active("stuck", "gripper")


def test_fault_triggers_as_often_as_its_count(faults):
    faults.schedule(Fault("drop", count=2))
    assert [bool(faults.trigger("drop", "gripper")) for _ in range(4)] == [True, True, False, False]


def test_fault_triggers_with_its_probability(faults):
    faults.schedule(Fault("drop", probability=0.25))
    assert 150 < sum(bool(faults.trigger("drop", "gripper")) for _ in range(1000)) < 350


def test_clear_ends_all_faults(faults):
    faults.schedule(Fault("stuck"))
    faults.schedule(Fault("port", after=3.0))
    faults.clear()
    assert not faults.active("stuck", "gripper")
    assert not faults.active("port")
