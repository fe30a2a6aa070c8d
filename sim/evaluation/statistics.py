"""How sure a success rate is: Wilson's score interval, and records summed up by suite and task."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import InputError
from .records import EpisodeRecord


@dataclass(frozen=True)
class SuccessRate:
    """A success rate and the interval that holds the true one; all three are `None` when nothing was counted."""

    successes: int
    episodes: int
    rate: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.rate is None or self.low is None or self.high is None:
            return "no episodes"
        return (
            f"{100 * self.rate:.1f} % ({self.successes} of {self.episodes}, "
            f"95 % interval {100 * self.low:.1f} to {100 * self.high:.1f})"
        )


def wilson_interval(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval (low, high) of a success probability, both in [0, 1].

    It stays inside [0, 1] and keeps its coverage near 0 and 1, where the normal interval collapses to a point.
    Raises InputError unless 0 <= successes <= episodes, episodes > 0 and 0 < confidence < 1.
    """
    if episodes <= 0 or not 0 <= successes <= episodes:
        raise InputError(
            "Wilson interval",
            got=f"{successes} successes of {episodes} episodes",
            expected="at least one episode, and no more successes than episodes",
            fix="Run at least one episode.",
        )
    if not 0 < confidence < 1:
        raise InputError("confidence", got=confidence, expected="between 0 and 1", fix="The usual one is 0.95.")
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / episodes
    scale = 1 + z * z / episodes
    centre = (rate + z * z / (2 * episodes)) / scale
    half = z * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes * episodes)) / scale
    # At the ends the bound is the end itself; the sum above misses it by a rounding error.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == episodes else centre + half
    return low, high


def success_rate(records: Iterable[EpisodeRecord]) -> SuccessRate:
    """Count successes among the episodes that ran to an end; an error is neither a success nor a failure."""
    outcomes = [record.outcome for record in records if record.outcome != "error"]
    successes = outcomes.count("success")
    if not outcomes:
        return SuccessRate(0, 0, None, None, None)
    low, high = wilson_interval(successes, len(outcomes))
    return SuccessRate(successes, len(outcomes), successes / len(outcomes), low, high)


def median(values: Iterable[float]) -> float | None:
    """Return the median, or `None` of nothing."""
    values = list(values)
    return statistics.median(values) if values else None


def _summarize_group(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    finished = [record for record in records if record.outcome != "error"]
    return {
        **asdict(success_rate(records)),
        "errors": len(records) - len(finished),
        "picked_target": sum(record.picked is not None and record.picked == record.target for record in finished),
        "picked_other": sum(record.picked is not None and record.picked != record.target for record in finished),
        "picked_nothing": sum(record.picked is None for record in finished),
        "success_steps_median": median(record.steps for record in finished if record.outcome == "success"),
        "decision_milliseconds_median": median(record.decision_milliseconds for record in finished),
    }


def summarize(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Return the figures of all records, of each suite and of each task, as plain JSON values.

    Suites and tasks come in the order in which the records name them first.
    """
    suites: dict[str, list[EpisodeRecord]] = {}
    tasks: dict[tuple[str, str], list[EpisodeRecord]] = {}
    for record in records:
        suites.setdefault(record.suite, []).append(record)
        tasks.setdefault((record.suite, record.task), []).append(record)
    return {
        **_summarize_group(records),
        "suites": [{"suite": suite, **_summarize_group(members)} for suite, members in suites.items()],
        "tasks": [
            {
                "suite": suite,
                "task": task,
                "instructions": sorted({record.instruction for record in members if record.instruction}),
                **_summarize_group(members),
            }
            for (suite, task), members in tasks.items()
        ],
    }
