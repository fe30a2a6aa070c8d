"""Perturbations of the desk: each axis changes only what it names, and the environment is restored afterwards."""

import mujoco
import numpy as np
import pytest

from saccade.errors import InputError
from saccade.sim.desk import arm
from saccade.sim.desk.demonstrator.demonstrator import DeskDemonstrator
from saccade.sim.desk.environment import DeskEnv
from saccade.sim.evaluation.episode import run_episode
from saccade.sim.perturbation.axes import AXES, Perturbation
from saccade.sim.perturbation.environment import perturbed_environment
from saccade.sim.perturbation.job import Job, episode_seed
from saccade.sim.projection import project_point

STATE = 3
ARRAYS = [name for name in dir(mujoco.MjModel) if not name.startswith("_")]
MODEL_AXES = ("camera", "lighting", "background")
SOLVABLE_AXES = ("start_pose", "layout")


@pytest.fixture(scope="module")
def desks():
    made = {}

    def make(suite="desk_object", task="green_can"):
        if task not in made:
            made[task] = DeskEnv(suite, task, image_size=48)
        return made[task]

    yield make
    for environment in made.values():
        environment.close()


def job(axis=None, level=3, suite="desk_object", task="green_can", state=STATE, swap=None, other_task_instructions=()):
    perturbation = Perturbation(axis, level) if axis else None
    seed = episode_seed(0, suite, task, state)
    return Job(
        suite, task, state, seed, perturbation=perturbation, swap=swap, other_task_instructions=other_task_instructions
    )


def reset_world(world, episode):
    return world.reset(seed=episode.seed, options={"initial_state": episode.initial_state, "instruction": None})


def begin(environment, episode, steps=0):
    """Return the first observation, the info, and `qpos` at the start and after some steps without motion."""
    with perturbed_environment(environment, episode) as world:
        observation, info = reset_world(world, episode)
        first = environment.data.qpos.copy()
        for _ in range(steps):
            world.step(arm.to_units(arm.HOME.copy()).astype(np.float32))
        return observation, info, first, environment.data.qpos.copy()


def model_arrays(model):
    """Return copies of all arrays of a model and of its visual settings."""
    found = {name: value.copy() for name in ARRAYS if isinstance(value := getattr(model, name), np.ndarray)}
    found |= {"headlight": model.vis.headlight.diffuse.copy(), "ambient": model.vis.headlight.ambient.copy()}
    return found | {"shadowsize": np.array(model.vis.quality.shadowsize)}


def changed_cameras(first, second):
    return {camera for camera in first["pixels"] if np.any(first["pixels"][camera] != second["pixels"][camera])}


def test_unperturbed_job_gives_the_environment_itself(desks):
    with perturbed_environment(desks(), job()) as world:
        assert world is desks()


@pytest.mark.parametrize("axis", AXES)
def test_perturbation_is_repeatable_and_leaves_no_trace(desks, axis):
    environment = desks()
    before, _, _, _ = begin(environment, job())
    model = model_arrays(environment.model)
    first, second = (begin(environment, job(axis, 5), steps=2) for _ in range(2))
    assert not changed_cameras(first[0], second[0])
    assert first[1] == second[1]
    np.testing.assert_array_equal(first[3], second[3])
    np.testing.assert_array_equal(first[0]["agent_pos"], second[0]["agent_pos"])
    after, _, _, _ = begin(environment, job())
    assert not changed_cameras(before, after)
    for name, values in model_arrays(environment.model).items():
        np.testing.assert_array_equal(values, model[name], err_msg=name)


def test_model_is_restored_after_an_error(desks):
    environment = desks()
    place = environment.model.cam_pos.copy()
    with pytest.raises(ZeroDivisionError), perturbed_environment(environment, job("camera")) as world:
        reset_world(world, job("camera"))
        assert np.any(environment.model.cam_pos != place)
        raise ZeroDivisionError
    np.testing.assert_array_equal(environment.model.cam_pos, place)


@pytest.mark.parametrize("axis", MODEL_AXES)
def test_visual_axes_change_images_but_not_physics(desks, axis):
    plain, _, _, end = begin(desks(), job(), steps=4)
    for level in (1, 5):
        seen, info, _, moved = begin(desks(), job(axis, level), steps=4)
        assert "front" in changed_cameras(plain, seen)
        np.testing.assert_array_equal(moved, end)
        assert info["instruction"] == "put the green can in the bin"


def test_camera_axis_leaves_the_wrist_camera_alone(desks):
    plain, *_ = begin(desks(), job())
    seen, *_ = begin(desks(), job("camera", 5))
    assert changed_cameras(plain, seen) == {"front"}


def test_moved_camera_shows_every_object(desks):
    for state in range(6):
        with perturbed_environment(desks(), job("camera", 5, state=state)) as world:
            reset_world(world, job(state=state))
            for body in desks().present_bodies:
                seen = project_point(desks().model, desks().data, "front", desks().position(body))
                assert np.all((seen > 0.02) & (seen < 0.98)), (state, body, seen)


@pytest.mark.parametrize("axis", ["sensor", "language"])
def test_sensor_and_language_axes_leave_the_physics_alone(desks, axis):
    _, info, _, end = begin(desks(), job(), steps=4)
    _, perturbed_info, _, moved = begin(desks(), job(axis, 5), steps=4)
    np.testing.assert_array_equal(moved, end)
    assert (perturbed_info["instruction"] != info["instruction"]) == (axis == "language")


def test_start_pose_axis_moves_the_arm_alone_within_its_range(desks):
    environment = desks()
    addresses = environment._joint_addresses
    for state, level in ((0, 1), (1, 3), (2, 5), (STATE, 5)):
        _, _, usual, _ = begin(environment, job(state=state))
        with perturbed_environment(environment, job("start_pose", level, state=state)) as world:
            reset_world(world, job(state=state))
            offset = environment.data.qpos[addresses[:5]] - usual[addresses[:5]]
            assert np.linalg.norm(offset) == pytest.approx(0.1 * level, abs=0.03)
            assert np.all(environment.joints() > arm.JOINT_RANGES[:, 0]) and np.all(
                environment.joints() < arm.JOINT_RANGES[:, 1]
            )
            assert environment.picked is None and environment.steps == 0
            assert not any(environment.finger_contacts(body) for body in environment.present_bodies)
            for body in environment.present_bodies:
                at = environment.model.joint(body).qposadr[0]
                np.testing.assert_allclose(environment.data.qpos[at : at + 3], usual[at : at + 3], atol=5e-4)


def test_layout_axis_shifts_objects_together_and_adds_others(desks):
    environment = desks()
    begin(environment, job())
    usual = {body: environment.position(body) for body in environment.present_bodies}
    joints = environment.joints()
    with perturbed_environment(environment, job("layout", 4)) as world:
        reset_world(world, job())
        shifts = np.array([environment.position(body)[:2] - usual[body][:2] for body in usual])
        np.testing.assert_allclose(shifts - shifts[0], 0, atol=1e-3)
        np.testing.assert_allclose(shifts[0], world.drawn["metres"], atol=1e-3)
        assert 0.01 < np.linalg.norm(shifts[0]) < 0.041
        assert len(environment.present_bodies) == 4 + len(world.drawn["added"]) > 5
        assert all(environment.position(body)[2] > 0 for body in environment.present_bodies)
        np.testing.assert_allclose(environment.joints(), joints, atol=0.01)
    begin(environment, job())
    assert set(environment.present_bodies) == set(usual)


@pytest.mark.parametrize("relation", ["near_bin", "far_bin", "on_plate", "left"])
def test_layout_axis_keeps_the_instruction_true(desks, relation):
    environment = desks("desk_spatial", relation)
    for state in range(8):
        episode = job("layout", 5, "desk_spatial", relation, state)
        with perturbed_environment(environment, episode) as world:
            reset_world(world, episode)
            assert environment.is_layout_valid() and not environment.success()


@pytest.mark.parametrize("axis", SOLVABLE_AXES)
def test_perturbed_task_is_solvable(desks, axis):
    environment, done = desks(), 0
    environment.rendering_enabled = False
    for state in range(4):
        episode = job(axis, 5, state=state)
        with perturbed_environment(environment, episode) as world:
            reset_world(world, episode)
            demonstrator = DeskDemonstrator(environment, np.random.default_rng(0), noise=0.0)
            ended = False
            while not ended:
                *_, terminated, truncated, info = world.step(demonstrator.decide()[1])
                ended = terminated or truncated
            done += info["is_success"]
    environment.rendering_enabled = True
    assert done == 4


def test_refused_instruction_is_a_failure_of_the_policy(desks):
    class ShortInstructionActor:
        def reset(self, instruction, seed):
            if len(instruction) > 30:
                raise InputError("instruction", got="many words", expected="few", fix="Shorten it.")

        def act(self, observation):
            return observation["agent_pos"]

    record = run_episode(desks(), ShortInstructionActor(), job("language", 5))
    assert (record.outcome, record.steps, record.perturbation) == ("failure", 0, "language=5")
    assert record.error == "the policy refuses this instruction: instruction: got many words, expected few. Shorten it."
    assert record.drawn == {"words": "everything, after a remark"}

    class RefusingActor(ShortInstructionActor):
        def reset(self, instruction, seed):
            raise InputError("instruction", got="any", expected="none", fix="Give none.")

    with pytest.raises(InputError, match="Give none"):
        run_episode(desks(), RefusingActor(), job("camera"))


def test_position_swap_exchanges_two_objects(desks):
    environment = desks()
    begin(environment, job())
    usual = {body: environment.position(body) for body in environment.present_bodies}
    with perturbed_environment(environment, job(swap="position")) as world:
        _, info = reset_world(world, job())
        other = world.other
        assert info["target"] == "green_can_0" != other in usual
        np.testing.assert_allclose(environment.position(other)[:2], usual["green_can_0"][:2], atol=2e-3)
        np.testing.assert_allclose(environment.position("green_can_0")[:2], usual[other][:2], atol=2e-3)
    identical_objects = job(suite="desk_spatial", task="left", swap="position")
    with (
        perturbed_environment(desks("desk_spatial", "left"), identical_objects) as world,
        pytest.raises(InputError, match="without another kind of object"),
    ):
        reset_world(world, identical_objects)


def test_object_swap_ends_the_episode_at_the_first_pick(desks):
    environment, episode = desks(), job(swap="object")
    with perturbed_environment(environment, episode) as world:
        _, info = reset_world(world, episode)
        assert world.other in environment.present_bodies and world.other != "green_can_0"
        assert info["instruction"] == f"put the {environment.movable_objects()[world.other]} in the bin"
        for body, requested in ((world.other, True), ("green_can_0", False)):
            reset_world(world, episode)
            environment.data.joint(body).qpos[2] += 0.1
            *_, terminated, _, info = world.step(arm.to_units(arm.HOME.copy()).astype(np.float32))
            assert (terminated, info["is_success"], info["picked"]) == (True, requested, body)


def test_instruction_swap_names_no_present_object(desks):
    environment, kinds = desks(), set()
    other_task_instructions = (
        "put the green can in the bin",
        "put the red cube in the bin",
        "put the purple puck in the bin",
    )
    for state in range(12):
        episode = job(state=state, swap="instruction", other_task_instructions=other_task_instructions)
        with perturbed_environment(environment, episode) as world:
            _, info = reset_world(world, episode)
            kinds.add(world.drawn["words"])
            assert info["instruction"] not in {"put the green can in the bin", *environment.other_instructions()}
            if world.drawn["words"] == "letters":
                assert [len(word) for word in info["instruction"].split()] == [3, 3, 5, 3, 2, 3, 3]
            assert (info["instruction"] == "") == (world.drawn["words"] == "nothing")
    assert kinds == {"another task", "letters", "nothing"}


def test_environment_without_a_needed_attribute_is_refused():
    class Plain(DeskEnv):
        background = property()

    environment = Plain("desk_object", "red_cube", image_size=16)
    episode = job("background", task="red_cube")
    with (
        perturbed_environment(environment, episode) as world,
        pytest.raises(InputError, match="a world without background"),
    ):
        reset_world(world, episode)
    environment.close()
