"""One tick of limited motion: from the last command towards a target, within speed, acceleration and range."""

from __future__ import annotations

import numpy as np


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
    """Return the next command [A], its velocity [A], and whether the acceleration limit held it back.

    All arrays [A] in the joints' units and seconds; `command` lies within `low` and `high`. The command moves by at
    most `speed * seconds` and comes to rest at a target that stands still without passing it.
    """
    if seconds <= 0.0:
        return command, velocity, False
    distance = target - command
    desired_velocity = np.clip(distance / seconds, -speed, speed)
    # The fastest from which a joint can still brake before its target, counted in whole ticks.
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
