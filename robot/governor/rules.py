"""The rules of a governor: limits, ages, and what follows when one is broken."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import unknown_name
from ...policy.contract import Specification
from ..limits import JointLimits
from .action_queue import AGGREGATIONS

START_MODES = ("refuse", "ramp")

MAX_STEP_AGE = 0.5
"""Seconds after its observation at which any step is too old."""

RAMP_SPEED_FRACTION = 1.0 / 3.0
"""Speed of a ramp as a fraction of the limit: at 90 degrees per second people beside the arm can see it coming."""


@dataclass(frozen=True)
class Rules(Specification):
    """Everything that a governor decides by; times in seconds.

    Attributes:
        session: Name of the session; chunks of other sessions are rejected.
        limits: Limits of the joints.
        period: Time between two steps of a chunk.
        tick: Time between two calls of `Governor.tick`.
        chunk: Number of steps of a chunk, T.
        start: What happens if the first command is far from the measured pose: "refuse" or "ramp".
        aggregation: How overlapping chunks are combined, see `ActionQueue`.
        follows: False in a dry run: the arm does not follow, so every chunk begins at the measured pose.
        age_limit: Age of its observation at which a step is too old.
        measurement_age: Age at which measured joints are too old, and the arm is held.
        speed_tolerance: By which fraction a step may be faster than the limit before it counts as a violation.
        in_a_row: So many violations in a row hold the arm; so many ticks in a row with a lagging joint stop it.
        at_once: A step beyond this many times the limit or the tolerance holds the arm at once.
        ramp_share: Speed of a ramp as a fraction of the limit.
        ramp_seconds: A ramp that takes longer stops the arm.
        resume_seconds: A hold that lasts longer becomes a stop.
        rest_seconds: Time in which a held arm comes to rest. If it is displaced afterwards by more than the position
            tolerance, its goal follows it.
        overrun_share: Fraction of the ticks within `overrun_seconds` that may be late; more stop the arm.
        overrun_seconds: See `overrun_share`.
        slow_stop_seconds: Time in which such a stop slows the arm down.
    """

    session: str
    limits: JointLimits
    period: float
    tick: float
    chunk: int
    start: str = "refuse"
    aggregation: str = "latest"
    follows: bool = True
    age_limit: float = MAX_STEP_AGE
    measurement_age: float = 0.1
    speed_tolerance: float = 0.1
    in_a_row: int = 3
    at_once: float = 2.0
    ramp_share: float = RAMP_SPEED_FRACTION
    ramp_seconds: float = 10.0
    resume_seconds: float = 2.0
    rest_seconds: float = 0.2
    overrun_share: float = 0.05
    overrun_seconds: float = 1.0
    slow_stop_seconds: float = 0.3

    def _validate(self) -> None:
        for field, choices in (("start", START_MODES), ("aggregation", AGGREGATIONS)):
            if getattr(self, field) not in choices:
                raise unknown_name(f"Rules.{field}", getattr(self, field), choices)
        positive = (
            "period",
            "tick",
            "age_limit",
            "measurement_age",
            "ramp_share",
            "ramp_seconds",
            "resume_seconds",
            "rest_seconds",
        )
        for field in (*positive, "overrun_share", "overrun_seconds", "slow_stop_seconds", "chunk", "in_a_row"):
            if getattr(self, field) <= 0:
                raise self._field_error(field, got=getattr(self, field), expected="above 0")
        if self.age_limit > MAX_STEP_AGE:
            raise self._field_error("age_limit", got=self.age_limit, expected=f"at most {MAX_STEP_AGE} seconds")
        if self.speed_tolerance < 0 or self.at_once <= 1.0 + self.speed_tolerance:
            raise self._field_error("at_once", got=self.at_once, expected="more than 1 + speed_tolerance")
        if self.ramp_share > 1:
            raise self._field_error("ramp_share", got=self.ramp_share, expected="at most 1")
        if self.tick > self.period * 1.000001:
            expected = f"at most the period between steps, {self.period:.4f} s"
            fix = "Run the control loop at least at the contract's rate."
            raise self._field_error("tick", got=f"{self.tick:.4f} s", expected=expected, fix=fix)

    @property
    def max_step_age(self) -> float:
        """Seconds after its observation in which a step may be played: at most the length of a chunk."""
        return min(self.age_limit, self.chunk * self.period)
