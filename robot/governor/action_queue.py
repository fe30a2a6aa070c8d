"""The queue over latency: which step of which chunk is due at a moment. Pure: time is passed in."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np

from ...errors import InputError, unknown_name
from .chunk import ActionChunk

AGGREGATIONS = ("latest", "average", "weighted", "keep")
"""How a new chunk meets what is queued: it replaces it, is averaged with it, weighs more than it, or follows it."""

OLD_CHUNK_WEIGHT = {"average": 0.5, "weighted": 0.3}


@dataclass(frozen=True, eq=False)
class ScheduledStep:
    """One step of a chunk and its window, `start` (included) to `end` (not); `action` is float64 [A]."""

    start: float
    end: float
    observed: float
    sequence: int
    action: np.ndarray


class ActionQueue:
    """Time-stamped steps, each due within its own window and never beyond it.

    `age_limit`: seconds after its observation at which a step is too old to be played, whatever its window says.
    Raises InputError for an unknown aggregation and an age limit that is not positive.
    """

    def __init__(self, aggregation: str = "latest", age_limit: float = 0.5) -> None:
        if aggregation not in AGGREGATIONS:
            raise unknown_name("aggregation", aggregation, AGGREGATIONS)
        if not age_limit > 0:
            raise InputError("age_limit", got=age_limit, expected="above 0 seconds", fix="The default is 0.5.")
        self.aggregation, self.age_limit = aggregation, age_limit
        self._steps: list[ScheduledStep] = []

    def put(self, chunk: ActionChunk, now: float) -> int:
        """Merge a chunk into what is queued; steps whose window has passed are dropped. Returns how many steps it adds.

        At most as many steps as the chunk has are queued afterwards.
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
        """Return the step whose window holds `now`; None where there is none, or where it is too old."""
        place = bisect.bisect_right(self._steps, now, key=lambda step: step.start) - 1
        if place < 0:
            return None
        found = self._steps[place]
        return found if now < found.end and now - found.observed <= self.age_limit else None

    def remaining(self, now: float) -> int:
        """Return how many steps are still to be played, the present one included."""
        return sum(step.end > now and step.start - step.observed <= self.age_limit for step in self._steps)

    def drop(self) -> None:
        """Forget everything that is queued."""
        self._steps = []

    @staticmethod
    def _blend(step: ScheduledStep, old: list[ScheduledStep], share: float) -> ScheduledStep:
        midpoint = 0.5 * (step.start + step.end)
        found = next((each.action for each in old if each.start <= midpoint < each.end), None)
        if found is None:
            return step
        # Whatever is mixed was decided for this very window, so none of it is older than a chunk is long.
        action = share * found + (1.0 - share) * step.action
        return ScheduledStep(step.start, step.end, step.observed, step.sequence, action)
