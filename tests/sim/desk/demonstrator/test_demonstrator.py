"""Kinematics and the demonstrator: it succeeds at its tasks, and demonstrations vary."""

import numpy as np
import pytest

from saccade.sim.desk import arm
from saccade.sim.desk.demonstrator.demonstrator import DeskDemonstrator
from saccade.sim.desk.demonstrator.kinematics import Kinematics
from saccade.sim.desk.environment import DeskEnv
from saccade.sim.desk.tasks.catalogue import SUITES


def play(suite, task, state, seed, noise=1.0):
    environment = DeskEnv(suite, task, image_size=16)
    environment.rendering_enabled = False
    try:
        environment.reset(options={"initial_state": state})
        demonstrator = DeskDemonstrator(environment, np.random.default_rng(seed), noise=noise)
        actions, done = [], False
        while not done:
            action, command = demonstrator.decide()
            actions.append(action)
            _, _, terminated, truncated, info = environment.step(command)
            done = terminated or truncated
        return np.stack(actions), info["is_success"]
    finally:
        environment.close()


@pytest.mark.parametrize("position", [(0.16, -0.1, 0.02), (0.2, 0.0, 0.08), (0.24, 0.04, 0.015)])
def test_inverse_kinematics_reaches_the_position(position):
    kinematics = Kinematics()
    joints = kinematics.solve(np.array(position), arm.HOME, pitch=0.2, iterations=60)
    np.testing.assert_allclose(kinematics.tool_position(joints), position, atol=1e-3)
    assert (arm.JOINT_RANGES[:5, 0] <= joints).all() and (joints <= arm.JOINT_RANGES[:5, 1]).all()


def test_forward_kinematics_agrees_with_the_environment():
    environment = DeskEnv("desk_object", "red_cube", image_size=16)
    environment.reset(options={"initial_state": 0})
    np.testing.assert_allclose(
        Kinematics().tool_position(environment.joints()), environment.data.site("tool").xpos, atol=1e-6
    )
    environment.close()


@pytest.mark.parametrize(
    ("suite", "task"),
    [
        ("desk_object", "red_cube"),
        ("desk_object", "green_can"),
        ("desk_spatial", "behind"),
        ("desk_spatial", "on_plate"),
        *(("desk_goal", task.name) for task in SUITES["desk_goal"]),
        ("desk_long", "button_then_knob"),
        ("desk_long", "fill_and_close"),
    ],
)
def test_it_succeeds_at_tasks(suite, task):
    assert play(suite, task, state=2, seed=0)[1]


@pytest.mark.slow
@pytest.mark.parametrize("task", SUITES["desk_long"], ids=lambda task: task.name)
def test_it_succeeds_at_long_tasks_from_several_initial_states(task):
    assert all(play("desk_long", task.name, state, seed=state)[1] for state in (2, 3))


def test_demonstrations_differ_by_seed_and_repeat_with_it():
    first, _ = play("desk_object", "red_cube", state=3, seed=1)
    again, _ = play("desk_object", "red_cube", state=3, seed=1)
    other, _ = play("desk_object", "red_cube", state=3, seed=2)
    np.testing.assert_array_equal(first, again)
    length = min(len(first), len(other))
    assert np.abs(first[:length] - other[:length]).max() > 1.0


def test_motion_without_noise_is_smooth():
    actions, success = play("desk_object", "blue_cube", state=5, seed=0, noise=0.0)
    assert success
    assert np.abs(np.diff(actions[:, :5], axis=0)).max() < 12.0
