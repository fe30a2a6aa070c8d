"""Initial states of the goal suites: as published, with fixtures and objects clear of each other, and all different."""

import hashlib
import json

import numpy as np
import pytest

from saccade.sim.desk.fixtures import Drawer
from saccade.sim.desk.tasks.arrangement import SPACING
from saccade.sim.desk.tasks.catalogue import SUITES, find_task
from saccade.sim.desk.tasks.kitchen import CENTRAL_FIXTURE_SPACING, HANDLE_SPACING, KNOB_SPACING

TASKS = SUITES["desk_goal"] + SUITES["desk_long"]


def starts(task, count):
    return [task.arrangement.sample(task.generator(state)) for state in range(count)]


def distance(first, second):
    return np.hypot(*(np.array(first[:2]) - second[:2]))


def test_initial_states_are_as_published():
    """A change here changes every published number: it must be deliberate."""
    drawn = {
        f"{task.suite}/{task.name}/{state}": {name: np.round(pose, 6).tolist() for name, pose in sample.items()}
        for task in TASKS
        for state in (0, 49)
        for sample in [task.arrangement.sample(task.generator(state))]
    }
    digest = hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()
    assert digest[:16] == "f7572dea2f148044"


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_objects_are_clear_of_each_other_and_of_fixtures(task):
    kitchen = task.arrangement
    for sample in starts(task, 5):
        object_positions = [sample[each.body] for each in kitchen.upright_objects]
        central_fixture = sample[kitchen.central_fixture.body]
        for number, object_position in enumerate(object_positions):
            assert (
                distance(object_position, central_fixture) >= CENTRAL_FIXTURE_SPACING
                and distance(object_position, sample["knob"]) >= KNOB_SPACING
            )
            assert all(distance(object_position, other) >= SPACING for other in object_positions[:number])
            if kitchen.drawer:
                x, y, _, yaw = sample["cabinet"]
                for shift in (0.0, 1.0):
                    reach = kitchen.drawer.handle_offset + shift * kitchen.drawer.travel
                    assert (
                        distance(object_position, (x + reach * np.cos(yaw), y + reach * np.sin(yaw)))
                        >= HANDLE_SPACING - 1e-9
                    )
        assert kitchen.is_valid({name: np.array(pose[:2]) for name, pose in sample.items() if len(pose) > 1})


def test_initial_states_place_fixtures_differently():
    samples = starts(find_task("desk_goal", "open_drawer"), 6)
    for body in ("cabinet", "button", "knob", "plate", "red_cube_0"):
        assert len({tuple(np.round(sample[body], 3)) for sample in samples}) == 6


def test_the_drawer_starts_open_or_closed_as_the_task_needs():
    def openings(suite, name):
        return np.array([start["drawer_slide"][0] / Drawer.travel for start in starts(find_task(suite, name), 12)])

    assert (openings("desk_goal", "open_drawer") < 0.1).all()
    assert (openings("desk_goal", "close_drawer") > 0.9).all()
    assert (openings("desk_long", "open_fill_close") < 0.1).all()
    either = openings("desk_goal", "press_button")
    assert (either > 0.9).any() and (either < 0.1).any()
    assert "drawer_slide" not in starts(find_task("desk_long", "two_in_bin"), 1)[0]


def test_the_scene_does_not_give_the_task_away():
    """Opening, pressing and turning start from the same scenes: only the instructions differ."""
    tasks = [find_task("desk_goal", name) for name in ("press_button", "turn_knob", "cube_on_plate")]
    assert len({task.arrangement for task in tasks}) == 1
