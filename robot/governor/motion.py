"""Limited motion: one tick from the last command towards a target, within speed, acceleration and range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from ..limits import JointLimits


@dataclass(frozen=True, eq=False)
class LimitArrays:
    """The limits of all joints as arrays float64 [A], see `JointLimits`."""

    low: np.ndarray
    high: np.ndarray
    speed: np.ndarray
    acceleration: np.ndarray
    position_tolerance: np.ndarray
    start_tolerance: np.ndarray
    max_lag: np.ndarray

    @classmethod
    def from_limits(cls, limits: JointLimits) -> Self:
        """Return the arrays of some limits."""
        return cls(
            low=np.array(limits.low),
            high=np.array(limits.high),
            speed=np.array(limits.speed),
            acceleration=np.array(limits.acceleration),
            position_tolerance=np.array(limits.position_tolerance),
            start_tolerance=np.array(limits.start_tolerance),
            max_lag=np.array(limits.lead),
        )

    def clip(self, pose: np.ndarray) -> np.ndarray:
        """Return a pose [A], clipped to the range."""
        return np.clip(pose, self.low, self.high)


def limited_step(
    command: np.ndarray,
    velocity: np.ndarray,
    target: np.ndarray,
    *,
    seconds: float,
    speed: np.ndarray,
    acceleration: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Move a command towards a target by one tick.

    The command moves by at most `speed * seconds`, and comes to rest at a constant target without overshoot. All arrays
    are [A], in the joints' units and seconds.

    Args:
        command: The last command, within `low` and `high`.
        velocity: Its velocity.
        target: Where it is to go.
        seconds: Duration of the tick.
        speed: Largest speed.
        acceleration: Largest acceleration.
        low: Lower bound of the range.
        high: Upper bound of the range.

    Returns:
        The next command, its velocity, and whether the limits of speed or acceleration held it back.
    """
    if seconds <= 0.0:
        return command, velocity, False
    distance = target - command
    desired_velocity = np.clip(distance / seconds, -speed, speed)
    # The fastest speed from which a joint can still brake before its target, in whole ticks.
    slack = 0.5 * acceleration * seconds
    max_braking_speed = np.sqrt(slack * slack + 2.0 * acceleration * np.abs(distance)) - slack
    braked_velocity = np.clip(desired_velocity, -max_braking_speed, max_braking_speed)
    max_velocity_change = acceleration * seconds
    limited_velocity = np.clip(
        np.clip(braked_velocity, velocity - max_velocity_change, velocity + max_velocity_change), -speed, speed
    )
    next_command = np.clip(command + limited_velocity * seconds, low, high)
    # Rounding must not add up to more than the limit.
    step = speed * seconds
    next_command = np.clip(next_command, command - step, command + step)
    held_back = bool(np.any(np.abs(limited_velocity - desired_velocity) > 1e-9 * speed))
    return next_command, (next_command - command) / seconds, held_back
