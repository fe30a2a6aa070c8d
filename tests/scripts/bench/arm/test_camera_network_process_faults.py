"""The catalogue's faults of cameras, network and processes, in sessions on the virtual arm.

The cases are those of `saccade bench arm`; one session serves all cases that it survives.
"""

from __future__ import annotations

import pytest

from saccade.scripts.bench.arm.faults.outcome import FaultOutcome
from saccade.scripts.bench.arm.faults.session_cases import SESSION_CASES, SessionCase
from saccade.scripts.bench.arm.faults.session_faults import run_session_cases
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


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, FaultOutcome]:
    """The outcome of every selected case, by name."""
    cases = selected(request, "test_camera_network_or_process_fault_is_handled", SESSION_CASES)
    folder = tmp_path_factory.mktemp("sessions")
    with VirtualArm.start(image_size=32) as world:
        return undisturbed(
            lambda cases: run_session_cases(world, folder, cases, timing=TIMING, start_method="forkserver"), cases
        )


@pytest.mark.parametrize("case", as_parameters(SESSION_CASES))
def test_camera_network_or_process_fault_is_handled(case: SessionCase, outcomes: dict[str, FaultOutcome]) -> None:
    check(outcomes[case.name], SOFTWARE_MS + BUS_MS)
