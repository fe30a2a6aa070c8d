"""The failure catalogue of an arm, fault by fault: each is brought about, observed, and judged by what the arm did.

What they are stands in `arm_cases`; those of cameras, network and processes are in `arm_process_faults`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ....errors import SaccadeError
from ....robot.governor.governor import MOVING_STATES
from ....sim.virtual_arm.world import JointTrajectory
from .cases import CASES, CATALOGUE_ROWS, FaultCase
from .judge import (
    REST_TOLERANCE,
    SETTLE_SECONDS,
    Hold,
    RecordTail,
    find_holds,
    moved_while_held,
    rest_seconds,
    unsafe_goals,
    unsafe_motion,
    unsafe_targets,
    unsafe_while_held,
)
from .rig import LinkRig

TICK = 0.02


@dataclass(frozen=True)
class FaultOutcome:
    """What came of a fault; times in milliseconds, None where nothing had to be held.

    `detection_ms`: from the fault to the hold, which includes what a rule waits for. `software_ms`: from its cause, as
    far as the governor can know it, to the first tick that holds. `device_ms`: from there until the true joints rest.
    `late_ms`: how far the virtual arm itself fell behind the clock, at the worst, on a machine busy with other things.
    """

    name: str
    row: str
    injected: str
    required: str
    observed: str
    detection_ms: float | None
    software_ms: float | None
    device_ms: float | None
    problems: tuple[str, ...]
    late_ms: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.problems


def run_case(rig: LinkRig, case: FaultCase, tail: RecordTail) -> FaultOutcome:
    """Let the arm move, bring a fault about, see what comes of it, and judge that."""
    world = rig.world
    world.clear_faults()
    rig.begin()
    started = time.monotonic()
    tail.read()
    if not case.starts_at_rest:
        rig.feed(0.6)
    injected = time.monotonic()
    case.inject(rig)
    began_after = time.monotonic()
    # Good chunks: what is latched must not move by them, what is not may.
    rig.feed(case.watch_seconds) if case.latched else rig.feed(case.watch_seconds, chunks=0)
    time.sleep(0.05)
    lines, joint_trajectory = tail.read(), world.joint_trajectory(started)
    observed, problems = [], []
    if not case.starts_at_rest and not any(line["call"] == "tick" and line["state"] in MOVING_STATES for line in lines):
        problems.append("the arm did not move before")
    found = find_holds(lines, injected)
    if case.starts_at_rest:
        found = find_rest_holds(lines, injected)
    wanted = [hold for hold in found if hold.reason in case.reasons]
    hold = wanted[0] if wanted else None
    if case.reasons and hold is None:
        problems.append(f"no hold for {' or '.join(case.reasons)}, but {[each.reason for each in found]}")
    early = [each for each in found if each.held < began_after and each.reason != "starved"]
    if not case.reasons and early and not case.limp:
        problems.append(f"held for {early[0].reason}")
    if not case.reasons and early and case.limp:
        hold = early[0]
    if case.latched and not any(line["call"] == "tick" and line["state"] == "stopped" for line in lines[-5:]):
        problems.append("it was not latched")
    problems += unsafe_targets(lines, rig.limits, TICK) + unsafe_goals(joint_trajectory, rig.limits, TICK)
    problems += [] if case.limp else unsafe_motion(joint_trajectory, rig.limits)
    observed.append(describe_hold(hold, lines))
    times, judged = judge_hold(hold, joint_trajectory, injected, case.limp, case.latched)
    problems += judged
    if case.limp:
        world.clear_faults()
        world.reset()
    said = "; ".join(observed)
    return FaultOutcome(
        case.name,
        CATALOGUE_ROWS[case.row],
        case.injected,
        case.required,
        said,
        *times,
        tuple(problems),
        max_lateness_ms(joint_trajectory),
    )


def find_rest_holds(lines: list[dict], since: float) -> list[Hold]:
    """Return the refusals of a resting arm to set off as holds; they begin where it rests already."""
    found = []
    before = since
    for line in lines:
        if line["call"] != "tick" or line["now"] < since:
            continue
        for kind, detail, when in line.get("events", []):
            if kind == "holding":
                found.append(Hold(line["now"], min(before, when), 0, line["state"], detail.split(":")[0], line["now"]))
        before = line["now"]
    last = max((line["now"] for line in lines if line["call"] == "tick"), default=since)
    return [Hold(each.held, each.cause, 0, each.state, each.reason, last) for each in found]


def max_lateness_ms(joint_trajectory: JointTrajectory) -> float:
    """Return by how many milliseconds a virtual arm's physics was behind the clock at the worst."""
    return 1000.0 * float(joint_trajectory.late.max(initial=0.0))


def judge_hold(
    hold: Hold | None, joint_trajectory: JointTrajectory, injected: float, limp: bool = False, latched: bool = False
) -> tuple[tuple[float | None, float | None, float | None], list[str]]:
    """Return the times of a hold in milliseconds (see `FaultOutcome`) and what was wrong about it."""
    if hold is None:
        return (None, None, None), []
    problems = []
    if hold.moved:
        problems.append(f"{hold.moved} ticks still moved")
    rests = rest_seconds(joint_trajectory, hold.held, hold.until)
    device = None if rests is None or limp else 1000.0 * rests
    if not limp:
        problems += unsafe_while_held(joint_trajectory, hold.held, hold.until)
        moved = moved_while_held(joint_trajectory, hold.held, hold.until)
        if moved > REST_TOLERANCE:
            problems.append(f"the arm moved by {moved:.1f} more than {1000 * SETTLE_SECONDS:.0f} ms after the hold")
    software = 1000.0 * (hold.held - hold.cause)
    return (1000.0 * (hold.held - injected), software, device), problems


def describe_hold(hold: Hold | None, lines: list[dict]) -> str:
    """Return in words what the governor did, by the flight record."""
    rejected: dict[str, int] = {}
    for line in lines:
        if line["call"] == "submit" and not line["accepted"]:
            rejected[line["reason"]] = rejected.get(line["reason"], 0) + 1
    refused = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
    what = "moves on" if hold is None else f"held ({hold.reason})" + (", latched" if hold.state == "stopped" else "")
    return what + (f"; refused: {refused}" if refused else "")


def run_cases(
    make_rig: Callable[[str], LinkRig],
    cases: tuple[FaultCase, ...] = CASES,
    on_outcome: Callable[[FaultOutcome], object] = lambda outcome: None,
) -> list[FaultOutcome]:
    """Run cases one after the other, those of one rig on one control process; `on_outcome` is given each outcome."""
    outcomes = []
    for name in dict.fromkeys(case.rig for case in cases):
        rig = make_rig(name)
        tail = RecordTail(rig.record)
        try:
            for case in cases:
                if case.rig == name:
                    outcomes.append(_run_case_safely(rig, case, tail))
                    on_outcome(outcomes[-1])
        finally:
            rig.close()
    return outcomes


def _run_case_safely(rig: LinkRig, case: FaultCase, tail: RecordTail) -> FaultOutcome:
    try:
        return run_case(rig, case, tail)
    except SaccadeError as error:
        # One that breaks the rig is a finding about that fault, and the others are still to be looked at.
        rig.world.clear_faults()
        rig.world.reset()
        row = CATALOGUE_ROWS[case.row]
        return FaultOutcome(case.name, row, case.injected, case.required, "", None, None, None, (f"broke: {error}",))
