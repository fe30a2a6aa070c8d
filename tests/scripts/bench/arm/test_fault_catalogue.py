"""The fault catalogue: every row has a case, and only disturbed cases are repeated."""

from __future__ import annotations

from dataclasses import replace

import pytest

from saccade.scripts.bench.arm.faults.control_cases import CASES
from saccade.scripts.bench.arm.faults.outcome import CATALOGUE_ROWS, FaultOutcome
from saccade.scripts.bench.arm.faults.session_cases import SESSION_CASES
from saccade.scripts.bench.arm.faults.statistics_fault import check_foreign_statistics
from saccade_testing.fault_catalogue import was_disturbed


@pytest.mark.slow
def test_missing_or_wrong_normalization_statistics_are_refused(tmp_path) -> None:
    assert check_foreign_statistics(tmp_path).problems == ()


def test_every_catalogue_row_has_a_case() -> None:
    rows = {case.row for case in (*CASES, *SESSION_CASES)}
    # Row 12, the normalisation statistics, has its own check.
    assert rows | {12} == set(range(len(CATALOGUE_ROWS)))


@pytest.mark.parametrize(
    ("problems", "late_ms", "disturbed"),
    [
        ((), 0.0, False),
        ((), 90.0, False),
        (("no hold for overruns, but ['bus']",), 0.0, True),
        (("held for bus",), 0.0, True),
        (("no hold for overruns, but []",), 0.0, False),
        (("no hold for overruns, but ['bus']", "2 ticks still moved"), 0.0, False),
        (("2 ticks still moved",), 3.0, False),
        (("2 ticks still moved",), 90.0, True),
        (("the arm did not begin to move: []",), 0.0, True),
        (("it was not latched",), 0.0, False),
        (("it was not latched", "2 ticks still moved"), 0.0, False),
    ],
)
def test_case_is_repeated_only_if_the_machine_disturbed_it(problems, late_ms, disturbed) -> None:
    outcome = FaultOutcome("x", "row", "how", "required", "observed", None, None, None, problems, late_ms)
    assert was_disturbed(outcome) is disturbed


def test_only_a_timed_injection_is_repeated_without_any_hold() -> None:
    problems = ("no hold for overruns, but []", "it was not latched")
    outcome = FaultOutcome("late ticks", "row", "how", "required", "observed", None, None, None, problems, 0.0)
    assert was_disturbed(outcome)
    assert not was_disturbed(replace(outcome, name="server killed"))
