"""Every row of the failure catalogue on the virtual arm, under the real stack, judged by what its twin truly did.

The cases are those of `saccade bench arm`; one control process, or one session, serves all that leave it alive.
"""

from __future__ import annotations

import numpy as np
import pytest

from saccade.scripts.bench.arm.cases import CASES, CATALOGUE_ROWS, rig_rules
from saccade.scripts.bench.arm.faults import FaultOutcome, run_cases
from saccade.scripts.bench.arm.judge import (
    find_holds,
    moved_while_held,
    rest_seconds,
    unsafe_goals,
    unsafe_motion,
    unsafe_targets,
    unsafe_while_held,
)
from saccade.scripts.bench.arm.process_faults import SESSION_CASES, foreign_statistics, run_session_cases
from saccade.scripts.bench.arm.rig import LinkRig
from saccade.sim.virtual_arm.world import JointTrajectory, VirtualArm

SOFTWARE_MS, DEVICE_MS = 20.0, 100.0
BUS_MS = 50.0
LATE_MS = 20.0
"""A virtual arm further behind the clock stands for no real one, which has a clock of its own."""

NOISE_MS, DEVICE_NOISE_MS = 150.0, 60.0
"""What a machine that is busy with other things may add to a time: that nothing moved meanwhile is asserted exactly."""


def marked(cases):
    return [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else []) for case in cases]


def selected(request, function, cases):
    """Return the cases whose tests were not left out."""
    names = {item.callspec.id for item in request.session.items if item.name.startswith(f"{function}[")}
    return tuple(case for case in cases if case.name in names)


def undisturbed(run, cases) -> dict[str, FaultOutcome]:
    """Run cases, and those again, three times at most, that a machine busy with other things spoiled."""
    found = {outcome.name: outcome for outcome in run(cases)}
    for _ in range(3):
        again = tuple(case for case in cases if was_disturbed(found[case.name]))
        if again:
            found |= {outcome.name: outcome for outcome in run(again)}
    return found


def was_disturbed(outcome: FaultOutcome) -> bool:
    """Tell whether the virtual arm fell behind, or nothing is wrong but a safe hold for the reason of another fault."""
    if outcome.problems and outcome.late_ms > LATE_MS:
        return True
    others = [problem for problem in outcome.problems if not problem.startswith(("no hold for", "held for"))]
    return bool(outcome.problems) and not others and not any("but []" in problem for problem in outcome.problems)


@pytest.fixture(scope="module")
def chunk_and_bus(request, tmp_path_factory) -> dict[str, FaultOutcome]:
    cases = selected(request, "test_faults_of_chunks_and_bus", CASES)
    with VirtualArm.start(rendering_enabled=False) as world:

        def run(cases):
            return run_cases(lambda name: LinkRig(world, tmp_path_factory.mktemp("rig"), **rig_rules(name)), cases)

        return undisturbed(run, cases)


@pytest.fixture(scope="module")
def sessions(request, tmp_path_factory) -> dict[str, FaultOutcome]:
    cases = selected(request, "test_faults_of_cameras_network_and_processes", SESSION_CASES)
    with VirtualArm.start(image_size=32) as world:
        return undisturbed(lambda cases: run_session_cases(world, tmp_path_factory.mktemp("sessions"), cases), cases)


def check(outcome: FaultOutcome, software_ms: float = SOFTWARE_MS) -> None:
    assert outcome.problems == (), outcome
    if outcome.software_ms is not None:
        assert outcome.software_ms <= software_ms + NOISE_MS
    if outcome.device_ms is not None:
        assert outcome.device_ms <= DEVICE_MS + DEVICE_NOISE_MS


@pytest.mark.parametrize("case", marked(CASES))
def test_faults_of_chunks_and_bus(case, chunk_and_bus):
    stands_still = case.name in ("control process stands still", "late ticks")
    limit = 1000.0 if stands_still else SOFTWARE_MS + (BUS_MS if CATALOGUE_ROWS[case.row] == "serial bus" else 0.0)
    check(chunk_and_bus[case.name], limit)


@pytest.mark.parametrize("case", marked(SESSION_CASES))
def test_faults_of_cameras_network_and_processes(case, sessions):
    check(sessions[case.name], SOFTWARE_MS + BUS_MS)


@pytest.mark.slow
def test_a_policy_without_its_statistics_is_refused(tmp_path):
    assert foreign_statistics(tmp_path).problems == ()


def test_every_row_of_the_catalogue_is_there():
    rows = {case.row for case in (*CASES, *SESSION_CASES)}
    assert rows | {12} == set(range(len(CATALOGUE_ROWS)))


@pytest.mark.parametrize(
    ("problems", "late_ms", "disturbed"),
    [
        ((), 0.0, False),
        ((), 90.0, False),
        (("no hold for overruns, but ['bus']",), 0.0, True),
        (("held for bus",), 0.0, True),
        (("no hold for overruns, but []",), 0.0, False),
        (("no hold for overruns, but ['bus']", "2 ticks still moved"), 0.0, False),
        (("2 ticks still moved",), 3.0, False),
        (("2 ticks still moved",), 90.0, True),
    ],
)
def test_a_case_is_run_again_only_where_the_machine_spoiled_it(problems, late_ms, disturbed):
    outcome = FaultOutcome("x", "row", "how", "required", "observed", None, None, None, problems, late_ms)
    assert was_disturbed(outcome) is disturbed


# The judge: it must find what is wrong.

TIMES = np.arange(720) / 360.0


class JointLimits:
    names = ("one", "two")
    low, high, speed = (-100.0, -100.0), (100.0, 100.0), (270.0, 270.0)


def joint_trajectory(goals, positions=None) -> JointTrajectory:
    goals = np.stack([goals, np.zeros(720)], axis=1)
    positions = goals.copy() if positions is None else np.stack([positions, np.zeros(720)], axis=1)
    return JointTrajectory(TIMES, positions, goals, np.zeros(720))


def steps(size: float) -> np.ndarray:
    """Goals that go up by `size` every 20 ms, from 0."""
    return size * np.floor(TIMES / 0.02)


def behind(goals: np.ndarray, rows: int = 20) -> np.ndarray:
    return np.concatenate([np.full(rows, goals[0]), goals[:-rows]])


def test_the_judge_lets_a_swing_pass_and_finds_steps_speeds_and_ranges_beyond_the_limits():
    swing = 50 * np.sin(4 * TIMES)
    assert unsafe_goals(joint_trajectory(swing, behind(swing)), JointLimits, 0.02) == []
    assert unsafe_motion(joint_trajectory(swing), JointLimits) == []
    jump = np.where(TIMES > 1.0, 20.0, 0.0)
    assert "a step of 20.0" in unsafe_goals(joint_trajectory(jump, np.zeros(720)), JointLimits, 0.02)[0]
    fast = np.minimum(steps(8.0), 90.0)
    assert "within 0.1 s" in unsafe_goals(joint_trajectory(fast, np.zeros(720)), JointLimits, 0.02)[0]
    assert "outside" in unsafe_goals(joint_trajectory(np.full(720, 101.0)), JointLimits, 0.02)[0]
    assert "moved at" in unsafe_motion(joint_trajectory(np.minimum(500 * TIMES, 90.0)), JointLimits)[0]


def test_the_judge_knows_goals_that_came_while_the_physics_stood_still():
    """A record without the rows of a quarter of a second, in which the goal went on by less than its speed."""
    goals = steps(1.0)
    gone = (TIMES > 1.0) & (TIMES < 1.26)
    whole = joint_trajectory(goals, behind(goals))
    gap = JointTrajectory(*(each[~gone] for each in whole))
    assert np.abs(np.diff(gap.goals[:, 0])).max() > 11.2
    assert unsafe_goals(gap, JointLimits, 0.02) == []
    leap = whole._replace(goals=whole.goals + np.where(TIMES[:, None] > 1.1, -120.0, 0.0))
    assert "a step of" in unsafe_goals(JointTrajectory(*(each[~gone] for each in leap)), JointLimits, 0.02)[0]


def test_the_judge_takes_a_return_to_where_the_joint_was_for_a_hold_and_nothing_else():
    goals = np.where(TIMES < 1.0, 40.0, 20.0)
    assert unsafe_goals(joint_trajectory(goals, np.full(720, 20.3)), JointLimits, 0.02) == []
    assert unsafe_goals(joint_trajectory(goals, np.full(720, 30.0)), JointLimits, 0.02) != []
    limp = np.where(TIMES < 1.0, np.nan, 20.0)
    assert "torque came on" in unsafe_goals(joint_trajectory(limp, np.full(720, 40.0)), JointLimits, 0.02)[0]


def test_the_judge_lets_an_arm_be_found_outside_its_range_but_not_stay_there():
    def found(seconds: float, to: float = 99.0) -> list[str]:
        return unsafe_goals(
            joint_trajectory(np.where(seconds > TIMES, 103.0, to), np.full(720, 103.2)), JointLimits, 0.02
        )

    assert found(0.1) == []
    assert "goal 103.0 outside" in found(0.3)[0]
    assert "goal 105.0 outside" in found(0.1, 105.0)[0]
    assert (
        "goal 103.0 outside"
        in unsafe_goals(joint_trajectory(np.full(720, 103.0), np.full(720, 99.0)), JointLimits, 0.02)[0]
    )


def test_the_judge_sees_an_arm_that_does_not_rest():
    still = np.zeros(720)
    swings = np.where(TIMES < 0.55, 10 * np.sin(30 * TIMES), 0.0)
    assert rest_seconds(joint_trajectory(still, still), 0.5, 1.5) == 0.0
    assert 0.02 < rest_seconds(joint_trajectory(still, swings), 0.5, 1.5) < 0.06
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


def test_the_judge_finds_what_a_governor_must_not_command():
    good = [tick(0.0, (1, 0), "moving"), tick(0.02, (5, 0), "moving"), tick(0.04, (0, 0), "holding")]
    assert unsafe_targets(good, JointLimits, 0.02) == []
    assert "away" in unsafe_targets([*good[:1], tick(0.02, (8, 0), "moving")], JointLimits, 0.02)[0]
    assert "neither" in unsafe_targets([*good, tick(0.06, (1, 0), "holding")], JointLimits, 0.02)[0]
    assert "beyond" in unsafe_targets([tick(0.0, (200, 0), "moving")], JointLimits, 0.02)[0]


def test_a_hold_is_counted_from_its_cause_and_ticks_that_still_moved_are_told():
    lines = [tick(0.0, (1, 0), "moving"), {"call": "stop", "now": 0.01, "reason": "x"}]
    held = {**tick(0.02, (0, 0), "stopped"), "events": [["stopped", "stop: x", 0.01]]}
    (hold,) = find_holds([*lines, held])
    assert (hold.reason, hold.moved, hold.cause, hold.held) == ("stop", 0, 0.01, 0.02)
    (hold,) = find_holds([*lines, tick(0.02, (2, 0), "moving"), {**held, "now": 0.04}])
    assert hold.moved == 1
