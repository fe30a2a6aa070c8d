"""The memory suite: only the halo tells which object is the target, and the front camera sees it."""

import dataclasses

import numpy as np
import pytest

from saccade.sim.desk.demonstrator.demonstrator import DeskDemonstrator
from saccade.sim.desk.environment import DeskEnv
from saccade.sim.desk.tasks.arrangement import ScatteredArrangement
from saccade.sim.desk.tasks.catalogue import SUITES
from saccade.sim.desk.tasks.cue import HALO

TASKS = SUITES["desk_memory"]
CHUNK = 16
TARGET_IN_FRONT, GOAL_IN_FRONT, TARGET_IN_WRIST = slice(6, 8), slice(8, 10), slice(10, 12)


class Swapped(ScatteredArrangement):
    """The same positions with the first two objects exchanged: only the lit object differs."""

    def sample(self, rng):
        first, second = (each.body for each in self.objects[:2])
        poses = super().sample(rng)
        return poses | {first: poses[second], second: poses[first]}


def record(task, state, swapped=False, image_size=64):
    """Run the demonstrator; return images, states, actions, grounding labels and the last info."""
    environment = DeskEnv(task.suite, task.name, image_size=image_size)
    if swapped:
        fields = {
            field.name: getattr(task.arrangement, field.name) for field in dataclasses.fields(ScatteredArrangement)
        }
        environment.task_spec = dataclasses.replace(task, arrangement=Swapped(**fields))
    try:
        observation, _ = environment.reset(options={"initial_state": state})
        demonstrator = DeskDemonstrator(environment, np.random.default_rng(state))
        pixels, states, actions, labels, done = [], [], [], [], False
        while not done:
            pixels.append(np.stack(list(observation["pixels"].values())))
            states.append(observation["agent_pos"])
            labels.append(environment.grounding())
            action, command = demonstrator.decide()
            actions.append(action)
            observation, _, terminated, truncated, info = environment.step(command)
            done = terminated or truncated
        return np.stack(pixels), np.stack(states), np.stack(actions), np.stack(labels), info
    finally:
        environment.close()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_only_the_halo_tells_the_target(task):
    pixels, states, actions, _, info = record(task, state=5)
    other_pixels, other_states, other_actions, _, _ = record(task, state=5, swapped=True)
    cue = task.cue
    assert info["is_success"]
    assert (pixels[: cue.lit_steps] != other_pixels[: cue.lit_steps]).any(axis=(1, 2, 3, 4)).all()
    dark = slice(cue.lit_steps, cue.go_step + 1)
    np.testing.assert_array_equal(pixels[dark], other_pixels[dark])
    np.testing.assert_allclose(states[dark], other_states[dark], atol=1e-6)
    np.testing.assert_array_equal(actions[: cue.go_step], other_actions[: cue.go_step])
    assert np.abs(actions[cue.go_step + 10] - other_actions[cue.go_step + 10]).max() > 1.0, "then the arms part"


def test_no_chunk_that_starts_with_the_halo_on_contains_motion():
    for task in TASKS:
        assert task.cue.go_step >= task.cue.lit_steps + CHUNK + 1
    _, states, actions, _, _ = record(TASKS[0], state=1, image_size=16)
    assert (actions[: TASKS[0].cue.go_step] == actions[0]).all()
    assert np.abs(np.diff(states[: TASKS[0].cue.go_step + 1], axis=0)).max() < 0.2


def test_the_front_camera_sees_the_halo_only_while_it_is_on():
    for task in TASKS[2:4]:
        environment = DeskEnv(task.suite, task.name)
        for state in range(12):
            lit = environment.reset(options={"initial_state": state})[0]["pixels"]["front"].astype(int)
            still = environment.data.ctrl.copy()
            environment.progress.steps = task.cue.lit_steps
            environment.update_lamps(environment.steps)
            assert environment.model.geom(HALO).rgba[3] == 0
            dark = environment.observe()["pixels"]["front"].astype(int)
            assert (np.abs(lit - dark).max(-1) > 60).sum() >= 25
            assert (environment.data.ctrl == still).all()
        environment.close()


def test_positions_do_not_tell_the_target():
    """The target is as often left of the other object as right of it, as often nearer, and has the same yaws."""
    task = TASKS[0]
    first, second = [], []
    for state in range(400):
        poses = task.arrangement.sample(task.generator(state))
        assert list(poses) == [each.body for each in task.arrangement.objects]
        first.append(poses["red_cube_0"])
        second.append(poses["red_cube_1"])
    first, second = np.array(first), np.array(second)
    for column in (0, 1, 3):
        assert 0.43 < (first[:, column] < second[:, column]).mean() < 0.57
    assert (first[:, 2] == second[:, 2]).all()


def test_grounding_labels_contain_only_what_is_visible():
    task = TASKS[0]
    _, _, _, labels, _ = record(task, state=2, image_size=16)
    inside = ((labels > 0) & (labels < 1)).reshape(len(labels), -1, 2).all(-1)
    front = inside[:, TARGET_IN_FRONT.start // 2]
    assert front[: task.cue.lit_steps].all()
    assert not front[task.cue.lit_steps : task.cue.go_step + 5].any()
    assert (labels[task.cue.lit_steps : task.cue.go_step + 5, TARGET_IN_WRIST] == -1).all()
    assert front[-10:].all(), "held and carried, it is seen which one is meant"
    assert inside[:, GOAL_IN_FRONT.start // 2].all(), "the bin is known all along"
    assert np.isfinite(labels).all()


def test_an_instruction_can_ask_for_the_other_of_two():
    asked = {}
    for task in TASKS:
        environment = DeskEnv(task.suite, task.name, image_size=16)
        environment.reset(options={"initial_state": 0})
        asked[task.name] = dict(environment.other_instructions())
        environment.close()
    assert asked["lit_cube"] == {"put the cube that was not lit in the bin": "red_cube_1"}
    assert asked["unlit_cube"] == {"put the cube that was lit in the bin": "blue_cube_1"}
    assert asked["lit_can_of_three"] == {}
