"""The action queue: which step of which chunk is due at a time. Pure: time is passed in."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np

from ...errors import InputError, unknown_name
from .chunk import ActionChunk

AGGREGATIONS = ("latest", "average", "weighted", "keep")
"""How a new chunk is combined with the queue: it replaces it, is averaged with it (1:1 or 0.7:0.3), or follows it."""

OLD_CHUNK_WEIGHT = {"average": 0.5, "weighted": 0.3}


@dataclass(frozen=True, eq=False)
class ScheduledStep:
    """One action of a chunk, float64 [A], and its time window [`start`, `end`)."""

    start: float
    end: float
    observed: float
    sequence: int
    action: np.ndarray


class ActionQueue:
    """Time-stamped steps, each due within its window and never outside.

    Args:
        aggregation: One of AGGREGATIONS.
        age_limit: Seconds after its observation at which a step is too old to be played, also within its window.

    Raises:
        InputError: The aggregation is unknown, or the age limit not positive.
    """

    def __init__(self, aggregation: str = "latest", age_limit: float = 0.5) -> None:
        if aggregation not in AGGREGATIONS:
            raise unknown_name("aggregation", aggregation, AGGREGATIONS)
        if not age_limit > 0:
            raise InputError("age_limit", got=age_limit, expected="above 0 seconds", fix="Set age_limit to 0.5.")
        self.aggregation, self.age_limit = aggregation, age_limit
        self._steps: list[ScheduledStep] = []

    def put(self, chunk: ActionChunk, now: float) -> int:
        """Merge a chunk into the queue; steps whose window has passed are dropped.

        At most as many steps as the chunk has are queued afterwards.

        Returns:
            The number of steps that it adds.
        """
        edges = [chunk.observed + index * chunk.period for index in range(len(chunk.actions) + 1)]
        actions = np.array(chunk.actions, dtype=np.float64)
        new = [
            ScheduledStep(start, end, chunk.observed, chunk.sequence, action)
            for start, end, action in zip(edges[:-1], edges[1:], actions, strict=True)
            if end > now
        ]
        old = [step for step in self._steps if step.end > now]
        if self.aggregation == "keep" and old:
            last = old[-1].end
            rest = [step for step in new if step.end > last]
            rest = [
                ScheduledStep(max(step.start, last), step.end, step.observed, step.sequence, step.action)
                for step in rest
            ]
            self._steps = [*old, *rest][: len(actions)]
            return len(self._steps) - len(old)
        share = OLD_CHUNK_WEIGHT.get(self.aggregation, 0.0)
        if share > 0.0:
            new = [self._blend(step, old, share) for step in new]
        self._steps = new
        return len(new)

    def step(self, now: float) -> ScheduledStep | None:
        """Return the step whose window contains `now`; None if there is none or it is too old."""
        place = bisect.bisect_right(self._steps, now, key=lambda step: step.start) - 1
        if place < 0:
            return None
        found = self._steps[place]
        return found if now < found.end and now - found.observed <= self.age_limit else None

    def remaining(self, now: float) -> int:
        """Return how many steps are still to be played, including the present one."""
        return sum(step.end > now and step.start - step.observed <= self.age_limit for step in self._steps)

    def drop(self) -> None:
        """Drop all steps."""
        self._steps = []

    @staticmethod
    def _blend(step: ScheduledStep, old: list[ScheduledStep], share: float) -> ScheduledStep:
        midpoint = 0.5 * (step.start + step.end)
        found = next((each.action for each in old if each.start <= midpoint < each.end), None)
        if found is None:
            return step
        # Both were decided for this very window, so neither is older than a chunk is long.
        action = share * found + (1.0 - share) * step.action
        return ScheduledStep(step.start, step.end, step.observed, step.sequence, action)
