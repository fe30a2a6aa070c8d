"""The twin: the same goals give the same motion and outcome as on the desk. The test advances the slices."""

import time

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.sim.desk import arm
from saccade.sim.desk.demonstrator.demonstrator import DeskDemonstrator
from saccade.sim.desk.environment import DeskEnv
from saccade.sim.desk.scene import PHYSICS_STEPS
from saccade.sim.virtual_arm import registers
from saccade.sim.virtual_arm.bus import Bus
from saccade.sim.virtual_arm.calibration import encoders
from saccade.sim.virtual_arm.faults import Fault, FaultInjector
from saccade.sim.virtual_arm.servo import Servo
from saccade.sim.virtual_arm.twin import EpisodeSetup, Twin

EPISODE = EpisodeSetup("desk_object", "red_cube", initial_state=3, seed=0)


class TwinRig:
    """A twin with its servos, and a clock that only the test advances."""

    def __init__(self, folder, episode=EPISODE):
        self.faults = FaultInjector(time.monotonic)
        self.twin = Twin(episode, 64, self.faults, speed=1.0)
        limits = (1000,) * 5 + (500,)
        self.servos = [
            Servo(joint, encoder, self.faults, float(position), limit)
            for (joint, encoder), position, limit in zip(encoders().items(), self.twin.start_pose, limits, strict=True)
        ]
        self.bus = Bus(self.servos, self.faults, folder)
        self.twin.attach(self.bus)
        self.now = 0.0

    def torque(self, on=True):
        for servo in self.servos:
            servo.write(registers.TORQUE_ENABLE, bytes([on]))

    def command(self, ticks):
        for servo, goal in zip(self.servos, ticks, strict=True):
            servo.write(registers.GOAL_POSITION, int(goal).to_bytes(2, "little"))
        self.bus.goal_written = True

    def slices(self, count):
        with self.twin.lock:
            for _ in range(count):
                self.now += 1 / 360
                self.twin.advance(self.now)


@pytest.fixture
def rig(tmp_path):
    rig = TwinRig(tmp_path)
    yield rig
    rig.bus.close()
    rig.twin.close()


def to_ticks(units):
    """Return encoder ticks [6] for positions [6] in the units of the arm."""
    radians = arm.to_radians(np.asarray(units, np.float64).copy())
    return [round(each.ticks(angle)) for each, angle in zip(encoders().values(), radians, strict=True)]


def from_ticks(ticks):
    radians = np.array([each.radians(tick) for each, tick in zip(encoders().values(), ticks, strict=True)])
    return arm.to_units(radians)


def test_twin_matches_the_desk_for_the_same_goals(rig):
    desk = DeskEnv("desk_object", "red_cube", image_size=64)
    desk.rendering_enabled = False
    desk.reset(seed=0, options={"initial_state": 3})
    demonstrator = DeskDemonstrator(desk, np.random.default_rng(0), noise=0.0)
    rig.torque()
    for step in range(desk._max_episode_steps):
        ticks = to_ticks(demonstrator.decide()[1])
        desk.step(from_ticks(ticks))
        rig.command(ticks)
        rig.slices(PHYSICS_STEPS)
        assert np.allclose(rig.twin.env.data.qpos, desk.data.qpos, atol=1e-6), step
        if desk.success():
            break
    outcome = rig.twin.outcome()
    assert desk.success() and outcome["success"] and outcome["over"]
    assert (outcome["steps"], outcome["picked"]) == (desk.steps, desk.picked)


def test_arm_without_torque_is_held_at_its_start_pose_and_no_steps_count(rig):
    rig.slices(360)
    assert np.abs(rig.twin.env.joints() - rig.twin.start_pose).max() < 0.002
    assert rig.twin.outcome()["steps"] == 0
    rig.torque()
    rig.slices(36)
    assert np.abs(rig.twin.env.joints() - rig.twin.start_pose).max() < 0.003
    assert rig.twin.outcome()["steps"] == 0


def test_steps_count_from_the_first_goal_or_from_begin(rig):
    rig.torque()
    rig.command(to_ticks(rig.twin.joints()))
    rig.slices(PHYSICS_STEPS * 5)
    assert rig.twin.outcome()["steps"] == 5
    rig.twin.begin()
    rig.slices(PHYSICS_STEPS * 2)
    assert rig.twin.outcome()["steps"] == 2


def test_success_after_the_step_limit_does_not_count(rig):
    rig.torque()
    rig.twin.begin()
    rig.slices(PHYSICS_STEPS * (rig.twin.env._max_episode_steps + 10))
    outcome = rig.twin.outcome()
    assert outcome["over"] and not outcome["success"]
    assert outcome["steps"] == outcome["max_steps"]


def test_arm_sinks_without_torque_and_holds_with_torque(rig):
    rig.torque()
    rig.slices(180)
    held = rig.twin.joints()
    rig.torque(on=False)
    rig.slices(360)
    fallen = rig.twin.joints()
    assert np.abs(fallen - held)[:4].max() > 5.0
    rig.command(to_ticks(fallen))
    rig.torque()
    rig.slices(360)
    assert np.abs(rig.twin.joints() - fallen)[:5].max() < 1.0


def test_stuck_joint_stays_under_full_load(rig):
    rig.torque()
    start = rig.twin.joints()
    rig.faults.schedule(Fault("stuck", joint="shoulder_pan"))
    target = start + np.array([30.0, 0, 0, 0, 0, 20.0])
    rig.command(to_ticks(target))
    rig.slices(360)
    moved = rig.twin.joints() - start
    assert abs(moved[0]) < 0.5 and moved[5] > 15
    load = registers.decode_sign(int.from_bytes(rig.servos[0].read(registers.LOAD, 2), "little"), 10)
    assert load > 900
    rig.faults.clear()
    rig.slices(360)
    assert rig.twin.joints()[0] - start[0] == pytest.approx(30.0, abs=0.5)


def test_torque_limit_bounds_the_actuator_force(rig):
    rig.torque()
    rig.slices(36)
    strong = np.abs(rig.twin.env.data.actuator_force).max()
    for servo in rig.servos:
        servo.write(registers.TORQUE_LIMIT, (50).to_bytes(2, "little"))
    rig.slices(36)
    assert strong > 0.05 * 2.94 >= np.abs(rig.twin.env.data.actuator_force).max() - 1e-9


def test_servo_positions_match_the_joints(rig):
    rig.torque()
    rig.command(to_ticks([20, -40, 30, 40, 10, 60]))
    for _ in range(40):
        rig.slices(9)
        read = [int.from_bytes(servo.read(registers.POSITION, 2), "little") for servo in rig.servos]
        assert np.abs(from_ticks(read) - rig.twin.joints()).max() <= 360 / 4095


def test_joint_trajectory_has_every_slice(rig):
    rig.slices(10)
    rig.torque()
    rig.slices(4000)
    times, positions, goals, late = rig.twin.joint_trajectory(0.0)
    assert times.shape == (4010,) and positions.shape == goals.shape == (4010, 6)
    assert np.allclose(np.diff(times), 1 / 360)
    assert np.isnan(goals[:10]).all() and np.isfinite(goals[10:]).all()
    assert np.allclose(positions[-1], rig.twin.joints()) and late.shape == times.shape
    later, *_ = rig.twin.joint_trajectory(times[3999])
    assert np.array_equal(later, times[4000:])


def test_new_episode_resets_torque_and_state(rig):
    rig.torque()
    rig.command(to_ticks([20, -40, 30, 40, 10, 60]))
    rig.slices(300)
    rig.twin.prepare(EpisodeSetup("desk_object", "red_cube", initial_state=3, seed=0))
    assert [servo.table[registers.TORQUE_ENABLE] for servo in rig.servos] == [0] * 6
    assert rig.twin.joint_trajectory(0.0)[0].size == 0
    fresh = DeskEnv("desk_object", "red_cube", image_size=64)
    fresh.rendering_enabled = False
    fresh.reset(seed=0, options={"initial_state": 3})
    assert np.array_equal(rig.twin.env.data.qpos, fresh.data.qpos)
    # The goal stays the old one: set it before switching torque on.
    assert rig.servos[0].goal_ticks() == to_ticks([20, 0, 0, 0, 0, 0])[0]


def test_prepare_changes_the_task_and_refuses_an_unknown_one(rig):
    before = rig.twin.env
    with pytest.raises(InputError):
        rig.twin.prepare(EpisodeSetup("desk_object", "red_cub", 0, 0))
    assert rig.twin.env is before
    rig.slices(5)
    rig.twin.prepare(EpisodeSetup("desk_memory", first_task("desk_memory"), 1, 0))
    rig.slices(5)
    assert rig.twin.outcome()["instruction"]


def first_task(suite):
    from saccade.sim.desk.tasks.catalogue import find_suite

    return find_suite(suite)[0].name
