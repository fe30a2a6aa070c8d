"""Inject the faults of chunks and bus on one control process, and judge each by what the virtual arm did.

`control_cases` lists these faults; `session_faults` runs those of cameras, network and processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .....errors import SaccadeError
from .....robot.governor.governor import MOVING_STATES
from ..judge import Hold, RecordTail, find_holds, unsafe_goals, unsafe_motion, unsafe_targets
from ..rig import LinkRig
from .control_cases import CASES, FaultCase
from .outcome import (
    CATALOGUE_ROWS,
    NO_TIMES,
    TICK,
    CaseTiming,
    FaultOutcome,
    describe_hold,
    judge_hold,
    max_lateness_ms,
)

RECORD_DELAY = 0.05
"""Seconds until the last ticks of a case are in the flight record."""


def run_cases(
    make_rig: Callable[[str], LinkRig],
    cases: tuple[FaultCase, ...] = CASES,
    on_outcome: Callable[[FaultOutcome], object] = lambda outcome: None,
    timing: CaseTiming | None = None,
) -> list[FaultOutcome]:
    """Run cases one after the other; those of one rig share a control process.

    Args:
        make_rig: Starts the rig of a name, see `cases.rig_rules`.
        cases: The cases.
        on_outcome: Called with each outcome.
        timing: How long each case is observed; the benchmark's timing if None.

    Returns:
        The outcomes, rig by rig.
    """
    outcomes = []
    for name in dict.fromkeys(case.rig for case in cases):
        rig = make_rig(name)
        tail = RecordTail(rig.record)
        try:
            for case in cases:
                if case.rig == name:
                    outcomes.append(_run_case_safely(rig, case, tail, timing or CaseTiming()))
                    on_outcome(outcomes[-1])
        finally:
            rig.close()
    return outcomes


def run_case(rig: LinkRig, case: FaultCase, tail: RecordTail, timing: CaseTiming) -> FaultOutcome:
    """Let the arm move, inject a fault, observe what follows, and judge it."""
    world = rig.world
    world.clear_faults()
    rig.begin()
    started = time.monotonic()
    tail.read()
    if not case.starts_at_rest:
        rig.feed(timing.lead_in_seconds)
    injected = time.monotonic()
    case.inject(rig)
    injection_ended = time.monotonic()
    # Good chunks after a latched hold: they must not move the arm.
    rig.feed(timing.watch_seconds, chunks=None if case.latched else 0)
    time.sleep(RECORD_DELAY)
    lines, joint_trajectory = tail.read(), world.joint_trajectory(started)
    hold, problems = _check_hold(case, lines, injected, injection_ended)
    problems += unsafe_targets(lines, rig.limits, TICK) + unsafe_goals(joint_trajectory, rig.limits, TICK)
    problems += [] if case.limp else unsafe_motion(joint_trajectory, rig.limits)
    times, hold_problems = judge_hold(hold, joint_trajectory, injected, limp=case.limp)
    problems += hold_problems
    if case.limp:
        world.clear_faults()
        world.reset()
    return FaultOutcome(
        case.name,
        CATALOGUE_ROWS[case.row],
        case.injected,
        case.required,
        describe_hold(hold, lines),
        *times,
        tuple(problems),
        max_lateness_ms(joint_trajectory),
    )


def _check_hold(
    case: FaultCase, lines: list[dict[str, Any]], injected: float, injection_ended: float
) -> tuple[Hold | None, list[str]]:
    """Return the hold that the fault led to, if any, and where the flight record differs from what is required."""
    problems = []
    ticks = [line for line in lines if line["call"] == "tick"]
    if not case.starts_at_rest and not any(line["state"] in MOVING_STATES for line in ticks):
        problems.append("the arm did not move before")
    found = find_rest_holds(lines, injected) if case.starts_at_rest else find_holds(lines, injected)
    hold = next((each for each in found if each.reason in case.reasons), None)
    if case.reasons and hold is None:
        problems.append(f"no hold for {' or '.join(case.reasons)}, but {[each.reason for each in found]}")
    # Without a reason to hold, only the end of the chunks may stop the arm; a limp arm may be held.
    early = [each for each in found if each.held < injection_ended and each.reason != "starved"]
    if not case.reasons and early:
        if case.limp:
            hold = early[0]
        else:
            problems.append(f"held for {early[0].reason}")
    if case.latched and not any(line["call"] == "tick" and line["state"] == "stopped" for line in lines[-5:]):
        problems.append("it was not latched")
    return hold, problems


def find_rest_holds(lines: list[dict[str, Any]], since: float) -> list[Hold]:
    """Return as holds the refusals of an arm at rest to start; such a hold begins at rest.

    Args:
        lines: Lines of the flight record.
        since: Steady time in seconds; earlier lines are ignored.
    """
    ticks = [line for line in lines if line["call"] == "tick"]
    until = max((line["now"] for line in ticks), default=since)
    found = []
    before = since
    for line in ticks:
        if line["now"] < since:
            continue
        for kind, detail, when in line.get("events", []):
            if kind == "holding":
                reason = detail.split(":")[0]
                found.append(Hold(line["now"], min(before, when), 0, line["state"], reason, until))
        before = line["now"]
    return found


def _run_case_safely(rig: LinkRig, case: FaultCase, tail: RecordTail, timing: CaseTiming) -> FaultOutcome:
    try:
        return run_case(rig, case, tail, timing)
    except SaccadeError as error:
        # A fault that breaks the rig is a finding about that fault; the other cases still run.
        rig.world.clear_faults()
        rig.world.reset()
        row = CATALOGUE_ROWS[case.row]
        return FaultOutcome(case.name, row, case.injected, case.required, "", *NO_TIMES, (f"broke: {error}",))
