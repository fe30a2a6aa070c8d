"""The faults that reach a control process by the chunks it is sent or by its arm's bus, and what is required then."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ....sim.virtual_arm.faults import Fault
from .rig import NEAR, SWING, LinkRig
from .wanderer import TWISTS, jump

ROWS = (
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
class Case:
    """A fault of chunks or bus: `act` brings it about while the arm moves.

    `reasons`: what the hold may be for, none where the arm must not be held at all. `latched`: good chunks must not
    move the arm afterwards. `limp`: joints may fall, so that they are not judged. `rig`: "plain" or "other", see
    `rig_rules`. `rests`: whether the arm is moved before. `slow` ones take long and are left out of quick tests.
    """

    name: str
    row: int
    injected: str
    required: str
    act: Callable[[LinkRig], object]
    reasons: tuple[str, ...] = ()
    latched: bool = False
    limp: bool = False
    rig: str = "plain"
    rests: bool = False
    after: float = 0.5
    slow: bool = True


def rig_rules(name: str) -> dict[str, object]:
    """Return the governor's rules of a rig: the other one ramps, and is stopped by late ticks."""
    return {} if name == "plain" else {"start": "ramp", "overrun_share": 0.3}


def _bad(name: str) -> Callable[[LinkRig], object]:
    return lambda rig: rig.feed(0.3, TWISTS[name], chunks=1)


def _gripper(top: float) -> Callable[[np.ndarray], np.ndarray]:
    def twist(actions: np.ndarray) -> np.ndarray:
        changed = actions.copy()
        changed[:, 5] = np.minimum(changed[0, 5] + 8.0 * np.arange(len(changed)), top)
        return changed

    return twist


def _fast(actions: np.ndarray) -> np.ndarray:
    """Let the first joint go at one and a half times its speed, towards the middle and on."""
    changed = actions.copy()
    towards = -1.0 if changed[0, 0] > 0 else 1.0
    changed[:, 0] += towards * 13.5 * np.arange(len(changed))
    return changed


def _elsewhere(actions: np.ndarray) -> np.ndarray:
    """Let the first joint begin 30 degrees away, on the side where its range goes on."""
    changed = actions.copy()
    changed[:, 0] += -30.0 if changed[0, 0] > 0 else 30.0
    return changed


def _bus(fault: Fault, seconds: float = 0.6) -> Callable[[LinkRig], object]:
    def act(rig: LinkRig) -> None:
        rig.world.fault(fault)
        rig.feed(seconds)

    return act


def _stuck(rig: LinkRig) -> None:
    """Jam the first joint far out to a side, from where the swing leads further away than a joint may stay behind."""
    rig.feed(6.0, until=lambda: _is_out(rig))
    rig.wanderer.near = np.inf
    try:
        rig.world.fault(Fault("stuck", joint="shoulder_pan", seconds=3.0))
        rig.feed(3.0, until=lambda: _state(rig) == "stopped")
    finally:
        rig.wanderer.near = NEAR


def _is_out(rig: LinkRig) -> bool:
    found = rig.link.joints()
    return found is not None and abs(found[0][0]) > 0.8 * SWING[0] and rig.wanderer.follows(*found)


def _silence(rig: LinkRig) -> None:
    rig.beats = False
    rig.feed(0.7, chunks=0)
    rig.beats = True


def _freeze(seconds: float, times: int = 1, pause: float = 0.0) -> Callable[[LinkRig], object]:
    def act(rig: LinkRig) -> None:
        for _ in range(times):
            os.kill(rig.link.process_id, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(rig.link.process_id, signal.SIGCONT)
            rig.feed(pause)
        rig.feed(0.3)

    return act


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


HOLDS = "whole chunk rejected, held within a tick, latched"
RUNS_OUT = "discarded; held once nothing fresh is left, nothing repeated"
TRIES = "at most 3 tries and 50 ms, then held"

CASES = (
    Case("not a number", 0, "a NaN in a chunk", HOLDS, _bad("not a number"), ("not_finite",), True, slow=False),
    Case("infinity", 0, "an infinity in a chunk", HOLDS, _bad("infinity"), ("not_finite",), True),
    Case("wrong shape", 0, "one joint too few", HOLDS, _bad("wrong shape"), ("shape",), True),
    Case("wrong length", 0, "one step too few", HOLDS, _bad("wrong length"), ("shape",), True),
    Case("wrong type", 0, "a chunk of integers", HOLDS, _bad("wrong type"), ("dtype",), True),
    Case("objects", 0, "a chunk of Python objects", HOLDS, _bad("objects"), ("dtype",), True),
    Case(
        "a little out of range",
        1,
        "targets 2.5 % beyond the gripper's range",
        "clamped and counted, moves on",
        lambda rig: rig.feed(0.8, _gripper(85.0)),
    ),
    Case(
        "out of range, again and again",
        1,
        "targets beyond tolerance, step after step",
        "held at the third in a row",
        lambda rig: rig.feed(0.7, _gripper(90.0), chunks=5),
        ("position",),
    ),
    Case(
        "far out of range",
        1,
        "a target beyond twice the tolerance",
        "held at once",
        lambda rig: rig.feed(0.7, _gripper(99.0), chunks=5),
        ("position",),
    ),
    Case(
        "too fast, again and again",
        1,
        "steps of 1.5 times the speed limit",
        "clamped; held at the third in a row",
        lambda rig: rig.feed(0.5, _fast, chunks=2),
        ("speed",),
    ),
    Case(
        "much too fast",
        1,
        "a jump of 60 degrees in a chunk",
        "held at once",
        lambda rig: rig.feed(0.5, jump, chunks=2),
        ("speed",),
        slow=False,
    ),
    Case(
        "far first command",
        2,
        "a first chunk 30 degrees away",
        "refused: nothing moves",
        lambda rig: rig.feed(0.5, _elsewhere, chunks=3),
        ("far",),
        rests=True,
    ),
    Case(
        "far first command, ramp",
        2,
        "first chunks 30 degrees away, where a ramp was asked for",
        "led there at a third of the speed limit",
        _far,
        rests=True,
        rig="other",
    ),
    Case(
        "stale chunks",
        3,
        "chunks decided from observations 1 s old",
        RUNS_OUT,
        lambda rig: rig.feed(1.0, observed=lambda when: when - 1.0),
        ("starved",),
    ),
    Case(
        "observations from the future",
        3,
        "chunks of another clock",
        RUNS_OUT,
        lambda rig: rig.feed(1.0, observed=lambda when: when + 10.0),
        ("starved",),
    ),
    Case("old sequence", 3, "chunks numbered 0", RUNS_OUT, lambda rig: rig.feed(1.0, sequence=0), ("starved",)),
    Case(
        "wrong episode", 3, "chunks of another episode", RUNS_OUT, lambda rig: rig.feed(1.0, episode=99), ("starved",)
    ),
    Case(
        "wrong session",
        3,
        "chunks of another session",
        RUNS_OUT,
        lambda rig: rig.feed(1.0, session="old"),
        ("starved",),
    ),
    Case(
        "no chunks",
        3,
        "the policy decides nothing any more",
        RUNS_OUT,
        lambda rig: rig.feed(1.0, chunks=0),
        ("starved",),
        slow=False,
    ),
    Case("session silent", 5, "no sign of life from the session", "held after 0.3 s", _silence, ("heartbeat",)),
    Case("lost reply", 7, "one reply lost", "tried again, moves on", _bus(Fault("drop", count=1))),
    Case("corrupt reply", 7, "a bit of one reply flipped", "tried again, moves on", _bus(Fault("corrupt", count=1))),
    Case("late reply", 7, "one reply 0.1 s late", TRIES, _bus(Fault("delay", value=0.1, count=1))),
    Case("bus dead", 7, "no reply for 0.5 s", TRIES, _bus(Fault("drop", seconds=0.5), 0.5), ("bus",), slow=False),
    Case("bus corrupt", 7, "every reply corrupt for 0.5 s", TRIES, _bus(Fault("corrupt", seconds=0.5), 0.5), ("bus",)),
    Case("bus cut", 7, "every reply cut short for 0.5 s", TRIES, _bus(Fault("truncate", seconds=0.5), 0.5), ("bus",)),
    Case("bus late", 7, "every reply 0.1 s late, for 0.5 s", TRIES, _bus(Fault("delay", seconds=0.5), 0.5), ("bus",)),
    Case(
        "servo silent",
        7,
        "the elbow's servo neither hears nor answers for 0.5 s",
        TRIES,
        _bus(Fault("silent", joint="elbow_flex", seconds=0.5), 0.5),
        ("bus",),
    ),
    Case(
        "servo unplugged",
        7,
        "the wrist's servo gone and limp for 0.5 s",
        TRIES + "; latched, as its torque is gone",
        _bus(Fault("missing", joint="wrist_roll", seconds=0.5), 0.9),
        ("bus",),
        True,
        limp=True,
    ),
    Case(
        "no power",
        7,
        "all servos without power for 0.5 s",
        TRIES + "; latched, as the torque is gone",
        _bus(Fault("power", seconds=0.5), 0.9),
        ("bus",),
        True,
        limp=True,
    ),
    Case("joint jammed", 7, "the first joint jammed", "stopped, latched", _stuck, ("stuck",), True),
    Case(
        "servo too hot",
        7,
        "the elbow's servo at 85 degrees Celsius, so that it lets go, for 1 s",
        "stopped within 0.2 s, latched, no snapping back",
        _bus(Fault("temperature", joint="elbow_flex", seconds=1.0), 1.5),
        ("limp",),
        True,
        limp=True,
    ),
    Case(
        "low voltage",
        7,
        "all servos report 3.5 V, an error bit without loss of torque, for 1 s",
        "nothing unsafe",
        _bus(Fault("voltage", seconds=1.0), 1.5),
        limp=True,
    ),
    Case(
        "late ticks",
        8,
        "the control process stands still for 35 ms, again and again",
        "slow stop, latched",
        _freeze(0.035, 30, 0.005),
        ("overruns",),
        True,
        rig="other",
    ),
    Case(
        "control process stands still",
        8,
        "it is stopped for 0.7 s",
        "nothing old is made up for: held",
        _freeze(0.7),
        ("starved", "heartbeat", "hold"),
    ),
    Case(
        "instruction changed",
        9,
        "another instruction while a chunk is played",
        "queue dropped, held within a tick; an older chunk refused",
        _drop,
        ("instruction",),
        slow=False,
    ),
    Case(
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
