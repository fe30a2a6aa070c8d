"""Metrics of a control loop: a histogram of durations in constant memory, and the metrics of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

BIN_SECONDS = 1e-4
"""Width of a bin in seconds; quantiles are exact to it."""

BIN_COUNT = 20_000


class DurationHistogram:
    """A histogram of durations up to 2 s, in constant memory."""

    def __init__(self) -> None:
        self._bins = np.zeros(BIN_COUNT, dtype=np.int64)
        self.count, self.longest = 0, 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self._bins[min(max(int(seconds / BIN_SECONDS), 0), BIN_COUNT - 1)] += 1
        self.count += 1
        self.longest = max(self.longest, seconds)

    def quantile(self, share: float) -> float | None:
        """Return the duration in seconds below which a share of all lies; None if there are none."""
        if self.count == 0:
            return None
        place = int(np.searchsorted(np.cumsum(self._bins), share * self.count))
        return min((place + 1) * BIN_SECONDS, self.longest)


@dataclass(frozen=True)
class LoopMetrics:
    """The metrics of a run; durations in milliseconds, None if nothing was timed.

    `overrun_fraction` is the fraction of ticks that ended after the next one was due. `period` is the time from tick to
    tick, `decision` that of a decision, `round_trip` that from an observation to the first command that follows from
    it. `holds` and `rejected` count by reason. `bus_retries` counts reads that succeeded only at a later try,
    `bus_failures` those that failed.
    """

    loop_hz: float
    ticks: int
    overruns: int
    overrun_fraction: float
    period_p50_ms: float | None
    period_p99_ms: float | None
    period_max_ms: float | None
    work_p99_ms: float | None
    round_trip_p50_ms: float | None
    round_trip_p99_ms: float | None
    chunks: int
    position_clamps: int
    speed_clamps: int
    smoothed: int
    stops: int
    bus_retries: int
    bus_failures: int
    holds: Mapping[str, int] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    decisions: int = 0
    decision_p50_ms: float | None = None
    decision_p99_ms: float | None = None

    def lines(self) -> list[str]:
        """Return the metrics as lines for people."""
        holds = ", ".join(f"{reason} {count}" for reason, count in self.holds.items()) or "none"
        rejected = ", ".join(f"{reason} {count}" for reason, count in self.rejected.items()) or "none"
        late = f"{self.overruns} late ({100 * self.overrun_fraction:.2f} %)"
        return [
            f"loop: {self.ticks} ticks at {self.loop_hz:g} Hz, {late}",
            f"period: p50 {_ms(self.period_p50_ms)}, p99 {_ms(self.period_p99_ms)}, longest {_ms(self.period_max_ms)}",
            f"decisions: {self.decisions}, p50 {_ms(self.decision_p50_ms)}, p99 {_ms(self.decision_p99_ms)}",
            f"observation to command: p50 {_ms(self.round_trip_p50_ms)}, p99 {_ms(self.round_trip_p99_ms)}",
            f"holds: {holds}; chunks taken: {self.chunks}; rejected: {rejected}",
            f"clamped: position {self.position_clamps}, speed {self.speed_clamps}; smoothed ticks: {self.smoothed}",
            f"bus: {self.bus_retries} retries, {self.bus_failures} failures; stops: {self.stops}",
        ]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def quantile_ms(durations: DurationHistogram, share: float) -> float | None:
    """Return a quantile in milliseconds, None if there are no durations."""
    seconds = durations.quantile(share)
    return None if seconds is None else 1000.0 * seconds
