"""Test perturbations of a LIBERO scene: each axis changes only what it names, and the scene is restored."""

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.sim.libero.conventions import Conventions
from saccade.sim.libero.environment import LiberoEnv
from saccade.sim.perturbation.axes import AXES, Perturbation
from saccade.sim.perturbation.environment import perturbed_environment
from saccade.sim.perturbation.job import Job

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(boxes):
    env = LiberoEnv("libero_object", "0", visuals="fast", assets=boxes, conventions=Conventions(image_size=48))
    yield env
    env.close()


def begin(environment, axis=None, level=3, swap=None):
    """Return the first observation, the info, the sampled change, and qpos before and after a step without motion."""
    perturbation = Perturbation(axis, level) if axis else None
    job = Job("libero_object", environment.task, 2, 5, perturbation=perturbation, swap=swap)
    with perturbed_environment(environment, job) as world:
        observation, info = world.reset(seed=5, options={"initial_state": 2, "instruction": None})
        if axis is None and swap is None:
            # LIBERO observes shortly before the end of a step; a perturbed scene is observed as it is.
            observation = environment.observe()
        first = environment.data.qpos.copy()
        world.step(np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32))
        return observation, info, getattr(world, "drawn", {}), (first, environment.data.qpos.copy())


def differ(first, second):
    return {camera for camera in first["pixels"] if np.any(first["pixels"][camera] != second["pixels"][camera])}


@pytest.mark.parametrize("axis", AXES)
def test_each_axis_changes_only_what_it_names_and_is_undone(environment, axis):
    plain, plain_info, _, positions = begin(environment)
    perturbed, perturbed_info, drawn, moved = begin(environment, axis, 5)
    again, _, drawn_again, moved_again = begin(environment, axis, 5)
    after, _, _, restored = begin(environment)
    assert drawn and drawn == drawn_again and not differ(perturbed, again) and not differ(plain, after)
    np.testing.assert_array_equal(moved, moved_again)
    np.testing.assert_array_equal(positions, restored)
    assert np.array_equal(positions, moved) == (axis not in ("start_pose", "layout"))
    assert (plain_info["instruction"] != perturbed_info["instruction"]) == (axis == "language")
    if axis == "camera":
        assert differ(plain, perturbed) == {"agentview"}
    elif axis in ("lighting", "background", "start_pose", "layout"):
        assert "agentview" in differ(plain, perturbed)


def test_displacements_have_the_size_of_their_level(environment):
    *_, (plain, _) = begin(environment)
    *_, drawn, (moved, _) = begin(environment, "layout", 4)
    at = environment.model.jnt_qposadr[environment.model.body_jntadr[environment.model.body("basket_1_main").id]]
    np.testing.assert_allclose((moved - plain)[at : at + 2], drawn["metres"], atol=3e-3)
    assert "basket_1_main" in drawn["moved"] and len(drawn["moved"]) == len(environment.movable_objects())
    *_, (turned, _) = begin(environment, "start_pose", 4)
    joints = [environment.model.joint(name).qposadr[0] for name in environment.arm_joints]
    assert np.linalg.norm((turned - plain)[joints]) == pytest.approx(0.4, abs=0.05)


def test_background_has_no_robot_and_no_movable_object(environment):
    bodies = {environment.model.body(environment.model.geom_bodyid[geom]).name for geom in environment.background}
    assert bodies and not any(name.startswith(("robot0", "gripper0", "mount0")) for name in bodies)
    assert not bodies & set(environment.movable_objects())


def test_unsupported_swaps_are_refused(environment):
    for swap, message in (("object", "no other object"), ("position", "got a scene without another kind of object")):
        with pytest.raises(InputError, match=message):
            begin(environment, swap=swap)
    *_, info, drawn, _ = begin(environment, swap="instruction")
    assert drawn["words"] in ("letters", "nothing") and info["instruction"] != environment.task_spec.instruction
