"""The desk as an environment of LeRobot's commands."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from draccus.utils import ParsingError
from lerobot.envs.utils import NEW_ROLLOUT_OPTION, env_to_policy_features, preprocess_observation

from saccade.sim.desk.lerobot_environment import DeskRollouts, SaccadeDeskEnvConfig


def config(**options):
    return SaccadeDeskEnvConfig(**{"tasks": ["red_cube"], "image_size": 32} | options)


@pytest.fixture
def desks():
    environments = config().create_envs(n_envs=2)
    assert list(environments) == ["desk_object"] and list(environments["desk_object"]) == [0]
    yield environments["desk_object"][0]
    environments["desk_object"][0].close()


def test_rollouts_go_through_the_initial_states_in_order(desks):
    for rollout in range(2):
        _, info = desks.reset(seed=[7, 8], options={NEW_ROLLOUT_OPTION: True})
        assert info["initial_state"].tolist() == [2 * rollout, 2 * rollout + 1]
    _, info = desks.reset()
    assert info["initial_state"].tolist() == [2, 3]


def test_the_initial_state_does_not_depend_on_the_seed(desks):
    first, _ = desks.reset(seed=[1, 2], options={NEW_ROLLOUT_OPTION: True})
    second, _ = desks.reset(seed=[3, 4])
    assert np.array_equal(first["agent_pos"], second["agent_pos"])
    assert np.array_equal(first["pixels"]["front"], second["pixels"]["front"])


def test_the_first_state_follows_the_last_evaluation_state():
    class Desk(gymnasium.Env):
        def reset(self, *, seed=None, options=None):
            return options["initial_state"], {}

    desk = DeskRollouts(Desk(), env_index=1, env_count=20)
    states = [desk.reset(options={NEW_ROLLOUT_OPTION: True})[0] for _ in range(4)]
    assert states == [1, 21, 41, 11]


def test_it_has_what_lerobot_needs_of_an_environment(desks):
    observation, info = desks.reset(options={NEW_ROLLOUT_OPTION: True})
    assert desks.call("task_description") == ("put the red cube in the bin",) * 2
    assert desks.call("task") == ("red_cube",) * 2 and desks.call("_max_episode_steps")[0] > 0
    assert desks.envs[0].render().shape == (384, 384, 3)
    assert desks.metadata["render_fps"] == 30
    _, _, _, _, info = desks.step(observation["agent_pos"])
    assert info["is_success"].tolist() == [False, False]
    tensors = preprocess_observation(observation)
    features = env_to_policy_features(config())
    assert set(tensors) | {"action"} == set(features)
    assert all(tensors[key].shape[1:] == features[key].shape for key in tensors)


def test_bad_options_are_refused_with_the_nearest_name():
    for options, reason in (
        ({"tasks": ["red_cub"]}, "'red_cube'"),
        ({"task": "desk_spacial", "tasks": None}, "'desk_spatial'"),
        ({"fps": 20}, "expected 30"),
        ({"tasks": []}, "one or more"),
    ):
        with pytest.raises(ParsingError, match=reason):
            config(**options)
