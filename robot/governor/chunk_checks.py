"""Checks of a chunk before the governor accepts it: whole, of this episode, in order, and fresh."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .chunk import ActionChunk
from .rules import Rules

FAULT_REASONS = ("shape", "dtype", "not_finite")
"""Reasons that show that the policy is broken: they stop the arm, latched."""

MAX_CLOCK_SKEW = 0.005
"""Seconds by which an observation may be in the future: rounding, not another clock."""


@dataclass(frozen=True)
class GovernorStatus:
    """The state of a governor when a chunk arrives.

    Attributes:
        episode: The running episode, None if there is none.
        sequence: The newest accepted sequence number.
        min_observation_time: Chunks from earlier observations are rejected.
        stopped: Why it is stopped, None if it is not.
        stopping: Whether it is coming to a slow stop.
    """

    episode: int | None
    sequence: int
    min_observation_time: float
    stopped: str | None
    stopping: bool


def check_chunk(chunk: ActionChunk, rules: Rules, status: GovernorStatus, now: float) -> tuple[str, str]:
    """Check a chunk against the rules and the governor's state.

    Args:
        chunk: The chunk.
        rules: The governor's rules.
        status: The governor's state.
        now: Steady seconds.

    Returns:
        The reason of a rejection and its detail; two empty strings if the chunk is valid.
    """
    actions, wanted = chunk.actions, (rules.chunk, len(rules.limits.names))
    if chunk.session != rules.session:
        return "session", "it belongs to another session"
    if actions.dtype not in (np.float32, np.float64):
        return "dtype", f"actions of type {actions.dtype}, expected float32 or float64"
    if actions.shape != wanted:
        return "shape", f"actions of shape {actions.shape}, expected {wanted}"
    if not np.isfinite(actions).all():
        return "not_finite", "actions that are not finite"
    if status.stopped is not None:
        return "stopped", f"stopped ({status.stopped}): re-arm first"
    if status.episode is None or chunk.episode != status.episode:
        return "episode", f"it belongs to episode {chunk.episode}, now is {status.episode}"
    if chunk.sequence <= status.sequence:
        return "sequence", f"sequence {chunk.sequence} after {status.sequence}"
    if not math.isfinite(chunk.observed) or chunk.observed > now + MAX_CLOCK_SKEW:
        return "future", "it was decided from an observation in the future"
    if not math.isclose(chunk.period, rules.period, rel_tol=1e-6):
        return "period", f"steps of {chunk.period:g} s, expected {rules.period:g} s"
    if now - chunk.observed > rules.max_step_age:
        return "age", f"{now - chunk.observed:.3f} s old, limit {rules.max_step_age:.3f} s"
    if chunk.observed < status.min_observation_time:
        return "before_hold", "it was decided from an observation before the arm was held"
    if status.stopping:
        return "stopping", "the arm is being stopped"
    return "", ""
