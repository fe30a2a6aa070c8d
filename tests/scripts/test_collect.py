from pathlib import Path

import pytest

from saccade.errors import InputError
from saccade.scripts.collect import CollectConfig, choose_tasks, summary_table
from saccade.sim.demonstrations.collection import CollectionSummary, TaskCount

OUT = Path("unused")


def names(**options):
    return [task.name for task in choose_tasks(CollectConfig(out=OUT, **options))]


def test_tasks_are_selected_by_suite_name_and_held_out():
    assert len(names()) == 20
    assert len(names(suites=("desk_spatial",))) == 10
    assert names(tasks=("left", "red_cube")) == ["red_cube", "left"]
    assert set(names(left_out="only")) | set(names(left_out="without")) == set(names())
    assert not set(names(left_out="only")) & set(names(left_out="without"))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"suites": ("desk_objekt",)}, "Did you mean 'desk_object'"),
        ({"tasks": ("red_cub",)}, "Did you mean 'red_cube'"),
        ({"tasks": ("left",), "suites": ("desk_object",)}, "task: got 'left'"),
        ({"suites": ("desk_spatial",), "left_out": "only"}, "at least one"),
        ({"first_initial_state": 49}, "evaluation"),
        ({"image_size": 7}, "--image-size: got 7, expected 16 to 640"),
    ],
)
def test_invalid_options_are_rejected(options, problem):
    with pytest.raises(InputError, match=problem):
        names(**options)


def test_table_counts_every_task():
    counts = (TaskCount("desk_object", "red_cube", 5, 1), TaskCount("desk_spatial", "left", 5, 0))
    table = summary_table(CollectionSummary(OUT, 10, 987, counts, 12.3))
    assert table.splitlines()[1].split() == ["desk_object/red_cube", "5", "1"]
    assert table.splitlines()[-2].split() == ["all", "10", "1"]
    assert "987 frames in unused (took 12 s)" in table
