"""A contract of three joints with limits, rules and chunks, shared by the tests of `robot`."""

from __future__ import annotations

import numpy as np

from saccade.policy.contract import ActionSpec, CameraSpec, Contract, GripperSpec, Normalization, StateSpec
from saccade.robot.control.loop import LoopSettings
from saccade.robot.governor.chunk import ActionChunk
from saccade.robot.governor.rules import Rules
from saccade.robot.limits import JointLimits, JointRange

NAMES = ("shoulder_pan.pos", "elbow_flex.pos", "gripper.pos")
UNITS = ("degrees", "degrees", "percent")
HZ, TICK = 30.0, LoopSettings().tick
PERIOD = 1.0 / HZ
RANGES = (
    JointRange("shoulder_pan.pos", "degrees", -110.0, 110.0, 220.0),
    JointRange("elbow_flex.pos", "degrees", -97.0, 97.0, 194.0),
    JointRange("gripper.pos", "percent", 0.0, 100.0, 110.0, gripper=True),
)


def make_contract(chunk: int = 16, execute: int = 8, size: int = 16) -> Contract:
    return Contract(
        cameras=(CameraSpec("front", size, size),),
        state=StateSpec(NAMES, UNITS),
        action=ActionSpec(NAMES, UNITS, gripper=GripperSpec("gripper.pos", closed=0.0, open=100.0)),
        control_hz=HZ,
        normalization=Normalization(
            (-100, -90, 0),
            (100, 90, 100),
            ((-40, -40, 0),) * chunk,
            ((40, 40, 100),) * chunk,
            (True, True, False),
        ),
        chunk=chunk,
        execute=execute,
    )


def make_limits(**changes: object) -> JointLimits:
    return JointLimits.derive(make_contract(), RANGES, **changes)


def make_rules(**changes: object) -> Rules:
    fields = dict(session="here", limits=make_limits(), period=PERIOD, tick=TICK, chunk=16)
    return Rules(**{**fields, **changes})


def make_chunk(actions: object, *, observed: float, sequence: int = 0, **changes: object) -> ActionChunk:
    """Return a chunk of the session "here"; a single action [A] is repeated for all 16 steps."""
    actions = np.asarray(actions, dtype=np.float64)
    if actions.ndim == 1:
        actions = np.repeat(actions[None], 16, axis=0)
    fields = dict(session="here", episode=0, sequence=sequence, observed=observed, period=PERIOD, actions=actions)
    return ActionChunk(**{**fields, **changes})
