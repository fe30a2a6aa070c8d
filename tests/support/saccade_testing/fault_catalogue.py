"""Run the fault catalogue in tests: choose the selected cases, run them, and check their outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import pytest

from saccade.scripts.bench.arm.faults.outcome import CaseTiming, FaultOutcome

TIMING = CaseTiming(lead_in_seconds=0.4, watch_seconds=0.3, session_watch_factor=0.5)
"""Shorter than the benchmark's, and still twice what an arm may take to come to rest."""

SOFTWARE_MS, DEVICE_MS, BUS_MS = 20.0, 100.0, 50.0
LATE_MS = 20.0
"""A virtual arm further behind the clock does not represent a real arm, which has its own clock."""

NOISE_MS, DEVICE_NOISE_MS = 150.0, 60.0
"""Allowances for times on a busy machine; the check that nothing moved meanwhile has none."""


class Case(Protocol):
    """A case of the control process or of a session."""

    @property
    def name(self) -> str: ...

    @property
    def slow(self) -> bool: ...


def as_parameters(cases: Iterable[Case]) -> list[Any]:
    """Return the cases as parameters of a test, the slow ones marked."""
    return [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else []) for case in cases]


def selected[C: Case](request: pytest.FixtureRequest, function: str, cases: Iterable[C]) -> list[C]:
    """Return the cases whose tests take part in this run."""
    items = [item for item in request.session.items if item.name.startswith(f"{function}[")]
    names = {item.name[len(function) + 1 : -1] for item in items}
    return [case for case in cases if case.name in names]


def undisturbed[C: Case](
    run: Callable[[tuple[C, ...]], list[FaultOutcome]], cases: Sequence[C]
) -> dict[str, FaultOutcome]:
    """Run cases, and repeat those that a busy machine disturbed, at most three times."""
    found = {outcome.name: outcome for outcome in run(tuple(cases))}
    for _ in range(3):
        again = tuple(case for case in cases if was_disturbed(found[case.name]))
        if again:
            found |= {outcome.name: outcome for outcome in run(again)}
    return found


STARVED = ("no hold for", "held for", "the arm did not begin to move")
"""How the problems begin that a starved process causes, too: nothing unsafe happened, but not what was asked for."""

TIMED_INJECTIONS = ("late ticks",)
"""Cases whose injection has to keep time itself: a busy machine may make too few ticks late."""


def was_disturbed(outcome: FaultOutcome) -> bool:
    """Return whether the machine spoiled a case: the virtual arm fell behind, or the arm was safe for another reason.

    An unsafe motion of an arm that kept its clock is never repeated, nor a missing hold or latch, except where the
    injection itself has to keep time.
    """
    if outcome.problems and outcome.late_ms > LATE_MS:
        return True
    if outcome.name in TIMED_INJECTIONS:
        starved = (*STARVED, "it was not latched")
    elif any("but []" in problem for problem in outcome.problems):
        return False
    else:
        starved = STARVED
    return bool(outcome.problems) and all(problem.startswith(starved) for problem in outcome.problems)


def check(outcome: FaultOutcome, software_ms: float) -> None:
    """Assert that a fault was handled safely and in time."""
    assert outcome.problems == (), outcome
    if outcome.software_ms is not None:
        assert outcome.software_ms <= software_ms + NOISE_MS
    if outcome.device_ms is not None:
        assert outcome.device_ms <= DEVICE_MS + DEVICE_NOISE_MS
