"""The arm driven by LeRobot's SO-101 driver on the virtual arm's bus: refusals, reads, writes and faults."""

from __future__ import annotations

import dataclasses
import json
import time

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.robot.arm import BusError, offer_from_arm
from saccade.robot.control.loop import LoopSettings
from saccade.robot.drivers.lerobot_arm import LeRobotArm
from saccade.robot.limits import JointLimits
from saccade.sim.desk.arm import FEATURE_NAMES
from saccade.sim.desk.environment import desk_offer
from saccade.sim.virtual_arm.faults import Fault
from saccade.sim.virtual_arm.world import VirtualArm

pytestmark = pytest.mark.real_time

TICK = LoopSettings().tick


@pytest.fixture(scope="module")
def world():
    with VirtualArm.start(rendering_enabled=False) as world:
        yield world


@pytest.fixture
def config(world, tmp_path):
    from lerobot.robots.so_follower import SO101FollowerConfig

    world.clear_faults()
    world.reset()
    world.write_calibration(tmp_path, "virtual")
    return SO101FollowerConfig(port=world.port, id="virtual", calibration_dir=tmp_path)


@pytest.fixture
def arm(config):
    arm = LeRobotArm(config)
    yield arm
    arm.close()


def drive(arm: LeRobotArm, goal: np.ndarray, arrived) -> None:
    """Write a goal at each tick until the arm has reached it for ten ticks, at most for ten seconds."""
    ends, there = time.monotonic() + 10.0, 0
    while there < 10 and time.monotonic() < ends:
        arm.command(goal)
        time.sleep(TICK)
        there = there + 1 if arrived() else 0


def torques(arm: LeRobotArm) -> set[int]:
    return set(arm._motor_buses[0].bus.sync_read("Torque_Enable", normalize=False).values())


def test_description_matches_the_starter_contract(arm):
    from saccade.policy.checkpoint.folder import read_contract

    description = arm.connect()
    contract = read_contract("starter")
    offer = offer_from_arm(description, contract.cameras, contract)
    contract.check(offer)
    assert offer.action == desk_offer(128).action
    assert description.names == FEATURE_NAMES
    limits = JointLimits.derive(contract, description.joints)
    assert limits.speed[:5] == pytest.approx((270.0,) * 5)
    assert limits.speed[5] == pytest.approx(2 * 270 / 110 * 100, rel=0.01)


def test_torque_is_off_after_connect_and_does_not_move_the_arm(arm, world):
    arm.connect()
    assert torques(arm) == {0}
    before = world.joints()
    pose = arm.hold()
    assert np.abs(pose - before).max() < 0.3
    arm.set_torque(on=True)
    assert arm.has_torque()
    time.sleep(0.3)
    assert np.abs(world.joints() - before).max() < 0.5
    arm.set_torque(on=False)
    assert not arm.has_torque()


def test_arm_follows_a_goal(arm, world):
    arm.connect()
    pose = arm.hold()
    arm.set_torque(on=True)
    goal = pose + np.array([10.0, 5.0, -5.0, 5.0, 20.0, 20.0])
    drive(arm, goal, lambda: np.abs(world.joints() - goal).max() < 1.4)
    assert np.abs(arm.measure() - goal).max() < 1.5
    assert np.abs(world.joints() - goal).max() < 1.5


def test_close_leaves_the_torque_on(arm, config):
    arm.connect()
    arm.hold()
    arm.set_torque(on=True)
    arm.close()
    from lerobot.robots.utils import make_robot_from_config

    from saccade.robot.drivers.serial_bus import call_with_retries, open_port

    bus = make_robot_from_config(dataclasses.replace(config, disable_torque_on_disconnect=False)).bus
    open_port(bus, "arm")
    enabled, _ = call_with_retries([bus], lambda: bus.sync_read("Torque_Enable", normalize=False), "reading")
    bus.disconnect(disable_torque=False)
    assert set(enabled.values()) == {1}


def test_missing_port_and_port_in_use_are_refused(config, arm):
    missing = LeRobotArm(dataclasses.replace(config, port="/dev/nothing-here"))
    with pytest.raises(InputError, match="no such device: /dev/nothing-here"):
        missing.connect()
    arm.connect()
    with pytest.raises(InputError, match="in use by another program"):
        LeRobotArm(config).connect()


def test_file_that_is_no_serial_port_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="which does not open"):
        LeRobotArm(dataclasses.replace(config, port=str(tmp_path / "file"))).connect()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("missing", joint="elbow_flex"), r"no answer from elbow_flex \(id 3\)"),
        (Fault("model", joint="gripper"), r"gripper \(id 6\) of model 2825 instead of sts3215 \(777\)"),
        (Fault("limits", joint="wrist_flex"), "calibration in the servos .* wrist_flex range_min"),
        (Fault("homing", joint="shoulder_pan"), "calibration in the servos .* shoulder_pan homing_offset"),
        (Fault("power"), "no answer from shoulder_pan"),
    ],
)
def test_wrong_servos_and_calibrations_are_refused_before_torque(arm, world, fault, message):
    world.inject_fault(fault)
    with pytest.raises(InputError, match=message):
        arm.connect()
    world.clear_faults()


def test_missing_or_foreign_calibration_file_is_refused(config, tmp_path):
    with pytest.raises(InputError, match="lerobot-calibrate --robot.type=so10._follower --robot.id=nobody"):
        LeRobotArm(dataclasses.replace(config, id="nobody")).connect()
    path = tmp_path / "virtual.json"
    kept = json.loads(path.read_text())
    kept["gripper"]["id"] = 9
    path.write_text(json.dumps(kept))
    with pytest.raises(InputError, match="is another arm's"):
        LeRobotArm(config).connect()


def test_driver_that_prompts_the_user_is_refused(config, monkeypatch):
    from lerobot.robots.so_follower import SOFollower

    monkeypatch.setattr(SOFollower, "configure", lambda self: input("Press ENTER"))
    with pytest.raises(InputError, match="a question to the user at the keyboard"):
        LeRobotArm(config).connect()


def test_damaged_replies_are_read_again_and_leave_no_lag(arm, world):
    arm.connect()
    arm.hold()
    arm.set_torque(on=True)
    pose = arm.measure()
    for kind in ("corrupt", "truncate", "drop"):
        world.inject_fault(Fault(kind, count=2))
        arm.measure()
        world.clear_faults()
        goal = pose + np.array([8.0, 0, 0, 0, 0, 0]) * (1 if kind != "truncate" else -1)
        drive(arm, goal, lambda goal=goal: abs(world.joints()[0] - goal[0]) < 1.0)
        assert abs(arm.measure()[0] - world.joints()[0]) < 0.5, "no reply is left in the buffer"
    assert arm.retries >= 3


def test_silent_servo_is_a_bus_error_within_its_time_budget(arm, world):
    arm.connect()
    arm.measure()
    world.inject_fault(Fault("silent", joint="wrist_flex"))
    spent = []
    for _ in range(5):
        started = time.monotonic()
        with pytest.raises(BusError, match="no whole answer within 3 tries"):
            arm.measure()
        spent.append(time.monotonic() - started)
    assert min(spent) < 0.06
    world.clear_faults()
    arm.measure()


def test_lost_port_is_a_bus_error(arm, world):
    arm.connect()
    world.inject_fault(Fault("port"))
    with pytest.raises(BusError):
        for _ in range(20):
            arm.measure()
            time.sleep(TICK)
    world.clear_faults()
    time.sleep(0.3)


def test_non_finite_goal_is_not_written(arm):
    from saccade.errors import WorldError

    arm.connect()
    with pytest.raises(WorldError, match="not finite"):
        arm.command(np.array([0.0, np.nan, 0, 0, 0, 0]))


def test_bimanual_arm_has_prefixed_joint_names(world, config, tmp_path):
    from lerobot.robots.bi_so_follower import BiSOFollowerConfig
    from lerobot.robots.so_follower import SOFollowerConfig

    with VirtualArm.start(rendering_enabled=False) as other:
        for side in ("left", "right"):
            world.write_calibration(tmp_path, f"pair_{side}")
        pair = BiSOFollowerConfig(
            id="pair",
            calibration_dir=tmp_path,
            left_arm_config=SOFollowerConfig(port=world.port),
            right_arm_config=SOFollowerConfig(port=other.port),
        )
        arm = LeRobotArm(pair)
        try:
            description = arm.connect()
            assert description.names == tuple(f"{side}_{name}" for side in ("left", "right") for name in FEATURE_NAMES)
            pose = arm.hold()
            arm.set_torque(on=True)
            goal = pose + np.array([0.0] * 6 + [10.0] + [0.0] * 5)
            drive(arm, goal, lambda: abs(other.joints()[0] - goal[6]) < 1.4)
            assert np.abs(world.joints() - pose[:6]).max() < 1.0
            assert abs(other.joints()[0] - goal[6]) < 1.5
        finally:
            arm.close()


def test_overheated_servo_is_reported_while_it_gives_no_torque(arm, world):
    arm.connect()
    arm.hold()
    arm.set_torque(on=True)
    assert arm.motors_in_protection() == ""
    world.inject_fault(Fault("temperature", joint="elbow_flex"))
    assert arm.motors_in_protection() == "elbow_flex"
    assert arm.has_torque()
    world.clear_faults()
    assert arm.motors_in_protection() == ""


def test_delayed_replies_are_not_taken_for_the_present_pose(arm, world):
    arm.connect()
    arm.hold()
    arm.set_torque(on=True)
    home, missed, errors = world.joints(), 0, []
    world.inject_fault(Fault("delay", value=0.1))
    began = time.monotonic()
    while time.monotonic() - began < 1.2 or missed <= 10:
        assert time.monotonic() - began < 20.0
        target = home + np.array([20.0 * np.sin(4.0 * (time.monotonic() - began)), 0, 0, 0, 0, 0])
        arm.command(target)
        try:
            before = time.monotonic()
            pose = arm.measure()
        except BusError:
            missed += 1
            continue
        # Compare with the positions since the read began; on a busy machine the arm falls behind the clock.
        joint_trajectory = world.joint_trajectory(before - 0.5)
        first = max(np.searchsorted(joint_trajectory.times + joint_trajectory.late, before) - 2, 0)
        errors.append(min(np.abs(joint_trajectory.positions[first:, 0] - pose[0]), default=0.0))
    assert missed > 10
    assert max(errors, default=0.0) < 1.0
