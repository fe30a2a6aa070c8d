"""Compare two policies on the same episodes: success rates, confidence interval and significance."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .records import EpisodeRecord
from .statistics import wilson_interval

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """Outcomes of the episodes that two runs share; episodes with an error in either run are left out.

    Attributes:
        both: Episodes in which both runs succeeded.
        only_first: Episodes in which only the first run succeeded.
        only_second: Episodes in which only the second run succeeded.
        neither: Episodes in which neither run succeeded.
        difference: The second success rate minus the first; None without shared episodes.
        low: Lower end of the difference's 95 % interval.
        high: Upper end of the difference's 95 % interval.
        p_value: Probability of at least this difference between equal policies (McNemar's exact test).
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    difference: float | None
    low: float | None
    high: float | None
    p_value: float

    @property
    def episodes(self) -> int:
        """Number of shared episodes."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant at the 5 % level."""
        return self.p_value < 1 - CONFIDENCE

    def __str__(self) -> str:
        if self.difference is None or self.low is None or self.high is None:
            return "no shared episodes"
        return (
            f"{100 * self.difference:+.1f} points (95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f}), "
            f"{self.only_second} won and {self.only_first} lost of {self.episodes} shared episodes, "
            f"p = {self.p_value:.2g}"
        )


def compare(first: Iterable[EpisodeRecord], second: Iterable[EpisodeRecord]) -> Comparison:
    """Compare two runs on the episodes with the same task, initial state and seed that both ran without an error."""
    finished = {record.key: record.outcome == "success" for record in first if record.outcome != "error"}
    pairs = [
        (finished[record.key], record.outcome == "success")
        for record in second
        if record.outcome != "error" and record.key in finished
    ]
    both, only_first = pairs.count((True, True)), pairs.count((True, False))
    only_second, neither = pairs.count((False, True)), pairs.count((False, False))
    if not pairs:
        return Comparison(0, 0, 0, 0, None, None, None, 1.0)
    low, high = newcombe_interval(both, only_first, only_second, neither)
    return Comparison(
        both,
        only_first,
        only_second,
        neither,
        (only_second - only_first) / len(pairs),
        low,
        high,
        mcnemar_p_value(only_first, only_second),
    )


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (a binomial test on the discordant episodes).

    Args:
        only_first: Episodes in which only the first run succeeded.
        only_second: Episodes in which only the second run succeeded.
    """
    discordant = only_first + only_second
    fewer = min(only_first, only_second)
    tail = sum(math.comb(discordant, count) for count in range(fewer + 1))
    # Divide integers: 2**discordant overflows a float at 1024 episodes.
    return min(1.0, float(2 * tail / 2**discordant))


def newcombe_interval(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of the second success rate minus the first, over paired episodes.

    Newcombe's hybrid score interval with the correlation of the pairs (Statistics in Medicine 17, 1998, method 10).

    Args:
        both: Episodes in which both runs succeeded.
        only_first: Episodes in which only the first run succeeded.
        only_second: Episodes in which only the second run succeeded.
        neither: Episodes in which neither run succeeded.
    """
    episodes = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    before, after = first / episodes, second / episodes
    low_before, high_before = wilson_interval(first, episodes, CONFIDENCE)
    low_after, high_after = wilson_interval(second, episodes, CONFIDENCE)
    margins = first * (episodes - first) * second * (episodes - second)
    agreement = both * neither - only_first * only_second
    if agreement > 0:
        agreement = max(agreement - episodes / 2, 0)
    correlation = agreement / math.sqrt(margins) if margins else 0.0

    def bound_distance(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * correlation * one * other + other**2, 0.0))

    difference = after - before
    low = difference - bound_distance(after - low_after, high_before - before)
    high = difference + bound_distance(high_after - after, before - low_before)
    return max(low, -1.0), min(high, 1.0)
