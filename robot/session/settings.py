"""The plan of an episode, and the settings of a session."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...errors import InputError
from ...ranges import require_above, require_at_least
from ..control.loop import LoopSettings
from ..governor.rules import RAMP_SPEED_FRACTION


@dataclass(frozen=True)
class EpisodePlan:
    """The instruction of an episode, and its time limit in seconds."""

    instruction: str
    seconds: float = 20.0

    def __post_init__(self) -> None:
        if not self.instruction.strip():
            raise InputError("instruction", got="no words", expected="a task", fix="Give an instruction in words.")
        if not 0.0 < self.seconds <= 3600.0:
            fix = "Set seconds, for example 20."
            raise InputError("seconds", got=self.seconds, expected="above 0, at most 3600", fix=fix)


@dataclass(frozen=True)
class SessionSettings:
    """How a session runs.

    Attributes:
        loop: How the control loop runs.
        start: What happens if the first command is far from the measured pose: "refuse" or "ramp".
        aggregation: How overlapping chunks are combined, see `ActionQueue`.
        share: Maximum speed as a fraction of the servos' speed.
        ramp_share: Speed of a ramp as a fraction of that. During a slow ramp the policy sees poses that are not in its
            demonstrations.
        warm_up_decisions: Decisions before the torque is on; their median is the typical latency.
        decision_seconds: After this long without an answer the policy counts as hung.
        warm_up_seconds: The same for decisions and resets before the torque is on.
        rearm_wait_seconds: How long a stopped arm waits for a re-arm before the episode ends.
        rearm_between_episodes: A stop ends only its episode, not the session.
        release_between_episodes: Switch torque off between episodes, which may drop the arm.
        release_at_end: Switch torque off at the end, which may drop the arm.
        overrun_share: Fraction of late ticks within a second that stops the arm.
    """

    loop: LoopSettings = field(default_factory=LoopSettings)
    start: str = "refuse"
    aggregation: str = "latest"
    share: float = 1.0
    ramp_share: float = RAMP_SPEED_FRACTION
    warm_up_decisions: int = 5
    decision_seconds: float = 10.0
    warm_up_seconds: float = 120.0
    rearm_wait_seconds: float = 0.0
    rearm_between_episodes: bool = False
    release_between_episodes: bool = False
    release_at_end: bool = False
    overrun_share: float = 0.05

    def __post_init__(self) -> None:
        require_at_least(self, 2, "warm_up_decisions", fix="Set {} to 5.")
        require_above(self, 0, "decision_seconds", "warm_up_seconds", "overrun_share", fix="Leave {} at its default.")
