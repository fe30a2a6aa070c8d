"""The judge of the fault tests finds unsafe motion and accepts safe motion."""

from __future__ import annotations

import numpy as np
import pytest

from saccade.robot.limits import JointLimits
from saccade.scripts.bench.arm.judge import (
    find_holds,
    moved_while_held,
    rest_seconds,
    unsafe_goals,
    unsafe_motion,
    unsafe_targets,
    unsafe_while_held,
)
from saccade.sim.virtual_arm.world import JointTrajectory

TIMES = np.arange(720) / 360.0


LIMITS = JointLimits(
    names=("one", "two"),
    low=(-100.0,) * 2,
    high=(100.0,) * 2,
    speed=(270.0,) * 2,
    acceleration=(1000.0,) * 2,
    position_tolerance=(1.0,) * 2,
    start_tolerance=(1.0,) * 2,
    lead=(10.0,) * 2,
)


def joint_trajectory(goals, positions=None) -> JointTrajectory:
    goals = np.stack([goals, np.zeros(720)], axis=1)
    positions = goals.copy() if positions is None else np.stack([positions, np.zeros(720)], axis=1)
    return JointTrajectory(TIMES, positions, goals, np.zeros(720))


def steps(size: float) -> np.ndarray:
    """Return goals that rise by `size` every 20 ms, from 0."""
    return size * np.floor(TIMES / 0.02)


def delayed(goals: np.ndarray, rows: int = 20) -> np.ndarray:
    return np.concatenate([np.full(rows, goals[0]), goals[:-rows]])


def test_judge_accepts_a_swing_and_finds_limit_violations():
    swing = 50 * np.sin(4 * TIMES)
    assert unsafe_goals(joint_trajectory(swing, delayed(swing)), LIMITS, 0.02) == []
    assert unsafe_motion(joint_trajectory(swing), LIMITS) == []
    jump = np.where(TIMES > 1.0, 20.0, 0.0)
    assert "a step of 20.0" in unsafe_goals(joint_trajectory(jump, np.zeros(720)), LIMITS, 0.02)[0]
    fast = np.minimum(steps(8.0), 90.0)
    assert "within 0.1 s" in unsafe_goals(joint_trajectory(fast, np.zeros(720)), LIMITS, 0.02)[0]
    assert "outside" in unsafe_goals(joint_trajectory(np.full(720, 101.0)), LIMITS, 0.02)[0]
    assert "moved at" in unsafe_motion(joint_trajectory(np.minimum(500 * TIMES, 90.0)), LIMITS)[0]


def test_judge_accepts_goals_written_while_the_physics_paused():
    """A quarter of a second is missing, in which the goal moves on within its speed."""
    goals = steps(1.0)
    gone = (TIMES > 1.0) & (TIMES < 1.26)
    whole = joint_trajectory(goals, delayed(goals))
    gap = JointTrajectory(*(each[~gone] for each in whole))
    assert np.abs(np.diff(gap.goals[:, 0])).max() > 11.2
    assert unsafe_goals(gap, LIMITS, 0.02) == []
    leap = whole._replace(goals=whole.goals + np.where(TIMES[:, None] > 1.1, -120.0, 0.0))
    assert "a step of" in unsafe_goals(JointTrajectory(*(each[~gone] for each in leap)), LIMITS, 0.02)[0]


def test_judge_accepts_a_jump_to_the_measured_position_only():
    goals = np.where(TIMES < 1.0, 40.0, 20.0)
    assert unsafe_goals(joint_trajectory(goals, np.full(720, 20.3)), LIMITS, 0.02) == []
    assert unsafe_goals(joint_trajectory(goals, np.full(720, 30.0)), LIMITS, 0.02) != []
    limp = np.where(TIMES < 1.0, np.nan, 20.0)
    assert "torque came on" in unsafe_goals(joint_trajectory(limp, np.full(720, 40.0)), LIMITS, 0.02)[0]


def test_judge_accepts_a_start_outside_the_range_for_a_short_time_only():
    def violations(seconds: float, to: float = 99.0) -> list[str]:
        return unsafe_goals(joint_trajectory(np.where(seconds > TIMES, 103.0, to), np.full(720, 103.2)), LIMITS, 0.02)

    assert violations(0.1) == []
    assert "goal 103.0 outside" in violations(0.3)[0]
    assert "goal 105.0 outside" in violations(0.1, 105.0)[0]
    assert (
        "goal 103.0 outside" in unsafe_goals(joint_trajectory(np.full(720, 103.0), np.full(720, 99.0)), LIMITS, 0.02)[0]
    )


def test_judge_finds_an_arm_that_does_not_rest():
    still = np.zeros(720)
    swings = np.where(TIMES < 0.55, 10 * np.sin(30 * TIMES), 0.0)
    assert rest_seconds(joint_trajectory(still, still), 0.5, 1.5) == 0.0
    seconds = rest_seconds(joint_trajectory(still, swings), 0.5, 1.5)
    assert seconds is not None and 0.02 < seconds < 0.06
    assert moved_while_held(joint_trajectory(still, swings), 0.2, 1.5) > 9.0
    assert moved_while_held(joint_trajectory(still, still), 0.2, 1.5) == 0.0
    creeps = np.maximum(TIMES - 0.6, 0.0) * 4.0
    assert moved_while_held(joint_trajectory(still, creeps), 0.5, 1.5) == pytest.approx(4.0 * 0.9, abs=0.1)
    late = np.where(TIMES < 1.0, 0.0, 5.0)
    assert unsafe_while_held(joint_trajectory(late, still), 0.5, 1.5) != []
    assert unsafe_while_held(joint_trajectory(late, still), 0.5, 1.5, np.array([4.0, 0.0])) != []
    assert unsafe_while_held(joint_trajectory(late, still), 0.5, 1.5, np.array([5.0, 0.0])) == []
    assert unsafe_while_held(joint_trajectory(still, still), 0.5, 1.5) == []


def tick(now, target, state, measured=(0.0, 0.0)) -> dict:
    return {"call": "tick", "now": now, "target": list(target), "state": state, "measured": list(measured)}


def test_judge_finds_unsafe_targets():
    good = [tick(0.0, (1, 0), "moving"), tick(0.02, (5, 0), "moving"), tick(0.04, (0, 0), "holding")]
    assert unsafe_targets(good, LIMITS, 0.02) == []
    assert "away" in unsafe_targets([*good[:1], tick(0.02, (8, 0), "moving")], LIMITS, 0.02)[0]
    assert "neither" in unsafe_targets([*good, tick(0.06, (1, 0), "holding")], LIMITS, 0.02)[0]
    assert "beyond" in unsafe_targets([tick(0.0, (200, 0), "moving")], LIMITS, 0.02)[0]


def test_hold_is_timed_from_its_cause_and_counts_moving_ticks():
    lines = [tick(0.0, (1, 0), "moving"), {"call": "stop", "now": 0.01, "reason": "x"}]
    held = {**tick(0.02, (0, 0), "stopped"), "events": [["stopped", "stop: x", 0.01]]}
    (hold,) = find_holds([*lines, held])
    assert (hold.reason, hold.moved, hold.cause, hold.held) == ("stop", 0, 0.01, 0.02)
    (hold,) = find_holds([*lines, tick(0.02, (2, 0), "moving"), {**held, "now": 0.04}])
    assert hold.moved == 1
