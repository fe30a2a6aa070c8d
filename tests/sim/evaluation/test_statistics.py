"""Wilson's interval against published values and its definition, and summaries of records."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import InputError
from saccade.sim.evaluation.records import EpisodeRecord
from saccade.sim.evaluation.statistics import success_rate, summarize, wilson_interval


def record_of(
    task: str, state: int, outcome: str, picked: str | None = "cube", instruction: str = "go"
) -> EpisodeRecord:
    return EpisodeRecord(
        suite="fake",
        task=task,
        initial_state=state,
        seed=state,
        instruction=instruction,
        target="cube",
        picked=picked,
        outcome=outcome,
        steps=10 + state,
        seconds=1.0,
        decisions=2,
        decision_milliseconds=5.0,
        slowest_decision_milliseconds=9.0,
        trajectory="0" * 16,
    )


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3; then the ends.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_matches_published_values(successes, episodes, low, high):
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 3000).flatmap(lambda episodes: st.tuples(st.integers(0, episodes), st.just(episodes))))
def test_wilson_bounds_invert_the_score_test(counts):
    successes, episodes = counts
    low, high = wilson_interval(successes, episodes)
    rate = successes / episodes
    assert 0 <= low <= rate <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            score = abs(rate - bound) / math.sqrt(bound * (1 - bound) / episodes)
            assert score == pytest.approx(1.959963985, rel=1e-6)


def test_wilson_interval_is_symmetric_and_widens_with_confidence():
    low, high = wilson_interval(7, 10)
    assert wilson_interval(3, 10) == pytest.approx((1 - high, 1 - low))
    assert wilson_interval(7, 10, confidence=0.99)[0] < low


@pytest.mark.parametrize(
    ("successes", "episodes", "confidence"), [(0, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)]
)
def test_invalid_counts_are_refused(successes, episodes, confidence):
    with pytest.raises(InputError):
        wilson_interval(successes, episodes, confidence)


def test_errors_count_neither_as_successes_nor_failures():
    records = [record_of("a", 0, "success"), record_of("a", 1, "failure"), record_of("a", 2, "error")]
    rate = success_rate(records)
    assert (rate.successes, rate.episodes, rate.rate) == (1, 2, 0.5)
    assert str(rate).startswith("50.0 % (1 of 2")
    assert success_rate(records[2:]).rate is None
    assert str(success_rate([])) == "no episodes"


def test_summary_counts_each_task():
    records = [
        record_of("a", 0, "success", instruction="x"),
        record_of("a", 1, "failure", "ball", instruction="y"),
        record_of("b", 0, "failure", None),
        replace(record_of("b", 1, "error"), picked=None),
    ]
    summary = summarize(records)
    assert (summary["successes"], summary["episodes"], summary["errors"]) == (1, 3, 1)
    assert (summary["picked_target"], summary["picked_other"], summary["picked_nothing"]) == (1, 1, 1)
    assert [task["task"] for task in summary["tasks"]] == ["a", "b"]
    assert summary["tasks"][0]["instructions"] == ["x", "y"]
    assert summary["tasks"][1]["success_steps_median"] is None
    assert summary["suites"][0]["rate"] == pytest.approx(1 / 3)
