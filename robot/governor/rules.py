"""The rules that a governor keeps: limits, ages, and what follows when one is broken."""

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
"""Of the limit of the speed, in a ramp: 90 degrees a second leave people beside an arm the time to see it coming."""


@dataclass(frozen=True)
class Rules(Specification):
    """Everything that a governor decides by; times in seconds.

    `period`: between the steps of a chunk. `tick`: between the calls of `Governor.tick`. `chunk`: T. `start`: what
    happens when the first command lies far from the measured pose. `follows`: False in a dry run, where the arm does
    not follow, so that every chunk begins at the measured pose. `ramp_share`: speed of a ramp as a part of the limit.
    `in_a_row`: so many steps beyond tolerance in a row lead to a hold, as does one beyond `at_once` times the limit.
    `resume_seconds`: a hold that lasts longer does not end by itself. `rest_seconds`: what an arm may take to come to
    rest; one that is moved afterwards by more than the position tolerance takes its goal with it. `overrun_share` of
    the ticks of `overrun_seconds` may be late; more lead to a stop within `slow_stop_seconds`.
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
        """How many seconds after its observation a step may be played: never longer than a chunk is."""
        return min(self.age_limit, self.chunk * self.period)
