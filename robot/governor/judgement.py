"""What a chunk has to be before a governor takes it: whole, of this episode, in order, and fresh."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .chunk import Chunk
from .rules import Rules

FAULTS = ("shape", "dtype", "not_finite")
"""Reasons for which a policy is not to be trusted any further: they latch."""

AHEAD = 0.005
"""Seconds by which an observation may seem to lie in the future: rounding, not another clock."""


@dataclass(frozen=True)
class Standing:
    """Where a governor stands when a chunk arrives: its episode, the newest sequence, since when it looks ahead only.

    `stopped`: why it is stopped, None where it is not. `stopping`: it comes to a stop just now.
    """

    episode: int | None
    sequence: int
    not_before: float
    stopped: str | None
    stopping: bool


def judge(chunk: Chunk, rules: Rules, standing: Standing, now: float) -> tuple[str, str]:
    """Return why a chunk is refused, as one word and as a sentence; two empty strings where it is not."""
    actions, wanted = chunk.actions, (rules.chunk, len(rules.limits.names))
    if chunk.session != rules.session:
        return "session", "it belongs to another session"
    if actions.dtype not in (np.float32, np.float64):
        return "dtype", f"actions of type {actions.dtype}, expected float32 or float64"
    if actions.shape != wanted:
        return "shape", f"actions of shape {actions.shape}, expected {wanted}"
    if not np.isfinite(actions).all():
        return "not_finite", "actions that are not finite"
    if standing.stopped is not None:
        return "stopped", f"stopped ({standing.stopped}): re-arm first"
    if standing.episode is None or chunk.episode != standing.episode:
        return "episode", f"it belongs to episode {chunk.episode}, now is {standing.episode}"
    if chunk.sequence <= standing.sequence:
        return "sequence", f"sequence {chunk.sequence} after {standing.sequence}"
    if not math.isfinite(chunk.observed) or chunk.observed > now + AHEAD:
        return "future", "it was decided from an observation in the future"
    if not math.isclose(chunk.period, rules.period, rel_tol=1e-6):
        return "period", f"steps of {chunk.period:g} s, expected {rules.period:g} s"
    if now - chunk.observed > rules.freshness:
        return "age", f"{now - chunk.observed:.3f} s old, limit {rules.freshness:.3f} s"
    if chunk.observed < standing.not_before:
        return "before_hold", "it was decided from an observation before the arm was held"
    if standing.stopping:
        return "stopping", "the arm is being stopped"
    return "", ""
