"""The faults that reach a control process through its chunks or its arm's bus, and what is required of the arm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .....sim.virtual_arm.faults import Fault
from ..rig import LinkRig
from ..swing_policy import jump
from .injections import (
    bus_fault,
    change_instruction,
    close_gripper_beyond,
    corrupt_chunk,
    jam_joint,
    offset_start,
    request_far_pose,
    request_stop,
    speed_up,
    stop_heartbeat,
    suspend_process,
)


@dataclass(frozen=True)
class FaultCase:
    """A fault of chunks or bus.

    Attributes:
        name: Name of the case.
        row: Index into `CATALOGUE_ROWS`.
        injected: Description of the injected fault.
        required: Description of the required reaction.
        inject: Brings the fault about while the arm moves.
        reasons: Reasons of a hold that pass; empty if the arm must not be held at all.
        latched: Whether good chunks must not move the arm afterwards.
        limp: Whether joints may fall, so that their motion is not judged.
        rig: "plain" or "other"; see `rig_rules`.
        starts_at_rest: Whether the fault meets an arm at rest, not one that moves.
        slow: Whether quick test runs leave the case out.
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
    slow: bool = True


def rig_rules(name: str) -> dict[str, object]:
    """Return the governor's rules of a rig: "other" ramps to the first target and stops on late ticks."""
    return {} if name == "plain" else {"start": "ramp", "overrun_share": 0.3}


EXPECT_LATCHED_HOLD = "whole chunk rejected, held within a tick, latched"
EXPECT_STARVED_HOLD = "discarded; held when no fresh action is left, nothing repeated"
EXPECT_RETRIES = "at most 3 tries and 50 ms, then held"

CASES = (
    FaultCase(
        "not a number",
        0,
        "a NaN in a chunk",
        EXPECT_LATCHED_HOLD,
        corrupt_chunk("not a number"),
        ("not_finite",),
        True,
        slow=False,
    ),
    FaultCase(
        "infinity", 0, "an infinity in a chunk", EXPECT_LATCHED_HOLD, corrupt_chunk("infinity"), ("not_finite",), True
    ),
    FaultCase(
        "wrong shape", 0, "one joint too few", EXPECT_LATCHED_HOLD, corrupt_chunk("wrong shape"), ("shape",), True
    ),
    FaultCase(
        "wrong length", 0, "one step too few", EXPECT_LATCHED_HOLD, corrupt_chunk("wrong length"), ("shape",), True
    ),
    FaultCase(
        "wrong type", 0, "a chunk of integers", EXPECT_LATCHED_HOLD, corrupt_chunk("wrong type"), ("dtype",), True
    ),
    FaultCase(
        "objects", 0, "a chunk of Python objects", EXPECT_LATCHED_HOLD, corrupt_chunk("objects"), ("dtype",), True
    ),
    FaultCase(
        "a little out of range",
        1,
        "targets 2.5 % beyond the gripper's range",
        "clamped and counted, continues",
        lambda rig: rig.feed(0.8, close_gripper_beyond(85.0)),
    ),
    FaultCase(
        "out of range repeatedly",
        1,
        "targets beyond tolerance in every step",
        "held at the third in a row",
        lambda rig: rig.feed(0.7, close_gripper_beyond(90.0), chunks=5),
        ("position",),
    ),
    FaultCase(
        "far out of range",
        1,
        "a target beyond twice the tolerance",
        "held at once",
        lambda rig: rig.feed(0.7, close_gripper_beyond(99.0), chunks=5),
        ("position",),
    ),
    FaultCase(
        "too fast repeatedly",
        1,
        "steps of 1.5 times the speed limit",
        "clamped; held at the third in a row",
        lambda rig: rig.feed(0.5, speed_up, chunks=2),
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
        lambda rig: rig.feed(0.5, offset_start, chunks=3),
        ("far",),
        starts_at_rest=True,
    ),
    FaultCase(
        "far first command, ramp",
        2,
        "first chunks 30 degrees away, with `--start ramp`",
        "moved there at a third of the speed limit",
        request_far_pose,
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
        "chunks with a timestamp in the future",
        EXPECT_STARVED_HOLD,
        lambda rig: rig.feed(1.0, observed=lambda when: when + 10.0),
        ("starved",),
    ),
    FaultCase(
        "old sequence",
        3,
        "chunks with sequence number 0",
        EXPECT_STARVED_HOLD,
        lambda rig: rig.feed(1.0, sequence=0),
        ("starved",),
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
        "the policy stops deciding",
        EXPECT_STARVED_HOLD,
        lambda rig: rig.feed(1.0, chunks=0),
        ("starved",),
        slow=False,
    ),
    FaultCase("session silent", 5, "no heartbeat from the session", "held after 0.3 s", stop_heartbeat, ("heartbeat",)),
    FaultCase("lost reply", 7, "one reply lost", "retried, continues", bus_fault(Fault("drop", count=1))),
    FaultCase(
        "corrupt reply", 7, "a bit of one reply flipped", "retried, continues", bus_fault(Fault("corrupt", count=1))
    ),
    FaultCase("late reply", 7, "one reply 0.1 s late", EXPECT_RETRIES, bus_fault(Fault("delay", value=0.1, count=1))),
    FaultCase(
        "bus dead",
        7,
        "no reply for 0.5 s",
        EXPECT_RETRIES,
        bus_fault(Fault("drop", seconds=0.5), 0.5),
        ("bus",),
        slow=False,
    ),
    FaultCase(
        "bus corrupt",
        7,
        "every reply corrupt for 0.5 s",
        EXPECT_RETRIES,
        bus_fault(Fault("corrupt", seconds=0.5), 0.5),
        ("bus",),
    ),
    FaultCase(
        "bus cut",
        7,
        "every reply cut short for 0.5 s",
        EXPECT_RETRIES,
        bus_fault(Fault("truncate", seconds=0.5), 0.5),
        ("bus",),
    ),
    FaultCase(
        "bus late",
        7,
        "every reply 0.1 s late, for 0.5 s",
        EXPECT_RETRIES,
        bus_fault(Fault("delay", seconds=0.5), 0.5),
        ("bus",),
    ),
    FaultCase(
        "servo silent",
        7,
        "the elbow's servo does not respond for 0.5 s",
        EXPECT_RETRIES,
        bus_fault(Fault("silent", joint="elbow_flex", seconds=0.5), 0.5),
        ("bus",),
    ),
    FaultCase(
        "servo unplugged",
        7,
        "the wrist's servo is unplugged and limp for 0.5 s",
        EXPECT_RETRIES + "; latched, as its torque is gone",
        bus_fault(Fault("missing", joint="wrist_roll", seconds=0.5), 0.9),
        ("bus",),
        True,
        limp=True,
    ),
    FaultCase(
        "no power",
        7,
        "all servos without power for 0.5 s",
        EXPECT_RETRIES + "; latched, because the torque is off",
        bus_fault(Fault("power", seconds=0.5), 0.9),
        ("bus",),
        True,
        limp=True,
    ),
    FaultCase("joint jammed", 7, "the first joint jammed", "stopped, latched", jam_joint, ("stuck",), True),
    FaultCase(
        "servo too hot",
        7,
        "the elbow's servo at 85 degrees Celsius, torque off, for 1 s",
        "stopped within 0.2 s, latched, no jump back",
        bus_fault(Fault("temperature", joint="elbow_flex", seconds=1.0), 1.5),
        ("limp",),
        True,
        limp=True,
    ),
    FaultCase(
        "low voltage",
        7,
        "all servos report 3.5 V, an error bit without loss of torque, for 1 s",
        "nothing unsafe",
        bus_fault(Fault("voltage", seconds=1.0), 1.5),
        limp=True,
    ),
    FaultCase(
        "late ticks",
        8,
        "the control process pauses for 35 ms repeatedly",
        "slow stop, latched",
        suspend_process(0.035, 30, 0.005),
        ("overruns",),
        True,
        rig="other",
    ),
    FaultCase(
        "control process paused",
        8,
        "it is paused for 0.7 s",
        "missed actions are not played: held",
        suspend_process(0.7),
        ("starved", "heartbeat", "hold"),
    ),
    FaultCase(
        "instruction changed",
        9,
        "another instruction while a chunk is played",
        "queue dropped, held within a tick; older chunks refused",
        change_instruction,
        ("instruction",),
        slow=False,
    ),
    FaultCase(
        "stop",
        11,
        "a requested stop",
        "held within a tick, latched until re-armed",
        request_stop,
        ("stop",),
        True,
        slow=False,
    ),
)
