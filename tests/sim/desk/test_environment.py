"""The desk as an environment: gymnasium's check, repeatability, units and success."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from saccade.errors import InputError
from saccade.sim.desk import arm
from saccade.sim.desk.environment import DeskEnv
from saccade.sim.desk.scene import BIN_CENTRE
from saccade.sim.desk.tasks.catalogue import SUITES


@pytest.fixture
def desk():
    environments = []

    def make(suite="desk_object", task="red_cube", **options):
        environments.append(DeskEnv(suite, task, image_size=32, **options))
        return environments[-1]

    yield make
    for environment in environments:
        environment.close()


def put_in_bin(environment, body, offset=0.0):
    environment.data.joint(body).qpos[:3] = (BIN_CENTRE[0] + offset, BIN_CENTRE[1], 0.03)
    environment.data.joint(body).qvel[:] = 0


def rest(environment, steps=10):
    state = arm.to_units(environment.joints()).astype(np.float32)
    for _ in range(steps):
        *_, info = environment.step(state)
    return info


@pytest.mark.parametrize(("suite", "task"), [("desk_object", "yellow_can"), ("desk_spatial", "behind")])
def test_it_passes_gymnasiums_check(desk, suite, task):
    check_env(desk(suite, task), skip_render_check=True)


def test_the_same_seed_and_state_give_the_same_episode(desk):
    def play():
        environment = desk()
        observation, _ = environment.reset(seed=3, options={"initial_state": 7})
        frames = [observation["pixels"]["wrist"]]
        for step in range(15):
            observation, *_ = environment.step(observation["agent_pos"] + np.float32(np.sin(step)))
            frames.append(observation["pixels"]["wrist"])
        return np.stack(frames), environment.data.qpos.copy()

    (first_frames, first), (second_frames, second) = play(), play()
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first_frames, second_frames)


def test_an_episode_does_not_depend_on_the_one_before(desk):
    environment = desk()
    environment.reset(options={"initial_state": 1})
    fresh = environment.data.qpos.copy()
    environment.reset(options={"initial_state": 2})
    rest(environment, 20)
    environment.reset(options={"initial_state": 1})
    np.testing.assert_array_equal(environment.data.qpos, fresh)


def test_initial_states_differ(desk):
    environment = desk()
    positions = set()
    for state in range(5):
        environment.reset(options={"initial_state": state})
        positions.add(tuple(environment.position("red_cube_0").round(4)))
    assert len(positions) == 5


def test_only_the_target_object_counts(desk):
    environment = desk()
    environment.reset(options={"initial_state": 0})
    other = next(body for body in environment.present_bodies if body != "red_cube_0")
    put_in_bin(environment, other)
    assert not rest(environment)["is_success"]
    environment.reset(options={"initial_state": 0})
    put_in_bin(environment, "red_cube_0")
    assert rest(environment)["is_success"]
    put_in_bin(environment, other, offset=0.03)
    assert not rest(environment)["is_success"]


def test_success_ends_the_episode(desk):
    environment = desk()
    environment.reset(options={"initial_state": 0})
    put_in_bin(environment, "red_cube_0")
    rest(environment, 8)
    _, reward, terminated, truncated, info = environment.step(arm.to_units(environment.joints()))
    assert (reward, terminated, truncated, info["is_success"]) == (1.0, True, False, True)


def test_the_first_lifted_object_is_reported(desk):
    environment = desk()
    environment.reset(options={"initial_state": 0})
    other = next(body for body in environment.present_bodies if body != "red_cube_0")
    environment.data.joint(other).qpos[2] += 0.1
    assert rest(environment, 1)["picked"] == other


def test_the_arm_reaches_joint_targets_in_the_contracts_units(desk):
    environment = desk()
    observation, _ = environment.reset(options={"initial_state": 0})
    target = observation["agent_pos"] + np.array([10, 5, -5, 5, 20, 30], dtype=np.float32)
    for _ in range(40):
        observation, *_ = environment.step(target)
    np.testing.assert_allclose(observation["agent_pos"], target, atol=1.0)


def test_units_round_trip():
    rng = np.random.default_rng(0)
    radians = rng.uniform(*arm.JOINT_RANGES.T, size=(100, 6))
    np.testing.assert_allclose(arm.to_radians(arm.to_units(radians)), radians, atol=1e-9)
    low, high = arm.joint_limits()
    assert (low[5], high[5]) == (0.0, 100.0)
    assert low[0] == pytest.approx(-110.0, abs=0.01)


def test_another_object_can_be_asked_for(desk):
    environment = desk()
    environment.reset(options={"initial_state": 0})
    others = environment.other_instructions()
    assert len(others) == 3
    assert environment.instruction not in others
    spatial = desk("desk_spatial", "left")
    spatial.reset(options={"initial_state": 0})
    assert spatial.other_instructions() == {"put the cube right of the bowl in the bin": "red_cube_1"}


def test_grounding_labels_point_at_the_target_in_the_image(desk):
    environment = desk("desk_object", "purple_puck")
    observation, _ = environment.reset(options={"initial_state": 4})
    u, v = environment.grounding()[6:8]
    red, green, blue = observation["pixels"]["front"][int(v * 32), int(u * 32)].astype(int)
    assert blue > green + 30 and red > green + 20


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: DeskEnv("desk_objects", "red_cube"), "desk_object"),
        (lambda: DeskEnv("desk_object", "red_cub"), "red_cube"),
        (lambda: DeskEnv("desk_object", "red_cube", image_size=4), "image_size"),
    ],
)
def test_errors_name_the_nearest_suite_or_task(call, named):
    with pytest.raises(InputError, match=named):
        call()


@pytest.mark.parametrize("action", [np.zeros(5), np.full(6, np.nan)])
def test_invalid_actions_are_refused(desk, action):
    environment = desk()
    environment.reset(options={"initial_state": 0})
    with pytest.raises(InputError, match="action"):
        environment.step(action)


def test_every_task_has_four_different_instructions():
    sentences = [s for tasks in SUITES.values() for task in tasks for s in (task.instruction, *task.paraphrases)]
    assert len(sentences) == len(set(sentences)) == 4 * sum(map(len, SUITES.values()))
    assert max(len(sentence.encode()) for sentence in sentences) < 56
