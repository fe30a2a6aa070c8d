"""A LIBERO scene disturbed: each axis changes what it says and nothing else, and the scene is left as it was."""

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
    made = LiberoEnv("libero_object", "0", visuals="fast", assets=boxes, conventions=Conventions(image_size=48))
    yield made
    made.close()


def begin(environment, axis=None, level=3, swap=None):
    """Return the first observation, the info, what was drawn, and where everything is after a step of rest."""
    perturbation = Perturbation(axis, level) if axis else None
    job = Job("libero_object", environment.task, 2, 5, perturbation=perturbation, swap=swap)
    with perturbed_environment(environment, job) as world:
        observation, info = world.reset(seed=5, options={"initial_state": 2, "instruction": None})
        if axis is None and swap is None:
            # The library looks a moment before the end of a step; a disturbed scene is looked at as it stands.
            observation = environment.observe()
        first = environment.data.qpos.copy()
        world.step(np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32))
        return observation, info, getattr(world, "drawn", None), (first, environment.data.qpos.copy())


def differ(first, second):
    return {camera for camera in first["pixels"] if np.any(first["pixels"][camera] != second["pixels"][camera])}


@pytest.mark.parametrize("axis", AXES)
def test_each_axis_changes_what_it_says_and_leaves_nothing_behind(environment, axis):
    plain, said, _, places = begin(environment)
    seen, heard, drawn, moved = begin(environment, axis, 5)
    again, _, same, moved_again = begin(environment, axis, 5)
    after, _, _, restored = begin(environment)
    assert drawn and drawn == same and not differ(seen, again) and not differ(plain, after)
    np.testing.assert_array_equal(moved, moved_again)
    np.testing.assert_array_equal(places, restored)
    assert np.array_equal(places, moved) == (axis not in ("start_pose", "layout"))
    assert (said["instruction"] != heard["instruction"]) == (axis == "language")
    if axis == "camera":
        assert differ(plain, seen) == {"agentview"}
    elif axis in ("lighting", "background", "start_pose", "layout"):
        assert "agentview" in differ(plain, seen)


def test_displacements_are_as_large_as_their_level_says(environment):
    *_, (plain, _) = begin(environment)
    *_, drawn, (moved, _) = begin(environment, "layout", 4)
    at = environment.model.jnt_qposadr[environment.model.body_jntadr[environment.model.body("basket_1_main").id]]
    np.testing.assert_allclose((moved - plain)[at : at + 2], drawn["metres"], atol=3e-3)
    assert "basket_1_main" in drawn["moved"] and len(drawn["moved"]) == len(environment.movable_objects())
    *_, (turned, _) = begin(environment, "start_pose", 4)
    joints = [environment.model.joint(name).qposadr[0] for name in environment.arm_joints]
    assert np.linalg.norm((turned - plain)[joints]) == pytest.approx(0.4, abs=0.05)


def test_scenery_is_neither_robot_nor_thing(environment):
    bodies = {environment.model.body(environment.model.geom_bodyid[geom]).name for geom in environment.background}
    assert bodies and not any(name.startswith(("robot0", "gripper0", "mount0")) for name in bodies)
    assert not bodies & set(environment.movable_objects())


def test_swaps_that_a_scene_does_not_allow_are_refused(environment):
    for swap, message in (("object", "no other object"), ("position", "looks different")):
        with pytest.raises(InputError, match=message):
            begin(environment, swap=swap)
    *_, info, drawn, _ = begin(environment, swap="instruction")
    assert drawn["words"] in ("letters", "nothing") and info["instruction"] != environment.task_spec.instruction
