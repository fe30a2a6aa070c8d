"""Messages between the session process and the control process; `channel` encodes and decodes them.

Every message is a frozen dataclass, and both processes dispatch on its type. Times are steady seconds
(`time.monotonic`, which the processes of a machine share).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..arm import ArmDescription
from ..governor.chunk import ActionChunk
from ..governor.outputs import Event, GovernorVerdict
from ..governor.rules import Rules
from .loop_metrics import LoopMetrics

# From the session to the control process.


@dataclass(frozen=True)
class StartGovernor:
    """Start the loop with these rules and write the flight record to a new file, if any; answer: GovernorStarted."""

    rules: Rules
    record: Path | None


@dataclass(frozen=True)
class BeginEpisode:
    """Make the present pose the goal, switch torque on and accept chunks; answer: EpisodeBegun."""

    episode: int


@dataclass(frozen=True)
class EndEpisode:
    """Hold and accept no more chunks; `release` switches torque off. Answer: EpisodeEnded."""

    release: bool


@dataclass(frozen=True, eq=False)
class SubmitChunk:
    """Submit a chunk to the governor, which checks it at its next tick; answer: ChunkChecked."""

    chunk: ActionChunk


@dataclass(frozen=True)
class ReportFault:
    """Stop, latched, because the policy or something behind it is broken."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Heartbeat:
    """Show that the session process is alive."""


@dataclass(frozen=True)
class StopArm:
    """Stop, latched until RearmArm."""

    reason: str


@dataclass(frozen=True)
class HoldArm:
    """Hold until a chunk arrives that was decided from a later observation."""

    reason: str
    detail: str


@dataclass(frozen=True)
class DropQueue:
    """Drop the queued steps, because the instruction has changed."""


@dataclass(frozen=True)
class RearmArm:
    """End a stop; answer: ArmRearmed."""


@dataclass(frozen=True)
class CloseSession:
    """Hold and end the control process; `release` switches torque off. Answer: LoopEnded."""

    release: bool


# From the control process to the session.


@dataclass(frozen=True)
class ArmConnected:
    """The arm is open and described, torque off."""

    description: ArmDescription


@dataclass(frozen=True)
class GovernorStarted:
    """The loop runs."""


@dataclass(frozen=True)
class EpisodeBegun:
    """Whether the episode began; if not, the torque is as it was."""

    verdict: GovernorVerdict


@dataclass(frozen=True)
class EpisodeEnded:
    """The arm is held."""


@dataclass(frozen=True)
class ArmRearmed:
    """Whether the stop ended."""

    verdict: GovernorVerdict


@dataclass(frozen=True)
class ChunkChecked:
    """The governor's verdict on the chunk with this sequence number."""

    sequence: int
    verdict: GovernorVerdict


@dataclass(frozen=True, eq=False)
class Measurement:
    """What the control process measured and did in one tick.

    Attributes:
        time: When the joints were measured.
        joints: float64 [A] in the contract's order; None if the bus did not answer.
        target: The motors' goal, float64 [A]; None before the first.
        state: The governor's state.
        reason: Why the governor holds or is stopped.
        remaining: Number of queued steps.
        sequence: Sequence number of the newest accepted chunk, -1 before the first.
        events: What happened since the last tick.
    """

    time: float
    joints: np.ndarray | None
    target: np.ndarray | None
    state: str
    reason: str
    remaining: int
    sequence: int
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class EventsReported:
    """Events outside of a tick."""

    events: tuple[Event, ...]


@dataclass(frozen=True)
class LoopEnded:
    """The loop has ended, the arm is held."""

    metrics: LoopMetrics


@dataclass(frozen=True)
class InputRefused:
    """The control process ended with this InputError."""

    what: str
    got: str
    expected: str
    fix: str


@dataclass(frozen=True)
class ControlFailed:
    """The control process ended with an error other than an InputError."""

    error: str


SessionMessage = (
    StartGovernor
    | BeginEpisode
    | EndEpisode
    | SubmitChunk
    | ReportFault
    | Heartbeat
    | StopArm
    | HoldArm
    | DropQueue
    | RearmArm
    | CloseSession
)
ControlMessage = (
    ArmConnected
    | GovernorStarted
    | EpisodeBegun
    | EpisodeEnded
    | ArmRearmed
    | ChunkChecked
    | Measurement
    | EventsReported
    | LoopEnded
    | InputRefused
    | ControlFailed
)
Message = SessionMessage | ControlMessage
