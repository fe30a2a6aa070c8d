"""Success rates with Wilson's score interval, and metrics by suite and task."""

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
    """A success rate with its 95 % confidence interval.

    Attributes:
        successes: Successful episodes.
        episodes: All episodes that ran without an error.
        rate: successes / episodes; None without episodes.
        low: Lower end of the interval; None without episodes.
        high: Upper end of the interval; None without episodes.
    """

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
    """Return Wilson's score interval (low, high) of a success probability.

    It stays inside [0, 1] and keeps its coverage near 0 and 1, where the normal interval collapses to a point
    (Wilson, Journal of the American Statistical Association 22, 1927).

    Args:
        successes: Successful episodes.
        episodes: All episodes, 1 or more.
        confidence: Coverage of the interval, between 0 and 1.

    Raises:
        InputError: A value is out of range.
    """
    if episodes <= 0 or not 0 <= successes <= episodes:
        raise InputError(
            "Wilson interval",
            got=f"{successes} successes of {episodes} episodes",
            expected="at least one episode, and no more successes than episodes",
            fix="Run at least one episode.",
        )
    if not 0 < confidence < 1:
        raise InputError("confidence", got=confidence, expected="between 0 and 1", fix="Use 0.95.")
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / episodes
    scale = 1 + z * z / episodes
    centre = (rate + z * z / (2 * episodes)) / scale
    half = z * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes * episodes)) / scale
    # At 0 and 1 the bound is exact; the formula has a rounding error there.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == episodes else centre + half
    return low, high


def success_rate(records: Iterable[EpisodeRecord]) -> SuccessRate:
    """Return the success rate of the episodes that ran without an error."""
    outcomes = [record.outcome for record in records if record.outcome != "error"]
    successes = outcomes.count("success")
    if not outcomes:
        return SuccessRate(0, 0, None, None, None)
    low, high = wilson_interval(successes, len(outcomes))
    return SuccessRate(successes, len(outcomes), successes / len(outcomes), low, high)


def median(values: Iterable[float]) -> float | None:
    """Return the median, or None without values."""
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
    """Compute the metrics of all records, of each suite and of each task.

    Returns:
        Plain JSON values; suites and tasks are in the order of the records.
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
