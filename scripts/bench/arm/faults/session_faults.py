"""Inject the faults of cameras, network and processes into whole sessions, and judge each by what the virtual arm did.

Every session runs in its own process; `session_cases` lists the faults.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .....robot.governor.governor import MOVING_STATES
from .....sim.virtual_arm.world import JointTrajectory, VirtualArm
from ..judge import SETTLE_SECONDS, Hold, RecordTail, find_holds, unsafe_goals, unsafe_motion, unsafe_targets
from ..swing_server import DECISION_TIMEOUT, SwingServer, swing_server
from ..swing_session import StartMethod, SwingSession, SwingSessionSettings
from .outcome import (
    CATALOGUE_ROWS,
    NO_TIMES,
    TICK,
    CaseTiming,
    FaultOutcome,
    HoldTimes,
    describe_hold,
    judge_hold,
    max_lateness_ms,
)
from .session_cases import SESSION_CASES, SessionCase

MOVING_SECONDS = 20.0
"""How long to wait for the arm to move, or for a fault that the settings bring about."""

MOVING_TICKS = 25
"""Ticks in motion, one after the other, after which a fault is injected."""

END_SECONDS = 15.0
"""How long a session that a fault ends may take to exit."""


def run_session_cases(
    world: VirtualArm,
    folder: Path,
    cases: tuple[SessionCase, ...] = SESSION_CASES,
    on_outcome: Callable[[FaultOutcome], object] = lambda outcome: None,
    timing: CaseTiming | None = None,
    start_method: StartMethod = "spawn",
) -> list[FaultOutcome]:
    """Run cases: those that a session survives share one, whose episodes end by stops; each other one has its own.

    Args:
        world: The virtual arm, with cameras.
        folder: Folder of the flight records.
        cases: The cases.
        on_outcome: Called with each outcome.
        timing: How long each case is observed; the benchmark's timing if None.
        start_method: How session processes start.

    Returns:
        The outcomes: those of the shared session first.
    """
    timing = timing or CaseTiming()
    outcomes = []
    shared = [case for case in cases if not case.ends]
    if shared:
        settings = SwingSessionSettings(_new_record(folder), episodes=1000, seconds=600.0, rearm_wait_seconds=0.3)
        with _running_session(world, folder, settings, start_method) as (session, tail):
            for case in shared:
                outcomes.append(run_session_case(world, session, tail, case, None, timing))
                on_outcome(outcomes[-1])
    for case in cases:
        if not case.ends:
            continue
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(swing_server(case.slow_after)) if case.server else None
            settings = replace(SwingSessionSettings(_new_record(folder)), **dict(case.settings))
            if server is not None:
                settings = replace(settings, server=(server.url, server.token, DECISION_TIMEOUT))
            session, tail = stack.enter_context(_running_session(world, folder, settings, start_method))
            outcomes.append(run_session_case(world, session, tail, case, server, timing))
            on_outcome(outcomes[-1])
    return outcomes


def run_session_case(
    world: VirtualArm,
    session: SwingSession,
    tail: RecordTail,
    case: SessionCase,
    server: SwingServer | None,
    timing: CaseTiming,
) -> FaultOutcome:
    """Wait until the arm moves, inject a fault, observe what follows, and judge it."""
    lines = _wait_until_moving(session, tail)
    if session.limits is None or not lines:
        failures = [each for each in session.messages if each[0] == "failed"]
        return _make_outcome(case, "", NO_TIMES, [f"the arm did not begin to move: {failures}"])
    started = lines[-1]["now"]
    injected = time.monotonic()
    if case.inject is not None:
        case.inject(world, session, server)
    else:
        _wait_for_hold(session, tail, lines, case.reasons, started)
    watch_ends = time.monotonic() + timing.session_watch_factor * case.wait
    while (left := watch_ends - time.monotonic()) > 0:
        session.listen(min(left, 0.1))
        time.sleep(min(max(watch_ends - time.monotonic(), 0.0), 0.05))
    lines += tail.read()
    joint_trajectory = world.joint_trajectory(started - 0.5)
    found = find_holds(lines, started)
    hold, problems = _check_hold(case, found, injected, float(joint_trajectory.times[-1]))
    if hold is not None and case.inject is None:
        injected = hold.cause
    problems += unsafe_targets(lines, session.limits, TICK)
    problems += unsafe_goals(joint_trajectory, session.limits, TICK) + unsafe_motion(joint_trajectory, session.limits)
    times, hold_problems = judge_hold(hold, joint_trajectory, injected)
    problems += hold_problems
    observed = describe_hold(hold, lines)
    if case.ends:
        session.process.join(timeout=END_SECONDS)
        session.listen()
        problems += _check_end(session, joint_trajectory, found, hold)
        failures = [str(each[1]) for each in session.messages if each[0] == "failed"]
        observed += f"; {failures[0][:90]}" if failures else ""
    return _make_outcome(case, observed, times, problems, max_lateness_ms(joint_trajectory))


def _check_hold(
    case: SessionCase, found: list[Hold], injected: float, observed_until: float
) -> tuple[Hold | None, list[str]]:
    """Return the hold that the fault led to, and a problem if a required one is missing."""
    if not case.reasons:
        return Hold(injected, injected, 0, "stopped", "no control process", observed_until), []
    wanted = [each for each in found if each.reason in case.reasons]
    # On a busy machine a lost bus reply may hold the arm just before; the session's end then latches that hold.
    wanted += [each for each in found if case.ends and each.state == "stopped"]
    if not wanted:
        return None, [f"no hold for {' or '.join(case.reasons)}, but {[each.reason for each in found]}"]
    return replace(wanted[0], until=observed_until) if case.ends else wanted[0], []


def _check_end(
    session: SwingSession, joint_trajectory: JointTrajectory, found: list[Hold], hold: Hold | None
) -> list[str]:
    problems = []
    if session.is_running:
        problems.append("the session process did not end")
    if hold is not None and any(each.held > hold.held + SETTLE_SECONDS for each in found):
        problems.append("it moved again by itself")
    if not np.isfinite(joint_trajectory.goals[-1]).all():
        problems.append("the servos lost their torque")
    return problems


def _make_outcome(
    case: SessionCase, observed: str, times: HoldTimes, problems: list[str], late_ms: float = 0.0
) -> FaultOutcome:
    row = CATALOGUE_ROWS[case.row]
    return FaultOutcome(case.name, row, case.injected, case.required, observed, *times, tuple(problems), late_ms)


def _wait_until_moving(session: SwingSession, tail: RecordTail) -> list[dict[str, Any]]:
    """Return the lines of the flight record up to half a second of motion; none if the arm does not move."""
    lines: list[dict[str, Any]] = []
    ends = time.monotonic() + MOVING_SECONDS
    while time.monotonic() < ends and session.is_running:
        session.listen(0.05)
        lines += tail.read()
        ticks = [line for line in lines[-60:] if line["call"] == "tick"][-MOVING_TICKS:]
        if len(ticks) == MOVING_TICKS and all(line["state"] in MOVING_STATES for line in ticks):
            return lines
    return []


def _wait_for_hold(
    session: SwingSession, tail: RecordTail, lines: list[dict[str, Any]], reasons: tuple[str, ...], since: float
) -> None:
    """Extend `lines` of the flight record up to a hold for one of `reasons`, or to the end of the session."""
    ends = time.monotonic() + MOVING_SECONDS
    while time.monotonic() < ends and session.is_running:
        if any(each.reason in reasons for each in find_holds(lines, since)):
            break
        session.listen(0.05)
        lines += tail.read()


@contextlib.contextmanager
def _running_session(
    world: VirtualArm, folder: Path, settings: SwingSessionSettings, start_method: StartMethod
) -> Iterator[tuple[SwingSession, RecordTail]]:
    world.clear_faults()
    world.reset()
    session = SwingSession.start(world, folder, settings, start_method)
    try:
        yield session, RecordTail(settings.record)
    finally:
        session.close()
        world.clear_faults()


def _new_record(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder)) / "flight.jsonl"
