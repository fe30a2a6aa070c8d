"""Paired comparisons: published examples and symmetry."""

from __future__ import annotations

from dataclasses import replace

import pytest

from saccade.sim.evaluation.comparison import compare, mcnemar_p_value, newcombe_interval
from saccade.sim.evaluation.records import error_record
from saccade.sim.perturbation.job import Job


def records_of(outcomes: str):
    """Return a record for each letter: s success, f failure, e error."""
    names = {"s": "success", "f": "failure", "e": "error"}
    return [
        replace(error_record(Job("suite", "task", state, state), "", 1), outcome=names[letter])
        for state, letter in enumerate(outcomes)
    ]


def test_only_shared_episodes_without_errors_count():
    found = compare(records_of("ssffesf"), records_of("sfsfs"))
    assert (found.both, found.only_first, found.only_second, found.neither) == (1, 1, 1, 1)
    assert found.episodes == 4 and found.difference == 0 and found.p_value == 1 and not found.is_significant


def test_comparison_without_shared_episodes_is_empty():
    found = compare(records_of("e"), records_of("s"))
    assert found.episodes == 0 and found.difference is None and found.p_value == 1 and not found.is_significant


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"), [(0, 0, 1.0), (0, 5, 2 / 32), (0, 6, 2 / 64), (1, 9, 22 / 1024)]
)
def test_mcnemar_p_value_is_the_exact_binomial(only_first, only_second, p_value):
    assert mcnemar_p_value(only_first, only_second) == pytest.approx(p_value)
    assert mcnemar_p_value(only_second, only_first) == pytest.approx(p_value)


def test_mcnemar_p_value_is_stable_for_many_episodes():
    assert mcnemar_p_value(5000, 5000) == pytest.approx(1.0)
    assert 0 <= mcnemar_p_value(4000, 6000) < 1e-80


@pytest.mark.parametrize(
    ("counts", "interval"),
    [
        # Newcombe 1998, table II, examples of method 10 (difference of the first minus the second there).
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((20, 12, 2, 16), (0.0562, 0.3292)),
        ((0, 12, 2, 36), (0.0569, 0.3404)),
    ],
)
def test_newcombe_interval_matches_published_values(counts, interval):
    both, only_first, only_second, neither = counts
    low, high = newcombe_interval(both, only_second, only_first, neither)
    assert (low, high) == pytest.approx(interval, abs=6e-4)


def test_newcombe_interval_mirrors_when_runs_are_exchanged():
    low, high = newcombe_interval(30, 9, 3, 8)
    assert newcombe_interval(30, 3, 9, 8) == pytest.approx((-high, -low))


def test_newcombe_interval_stays_in_range_at_the_extremes():
    assert newcombe_interval(0, 0, 7, 0)[1] == 1.0
    assert newcombe_interval(0, 7, 0, 0)[0] == -1.0
    low, high = newcombe_interval(7, 0, 0, 0)
    assert low < 0 < high
