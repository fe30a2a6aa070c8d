"""The tables of perturbed and swapped episodes, computed from hand-made records."""

from dataclasses import replace

import pytest

from saccade.sim.evaluation.records import error_record
from saccade.sim.evaluation.robustness import (
    acted_from_memorisation,
    followed_instruction,
    headline_records,
    memorisation_rows,
    robustness_summary,
    robustness_table,
    swap_table,
    unchanged_records,
)
from saccade.sim.perturbation.axes import Perturbation
from saccade.sim.perturbation.job import Job


def record(state, outcome, perturbation=None, swap=None, *, picked=None, other=None, error=None, steps=50):
    axis = Perturbation(*perturbation) if perturbation else None
    blank = error_record(Job("desk_object", "red_cube", state, state, perturbation=axis, swap=swap), "", 1)
    return replace(blank, outcome=outcome, target="cube", picked=picked, other=other, error=error, steps=steps)


def test_summary_has_mean_of_axes_and_mean_of_episodes():
    records = [record(state, "success") for state in range(4)]
    records += [record(state, "success", ("camera", 1)) for state in range(4)]
    records += [record(state, "failure", ("camera", 3)) for state in range(4)]
    records += [record(0, "failure", ("language", 3), error="too long", steps=0), record(1, "failure", ("language", 3))]
    records += [record(2, "error", ("language", 3))]
    figures = robustness_summary(records)
    assert [(cell["axis"], cell["level"], cell["rate"]) for cell in figures["cells"]] == [
        ("camera", 1, 1.0),
        ("camera", 3, 0.0),
        ("language", 3, 0.0),
    ]
    assert [(axis["axis"], axis["successes"], axis["episodes"]) for axis in figures["axes"]] == [
        ("camera", 4, 8),
        ("language", 0, 2),
    ]
    assert figures["mean_of_axes"] == pytest.approx((0.5 + 0.0) / 2)
    assert figures["mean_of_episodes"]["rate"] == pytest.approx(4 / 10)
    assert (figures["mean_of_episodes"]["errors"], figures["mean_of_episodes"]["refused"]) == (1, 1)
    assert figures["axes"][0]["low"] == pytest.approx(0.2152, abs=1e-4)
    assert (figures["unperturbed"]["successes"], len(headline_records(records)), len(unchanged_records(records))) == (
        4,
        4,
        4,
    )
    lines = robustness_table(figures)
    assert lines[0].split()[:5] == ["axis", "level", "1", "level", "3"]
    assert lines[1].split()[:7] == ["camera", "100.0", "%", "0.0", "%", "50.0", "%"]
    assert any("mean of axes" in line and "25.0 %" in line for line in lines)
    assert any("mean of episodes" in line and "40.0 %" in line for line in lines)
    assert "1 episodes failed because the policy refused their instruction." in lines


def test_records_without_perturbations_give_no_robustness_summary():
    records = [record(0, "success")]
    assert robustness_summary(records) is None and memorisation_rows(records) == []
    assert robustness_summary([record(0, "error", ("camera", 1))])["mean_of_axes"] is None
    assert headline_records([record(0, "success", swap="object")]) == [record(0, "success", swap="object")]


@pytest.mark.parametrize(
    ("episode", "as_asked", "from_memory"),
    [
        (record(0, "success", swap="object", picked="can", other="can"), True, False),
        (record(0, "failure", swap="object", picked="cube", other="can"), False, True),
        (record(0, "failure", swap="object", picked="puck", other="can"), False, False),
        (record(0, "success", swap="position", picked="cube", other="can"), True, False),
        (record(0, "failure", swap="position", picked="can", other="can"), False, True),
        (record(0, "failure", swap="position"), False, False),
        (record(0, "failure", swap="instruction", picked="cube"), None, True),
        (record(0, "success", swap="instruction"), None, True),
        (record(0, "failure", swap="instruction", picked="can"), None, False),
    ],
)
def test_each_swap_has_its_own_measure(episode, as_asked, from_memory):
    assert (followed_instruction(episode), acted_from_memorisation(episode)) == (as_asked, from_memory)
    (row,) = memorisation_rows([episode, record(1, "error", swap=episode.swap)])
    assert row["by_heart"]["rate"] == float(from_memory) and row["by_heart"]["episodes"] == 1
    assert (row["followed"] is None) == (as_asked is None)
    assert row["swap"] in swap_table([row])[1] and row["by_chance"] is None
    counted = [replace(episode, drawn={"things": count}) for count in (2, 4)]
    assert memorisation_rows(counted)[0]["by_chance"] == 0.375
