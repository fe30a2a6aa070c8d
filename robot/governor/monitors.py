"""What a governor watches from tick to tick: late ticks, an arm that does not follow, an arm that was moved."""

from __future__ import annotations

from collections import deque

import numpy as np

from .motion import LimitArrays
from .rules import Rules


class OverrunMonitor:
    """Counts the late ticks within the last `overrun_seconds`."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._late_ticks: deque[float] = deque()

    def clear(self) -> None:
        """Forget the late ticks."""
        self._late_ticks.clear()

    def add(self, now: float, *, overran: bool) -> str:
        """Count a tick; return how many were late if they are too many, else an empty string."""
        rules = self._rules
        if overran:
            self._late_ticks.append(now)
        while self._late_ticks and now - self._late_ticks[0] > rules.overrun_seconds:
            self._late_ticks.popleft()
        if len(self._late_ticks) > rules.overrun_share * rules.overrun_seconds / rules.tick:
            return f"{len(self._late_ticks)} late ticks within {rules.overrun_seconds:g} s"
        return ""


class LagMonitor:
    """Counts the ticks in a row in which a joint lags too far behind the command."""

    def __init__(self, rules: Rules, limits: LimitArrays) -> None:
        self._rules, self._limits = rules, limits
        self.reset()

    def reset(self) -> None:
        """Forget the ticks in a row."""
        self._lag_ticks = 0

    def add(self, command: np.ndarray, measured: np.ndarray) -> str:
        """Count a tick; return the names of the joints that lag if it was one too many, else an empty string.

        Args:
            command: The commanded joints, [A].
            measured: The measured joints, [A].
        """
        behind = np.abs(command - measured) > self._limits.max_lag  # [A]
        self._lag_ticks = self._lag_ticks + 1 if behind.any() else 0
        if self._lag_ticks < self._rules.in_a_row:
            return ""
        return ", ".join(name for name, each in zip(self._rules.limits.names, behind, strict=True) if each)


def describe_distances(names: tuple[str, ...], distance: np.ndarray, which: np.ndarray) -> str:
    """Return a text with the distances [A] of the joints that `which` [A] selects."""
    return ", ".join(f"{names[index]} by {distance[index]:.1f}" for index in np.flatnonzero(which))
