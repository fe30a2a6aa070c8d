"""Test LIBERO's environment: reproducible starts, and observations bit-identical to LIBERO's own."""

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from saccade.errors import InputError, WorldError
from saccade.sim.evaluation.episode import run_episode
from saccade.sim.evaluation.records import episodes_that_differ
from saccade.sim.libero.conventions import CAMERAS, NO_OPERATION, Conventions, axis_angle
from saccade.sim.libero.environment import LiberoEnv
from saccade.sim.libero.protocols import OPENVLA, EvaluationProtocol
from saccade.sim.libero.simulation import Simulation
from saccade.sim.libero.tasks import find_task
from saccade.sim.perturbation.job import Job, episode_seed

SUITE, TASK = "libero_object", "0"
SHORT = EvaluationProtocol("short", ((SUITE, 3),), settle_steps=2)


@pytest.fixture(scope="module")
def env(boxes):
    env = LiberoEnv(SUITE, TASK, visuals="fast", assets=boxes, protocol=SHORT, conventions=Conventions(image_size=64))
    yield env
    env.close()


def rollout(env, state, steps=4):
    """Return qpos and images of every step of an episode of random actions, seeded by the state."""
    observation, _ = env.reset(options={"initial_state": state})
    generator = np.random.default_rng(state)
    rows = []
    for _ in range(steps):
        images = [observation["pixels"][name] for name in CAMERAS]
        rows.append((env.simulation.data.qpos.tobytes(), *(image.tobytes() for image in images)))
        observation, *_ = env.step(generator.uniform(-1, 1, 7))
    return rows


def test_environment_passes_the_check_of_gymnasium(env):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*WARN.*")
        warnings.filterwarnings("ignore", message=".*alternative render modes.*")
        check_env(env)


def test_observations_fit_the_offer(env):
    observation, info = env.reset(seed=3, options={"initial_state": 3, "instruction": "take the soup"})
    assert info == {
        "is_success": False,
        "instruction": "take the soup",
        "target": None,
        "picked": None,
        "initial_state": 3,
    }
    assert env.task_description == "take the soup" and env.metadata["render_fps"] == env.offer.control_hz == 20
    assert observation["agent_pos"].shape == (len(env.offer.state.names),) == (8,)
    for camera in env.offer.cameras:
        assert observation["pixels"][camera.name].shape == (camera.height, camera.width, 3)
        assert observation["pixels"][camera.name].std() > 10
    assert env.render().shape == (384, 384, 3)
    steps = [env.step(env.conventions.from_robosuite_action(NO_OPERATION))[2:4] for _ in range(3)]
    assert steps == [(False, False), (False, False), (False, True)] and env._max_episode_steps == 3


def test_starts_are_the_same_in_any_order_and_in_a_new_environment(env, boxes):
    states = (3, 7, 1000)
    first = {state: rollout(env, state) for state in states}
    assert {state: rollout(env, state) for state in reversed(states)} == first
    assert len({tuple(rows[0]) for rows in first.values()}) == 3
    other = LiberoEnv(SUITE, TASK, visuals="fast", assets=boxes, protocol=SHORT, conventions=Conventions(image_size=64))
    assert rollout(other, 7) == first[7]
    assert rollout(env, 3) == first[3], "a second scene must not replace the renderer of the first one"
    other.close()
    assert rollout(env, 3) == first[3]


class RandomPolicy:
    """Samples actions at random, from the episode's seed."""

    def reset(self, instruction, seed):
        self._generator = np.random.default_rng(seed)

    def act(self, observation):
        return self._generator.uniform(-1, 1, 7)


def test_two_runs_agree_episode_by_episode(env):
    jobs = [Job(SUITE, TASK, state, episode_seed(0, SUITE, TASK, state)) for state in (4, 0, 9)]
    one, two = ([run_episode(env, RandomPolicy(), job) for job in order] for order in (jobs, jobs[::-1]))
    assert not episodes_that_differ(one, two) and len({record.trajectory for record in one}) == 3


def test_state_is_sampled_from_the_seed_and_global_generators_are_unchanged(env):
    np.random.seed(5)
    before = np.random.get_state(legacy=False)["state"]["key"].copy()
    seeds = [env.reset(seed=seed)[1]["initial_state"] for seed in (1, 2, 1)]
    assert seeds[0] == seeds[2] != seeds[1] and all(0 <= state < 50 for state in seeds)
    env.step(np.zeros(7))
    np.testing.assert_array_equal(np.random.get_state(legacy=False)["state"]["key"], before)


def test_demonstrations_start_from_other_states(env):
    starts = []
    for state in (0, 1000, 1001):
        env.reset(options={"initial_state": state})
        starts.append(env.simulation.position("basket_1"))
    assert np.linalg.norm(starts[1] - starts[2]) > 1e-3 and np.linalg.norm(starts[0] - starts[1]) > 1e-3
    with pytest.raises(InputError, match="initial_state: got 50"):
        env.reset(options={"initial_state": 50})


def test_steps_without_rendering_change_nothing_else(env):
    rendered = rollout(env, 5)
    env.reset(options={"initial_state": 5})
    generator = np.random.default_rng(5)
    env.rendering_enabled = False
    observations = [env.step(generator.uniform(-1, 1, 7))[0] for _ in range(2)]
    assert all(set(observation) == {"agent_pos"} for observation in observations)
    env.rendering_enabled = True
    observation, *_ = env.step(generator.uniform(-1, 1, 7))
    images = [observation["pixels"][name].tobytes() for name in CAMERAS]
    assert (env.simulation.data.qpos.tobytes(), *images) == rendered[3]


def test_success_is_the_predicate_of_the_goal(env):
    env.reset(options={"initial_state": 0})
    assert env.simulation.goal == (("in", "alphabet_soup_1", "basket_1_contain_region"),)
    before = env.grounding()
    env.simulation.data.joint("alphabet_soup_1_joint0").qpos[:3] = env.simulation.position("basket_1_contain_region")
    _, reward, terminated, _, info = env.step(env.conventions.from_robosuite_action(NO_OPERATION))
    assert (reward, terminated, info["is_success"]) == (1.0, True, True)
    after = env.grounding()
    assert np.linalg.norm(before[:3] - before[3:6]) > 0.2 > 0.1 > np.linalg.norm(after[:3] - after[3:6])
    assert env.reset(options={"initial_state": 0})[1]["is_success"] is False


def test_grounding_points_at_the_object_in_the_image(env):
    observation, _ = env.reset(options={"initial_state": 0})
    column, row = (64 * env.grounding()[6:8]).astype(int)
    red, green, blue = observation["pixels"]["agentview"][row, column].astype(int)
    assert red > 2 * max(green, blue), "the soup is a red box"


@pytest.mark.parametrize(
    ("action", "message"), [(np.zeros(6), "expected 7 finite numbers"), (np.full(7, np.nan), "expected 7 finite")]
)
def test_invalid_actions_are_refused(env, action, message):
    with pytest.raises(InputError, match=message):
        env.step(action)


def test_unknown_reset_options_are_refused(env):
    with pytest.raises(InputError, match=r"reset options: got \['state'\]"):
        env.reset(options={"state": 0})


def test_failed_build_gives_one_clear_error(boxes):
    with pytest.raises(WorldError, match=r"LIBERO failed at libero_goal/open_the_middle_drawer_of_the_cabinet: "):
        Simulation(find_task("libero_goal", "0"), boxes)


@pytest.mark.slow
@pytest.mark.parametrize(("suite", "task"), [("libero_spatial", "4"), ("libero_goal", "7")])
def test_fixtures_have_the_same_poses_in_any_order(pack, suite, task):
    env = LiberoEnv(suite, task, visuals="fast", assets=pack)
    first = {state: rollout(env, state) for state in (3, 4, 1000)}
    assert {state: rollout(env, state) for state in (1000, 3, 4)} == first
    env.close()


@pytest.mark.slow
def test_visuals_change_only_the_images(pack):
    stock, fast = (LiberoEnv("libero_spatial", "4", visuals=name, assets=pack) for name in ("stock", "fast"))
    for (position, *images), (other_position, *other_images) in zip(rollout(stock, 2), rollout(fast, 2), strict=True):
        assert position == other_position and images != other_images
    stock.close()
    fast.close()


@pytest.mark.slow
def test_observations_are_bit_identical_to_those_of_libero(pack, installed):
    """Published evaluations reset LIBERO, set the initial state and step until the scene has settled: same here."""
    env = LiberoEnv("libero_spatial", "4", assets=pack, protocol=OPENVLA)
    from libero.libero.envs import OffScreenRenderEnv

    task = env.task_spec
    problem = installed / "bddl_files" / task.suite / f"{task.name}.bddl"
    theirs = OffScreenRenderEnv(bddl_file_name=str(problem), camera_heights=128, camera_widths=128)
    # Each reset appends to the list of initial positions that LIBERO samples; keep it as after the first one.
    theirs.env.object_property_initializers.clear()
    np.random.seed(task.start_seed(2))
    theirs.reset()
    raw = theirs.set_init_state(env.simulation.initial_states[2])
    for _ in range(10):
        raw, *_ = theirs.step([0, 0, 0, 0, 0, 0, -1])
    observation, _ = env.reset(options={"initial_state": 2})
    generator = np.random.default_rng(0)
    for _ in range(4):
        state = [raw["robot0_eef_pos"], axis_angle(raw["robot0_eef_quat"]), raw["robot0_gripper_qpos"]]
        np.testing.assert_array_equal(observation["agent_pos"], np.concatenate(state).astype(np.float32))
        for name, camera in CAMERAS.items():
            np.testing.assert_array_equal(observation["pixels"][name], raw[f"{camera}_image"][::-1, ::-1])
        action = generator.uniform(-1, 1, 7)
        observation, *_ = env.step(action)
        raw, *_ = theirs.step(action)
    theirs.close()
    env.close()


@pytest.mark.slow
def test_tasks_of_all_scenes_can_be_built(pack):
    """Test one task of each scene; the others differ only in their objects."""
    for suite, task in (("libero_spatial", "9"), ("libero_goal", "2"), ("libero_10", "2"), ("libero_10", "5")):
        env = LiberoEnv(suite, task, visuals="fast", assets=pack)
        env.reset(options={"initial_state": 0})
        for _ in range(2):
            observation, _, terminated, _, _ = env.step(env.conventions.from_robosuite_action(NO_OPERATION))
        assert env.observation_space.contains(observation) and not terminated
        env.close()
