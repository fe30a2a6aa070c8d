"""The faults that reach a control process by the chunks it is sent or by its arm's bus, and what is required then."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ....sim.virtual_arm.faults import Fault
from .rig import SWING_AMPLITUDE, TRACKING_TOLERANCE, LinkRig
from .swing_policy import CHUNK_FAULTS, jump

CATALOGUE_ROWS = (
    "NaN, infinity, wrong shape or type of a chunk",
    "out of range or too fast",
    "first command far from the measured pose",
    "stale observation, old sequence, wrong episode",
    "late reply after its timeout",
    "half-open connection, server gone",
    "camera frozen or dropped",
    "serial bus",
    "loop overrun",
    "instruction changed while a chunk is played",
    "exception, SIGINT, SIGTERM, kill -9",
    "stop",
    "normalisation statistics missing or of another contract",
)
"""The rows of the catalogue."""


@dataclass(frozen=True)
class FaultCase:
    """A fault of chunks or bus: `inject` brings it about while the arm moves.

    `reasons`: what the hold may be for, none where the arm must not be held at all. `latched`: good chunks must not
    move the arm afterwards. `limp`: joints may fall, so that they are not judged. `rig`: "plain" or "other", see
    `rig_rules`. `starts_at_rest`: whether the arm is moved before. `slow` ones take long and are left out of quick tests.
    """

    name: str
    row: int
    injected: str
    required: str
    inject: Callable[[LinkRig], object]
    reasons: tuple[str, ...] = ()
    latched: bool = False
    limp: bool = False
    rig: str = "plain"
    starts_at_rest: bool = False
    watch_seconds: float = 0.5
    slow: bool = True


def rig_rules(name: str) -> dict[str, object]:
    """Return the governor's rules of a rig: the other one ramps, and is stopped by late ticks."""
    return {} if name == "plain" else {"start": "ramp", "overrun_share": 0.3}


def _corrupt_chunk(name: str) -> Callable[[LinkRig], object]:
    return lambda rig: rig.feed(0.3, CHUNK_FAULTS[name], chunks=1)


def _gripper(top: float) -> Callable[[np.ndarray], np.ndarray]:
    def corrupt(actions: np.ndarray) -> np.ndarray:
        changed = actions.copy()
        changed[:, 5] = np.minimum(changed[0, 5] + 8.0 * np.arange(len(changed)), top)
        return changed

    return corrupt


def _fast(actions: np.ndarray) -> np.ndarray:
    """Let the first joint go at one and a half times its speed, towards the middle and on."""
    changed = actions.copy()
    towards = -1.0 if changed[0, 0] > 0 else 1.0
    changed[:, 0] += towards * 13.5 * np.arange(len(changed))
    return changed


def _offset_start(actions: np.ndarray) -> np.ndarray:
    """Let the first joint begin 30 degrees away, on the side where its range goes on."""
    changed = actions.copy()
    changed[:, 0] += -30.0 if changed[0, 0] > 0 else 30.0
    return changed


def _bus_fault(fault: Fault, seconds: float = 0.6) -> Callable[[LinkRig], object]:
    def inject(rig: LinkRig) -> None:
        rig.world.inject_fault(fault)
        rig.feed(seconds)

    return inject


def _jam_joint(rig: LinkRig) -> None:
    """Jam the first joint far out to a side, from where the swing leads further away than a joint may stay behind."""
    rig.feed(6.0, until=lambda: _is_out(rig))
    rig.swing_policy.tracking_tolerance = np.inf
    try:
        rig.world.inject_fault(Fault("stuck", joint="shoulder_pan", seconds=3.0))
        rig.feed(3.0, until=lambda: _state(rig) == "stopped")
    finally:
        rig.swing_policy.tracking_tolerance = TRACKING_TOLERANCE


def _is_out(rig: LinkRig) -> bool:
    found = rig.link.joints()
    return found is not None and abs(found[0][0]) > 0.8 * SWING_AMPLITUDE[0] and rig.swing_policy.is_near_path(*found)


def _stop_heartbeat(rig: LinkRig) -> None:
    rig.sends_heartbeat = False
    rig.feed(0.7, chunks=0)
    rig.sends_heartbeat = True


def _suspend_process(seconds: float, times: int = 1, pause: float = 0.0) -> Callable[[LinkRig], object]:
    def inject(rig: LinkRig) -> None:
        for _ in range(times):
            os.kill(rig.link.process_id, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(rig.link.process_id, signal.SIGCONT)
            rig.feed(pause)
        rig.feed(0.3)

    return inject


def _far(rig: LinkRig) -> None:
    """Ask for one pose, 30 degrees away, until it is reached."""
    found = rig.link.joints()
    if found is None:
        return
    pose = found[0] + 30.0 * np.array([-1.0 if found[0][0] > 0 else 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    rig.feed(0.8, lambda actions: np.broadcast_to(pose, actions.shape).astype(np.float32))


def _stop(rig: LinkRig) -> None:
    rig.link.stop("asked for")


def _drop(rig: LinkRig) -> None:
    found = rig.link.joints()
    rig.link.drop()
    if found is not None:
        # Decided before the change, on its way when it came: it must not move the arm.
        rig.send(*found, None)
    rig.feed(0.4, chunks=0)


def _state(rig: LinkRig) -> str:
    latest = rig.link.latest()
    return "" if latest is None else latest.state


EXPECT_LATCHED_HOLD = "whole chunk rejected, held within a tick, latched"
EXPECT_STARVED_HOLD = "discarded; held once nothing fresh is left, nothing repeated"
EXPECT_RETRIES = "at most 3 tries and 50 ms, then held"

CASES = (
    FaultCase(
        "not a number",
        0,
        "a NaN in a chunk",
        EXPECT_LATCHED_HOLD,
        _corrupt_chunk("not a number"),
        ("not_finite",),
        True,
        slow=False,
    ),
    FaultCase(
        "infinity", 0, "an infinity in a chunk", EXPECT_LATCHED_HOLD, _corrupt_chunk("infinity"), ("not_finite",), True
    ),
    FaultCase(
        "wrong shape", 0, "one joint too few", EXPECT_LATCHED_HOLD, _corrupt_chunk("wrong shape"), ("shape",), True
    ),
    FaultCase(
        "wrong length", 0, "one step too few", EXPECT_LATCHED_HOLD, _corrupt_chunk("wrong length"), ("shape",), True
    ),
    FaultCase(
        "wrong type", 0, "a chunk of integers", EXPECT_LATCHED_HOLD, _corrupt_chunk("wrong type"), ("dtype",), True
    ),
    FaultCase(
        "objects", 0, "a chunk of Python objects", EXPECT_LATCHED_HOLD, _corrupt_chunk("objects"), ("dtype",), True
    ),
    FaultCase(
        "a little out of range",
        1,
        "targets 2.5 % beyond the gripper's range",
        "clamped and counted, moves on",
        lambda rig: rig.feed(0.8, _gripper(85.0)),
    ),
    FaultCase(
        "out of range, again and again",
        1,
        "targets beyond tolerance, step after step",
        "held at the third in a row",
        lambda rig: rig.feed(0.7, _gripper(90.0), chunks=5),
        ("position",),
    ),
    FaultCase(
        "far out of range",
        1,
        "a target beyond twice the tolerance",
        "held at once",
        lambda rig: rig.feed(0.7, _gripper(99.0), chunks=5),
        ("position",),
    ),
    FaultCase(
        "too fast, again and again",
        1,
        "steps of 1.5 times the speed limit",
        "clamped; held at the third in a row",
        lambda rig: rig.feed(0.5, _fast, chunks=2),
        ("speed",),
    ),
    FaultCase(
        "much too fast",
        1,
        "a jump of 60 degrees in a chunk",
        "held at once",
        lambda rig: rig.feed(0.5, jump, chunks=2),
        ("speed",),
        slow=False,
    ),
    FaultCase(
        "far first command",
        2,
        "a first chunk 30 degrees away",
        "refused: nothing moves",
        lambda rig: rig.feed(0.5, _offset_start, chunks=3),
        ("far",),
        starts_at_rest=True,
    ),
    FaultCase(
        "far first command, ramp",
        2,
        "first chunks 30 degrees away, where a ramp was asked for",
        "led there at a third of the speed limit",
        _far,
        starts_at_rest=True,
        rig="other",
    ),
    FaultCase(
        "stale chunks",
        3,
        "chunks decided from observations 1 s old",
        EXPECT_STARVED_HOLD,
        lambda rig: rig.feed(1.0, observed=lambda when: when - 1.0),
        ("starved",),
    ),
    FaultCase(
        "observations from the future",
        3,
        "chunks of another clock",
        EXPECT_STARVED_HOLD,
        lambda rig: rig.feed(1.0, observed=lambda when: when + 10.0),
        ("starved",),
    ),
    FaultCase(
        "old sequence", 3, "chunks numbered 0", EXPECT_STARVED_HOLD, lambda rig: rig.feed(1.0, sequence=0), ("starved",)
    ),
    FaultCase(
        "wrong episode",
        3,
        "chunks of another episode",
        EXPECT_STARVED_HOLD,
        lambda rig: rig.feed(1.0, episode=99),
        ("starved",),
    ),
    FaultCase(
        "wrong session",
        3,
        "chunks of another session",
        EXPECT_STARVED_HOLD,
        lambda rig: rig.feed(1.0, session="old"),
        ("starved",),
    ),
    FaultCase(
        "no chunks",
        3,
        "the policy decides nothing any more",
        EXPECT_STARVED_HOLD,
        lambda rig: rig.feed(1.0, chunks=0),
        ("starved",),
        slow=False,
    ),
    FaultCase(
        "session silent", 5, "no sign of life from the session", "held after 0.3 s", _stop_heartbeat, ("heartbeat",)
    ),
    FaultCase("lost reply", 7, "one reply lost", "tried again, moves on", _bus_fault(Fault("drop", count=1))),
    FaultCase(
        "corrupt reply", 7, "a bit of one reply flipped", "tried again, moves on", _bus_fault(Fault("corrupt", count=1))
    ),
    FaultCase("late reply", 7, "one reply 0.1 s late", EXPECT_RETRIES, _bus_fault(Fault("delay", value=0.1, count=1))),
    FaultCase(
        "bus dead",
        7,
        "no reply for 0.5 s",
        EXPECT_RETRIES,
        _bus_fault(Fault("drop", seconds=0.5), 0.5),
        ("bus",),
        slow=False,
    ),
    FaultCase(
        "bus corrupt",
        7,
        "every reply corrupt for 0.5 s",
        EXPECT_RETRIES,
        _bus_fault(Fault("corrupt", seconds=0.5), 0.5),
        ("bus",),
    ),
    FaultCase(
        "bus cut",
        7,
        "every reply cut short for 0.5 s",
        EXPECT_RETRIES,
        _bus_fault(Fault("truncate", seconds=0.5), 0.5),
        ("bus",),
    ),
    FaultCase(
        "bus late",
        7,
        "every reply 0.1 s late, for 0.5 s",
        EXPECT_RETRIES,
        _bus_fault(Fault("delay", seconds=0.5), 0.5),
        ("bus",),
    ),
    FaultCase(
        "servo silent",
        7,
        "the elbow's servo neither hears nor answers for 0.5 s",
        EXPECT_RETRIES,
        _bus_fault(Fault("silent", joint="elbow_flex", seconds=0.5), 0.5),
        ("bus",),
    ),
    FaultCase(
        "servo unplugged",
        7,
        "the wrist's servo gone and limp for 0.5 s",
        EXPECT_RETRIES + "; latched, as its torque is gone",
        _bus_fault(Fault("missing", joint="wrist_roll", seconds=0.5), 0.9),
        ("bus",),
        True,
        limp=True,
    ),
    FaultCase(
        "no power",
        7,
        "all servos without power for 0.5 s",
        EXPECT_RETRIES + "; latched, as the torque is gone",
        _bus_fault(Fault("power", seconds=0.5), 0.9),
        ("bus",),
        True,
        limp=True,
    ),
    FaultCase("joint jammed", 7, "the first joint jammed", "stopped, latched", _jam_joint, ("stuck",), True),
    FaultCase(
        "servo too hot",
        7,
        "the elbow's servo at 85 degrees Celsius, so that it lets go, for 1 s",
        "stopped within 0.2 s, latched, no snapping back",
        _bus_fault(Fault("temperature", joint="elbow_flex", seconds=1.0), 1.5),
        ("limp",),
        True,
        limp=True,
    ),
    FaultCase(
        "low voltage",
        7,
        "all servos report 3.5 V, an error bit without loss of torque, for 1 s",
        "nothing unsafe",
        _bus_fault(Fault("voltage", seconds=1.0), 1.5),
        limp=True,
    ),
    FaultCase(
        "late ticks",
        8,
        "the control process stands still for 35 ms, again and again",
        "slow stop, latched",
        _suspend_process(0.035, 30, 0.005),
        ("overruns",),
        True,
        rig="other",
    ),
    FaultCase(
        "control process stands still",
        8,
        "it is stopped for 0.7 s",
        "nothing old is made up for: held",
        _suspend_process(0.7),
        ("starved", "heartbeat", "hold"),
    ),
    FaultCase(
        "instruction changed",
        9,
        "another instruction while a chunk is played",
        "queue dropped, held within a tick; an older chunk refused",
        _drop,
        ("instruction",),
        slow=False,
    ),
    FaultCase(
        "stop",
        11,
        "a stop, asked for",
        "held within a tick, latched until re-armed",
        _stop,
        ("stop",),
        True,
        slow=False,
    ),
)
