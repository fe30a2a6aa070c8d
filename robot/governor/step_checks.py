"""Checks of a step when it becomes due: how far its target lies outside the range, and how fast it moves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .action_queue import ScheduledStep
from .motion import LimitArrays
from .rules import Rules


@dataclass(frozen=True)
class StepCheck:
    """How a step compares with the limits.

    Attributes:
        position_clamped: Whether the target was clamped to the range.
        speed_clamped: Whether the step is faster than the limit.
        beyond_tolerance: Whether either is beyond its tolerance, which several steps in a row must not be.
        refused: Whether either is so far beyond that the step is not played at all.
        kind: "position" or "speed", whichever is to blame.
        detail: The kind and why, for people.
    """

    position_clamped: bool
    speed_clamped: bool
    beyond_tolerance: bool
    refused: bool
    kind: str
    detail: str


class StepChecker:
    """Compares each step with the limits and with the step before it.

    Attributes:
        step: The accepted step, None since the last reset.
    """

    def __init__(self, rules: Rules, limits: LimitArrays) -> None:
        self._rules, self._limits = rules, limits
        self.reset()

    def reset(self) -> None:
        """Forget the accepted step and the violations in a row."""
        self.step: ScheduledStep | None = None
        self._last_target: np.ndarray | None = None
        self._step_start = math.inf
        self._consecutive_violations = 0

    def forget_target(self) -> None:
        """Forget the accepted target, so that the next step has no speed."""
        self._last_target = None

    def accept(self, step: ScheduledStep, clipped_target: np.ndarray, check: StepCheck) -> None:
        """Make a step the accepted one."""
        self._consecutive_violations = self._consecutive_violations + 1 if check.beyond_tolerance else 0
        self.step, self._last_target, self._step_start = step, clipped_target, step.start

    def too_many_violations(self, check: StepCheck) -> bool:
        """Return whether a step would be one too many beyond tolerance in a row."""
        return self._consecutive_violations + check.beyond_tolerance >= self._rules.in_a_row

    def check(self, step: ScheduledStep, clipped_target: np.ndarray, *, has_speed: bool) -> StepCheck:
        """Compare a step with the limits.

        Args:
            step: The step that has become due.
            clipped_target: Its action [A], clipped to the range.
            has_speed: Whether the arm follows the decisions, so that the speed from step to step counts; not in a ramp.
        """
        rules, limits = self._rules, self._limits
        outside = np.abs(step.action - clipped_target) / limits.position_tolerance  # [A]
        speed = np.zeros_like(outside)  # [A]
        if self._last_target is not None and has_speed:
            # If ticks came late, steps were skipped, and there was more time between the two.
            seconds = max(rules.period, step.start - self._step_start)
            speed = np.abs(clipped_target - self._last_target) / (limits.speed * seconds)
        position_clamped, speed_clamped = bool(np.any(outside > 0.0)), bool(np.any(speed > 1.0 + 1e-6))
        for kind, ratio, bound in (("position", outside, "tolerance"), ("speed", speed, "limit")):
            worst = int(np.argmax(ratio))
            if ratio[worst] > rules.at_once:
                detail = f"{kind}: {rules.limits.names[worst]} at {ratio[worst]:.1f} times its {bound}"
                return StepCheck(position_clamped, speed_clamped, True, True, kind, detail)
        beyond = bool(np.any(outside > 1.0) or np.any(speed > 1.0 + rules.speed_tolerance))
        kind = "position" if np.any(outside > 1.0) else "speed"
        detail = f"{kind}: {rules.in_a_row} steps in a row beyond the limit"
        return StepCheck(position_clamped, speed_clamped, beyond, False, kind, detail)
