"""What an episode is to do, and the settings of a session."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...errors import InputError
from ..control.loop import LoopSettings
from ..governor.rules import RAMP_SPEED_FRACTION


@dataclass(frozen=True)
class EpisodePlan:
    """What to do, and for how many seconds at most."""

    instruction: str
    seconds: float = 20.0

    def __post_init__(self) -> None:
        if not self.instruction.strip():
            raise InputError("instruction", got="no words", expected="what to do", fix="Say what the arm is to do.")
        if not 0.0 < self.seconds <= 3600.0:
            raise InputError("seconds", got=self.seconds, expected="above 0, at most 3600", fix="The default is 20.")


@dataclass(frozen=True)
class SessionSettings:
    """How a session runs.

    `start`: "refuse" or "ramp", where a first command lies far from the measured pose. `share`: of the servos' speed;
    `ramp_share`: of that in a ramp; a slow one shows a policy poses on the way that its demonstrations did not have.
    `decision_seconds`: after so long without an answer the decider counts as hung. `rearm_wait_seconds`: so long a stopped
    arm waits to be re-armed before the episode ends. `rearm_between_episodes`: a stop ends its episode alone. `release_between_episodes`,
    `release_at_end`: switch torque off then, and let the arm drop.
    """

    loop: LoopSettings = field(default_factory=LoopSettings)
    start: str = "refuse"
    aggregation: str = "latest"
    share: float = 1.0
    ramp_share: float = RAMP_SPEED_FRACTION
    real_time_chunking: bool = False
    warm_up: int = 5
    decision_seconds: float = 10.0
    warm_up_seconds: float = 120.0
    rearm_wait_seconds: float = 0.0
    rearm_between_episodes: bool = False
    release_between_episodes: bool = False
    release_at_end: bool = False
    overrun_share: float = 0.05

    def __post_init__(self) -> None:
        if self.warm_up < 2:
            raise InputError("warm_up", got=self.warm_up, expected="2 decisions or more", fix="The default is 5.")
        for name in ("decision_seconds", "warm_up_seconds", "overrun_share"):
            if not getattr(self, name) > 0:
                raise InputError(name, got=getattr(self, name), expected="above 0", fix="Leave it out.")
