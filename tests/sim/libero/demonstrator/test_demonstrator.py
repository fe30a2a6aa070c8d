"""Test LIBERO's demonstrator: plans, grasps and motions without a simulator, and episodes with LIBERO's assets."""

import importlib
import re

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.sim.libero.demonstrator.grasps import GRASP_SPECS, GraspSpec, choose_grasp, find_grasp_spec
from saccade.sim.libero.demonstrator.motion import (
    FINGERTIP_OFFSET,
    PALM_OFFSET,
    angle_between,
    clearance_height,
    count_obstructions,
    downward_rotation,
    nearest_equivalent_yaw,
    overlaps_from_above,
    rotate_about_vertical,
    rotation_vector,
)
from saccade.sim.libero.demonstrator.placing import escape_translation
from saccade.sim.libero.demonstrator.plans import PlanStep, plan
from saccade.sim.libero.demonstrator.privileged_state import CORNERS

NOTHING = np.zeros((0, 8, 3))


def box(centre, half, yaw=0.0):
    """Return the corners [1, 8, 3] of an upright box."""
    return (np.array(centre) + (CORNERS * half) @ rotate_about_vertical(np.eye(3), yaw).T)[None]


def ring(radius, wall=0.002, height=0.05, parts=16):
    """Return the corners [parts, 8, 3] of a bowl's wall around the origin, with its bottom at height 0."""
    angles = np.arange(parts) * 2 * np.pi / parts
    half = (wall, radius * np.pi / parts, height / 2)
    return np.concatenate([box([radius * np.cos(a), radius * np.sin(a), height / 2], half, a) for a in angles])


def test_goal_becomes_a_place_step():
    goals = (("in", "milk_1", "basket_1_contain_region"),)
    assert plan(goals) == (PlanStep("place", "milk_1", "basket_1_contain_region", goals[0]),)


def test_drawer_is_opened_first_and_closed_last():
    goals = (("close", "cabinet_1_bottom"), ("in", "bowl_1", "cabinet_1_bottom"))
    steps = plan(goals, drawers=("cabinet_1_bottom", "cabinet_1_top"))
    assert [(step.kind, step.target_name) for step in steps] == [
        ("open", "cabinet_1_bottom"),
        ("place", "bowl_1"),
        ("close", "cabinet_1_bottom"),
    ]
    assert steps[0].goal == () and steps[2].goal == goals[0]


def test_stove_is_turned_on_before_objects_are_placed():
    goals = (("on", "pot_1", "cook"), ("on", "pot_2", "cook"), ("turnon", "flat_stove_1"))
    steps = plan(goals)
    assert [step.kind for step in steps] == ["turn_on", "place", "place"]
    assert [(step.number, step.count) for step in steps[1:]] == [(0, 2), (1, 2)]


def test_goal_without_a_skill_is_refused():
    with pytest.raises(InputError, match="goal: got turnoff flat_stove_1, expected in, on, open, close or turnon"):
        plan((("turnoff", "flat_stove_1"),))


def test_unknown_kind_of_object_is_refused_with_a_suggestion():
    assert find_grasp_spec("milk_1") is GRASP_SPECS["milk"]
    with pytest.raises(InputError, match="kind porcelain_mugs.*Did you mean 'porcelain_mug'"):
        find_grasp_spec("porcelain_mugs_1")


def test_grasp_with_the_palm_on_the_object_is_refused():
    with pytest.raises(InputError, match=r"depth: got 0.05, expected above 0 and below 0.026 m"):
        GraspSpec(depth=0.05)


@pytest.mark.parametrize("yaw", [-1.2, 0.0, 0.7, 3.0])
def test_downward_hand_opens_along_its_yaw(yaw):
    rotation = downward_rotation(yaw)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    np.testing.assert_allclose(rotation[:, 2], [0, 0, -1])
    np.testing.assert_allclose(rotation[:, 1], [np.cos(yaw), np.sin(yaw), 0], atol=1e-12)


def test_yaw_is_at_most_a_quarter_turn_from_the_reference():
    for yaw in np.linspace(-7, 7, 57):
        near = nearest_equivalent_yaw(yaw, -np.pi / 2)
        assert abs(near + np.pi / 2) <= np.pi / 2 + 1e-9
        assert abs(np.sin(near - yaw)) < 1e-9


@pytest.mark.parametrize("angle", [0.0, 1e-7, 0.4, 3.0, np.pi])
def test_rotation_vector_has_axis_and_angle(angle):
    vector = rotation_vector(rotate_about_vertical(np.eye(3), angle))
    np.testing.assert_allclose(np.abs(vector), [0, 0, angle], atol=1e-6)
    assert angle_between(rotate_about_vertical(np.eye(3), angle), np.eye(3)) == pytest.approx(angle, abs=1e-6)


def test_rotated_box_overlaps_only_what_it_covers():
    slanted = box([0.1, 0.1, 0.0], [0.1, 0.005, 0.1], np.pi / 4)
    along, half = np.array([1.0, 0.0]), np.array([0.02, 0.02])
    assert overlaps_from_above(slanted, np.array([0.1, 0.1]), along, half)[0]
    # Inside the axis-aligned bounding box of the slanted box, but not over the box itself.
    assert not overlaps_from_above(slanted, np.array([0.15, 0.05]), along, half)[0]


def test_only_high_boxes_under_the_palm_are_obstructions():
    low, high = (box([0.09, 0.0, height / 2], [0.01, 0.01, height / 2]) for height in (0.05, 0.20))
    at = np.zeros(2)
    assert count_obstructions(low, at, 0.0, 0.05) == 0
    assert count_obstructions(high, at, 0.0, 0.05) == 1
    assert count_obstructions(high, at, np.pi / 2, 0.05) == 0


def test_path_goes_over_obstacles():
    wall = box([0.2, 0.0, 0.1], [0.01, 0.3, 0.1])
    start, end = np.zeros(2), np.array([0.4, 0.0])
    assert clearance_height(wall, start, end, FINGERTIP_OFFSET, 0.02) == pytest.approx(0.2 + FINGERTIP_OFFSET + 0.012)
    assert clearance_height(wall, start, end, 0.10, 0.02) == pytest.approx(0.2 + 0.10 + 0.012)
    assert clearance_height(wall, start, np.array([0.0, 0.4]), FINGERTIP_OFFSET, 0.02) == -np.inf
    assert clearance_height(NOTHING, start, end, FINGERTIP_OFFSET, 0.02) == -np.inf


def test_box_is_grasped_across_its_narrow_side():
    carton = box([0.3, 0.1, 0.07], [0.04, 0.02, 0.07], 0.5)
    grasp = choose_grasp(GraspSpec("across"), carton, NOTHING, home_yaw=0.0)
    assert grasp is not None
    opening_axis = grasp.rotation[:2, 1]
    across = np.array([-np.sin(0.5), np.cos(0.5)])
    assert abs(opening_axis @ across) > 0.99
    np.testing.assert_allclose(grasp.position[:2], [0.3, 0.1], atol=0.003)
    assert 0.14 - PALM_OFFSET < grasp.position[2] < 0.14


def test_object_wider_than_the_gripper_has_no_grasp():
    assert choose_grasp(GraspSpec("across"), box([0, 0, 0.05], [0.05, 0.05, 0.05]), NOTHING, home_yaw=0.0) is None


def test_bowl_is_grasped_by_its_rim_away_from_obstacles():
    bowl, neighbour = ring(0.05), box([0.0, 0.13, 0.1], [0.2, 0.04, 0.1])
    grasp = choose_grasp(GRASP_SPECS["akita_black_bowl"], bowl, neighbour, home_yaw=np.pi / 2)
    assert grasp is not None
    assert np.linalg.norm(grasp.position[:2]) == pytest.approx(0.046, abs=0.004)
    assert grasp.position[1] < 0
    failed_yaw = float(np.arctan2(grasp.position[1], grasp.position[0]))
    other = choose_grasp(
        GRASP_SPECS["akita_black_bowl"], bowl, neighbour, home_yaw=np.pi / 2, failed_yaws=(failed_yaw,)
    )
    assert other is not None and np.linalg.norm(other.position - grasp.position) > 0.01


def test_load_moves_sideways_out_from_under_a_shelf():
    load = box([0, 0, 0], [0.05, 0.05, 0.03])[0]
    shelf = box([-0.13, 0.0, 0.10], [0.10, 0.3, 0.01])
    translation = escape_translation(load, shelf)
    assert translation is not None
    assert translation[0] == pytest.approx(0.02 + 0.012) and translation[1] == translation[2] == 0.0
    moved = load + translation
    rest = escape_translation(moved, shelf)
    assert escape_translation(moved, shelf + 1e-6) is None or (rest is not None and abs(rest[0]) < 1e-6)
    assert escape_translation(load, box([0, 0, -0.1], [1, 1, 0.01])) is None


def test_every_object_that_a_task_moves_has_a_grasp(installed):
    problems = sorted(installed.glob("bddl_files/libero_*/*.bddl"))
    moved = set()
    for problem in problems:
        if problem.parent.name in ("libero_spatial", "libero_object", "libero_goal", "libero_10"):
            goal = problem.read_text().split("(:goal", 1)[1]
            moved |= set(re.findall(r"\((?:In|On) (\S+) ", goal))
    assert len(moved) > 15
    for name in moved:
        find_grasp_spec(name)


@pytest.fixture
def play(pack):
    def run(suite, task, state=0):
        environment_module = importlib.import_module("saccade.sim.libero.environment")
        demonstrator_module = importlib.import_module("saccade.sim.libero.demonstrator.demonstrator")
        environment = environment_module.LiberoEnv(suite, task, visuals="fast", assets=pack)
        environment.rendering_enabled = False
        try:
            environment.reset(options={"initial_state": state})
            demonstrator = demonstrator_module.LiberoDemonstrator(environment, np.random.default_rng(0))
            pairs, done, info = [], False, {}
            while not done:
                action, command = demonstrator.decide()
                pairs.append((action, command))
                _, _, terminated, truncated, info = environment.step(command)
                done = terminated or truncated
            return np.array(pairs), info["is_success"]
        finally:
            environment.close()

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "task"),
    [("libero_object", "5"), ("libero_spatial", "0"), ("libero_goal", "0"), ("libero_goal", "7"), ("libero_10", "8")],
)
def test_demonstrator_solves_a_task_of_each_kind(play, suite, task):
    pairs, success = play(suite, task)
    actions, commands = pairs[:, 0], pairs[:, 1]
    assert success
    assert pairs.dtype == np.float32 and actions.shape[1] == 7 and np.abs(pairs).max() <= 1.0
    np.testing.assert_array_equal(actions[:, 6], commands[:, 6])
    # The executed commands have noise, the recorded actions have none.
    assert 0.005 < np.abs(actions - commands)[:, :3].max() < 1.0
