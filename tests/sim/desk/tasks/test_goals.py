"""Goals and success in the goal suites, in states that are set by hand."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from saccade.sim.desk import arm
from saccade.sim.desk.environment import DeskEnv
from saccade.sim.desk.fixtures import Button, Drawer, Knob
from saccade.sim.desk.tasks.catalogue import SUITES

TASKS = SUITES["desk_goal"] + SUITES["desk_long"]


@pytest.fixture
def desk():
    environments = []

    def make(suite, task, state=0):
        environment = DeskEnv(suite, task, image_size=32)
        environment.rendering_enabled = False
        environments.append(environment)
        environment.reset(options={"initial_state": state})
        return environment

    yield make
    for environment in environments:
        environment.close()


def rest(environment, steps=12):
    """Hold the arm still; return the last info."""
    still = arm.to_units(environment.joints()).astype(np.float32)
    for _ in range(steps):
        *_, info = environment.step(still)
    return info


def put(environment, body, at):
    environment.data.joint(body).qpos[:7] = (*at, 1, 0, 0, 0)
    environment.data.joint(body).qvel[:] = 0


def slide(environment, fixture, position):
    environment.data.joint(fixture.joint_name).qpos[0] = position
    environment.data.joint(fixture.joint_name).qvel[0] = 0


def press(environment):
    environment.data.joint(Button().joint_name).qfrc_applied[0] = 2.0
    rest(environment, 4)
    environment.data.joint(Button().joint_name).qfrc_applied[0] = 0.0


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_nothing_is_achieved_by_doing_nothing(desk, task):
    environment = desk(task.suite, task.name, state=3)
    info = rest(environment, 15)
    assert not info["is_success"] and info["picked"] is None
    assert info["target"] == task.goals[0].target


@pytest.mark.parametrize(("suite", "task"), [("desk_goal", "pour_ball"), ("desk_long", "open_fill_close")])
def test_it_passes_gymnasiums_check(suite, task):
    environment = DeskEnv(suite, task, image_size=32)
    check_env(environment, skip_render_check=True)
    environment.close()


def test_a_drawer_is_open_or_closed(desk):
    environment = desk("desk_goal", "open_drawer")
    slide(environment, Drawer(), 0.03)
    info = rest(environment)
    assert not info["is_success"] and info["picked"] == "drawer"
    slide(environment, Drawer(), 0.058)
    assert rest(environment, 1)["is_success"]
    environment = desk("desk_goal", "close_drawer")
    slide(environment, Drawer(), 0.01)
    assert not rest(environment)["is_success"]
    slide(environment, Drawer(), 0.001)
    assert rest(environment, 1)["is_success"]


def test_a_knob_has_to_be_turned_all_the_way(desk):
    environment = desk("desk_goal", "turn_knob")
    slide(environment, Knob(), 1.0)
    info = rest(environment)
    assert not info["is_success"] and info["picked"] == "knob_lever"
    slide(environment, Knob(), 1.4)
    assert rest(environment, 1)["is_success"]


def test_a_button_is_lit_once_it_was_pressed(desk):
    environment = desk("desk_goal", "press_button")
    before = environment.model.geom("button_cap").rgba.copy()
    press(environment)
    info = rest(environment)
    assert environment.joint_position("button_slide") < 0.002, "it has come up again"
    assert info["is_success"] and info["picked"] == "button_cap"
    after = environment.model.geom("button_cap").rgba.copy()
    assert after[1] > 0.8 > before[1]
    environment.reset(options={"initial_state": 1})
    np.testing.assert_array_equal(environment.model.geom("button_cap").rgba, before)
    assert not rest(environment, 2)["is_success"]


def test_only_what_was_asked_for_may_lie_on_the_plate(desk):
    environment = desk("desk_goal", "cube_on_plate")
    x, y, _ = environment.position("plate")
    put(environment, "blue_cube_0", (x, y, 0.021))
    assert not rest(environment)["is_success"]
    put(environment, "blue_cube_0", (0.2, -0.3, 0.015))
    put(environment, "red_cube_0", (x, y, 0.021))
    assert rest(environment)["is_success"]
    put(environment, "red_cube_0", (x, y, 0.2))
    assert not rest(environment, 1)["is_success"], "above it is not on it"


def test_a_stack_is_one_cube_on_the_other_and_not_beside(desk):
    environment = desk("desk_goal", "stack_cubes")
    x, y, z = environment.position("blue_cube_0")
    put(environment, "red_cube_0", (x, y + 0.03, z))
    assert not rest(environment)["is_success"]
    put(environment, "red_cube_0", (x, y, z + 0.0285))
    assert rest(environment)["is_success"]


def test_the_ball_has_to_leave_the_cup(desk):
    environment = desk("desk_goal", "pour_ball")
    x, y, _ = environment.position("basin")
    put(environment, "orange_ball_0", (x, y, 0.02))
    put(environment, "white_cup_0", (x, y + 0.2, 0.019))
    assert rest(environment)["is_success"]


def test_the_ball_stays_on_the_cup_until_it_is_tipped(desk):
    environment = desk("desk_goal", "pour_ball")
    rest(environment, 30)
    offset = environment.position("orange_ball_0") - environment.position("white_cup_0")
    assert np.hypot(*offset[:2]) < 0.012 and offset[2] > 0.02


def test_goals_in_order_have_to_be_achieved_in_order(desk):
    environment = desk("desk_long", "bowl_then_button")
    x, y, _ = environment.position("basin")
    put(environment, "red_cube_0", (x, y, 0.025))
    assert not rest(environment)["is_success"]
    press(environment)
    assert rest(environment, 1)["is_success"]
    environment = desk("desk_long", "bowl_then_button")
    press(environment)
    put(environment, "red_cube_0", (x, y, 0.025))
    assert not rest(environment)["is_success"]


def test_all_goals_of_a_chain_have_to_hold_in_the_end(desk):
    environment = desk("desk_long", "fill_and_close")
    placement_point = Drawer().placement_point(environment)
    put(environment, "red_cube_0", (*placement_point[:2], 0.02))
    assert not rest(environment)["is_success"]
    slide(environment, Drawer(), 0.0)
    environment.data.joint("red_cube_0").qpos[:2] -= 0.057 * Drawer().pull_direction(environment)
    assert rest(environment, 3)["is_success"]
    assert np.linalg.norm(Drawer().placement_point(environment) - placement_point) > 0.05
    put(environment, "red_cube_0", (0.2, -0.3, 0.015))
    assert not rest(environment, 1)["is_success"]


def test_grounding_labels_follow_the_current_goal(desk):
    environment = desk("desk_long", "open_and_fill")
    target, goal = environment.grounding()[:6].reshape(2, 3)
    np.testing.assert_allclose(target, Drawer().handle_position(environment), atol=1e-6)
    assert np.linalg.norm(goal - target) == pytest.approx(Drawer.travel, abs=0.004)
    slide(environment, Drawer(), 0.058)
    rest(environment, 1)
    target, goal = environment.grounding()[:6].reshape(2, 3)
    np.testing.assert_allclose(target, environment.position("red_cube_0"), atol=1e-6)
    np.testing.assert_allclose(goal, Drawer().placement_point(environment), atol=1e-6)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_grounding_points_are_in_the_front_cameras_image(desk, task):
    for state in range(2):
        points = desk(task.suite, task.name, state=state).grounding()[6:10]
        assert ((points > 0.01) & (points < 0.99)).all()


def test_other_instructions_depend_on_the_scene(desk):
    environment = desk("desk_goal", "open_drawer")
    others = environment.other_instructions()
    assert others["press the button"] == "button_cap" and others["put the red cube on the plate"] == "red_cube_0"
    assert "close the drawer" not in others, "it is shut"
    assert "push the disc onto the mat" not in others, "there is none"
    assert not any(body == "drawer" for body in others.values())
