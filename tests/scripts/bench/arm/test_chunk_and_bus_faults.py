"""The catalogue's faults of chunks and bus on the virtual arm with the real control process, judged by its motion.

The cases are those of `saccade bench arm`; a control process serves all cases of its rig.
"""

from __future__ import annotations

import pytest

from saccade.scripts.bench.arm.faults.control_cases import CASES, FaultCase, rig_rules
from saccade.scripts.bench.arm.faults.control_faults import run_cases
from saccade.scripts.bench.arm.faults.outcome import BUS_ROW, CATALOGUE_ROWS, FaultOutcome
from saccade.scripts.bench.arm.rig import LinkRig
from saccade.sim.virtual_arm.world import VirtualArm
from saccade_testing.fault_catalogue import (
    BUS_MS,
    SOFTWARE_MS,
    TIMING,
    as_parameters,
    check,
    selected,
    undisturbed,
)

pytestmark = pytest.mark.real_time

SUSPENDED = ("control process paused", "late ticks")
"""Cases in which the control process cannot react in time, as it is suspended."""


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, FaultOutcome]:
    """The outcome of every selected case, by name."""
    cases = selected(request, "test_chunk_or_bus_fault_is_handled", CASES)
    with VirtualArm.start(rendering_enabled=False) as world:

        def make_rig(name: str) -> LinkRig:
            return LinkRig(world, tmp_path_factory.mktemp("rig"), **rig_rules(name))

        return undisturbed(lambda cases: run_cases(make_rig, cases, timing=TIMING), cases)


@pytest.mark.parametrize("case", as_parameters(CASES))
def test_chunk_or_bus_fault_is_handled(case: FaultCase, outcomes: dict[str, FaultOutcome]) -> None:
    on_bus = CATALOGUE_ROWS[case.row] == BUS_ROW
    limit = 1000.0 if case.name in SUSPENDED else SOFTWARE_MS + (BUS_MS if on_bus else 0.0)
    check(outcomes[case.name], limit)
