"""The failure catalogue, continued: cameras, network and processes, on whole sessions in processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from ....errors import InputError
from ....policy.contract import Contract
from ....robot.governor.governor import MOVING_STATES
from ....sim.virtual_arm.faults import Fault
from ....sim.virtual_arm.world import JointTrajectory, VirtualArm
from .cases import CATALOGUE_ROWS
from .faults import TICK, FaultOutcome, describe_hold, judge_hold, max_lateness_ms
from .judge import (
    SETTLE_SECONDS,
    Hold,
    RecordTail,
    find_holds,
    unsafe_goals,
    unsafe_motion,
    unsafe_targets,
)
from .rig import SwingPolicy, small_contract
from .swing_policy import SwingSession, SwingSessionSettings

MOVING_SECONDS = 20.0
SERVER_SECONDS = 30.0
STATISTICS = "normalisation statistics"
TIMEOUT = 0.4
"""Seconds that a remote decision may take in these tests."""


@dataclass(frozen=True)
class Server:
    """A policy server in a process of its own."""

    process: multiprocessing.process.BaseProcess
    url: str
    token: str


@dataclass(frozen=True)
class SessionCase:
    """A fault of cameras, network or processes; `inject` brings it about while the arm moves.

    `reasons`: what the hold may be for; none where the control process is not there to hold. `ends`: the session ends
    by it, and nothing may move afterwards; else it goes on. `wait`: seconds that are watched.
    """

    name: str
    row: int
    injected: str
    required: str
    inject: Callable[[VirtualArm, SwingSession, Server | None], object]
    reasons: tuple[str, ...] = ()
    ends: bool = True
    server: bool = False
    slow_after: int | None = None
    settings: tuple[tuple[str, object], ...] = ()
    wait: float = 1.5
    slow: bool = True


def _nothing(world: VirtualArm, session: SwingSession, server: Server | None) -> None:
    """What goes wrong is in the settings."""


def _signal(number: signal.Signals) -> Callable[[VirtualArm, SwingSession, Server | None], object]:
    return lambda world, session, server: os.kill(session.process.pid or 0, number)


def _control(number: signal.Signals) -> Callable[[VirtualArm, SwingSession, Server | None], object]:
    return lambda world, session, server: os.kill(session.control_process() or 0, number)


def _server(number: signal.Signals) -> Callable[[VirtualArm, SwingSession, Server | None], object]:
    return lambda world, session, server: os.kill(server.process.pid or 0, number) if server else None


def _camera(kind: str, **fields: object) -> Callable[[VirtualArm, SwingSession, Server | None], object]:
    return lambda world, session, server: world.inject_fault(Fault(kind, seconds=1.0, **fields))


def _instruction(world: VirtualArm, session: SwingSession, server: Server | None) -> None:
    session.order("change_instruction", "wander somewhere else")


def _stop(world: VirtualArm, session: SwingSession, server: Server | None) -> None:
    session.order("stop", "asked for")


EXPECT_SESSION_ENDS = "held, the session ends, nothing moves again by itself"
STOP_REASONS = ("stop", "starved")
SESSION_CASES = (
    SessionCase(
        "camera frozen",
        6,
        "the same picture for 1 s, as if new",
        "held after 5 pictures",
        _camera("camera_frozen"),
        ("camera_frozen",),
        False,
    ),
    SessionCase(
        "camera dropped",
        6,
        "no picture for 1 s",
        "held within 0.3 s",
        _camera("camera_dropped", camera="wrist"),
        ("camera_age", "starved"),
        False,
    ),
    SessionCase("camera black", 6, "black pictures for 1 s", "held", _camera("camera_black"), ("camera_blank",), False),
    SessionCase(
        "camera late",
        6,
        "pictures 0.4 s late, for 1 s",
        "held within 0.3 s",
        _camera("camera_delayed", value=0.4),
        ("camera_age", "starved"),
        False,
    ),
    SessionCase(
        "instruction changed, session",
        9,
        "another instruction while a chunk is played",
        "queue dropped, held until decided anew",
        _instruction,
        ("instruction",),
        False,
    ),
    SessionCase(
        "session frozen",
        10,
        "SIGSTOP of the session process for 1 s",
        "held after 0.3 s",
        lambda world, session, server: (
            os.kill(session.process.pid or 0, signal.SIGSTOP),
            time.sleep(1.0),
            os.kill(session.process.pid or 0, signal.SIGCONT),
        ),
        ("heartbeat", "starved"),
        False,
    ),
    SessionCase(
        "stop, session",
        11,
        "a stop by another thread",
        "held within a tick, latched",
        _stop,
        ("stop",),
        False,
    ),
    SessionCase(
        "exception",
        10,
        "an exception in the policy",
        EXPECT_SESSION_ENDS,
        _nothing,
        STOP_REASONS,
        settings=(("fails_after", 40),),
    ),
    SessionCase(
        "policy hangs",
        10,
        "a decision that never comes",
        EXPECT_SESSION_ENDS,
        _nothing,
        STOP_REASONS,
        settings=(("hangs_after", 40),),
    ),
    SessionCase(
        "SIGINT", 10, "SIGINT to the session process", EXPECT_SESSION_ENDS, _signal(signal.SIGINT), STOP_REASONS
    ),
    SessionCase(
        "SIGTERM", 10, "SIGTERM to the session process", EXPECT_SESSION_ENDS, _signal(signal.SIGTERM), STOP_REASONS
    ),
    SessionCase(
        "kill -9",
        10,
        "SIGKILL to the session process",
        EXPECT_SESSION_ENDS,
        _signal(signal.SIGKILL),
        STOP_REASONS,
        slow=False,
    ),
    SessionCase(
        "SIGTERM, control",
        10,
        "SIGTERM to the control process",
        EXPECT_SESSION_ENDS,
        _control(signal.SIGTERM),
        ("SIGTERM", "stop"),
    ),
    SessionCase(
        "kill -9, control",
        10,
        "SIGKILL to the control process",
        "the servos keep their last goal; the session ends",
        _control(signal.SIGKILL),
    ),
    SessionCase(
        "port gone",
        7,
        "the serial port vanishes",
        EXPECT_SESSION_ENDS,
        lambda world, *_: world.inject_fault(Fault("port")),
        ("bus",),
        wait=4.0,
    ),
    SessionCase(
        "server killed",
        5,
        "SIGKILL to the policy server",
        EXPECT_SESSION_ENDS,
        _server(signal.SIGKILL),
        STOP_REASONS,
        server=True,
    ),
    SessionCase(
        "server half open",
        5,
        "SIGSTOP to the policy server",
        EXPECT_SESSION_ENDS,
        _server(signal.SIGSTOP),
        STOP_REASONS,
        server=True,
    ),
    SessionCase(
        "late answer",
        4,
        "an answer that comes after its timeout",
        "never used, session over, held",
        _nothing,
        STOP_REASONS,
        server=True,
        slow_after=40,
    ),
)


def serve_swing_policy(connection: Connection, contract: Contract, slow_after: int | None) -> None:
    """Be a policy server; after so many decisions each comes too late."""
    from ....robot.remote.protocol import new_token
    from ....robot.remote.server_settings import ServerSettings
    from ....robot.remote.serving import serve_in_background

    class Slow(SwingPolicy):
        count = 0

        def decide(self, observation: object) -> np.ndarray:
            self.count += 1
            if slow_after is not None and self.count > slow_after:
                time.sleep(2.0 * TIMEOUT)
            return super().decide(observation)  # type: ignore[arg-type]

    token = new_token()
    with serve_in_background(Slow(contract), ServerSettings(token=token, port=0)) as url:
        connection.send((url, token))
        with contextlib.suppress(EOFError):
            connection.recv()


@contextlib.contextmanager
def policy_server(slow_after: int | None = None) -> Iterator[Server]:
    """Serve a wanderer from a process of its own for as long as the context lasts."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, small_contract(), slow_after)
    process = context.Process(target=serve_swing_policy, args=arguments, name="policy server", daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(SERVER_SECONDS):
            raise TimeoutError("the policy server did not come up")
        yield Server(process, *ours.recv())
    finally:
        process.kill()
        process.join()


def run_session_cases(
    world: VirtualArm,
    folder: Path,
    cases: tuple[SessionCase, ...] = SESSION_CASES,
    told: Callable[[FaultOutcome], object] = lambda outcome: None,
) -> list[FaultOutcome]:
    """Run cases; those that a session survives share one, whose episodes end by stops, each other one has its own."""
    outcomes = []
    shared = [case for case in cases if not case.ends]
    if shared:
        settings = SwingSessionSettings(_record(folder), episodes=1000, seconds=600.0, rearm_wait_seconds=0.3)
        with _session(world, folder, settings) as (session, tail):
            for case in shared:
                outcomes.append(run_session_case(world, session, tail, case, None))
                told(outcomes[-1])
    for case in cases:
        if not case.ends:
            continue
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(policy_server(case.slow_after)) if case.server else None
            settings = replace(SwingSessionSettings(_record(folder)), **dict(case.settings))
            if server is not None:
                settings = replace(settings, server=(server.url, server.token, TIMEOUT))
            session, tail = stack.enter_context(_session(world, folder, settings))
            outcomes.append(run_session_case(world, session, tail, case, server))
            told(outcomes[-1])
    return outcomes


def run_session_case(
    world: VirtualArm, session: SwingSession, tail: RecordTail, case: SessionCase, server: Server | None
) -> FaultOutcome:
    """Wait until the arm moves, bring a fault about, see what comes of it, and judge that."""
    problems: list[str] = []
    lines = _until_moving(session, tail)
    if session.limits is None or not lines:
        told = [each for each in session.messages if each[0] == "failed"]
        return _outcome(case, "", (None, None, None), [f"the arm did not begin to move: {told}"])
    started = lines[-1]["now"]
    injected = time.monotonic()
    case.inject(world, session, server)
    waits = time.monotonic() + case.wait
    if case.inject is _nothing:
        # It comes by itself, some decisions later.
        waits += MOVING_SECONDS
        while time.monotonic() < waits and not any(each.reason in case.reasons for each in find_holds(lines, started)):
            session.listen(0.05)
            lines += tail.read()
            if not session.is_running:
                break
        waits = time.monotonic() + case.wait
    while (left := waits - time.monotonic()) > 0:
        session.listen(min(left, 0.1))
        time.sleep(min(max(waits - time.monotonic(), 0.0), 0.05))
    lines += tail.read()
    joint_trajectory = world.joint_trajectory(started - 0.5)
    found = find_holds(lines, started)
    wanted = [each for each in found if each.reason in case.reasons]
    # A bus that lost an answer on a busy machine may have led to a hold just before; the session's end latches that.
    wanted += [each for each in found if case.ends and each.state == "stopped"]
    hold = wanted[0] if wanted else None
    if case.reasons and hold is None:
        problems.append(f"no hold for {' or '.join(case.reasons)}, but {[each.reason for each in found]}")
    if hold is not None and case.inject is _nothing:
        injected = hold.cause
    problems += unsafe_targets(lines, session.limits, TICK)
    problems += unsafe_goals(joint_trajectory, session.limits, TICK) + unsafe_motion(joint_trajectory, session.limits)
    if not case.reasons:
        hold = Hold(injected, injected, 0, "stopped", "no control process", float(joint_trajectory.times[-1]))
    if hold is not None and case.ends:
        hold = replace(hold, until=float(joint_trajectory.times[-1]))
    times, judged = judge_hold(hold, joint_trajectory, injected)
    problems += judged
    observed = describe_hold(hold, lines)
    if case.ends:
        session.process.join(timeout=15.0)
        session.listen()
        problems += _after_the_end(session, joint_trajectory, found, hold)
        failed = [str(each[1]) for each in session.messages if each[0] == "failed"]
        observed += f"; {failed[0][:90]}" if failed else ""
    return _outcome(case, observed, times, problems, max_lateness_ms(joint_trajectory))


def _after_the_end(
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


def _outcome(
    case: SessionCase,
    observed: str,
    times: tuple[float | None, float | None, float | None],
    problems: list[str],
    late_ms: float = 0.0,
) -> FaultOutcome:
    return FaultOutcome(
        case.name, CATALOGUE_ROWS[case.row], case.injected, case.required, observed, *times, tuple(problems), late_ms
    )


def _until_moving(session: SwingSession, tail: RecordTail) -> list[dict]:
    """Return the lines of the flight record up to where the arm has moved for half a second; none where it does not."""
    lines: list[dict] = []
    ends = time.monotonic() + MOVING_SECONDS
    while time.monotonic() < ends and session.is_running:
        session.listen(0.05)
        lines += tail.read()
        ticks = [line for line in lines[-60:] if line["call"] == "tick"][-25:]
        if len(ticks) == 25 and all(line["state"] in MOVING_STATES for line in ticks):
            return lines
    return []


@contextlib.contextmanager
def _session(
    world: VirtualArm, folder: Path, settings: SwingSessionSettings
) -> Iterator[tuple[SwingSession, RecordTail]]:
    world.clear_faults()
    world.reset()
    session = SwingSession.start(world, folder, settings)
    try:
        yield session, RecordTail(settings.record)
    finally:
        session.close()
        world.clear_faults()


def _record(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder)) / "flight.jsonl"


def foreign_statistics(folder: Path) -> FaultOutcome:
    """Try to load a checkpoint whose statistics are missing, and one with those of another contract."""
    import json
    import shutil

    from ....policy.checkpoint.folder import find_checkpoint
    from ....policy.inference.actor import PolicyActor

    source, problems, said = find_checkpoint("starter"), [], []
    for name in ("missing", "of another length"):
        target = folder / name.replace(" ", "_")
        shutil.copytree(source, target)
        path = target / "contract.json"
        contract = json.loads(path.read_text())
        if name == "missing":
            contract.pop("normalization")
        else:
            contract["normalization"]["state_low"] = contract["normalization"]["state_low"][:-1]
        path.write_text(json.dumps(contract))
        try:
            PolicyActor(target)
            problems.append(f"statistics {name}: loaded")
        except InputError as error:
            said.append(str(error.what))
    return FaultOutcome(
        STATISTICS,
        CATALOGUE_ROWS[12],
        "a checkpoint without them, and one with a number too few",
        "refused before anything is connected",
        f"refused: {', '.join(said)}",
        None,
        None,
        None,
        tuple(problems),
    )
