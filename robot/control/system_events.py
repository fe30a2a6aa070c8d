"""What the operating system does to the control process: it sends signals, and it may suspend the machine."""

from __future__ import annotations

import signal
import time


class SignalRecorder:
    """Record SIGINT and SIGTERM instead of exiting at once, so that the arm is held first.

    Attributes:
        received: Names of the signals, in order.
    """

    def __init__(self) -> None:
        self.received: list[str] = []
        self._taken = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._record)

    def _record(self, number: int, frame: object) -> None:
        self.received.append(signal.Signals(number).name)

    def take(self) -> list[str]:
        """Return the names of the signals that came since the last call."""
        names = self.received[self._taken :]
        self._taken += len(names)
        return names


class SuspendDetector:
    """Measures how long the machine was suspended; the monotonic clock stops meanwhile. Needs Linux."""

    def __init__(self) -> None:
        self._last = _suspended_seconds()

    def take(self) -> float:
        """Return the seconds for which the machine was suspended since the last call."""
        suspended_seconds = _suspended_seconds()
        seconds = suspended_seconds - self._last
        self._last = suspended_seconds
        return seconds


def _suspended_seconds() -> float:
    """Return for how many seconds the machine was suspended since it started."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
