"""The faults of cameras, network and processes, which need a whole session in its own process."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from .....sim.virtual_arm.faults import Fault
from .....sim.virtual_arm.world import VirtualArm
from ..rig import send_signal
from ..swing_server import SwingServer
from ..swing_session import SwingSession

Injector = Callable[[VirtualArm, SwingSession, SwingServer | None], object]


@dataclass(frozen=True)
class SessionCase:
    """A fault of cameras, network or processes.

    Attributes:
        name: Name of the case.
        row: Index into `CATALOGUE_ROWS`.
        injected: Description of the injected fault.
        required: Description of the required reaction.
        inject: Brings the fault about while the arm moves; None if the settings do, some decisions later.
        reasons: Reasons of a hold that pass; empty if no control process is left to hold.
        ends: Whether the fault ends the session, after which nothing may move; else the session continues.
        server: Whether a policy server decides.
        slow_after: Number of decisions after which this server is too slow; None: never.
        settings: Fields of `SwingSessionSettings`, as pairs.
        wait: Seconds that the session is observed after the fault.
        slow: Whether quick test runs leave the case out.
    """

    name: str
    row: int
    injected: str
    required: str
    inject: Injector | None
    reasons: tuple[str, ...] = ()
    ends: bool = True
    server: bool = False
    slow_after: int | None = None
    settings: tuple[tuple[str, object], ...] = ()
    wait: float = 1.5
    slow: bool = True


def _signal_session(number: signal.Signals) -> Injector:
    return lambda world, session, server: send_signal(session.process.pid, number)


def _signal_control(number: signal.Signals) -> Injector:
    return lambda world, session, server: send_signal(session.control_process(), number)


def _signal_server(number: signal.Signals) -> Injector:
    return lambda world, session, server: send_signal(None if server is None else server.process.pid, number)


def _world_fault(fault: Fault) -> Injector:
    return lambda world, session, server: world.inject_fault(fault)


def _freeze_session(world: VirtualArm, session: SwingSession, server: SwingServer | None) -> None:
    send_signal(session.process.pid, signal.SIGSTOP)
    time.sleep(1.0)
    send_signal(session.process.pid, signal.SIGCONT)


def _change_instruction(world: VirtualArm, session: SwingSession, server: SwingServer | None) -> None:
    session.order("change_instruction", "swing to another pose")


def _stop(world: VirtualArm, session: SwingSession, server: SwingServer | None) -> None:
    session.order("stop", "asked for")


EXPECT_SESSION_ENDS = "held, the session ends, nothing moves again on its own"
STOP_REASONS = ("stop", "starved")
SESSION_CASES = (
    SessionCase(
        "camera frozen",
        6,
        "the same frame for 1 s, with new timestamps",
        "held after 5 frames",
        _world_fault(Fault("camera_frozen", seconds=1.0)),
        ("camera_frozen",),
        False,
    ),
    SessionCase(
        "camera dropped",
        6,
        "no frame for 1 s",
        "held within 0.3 s",
        _world_fault(Fault("camera_dropped", camera="wrist", seconds=1.0)),
        ("camera_age", "starved"),
        False,
    ),
    SessionCase(
        "camera black",
        6,
        "black frames for 1 s",
        "held",
        _world_fault(Fault("camera_black", seconds=1.0)),
        ("camera_blank",),
        False,
    ),
    SessionCase(
        "camera late",
        6,
        "frames 0.4 s late, for 1 s",
        "held within 0.3 s",
        _world_fault(Fault("camera_delayed", value=0.4, seconds=1.0)),
        ("camera_age", "starved"),
        False,
    ),
    SessionCase(
        "instruction changed, session",
        9,
        "another instruction while a chunk is played",
        "queue dropped, held until a new decision",
        _change_instruction,
        ("instruction",),
        False,
    ),
    SessionCase(
        "session frozen",
        10,
        "SIGSTOP of the session process for 1 s",
        "held after 0.3 s",
        _freeze_session,
        ("heartbeat", "starved"),
        False,
    ),
    SessionCase(
        "stop, session",
        11,
        "a stop requested by another thread",
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
        None,
        STOP_REASONS,
        settings=(("fails_after", 25),),
    ),
    SessionCase(
        "policy hangs",
        10,
        "a decision that never returns",
        EXPECT_SESSION_ENDS,
        None,
        STOP_REASONS,
        settings=(("hangs_after", 25),),
    ),
    SessionCase(
        "SIGINT", 10, "SIGINT to the session process", EXPECT_SESSION_ENDS, _signal_session(signal.SIGINT), STOP_REASONS
    ),
    SessionCase(
        "SIGTERM",
        10,
        "SIGTERM to the session process",
        EXPECT_SESSION_ENDS,
        _signal_session(signal.SIGTERM),
        STOP_REASONS,
    ),
    SessionCase(
        "kill -9",
        10,
        "SIGKILL to the session process",
        EXPECT_SESSION_ENDS,
        _signal_session(signal.SIGKILL),
        STOP_REASONS,
        slow=False,
    ),
    SessionCase(
        "SIGTERM, control",
        10,
        "SIGTERM to the control process",
        EXPECT_SESSION_ENDS,
        _signal_control(signal.SIGTERM),
        ("SIGTERM", "stop"),
    ),
    SessionCase(
        "kill -9, control",
        10,
        "SIGKILL to the control process",
        "the servos keep their last goal; the session ends",
        _signal_control(signal.SIGKILL),
    ),
    SessionCase(
        "port gone",
        7,
        "the serial port vanishes",
        EXPECT_SESSION_ENDS,
        _world_fault(Fault("port")),
        ("bus",),
        wait=4.0,
    ),
    SessionCase(
        "server killed",
        5,
        "SIGKILL to the policy server",
        EXPECT_SESSION_ENDS,
        _signal_server(signal.SIGKILL),
        STOP_REASONS,
        server=True,
    ),
    SessionCase(
        "server half open",
        5,
        "SIGSTOP to the policy server",
        EXPECT_SESSION_ENDS,
        _signal_server(signal.SIGSTOP),
        STOP_REASONS,
        server=True,
    ),
    SessionCase(
        "reply after timeout",
        4,
        "a reply after its timeout",
        "never used, session ends, held",
        None,
        STOP_REASONS,
        server=True,
        slow_after=25,
    ),
)
