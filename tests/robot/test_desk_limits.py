"""The default limits fit the desk: hardly any command of the demonstrator is clamped."""

from __future__ import annotations

import numpy as np
import pytest

from saccade.policy.checkpoint.folder import read_contract
from saccade.robot.governor.chunk import ActionChunk
from saccade.robot.governor.governor import Governor
from saccade.robot.governor.rules import Rules
from saccade.robot.limits import JointLimits, JointRange
from saccade.sim.desk import arm
from saccade.sim.desk.demonstrator.demonstrator import DeskDemonstrator
from saccade.sim.desk.environment import DeskEnv

PERIOD = 1.0 / arm.CONTROL_HZ


def desk_limits() -> JointLimits:
    contract = read_contract("starter")
    low, high = arm.joint_limits()
    degrees = np.rad2deg(arm.JOINT_RANGES[:, 1] - arm.JOINT_RANGES[:, 0])
    rows = zip(contract.action.names, contract.action.units, low, high, degrees, strict=True)
    ranges = [JointRange(*row[:2], *map(float, row[2:]), gripper=row[1] == "percent") for row in rows]
    return JointLimits.derive(contract, ranges)


@pytest.mark.parametrize(
    ("suite", "task", "noise"),
    [
        ("desk_object", "red_cube", 0.0),
        ("desk_object", "red_cube", 1.0),
        ("desk_spatial", "left", 1.0),
        ("desk_goal", "open_drawer", 1.0),
        ("desk_goal", "stack_cubes", 1.0),
    ],
)
def test_governor_leaves_demonstrations_nearly_unchanged(suite, task, noise):
    env = DeskEnv(suite, task, image_size=32)
    env.rendering_enabled = False
    observation, _ = env.reset(options={"initial_state": 1003})
    demonstrator = DeskDemonstrator(env, np.random.default_rng(3), noise=noise)
    governor = Governor(Rules("desk", desk_limits(), PERIOD, PERIOD, chunk=3, start="ramp"))
    now, success, changed, moving = 100.0, False, 0, 0
    governor.begin(0, observation["agent_pos"], now)
    for sequence in range(400):
        _, executed = demonstrator.decide()
        chunk = ActionChunk("desk", 0, sequence, now, PERIOD, np.repeat(executed[None], 3, axis=0))
        assert governor.submit(chunk, now).accepted
        command = governor.tick(now, observation["agent_pos"], measured_at=now)
        if command.state == "moving":
            moving += 1
            changed += np.abs(command.target - executed).max() > 1.0
        observation, _, success, over, _ = env.step(command.target)
        now += PERIOD
        if success or over:
            break
    assert success
    assert not governor.holds
    assert moving > 20
    assert changed <= max(1, 0.03 * moving)
    assert governor.counts["speed_clamps"] <= max(1, 0.03 * moving)
    ramped = governor.counts["ticks"] - moving
    assert ramped * PERIOD < 1.5, "the ramp runs only at the start, where the target jumps by up to 90 degrees"
