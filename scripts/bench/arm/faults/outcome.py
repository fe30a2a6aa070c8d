"""The failure catalogue's rows, and the outcome of one fault: how long the hold took, and what was unsafe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .....sim.virtual_arm.world import JointTrajectory
from ..judge import REST_TOLERANCE, SETTLE_SECONDS, Hold, moved_while_held, rest_seconds, unsafe_while_held

BUS_ROW, OVERRUN_ROW = "serial bus", "control loop overruns"
"""Rows whose times are reported apart, because they include the bus's retries and the pause of the process."""

CATALOGUE_ROWS = (
    "NaN, infinity, wrong shape or type of a chunk",
    "out of range or too fast",
    "first command far from the measured pose",
    "stale observation, old sequence, wrong episode",
    "reply after its timeout",
    "half-open connection, server lost",
    "camera frozen or dropped",
    BUS_ROW,
    OVERRUN_ROW,
    "instruction changed while a chunk is played",
    "exception, SIGINT, SIGTERM, kill -9",
    "stop",
    "normalisation statistics missing or from another contract",
)
"""The rows of the catalogue; each has one or more variants (cases)."""

TICK = 0.02
"""Period of the control loop in seconds, from which the judge derives the largest legal step."""

HoldTimes = tuple[float | None, float | None, float | None]
"""Detection, software and device time of a hold in milliseconds; see `FaultOutcome`."""

NO_TIMES: HoldTimes = (None, None, None)


@dataclass(frozen=True)
class CaseTiming:
    """How long each case is observed; the defaults are the benchmark's.

    Attributes:
        lead_in_seconds: How long good chunks move the arm before a fault of chunks or bus.
        watch_seconds: How long the arm is observed after such a fault.
        session_watch_factor: Factor on the time that a session is observed after its fault.
    """

    lead_in_seconds: float = 0.6
    watch_seconds: float = 0.5
    session_watch_factor: float = 1.0


@dataclass(frozen=True)
class FaultOutcome:
    """The outcome of one fault.

    Attributes:
        name: Name of the case.
        row: Its row in `CATALOGUE_ROWS`.
        injected: What was injected.
        required: What the arm must do.
        observed: What the governor did, by the flight record.
        detection_ms: Milliseconds from the fault to the hold, with the time that a rule waits; None without a hold.
        software_ms: Milliseconds from the cause, as early as the governor can know it, to the first tick that holds.
        device_ms: Milliseconds from there until the true joints are at rest.
        problems: Why the case did not pass; empty if it passed.
        late_ms: How far the virtual arm's physics fell behind the clock at worst, on a busy machine.
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
        """Whether no problem was found."""
        return not self.problems


def max_lateness_ms(joint_trajectory: JointTrajectory) -> float:
    """Return by how many milliseconds the virtual arm's physics fell behind the clock at worst."""
    return 1000.0 * float(joint_trajectory.late.max(initial=0.0))


def judge_hold(
    hold: Hold | None, joint_trajectory: JointTrajectory, injected: float, *, limp: bool = False
) -> tuple[HoldTimes, list[str]]:
    """Measure a hold and judge the motion during it.

    Args:
        hold: The hold; None if there was none.
        joint_trajectory: The true motion of the virtual arm.
        injected: Steady time of the fault, in seconds.
        limp: Whether joints may fall, so that their motion is not judged.

    Returns:
        The times (see `FaultOutcome`) and the problems found.
    """
    if hold is None:
        return NO_TIMES, []
    problems = []
    if hold.moved:
        problems.append(f"{hold.moved} ticks still moved")
    rest_duration = rest_seconds(joint_trajectory, hold.held, hold.until)
    device = None if rest_duration is None or limp else 1000.0 * rest_duration
    if not limp:
        problems += unsafe_while_held(joint_trajectory, hold.held, hold.until)
        moved = moved_while_held(joint_trajectory, hold.held, hold.until)
        if moved > REST_TOLERANCE:
            problems.append(f"the arm moved by {moved:.1f} more than {1000 * SETTLE_SECONDS:.0f} ms after the hold")
    software = 1000.0 * (hold.held - hold.cause)
    return (1000.0 * (hold.held - injected), software, device), problems


def describe_hold(hold: Hold | None, lines: list[dict[str, Any]]) -> str:
    """Describe what the governor did, by lines of the flight record: the hold, and counts of refused chunks."""
    rejected: dict[str, int] = {}
    for line in lines:
        if line["call"] == "submit" and not line["accepted"]:
            rejected[line["reason"]] = rejected.get(line["reason"], 0) + 1
    refused = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
    what = "continues" if hold is None else f"held ({hold.reason})" + (", latched" if hold.state == "stopped" else "")
    return what + (f"; refused: {refused}" if refused else "")
