"""Records the true trajectory of the twin's joints: one row for each physics step."""

from __future__ import annotations

import numpy as np

from ..desk import arm

MAX_ROWS = 360 * 900
"""Rows that are kept, fifteen minutes of real time; the oldest are dropped."""

BLOCK_ROWS = 3600
COLUMNS = 14


class JointTrajectoryBuffer:
    """Times, joint positions, goals and lateness; it grows in blocks, so that a short run needs little memory."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove all rows."""
        self._blocks: list[np.ndarray] = []
        self._filled = BLOCK_ROWS

    def add(self, time: float, positions: np.ndarray, goals: np.ndarray, late: float) -> None:
        """Add a row.

        Args:
            time: When the step was due, in seconds of time.monotonic.
            positions: Joint positions [6] in radians.
            goals: Goals [6] in radians; NaN for a servo without torque.
            late: How many seconds after `time` the step was done.
        """
        if self._filled == BLOCK_ROWS:
            if len(self._blocks) * BLOCK_ROWS >= MAX_ROWS:
                self._blocks.pop(0)
            self._blocks.append(np.empty((BLOCK_ROWS, COLUMNS)))
            self._filled = 0
        row = self._blocks[-1][self._filled]
        row[0], row[1:7], row[7:13], row[13] = time, positions, goals, late
        self._filled += 1

    def after(self, since: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the rows after a time: times [n], positions and goals [n, 6] in the contract's units, lateness [n]."""
        if not self._blocks:
            return np.empty(0), np.empty((0, 6)), np.empty((0, 6)), np.empty(0)
        rows = np.concatenate([*self._blocks[:-1], self._blocks[-1][: self._filled]])
        rows = rows[rows[:, 0] > since]
        positions, goals = (arm.to_units(rows[:, columns].copy()) for columns in (slice(1, 7), slice(7, 13)))
        return rows[:, 0].copy(), positions, goals, rows[:, 13].copy()
