"""The catalogue's faults of chunks and bus on the virtual arm, under the real stack, judged by what the arm did.

The cases are those of `saccade bench arm`; a control process serves all cases of its rig.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from saccade.scripts.bench.arm.faults.control_cases import CASES, FaultCase, rig_rules
from saccade.scripts.bench.arm.faults.control_faults import run_cases
from saccade.scripts.bench.arm.faults.outcome import CATALOGUE_ROWS, FaultOutcome
from saccade.scripts.bench.arm.faults.session_cases import SESSION_CASES
from saccade.scripts.bench.arm.faults.statistics_fault import check_foreign_statistics
from saccade.scripts.bench.arm.rig import LinkRig
from saccade.sim.virtual_arm.world import VirtualArm
from saccade_testing.fault_catalogue import (
    BUS_MS,
    SOFTWARE_MS,
    TIMING,
    as_parameters,
    check,
    run_in_lanes,
    selected,
    undisturbed,
    was_disturbed,
)

SUSPENDED = ("control process stands still", "late ticks")
"""Cases in which the control process cannot react in time, as it is suspended."""


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, FaultOutcome]:
    """The outcome of every selected case, by name."""
    cases = selected(request, "test_a_fault_of_chunks_or_bus_is_handled", CASES)
    folders = [tmp_path_factory.mktemp("rigs") for _ in range(2)]

    def run_lane(lane: int, cases: Sequence[FaultCase]) -> dict[str, FaultOutcome]:
        rigs = 0
        with VirtualArm.start(rendering_enabled=False) as world:

            def make_rig(name: str) -> LinkRig:
                nonlocal rigs
                rigs += 1
                return LinkRig(world, folders[lane] / str(rigs), **rig_rules(name))

            return undisturbed(lambda cases: run_cases(make_rig, cases, timing=TIMING), cases)

    return run_in_lanes([cases[::2], cases[1::2]], run_lane)


@pytest.mark.parametrize("case", as_parameters(CASES))
def test_a_fault_of_chunks_or_bus_is_handled(case: FaultCase, outcomes: dict[str, FaultOutcome]) -> None:
    on_bus = CATALOGUE_ROWS[case.row] == "serial bus"
    limit = 1000.0 if case.name in SUSPENDED else SOFTWARE_MS + (BUS_MS if on_bus else 0.0)
    check(outcomes[case.name], limit)


@pytest.mark.slow
def test_a_policy_without_its_statistics_is_refused(tmp_path) -> None:
    assert check_foreign_statistics(tmp_path).problems == ()


def test_every_row_of_the_catalogue_has_a_case() -> None:
    rows = {case.row for case in (*CASES, *SESSION_CASES)}
    # Row 12, the statistics, has its own check.
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
    ],
)
def test_a_case_runs_again_only_if_the_machine_disturbed_it(problems, late_ms, disturbed) -> None:
    outcome = FaultOutcome("x", "row", "how", "required", "observed", None, None, None, problems, late_ms)
    assert was_disturbed(outcome) is disturbed
