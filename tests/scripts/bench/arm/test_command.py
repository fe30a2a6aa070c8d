"""The benchmark of the arm: metrics from its parts, tables, and the judgement of a soak."""

from __future__ import annotations

import json

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.scripts.bench.arm.command import (
    FIGURES,
    ArmBenchConfig,
    check_lerobot_support,
    collect_figures,
    fault_figures,
    fault_lines,
    run_arm_bench,
    soak_figures,
)
from saccade.scripts.bench.arm.faults.outcome import CATALOGUE_ROWS
from saccade.scripts.bench.arm.page import fault_table, sort_rows
from saccade.scripts.bench.arm.soak import Soak, resident_mib
from saccade.sim.virtual_arm.world import JointTrajectory


def fault(row: int, name: str = "one", problems: tuple = (), **times: float | None) -> dict:
    fields = {"detection_ms": 300.0, "software_ms": 20.0, "device_ms": 50.0, **times}
    return {"name": name, "row": CATALOGUE_ROWS[row], "observed": "held", "problems": list(problems), **fields}


def test_catalogue_row_passes_only_with_all_its_variants():
    rows = [fault(row) for row in range(13)]
    assert fault_figures(rows)["faults_passed"] == 13
    figures = fault_figures([*rows, fault(3, "another", ("it moved",), device_ms=140.04)])
    assert (figures["faults_passed"], figures["faults_in_catalogue"]) == (12, 13)
    assert (figures["fault_variants_passed"], figures["fault_variants"]) == (13, 14)
    assert figures["worst_hold_ms"] == 140.0
    assert "NOT PASSED: it moved" in fault_lines([fault(3, "another", ("it moved",))])[1]


def test_missing_times_and_times_of_a_suspended_process_do_not_count():
    rows = [
        fault(0),
        fault(7, software_ms=65.0),
        fault(8, software_ms=240.0),
        fault(1, software_ms=None, device_ms=None),
    ]
    figures = fault_figures(rows)
    assert (figures["worst_software_ms"], figures["worst_bus_ms"]) == (20.0, 65.0)
    assert fault_figures([])["worst_hold_ms"] is None


def test_table_has_a_line_for_every_row_and_variant():
    texts = {"injected": "a NaN", "required": "held"}
    rows = [{**fault(row), **texts} for row in (7, 0, 0)]
    lines = fault_table(sort_rows(rows, CATALOGUE_ROWS))
    assert [line for line in lines if "**" in line] == [f"| **{CATALOGUE_ROWS[row]}** | | | | | | |" for row in (0, 7)]
    assert lines.count("| one | a NaN | held | held | 300 | 20 | 50 |") == 3
    failed = fault_table([{**fault(0, "one", ("it moved",), device_ms=None), **texts}])
    assert failed[-1] == "| one | a NaN | held | **not passed**: it moved | 300 | 20 |  |"


def test_parts_are_read_from_the_folder_and_missing_metrics_are_none(tmp_path, capsys):
    part = {"figures": {"fuzz_inputs": 7, "fuzz_crashes": 0}, "lines": ["codec: 7 messages"]}
    (tmp_path / "part_fuzz.json").write_text(json.dumps(part))
    out = tmp_path / "arm.json"
    config = ArmBenchConfig(parts=("lerobot",), folder=tmp_path, out=out)
    assert run_arm_bench(config) == 0
    figures = json.loads(out.read_text())["figures"]
    assert set(FIGURES) <= set(figures)
    assert (figures["fuzz_inputs"], figures["unsafe_commands"]) == (7, None)
    assert "codec: 7 messages" in capsys.readouterr().out
    assert collect_figures(tmp_path)["fuzz_inputs"] == 7


def test_unsafe_part_gives_exit_code_3(tmp_path):
    part = {"figures": {"unsafe_commands": 1}, "lines": []}
    (tmp_path / "part_soak.json").write_text(json.dumps(part))
    assert run_arm_bench(ArmBenchConfig(parts=("lerobot",), folder=tmp_path)) == 3


def test_unsupported_lerobot_metrics_are_none_with_a_reason():
    found = check_lerobot_support(ArmBenchConfig())
    assert set(found["figures"].values()) == {None}
    assert "no policy of a plugin" in found["lines"][0]


@pytest.mark.parametrize(
    ("changes", "what"),
    [(dict(parts=("fault",)), "parts"), (dict(episodes=7), "episodes"), (dict(soak_minutes=0), "--soak-minutes")],
)
def test_invalid_config_is_refused(changes, what):
    with pytest.raises(InputError, match=what):
        ArmBenchConfig(**changes)


def test_soak_without_a_long_session_has_no_memory_growth():
    found = {"minutes": 1.0, "faults": {"drop": 3}, "holds": 4, "stops": 1, "moving_seconds": 30.0, "unsafe": []}
    figures = soak_figures({**found, "session_growth": None, "control_growth": None})["figures"]
    assert (figures["memory_growth_fraction"], figures["soak_faults"], figures["unsafe_commands"]) == (None, 3, 0)
    grown = soak_figures({**found, "session_growth": 0.002, "control_growth": -0.1})
    assert grown["figures"]["memory_growth_fraction"] == 0.002


def test_resident_memory_of_a_process():
    import os

    assert resident_mib(os.getpid()) > 1.0
    assert resident_mib(None) is None


def test_soak_finds_unsafe_motion(tmp_path):
    """A goal that jumps while the arm is held is unsafe, for any cause."""
    soak = Soak(tmp_path, 1.0)
    times = np.arange(720) / 360.0
    goals = np.zeros((720, 6))
    goals[400:, 2] = 30.0

    class World:
        def joint_trajectory(self, since: float) -> JointTrajectory:
            return JointTrajectory(times, np.zeros((720, 6)), goals, np.zeros(720))

    class Tail:
        def read(self) -> list[dict]:
            line = {"call": "tick", "state": "stopped", "target": [0.0] * 6, "measured": [0.0] * 6}
            return [{**line, "now": now} for now in np.arange(0.0, 2.0, 0.02)]

    class Limits:
        names = tuple("abcdef")
        low, high, speed = (-100.0,) * 6, (100.0,) * 6, (270.0,) * 6

    class Session:
        limits = Limits

    soak._started = soak._judged_until = 0.0
    soak._tail, soak._lines = Tail(), []
    soak._judge(World(), Session())
    assert any("a step of 30.0" in each for each in soak.metrics.unsafe)
    assert any("while the arm was held" in each for each in soak.metrics.unsafe)
