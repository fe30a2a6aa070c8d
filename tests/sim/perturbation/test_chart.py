"""The radar chart of robustness, and the robustness section of the report."""

from dataclasses import replace

import pytest

from saccade.sim.evaluation.records import error_record
from saccade.sim.evaluation.robustness import robustness_summary
from saccade.sim.evaluation.run_folder import Evaluation
from saccade.sim.perturbation.axes import Perturbation
from saccade.sim.perturbation.job import Job
from saccade.sim.report import report
from saccade.sim.report.robustness_chart import radar


def records(axes, levels=(1, 5)):
    """Return four episodes of each axis and level and four unperturbed; three fail at level 5, and no others."""
    found = []
    for axis, level in [(None, 0), *((axis, level) for axis in axes for level in levels)]:
        for state in range(4):
            change = Perturbation(axis, level) if axis else None
            blank = error_record(Job("fake", "reach", state, state, perturbation=change), "", 1)
            outcome = "success" if level < 5 or state == 0 else "failure"
            found.append(replace(blank, outcome=outcome, error=None, instruction="reach it", steps=9))
    return found


def evaluation(folder, rows):
    checkpoint = {"name": "one", "digest": "d1"}
    run = {"label": "one", "checkpoint": checkpoint, "protocol": {"seed": 0}, "tasks": [["fake", "reach"]]}
    return Evaluation(folder, run | {"planned": len(rows)}, {}, tuple(rows))


def run(axes, label="one", tone="run0"):
    return {"label": label, "tone": tone, "robustness": robustness_summary(records(axes))}


def test_corner_distance_is_the_success_rate():
    chart = radar([run(("camera", "lighting", "layout", "language"))])
    assert [spoke["name"] for spoke in chart["spokes"]] == ["camera", "lighting", "layout", "language"]
    assert [spoke["end"] for spoke in chart["spokes"]] == [(0.0, -100.0), (100.0, 0.0), (0.0, 100.0), (-100.0, -0.0)]
    assert [shape["label"] for shape in chart["shapes"]] == ["level 1", "level 5"]
    assert chart["shapes"][0]["points"] == chart["rings"][-1] and chart["shapes"][1]["points"] == chart["rings"][0]


def test_several_runs_have_one_outline_each():
    chart = radar([run(("camera", "lighting", "layout")), run(("camera", "lighting", "layout"), "two", "run1")])
    assert [(shape["label"], shape["tone"]) for shape in chart["shapes"]] == [("one", "run0"), ("two", "run1")]
    assert chart["shapes"][0]["points"].split()[0] == "0.0,-62.5"
    assert radar([run(("camera", "lighting"))]) is None and radar([]) is None


@pytest.mark.parametrize("axes", [("camera", "lighting", "start_pose"), ("camera",)])
def test_report_shows_perturbed_and_unperturbed_metrics(tmp_path, axes):
    rows = records(axes)
    swapped = error_record(Job("fake", "reach", 0, 0, swap="object"), "", 1)
    rows.append(replace(swapped, outcome="failure", error=None, target="cube", picked="cube", drawn={"things": 4}))
    text = report.write_report([evaluation(tmp_path, rows)], tmp_path / "report.html").read_text()
    assert "4 of 4 episodes" in text and "still to run" not in text
    assert text.count("<h2>Robustness</h2>") == 1 and "mean of axes" in text and "mean of episodes" in text
    assert ("start pose" in text) == ("start_pose" in axes) == ('aria-label="success for each axis' in text)
    assert "62.5" in text and "Memorisation<" in text and "another object requested" in text


def test_report_of_unperturbed_episodes_has_no_robustness_section(tmp_path):
    text = report.write_report([evaluation(tmp_path, records(()))], tmp_path / "report.html").read_text()
    assert "Robustness" not in text and "Memorisation" not in text
