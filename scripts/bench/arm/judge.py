"""What a virtual arm really did, judged: by the record of its twin's motion, and by the governor's flight record."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ....robot.governor.chunk_checks import FAULT_REASONS
from ....robot.governor.governor import MOVING_STATES
from ....robot.governor.rules import MAX_STEP_AGE
from ....robot.limits import JointLimits
from ....sim.virtual_arm.world import JointTrajectory

ROUNDING_TOLERANCE = 0.2
"""Units: a goal is written in ticks of 0.09 degrees, and two of them may be rounded apart."""

MAX_OVERSHOOT = 4.0
"""Units by which a true joint may swing beyond the range of its goals."""

LOOKBACK_SECONDS = 0.15
"""Seconds: a goal where the joint truly was within so long before is a hold and no step; a reading may be that old."""

HOLD_TOLERANCE = 1.0
"""Units by which it may differ from that."""

LOST_WRITES = 2
"""Where a write is lost or late on the bus, the next one takes its step as well; that much a servo may see at once."""

MAX_TORQUE_ON_DISTANCE = 10.0
"""Units from its goal at which a joint may be when it gets torque: one without torque falls a little unnoticed."""

SPEED_TOLERANCE_FACTOR = 1.2
"""By what factor a true joint may be faster than its goals: it catches up."""

REST_TOLERANCE = 2.0
"""Units from where it ends within which an arm that is held counts as being at rest: it swings a little around that."""

SETTLE_SECONDS = 0.1
"""What an arm may take at most from the command to hold until it is at rest."""

MIN_GAP_SECONDS = 0.01
"""Seconds between two rows of a motion record, of which there are 360 a second, from which on rows are missing."""

WINDOW = 0.1
HELD_STATES = ("holding", "stopped", "idle")


def unsafe_goals(joint_trajectory: JointTrajectory, limits: JointLimits, tick: float) -> list[str]:
    """Return a text for each goal that lies or steps beyond the limits; one that brings the arm to rest is no step."""
    found = []
    goals, positions, times = joint_trajectory.goals, joint_trajectory.positions, joint_trajectory.times
    low, high, speed = (np.array(each) for each in (limits.low, limits.high, limits.speed))
    # Physics that gave up time on a busy machine recorded none of the goals that came meanwhile.
    gaps = np.diff(times)
    missed = np.where(gaps > MIN_GAP_SECONDS, gaps, 0.0)
    for joint in range(goals.shape[1]):
        goal, position = goals[:, joint], positions[:, joint]
        known = np.isfinite(goal)
        outside = known & ((goal < low[joint] - ROUNDING_TOLERANCE) | (goal > high[joint] + ROUNDING_TOLERANCE))
        outside &= ~_is_initial_goal(goal, position, times)
        if outside.any():
            found.append(f"{limits.names[joint]}: goal {goal[outside][0]:.1f} outside its range")
        change = np.diff(goal)
        change[~np.isfinite(change)] = 0.0
        away = _goal_distance(goal, position, times)[1:]
        rests = away <= HOLD_TOLERANCE
        began = known[1:] & ~known[:-1] & (away > MAX_TORQUE_ON_DISTANCE)
        if began.any():
            found.append(f"{limits.names[joint]}: torque came on with a goal {away[began].max():.1f} away")
        change[rests] = 0.0
        step = np.abs(change)
        beyond = step > speed[joint] * (LOST_WRITES * tick + missed) + 2 * ROUNDING_TOLERANCE
        if beyond.any():
            found.append(f"{limits.names[joint]}: a step of {step[beyond].max():.1f} within a tick")
        path = np.concatenate([[0.0], np.cumsum(step)])
        start = np.searchsorted(times, times - WINDOW)
        allowed = speed[joint] * (WINDOW + 2 * tick) + 2 * ROUNDING_TOLERANCE
        if len(path) and (path - path[start]).max() > allowed:
            found.append(f"{limits.names[joint]}: goals moved {(path - path[start]).max():.1f} within {WINDOW:g} s")
    return found


def _is_initial_goal(goals: np.ndarray, positions: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return where [n] a joint's goal is still the pose at which it got torque, before the governor's first goal."""
    if not len(goals) or not abs(goals[0] - positions[0]) <= HOLD_TOLERANCE:
        return np.zeros(len(goals), dtype=bool)
    return np.logical_and.accumulate(goals == goals[0]) & (times <= times[0] + LOOKBACK_SECONDS)


def _goal_distance(goals: np.ndarray, positions: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return how far [n] each goal of a joint lies from where that joint was just before; NaN where it is limp."""
    rows = np.searchsorted(times, times - LOOKBACK_SECONDS)
    low, high = positions.copy(), positions.copy()
    # In steps of a doubling width: the extremes of so many rows before each one.
    width = int((np.arange(len(times)) - rows).max(initial=1))
    reach = 1
    while reach <= width:
        low[reach:] = np.minimum(low[reach:], low[:-reach])
        high[reach:] = np.maximum(high[reach:], high[:-reach])
        reach *= 2
    return np.maximum(np.maximum(low - goals, goals - high), 0.0)


def unsafe_targets(lines: list[dict[str, Any]], limits: JointLimits, tick: float) -> list[str]:
    """Return a text for each target in lines of a flight record that the governor should not have given.

    While moving, no step beyond the speed of one tick; while held, nothing but the last target or a measured pose.
    """
    found = []
    low, high, speed = (np.array(each) for each in (limits.low, limits.high, limits.speed))
    before, poses = None, []
    for line in lines:
        pose = line.get("measured")
        if pose is not None:
            poses = [*poses[-4:], np.clip(np.array(pose), low, high)]
        if line["call"] in ("begin", "rearm"):
            before = None
        if line["call"] != "tick" or line["target"] is None:
            continue
        target = np.array(line["target"])
        if not np.isfinite(target).all() or np.any((target < low) | (target > high)):
            found.append(f"target {target.round(1).tolist()} beyond the range")
        if before is not None:
            step = np.abs(target - before)
            held = any(np.array_equal(target, each) for each in poses)
            if line["state"] in HELD_STATES and step.max() > 0.0 and not held:
                found.append(f"a target that is neither the last one nor a measured pose, {line['state']}")
            if line["state"] in MOVING_STATES and np.any(step > speed * tick + 1e-6) and not held:
                found.append(f"a target {step.max():.2f} away from the last one, {line['state']}")
        before = target
    return found


def unsafe_motion(joint_trajectory: JointTrajectory, limits: JointLimits) -> list[str]:
    """Return a text for each joint that was or moved beyond the limits; joints without torque fall."""
    found = []
    if len(joint_trajectory.times) < 16:
        return found
    low, high, speed = (np.array(each) for each in (limits.low, limits.high, limits.speed))
    rows = 7
    for joint in range(joint_trajectory.positions.shape[1]):
        position = joint_trajectory.positions[:, joint]
        driven = np.isfinite(joint_trajectory.goals[:, joint])
        outside = driven & ((position < low[joint] - MAX_OVERSHOOT) | (position > high[joint] + MAX_OVERSHOOT))
        if outside.any():
            found.append(f"{limits.names[joint]}: at {position[outside][0]:.1f}, outside its range")
        seconds = joint_trajectory.times[rows:] - joint_trajectory.times[:-rows]
        moved = np.abs(position[rows:] - position[:-rows]) / np.maximum(seconds, 1e-3)
        fast = driven[rows:] & driven[:-rows] & (moved > SPEED_TOLERANCE_FACTOR * speed[joint])
        if fast.any():
            found.append(f"{limits.names[joint]}: moved at {moved[fast].max():.0f} a second")
    return found


def rest_seconds(joint_trajectory: JointTrajectory, held: float, until: float) -> float | None:
    """Return how long after the steady time `held` the joints came to rest, where they still are at `until`.

    None where there is no record of it.
    """
    during = (joint_trajectory.times >= held) & (joint_trajectory.times <= until)
    if during.sum() < 8:
        return None
    times, positions = joint_trajectory.times[during], joint_trajectory.positions[during]
    away = np.abs(positions - positions[-1]).max(axis=1) > REST_TOLERANCE
    return 0.0 if not away.any() else float(times[np.flatnonzero(away)[-1]] - held)


def moved_while_held(joint_trajectory: JointTrajectory, held: float, until: float) -> float:
    """Return how far, in units, any joint with torque was from where it ended when it should have been at rest."""
    during = (joint_trajectory.times >= held + SETTLE_SECONDS) & (joint_trajectory.times <= until)
    if during.sum() < 2:
        return 0.0
    positions, driven = joint_trajectory.positions[during], np.isfinite(joint_trajectory.goals[during]).all(axis=0)
    return float((np.abs(positions - positions[-1]).max(axis=0) * driven).max())


def unsafe_while_held(
    joint_trajectory: JointTrajectory, held: float, until: float, target: np.ndarray | None = None
) -> list[str]:
    """Return a text for each goal that changed while the arm was held, except one that holds it better.

    `target`: what the governor held [A]; a servo that gets it late has no new command.
    """
    during = (joint_trajectory.times >= held + SETTLE_SECONDS) & (joint_trajectory.times <= until)
    goals, positions = joint_trajectory.goals[during], joint_trajectory.positions[during]
    if len(goals) < 2:
        return []
    change = np.abs(np.diff(goals, axis=0))
    moved = np.isfinite(change) & (change > ROUNDING_TOLERANCE)
    for joint in range(goals.shape[1]):
        moved[:, joint] &= (
            _goal_distance(goals[:, joint], positions[:, joint], joint_trajectory.times[during])[1:] > HOLD_TOLERANCE
        )
    if target is not None:
        moved &= np.abs(goals[1:] - target) > ROUNDING_TOLERANCE
    return [f"a goal changed by {change[moved].max():.1f} while the arm was held"] if moved.any() else []


class RecordTail:
    """The lines of a flight record that is still being written; `read` returns the new ones."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read(self) -> list[dict[str, Any]]:
        """Return the whole lines since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


@dataclass(frozen=True)
class Hold:
    """A hold as the flight record has it, in steady seconds.

    `held`: the first tick that held. `cause`: what led to it (the call, the end of the last fresh step, or the last
    tick before). `moved`: how many ticks between the two still moved. `state`, `reason`: the governor's in the end and
    at first. `until`: the last recorded tick of the hold.
    """

    held: float
    cause: float
    moved: int
    state: str
    reason: str
    until: float


def find_holds(lines: list[dict[str, Any]], since: float = 0.0) -> list[Hold]:
    """Return the holds in lines of a flight record which began after the steady time `since`."""
    found: list[Hold] = []
    before, cause, moved, fresh_until = None, None, 0, 0.0
    for line in lines:
        call = line["call"]
        if call == "submit" and line["accepted"]:
            fresh_until = line["observed"] + min(MAX_STEP_AGE, line["shape"][0] * line["period"])
        if call in ("fault", "stop", "hold", "drop", "end") or (call == "submit" and line["reason"] in FAULT_REASONS):
            cause = line["now"] if cause is None else cause
        if call != "tick":
            continue
        state = line["state"]
        if state in MOVING_STATES:
            moved += cause is not None
        elif before is not None and before["state"] in MOVING_STATES:
            reason = next(
                (detail.split(":")[0] for kind, detail, _ in line.get("events", []) if kind in HELD_STATES), ""
            )
            began = before["now"] if cause is None else cause
            if reason == "starved":
                began = min(max(fresh_until, before["now"]), line["now"])
            found.append(Hold(line["now"], began, moved, state, reason, line["now"]))
        elif found:
            found[-1] = replace(found[-1], state=state, until=line["now"])
        if state not in MOVING_STATES:
            cause, moved = None, 0
        before = line
    return [hold for hold in found if hold.held >= since]
