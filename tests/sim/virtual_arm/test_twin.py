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


class Bench:
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
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.bus.close()
    bench.twin.close()


def to_ticks(units):
    """Return encoder ticks [6] for positions [6] in the units of the arm."""
    radians = arm.to_radians(np.asarray(units, np.float64).copy())
    return [round(each.ticks(angle)) for each, angle in zip(encoders().values(), radians, strict=True)]


def from_ticks(ticks):
    radians = np.array([each.radians(tick) for each, tick in zip(encoders().values(), ticks, strict=True)])
    return arm.to_units(radians)


def test_twin_matches_the_desk_for_the_same_goals(bench):
    desk = DeskEnv("desk_object", "red_cube", image_size=64)
    desk.rendering_enabled = False
    desk.reset(seed=0, options={"initial_state": 3})
    demonstrator = DeskDemonstrator(desk, np.random.default_rng(0), noise=0.0)
    bench.torque()
    for step in range(desk._max_episode_steps):
        ticks = to_ticks(demonstrator.decide()[1])
        desk.step(from_ticks(ticks))
        bench.command(ticks)
        bench.slices(PHYSICS_STEPS)
        assert np.allclose(bench.twin.env.data.qpos, desk.data.qpos, atol=1e-6), step
        if desk.success():
            break
    outcome = bench.twin.outcome()
    assert desk.success() and outcome["success"] and outcome["over"]
    assert (outcome["steps"], outcome["picked"]) == (desk.steps, desk.picked)


def test_arm_without_torque_is_held_at_its_start_pose_and_no_steps_count(bench):
    bench.slices(360)
    assert np.abs(bench.twin.env.joints() - bench.twin.start_pose).max() < 0.002
    assert bench.twin.outcome()["steps"] == 0
    bench.torque()
    bench.slices(36)
    assert np.abs(bench.twin.env.joints() - bench.twin.start_pose).max() < 0.003
    assert bench.twin.outcome()["steps"] == 0


def test_steps_count_from_the_first_goal_or_from_begin(bench):
    bench.torque()
    bench.command(to_ticks(bench.twin.joints()))
    bench.slices(PHYSICS_STEPS * 5)
    assert bench.twin.outcome()["steps"] == 5
    bench.twin.begin()
    bench.slices(PHYSICS_STEPS * 2)
    assert bench.twin.outcome()["steps"] == 2


def test_success_after_the_step_limit_does_not_count(bench):
    bench.torque()
    bench.twin.begin()
    bench.slices(PHYSICS_STEPS * (bench.twin.env._max_episode_steps + 10))
    outcome = bench.twin.outcome()
    assert outcome["over"] and not outcome["success"]
    assert outcome["steps"] == outcome["max_steps"]


def test_arm_sinks_without_torque_and_holds_with_torque(bench):
    bench.torque()
    bench.slices(180)
    held = bench.twin.joints()
    bench.torque(on=False)
    bench.slices(360)
    fallen = bench.twin.joints()
    assert np.abs(fallen - held)[:4].max() > 5.0
    bench.command(to_ticks(fallen))
    bench.torque()
    bench.slices(360)
    assert np.abs(bench.twin.joints() - fallen)[:5].max() < 1.0


def test_stuck_joint_stays_under_full_load(bench):
    bench.torque()
    start = bench.twin.joints()
    bench.faults.schedule(Fault("stuck", joint="shoulder_pan"))
    target = start + np.array([30.0, 0, 0, 0, 0, 20.0])
    bench.command(to_ticks(target))
    bench.slices(360)
    moved = bench.twin.joints() - start
    assert abs(moved[0]) < 0.5 and moved[5] > 15
    load = registers.decode_sign(int.from_bytes(bench.servos[0].read(registers.LOAD, 2), "little"), 10)
    assert load > 900
    bench.faults.clear()
    bench.slices(360)
    assert bench.twin.joints()[0] - start[0] == pytest.approx(30.0, abs=0.5)


def test_torque_limit_bounds_the_actuator_force(bench):
    bench.torque()
    bench.slices(36)
    strong = np.abs(bench.twin.env.data.actuator_force).max()
    for servo in bench.servos:
        servo.write(registers.TORQUE_LIMIT, (50).to_bytes(2, "little"))
    bench.slices(36)
    assert strong > 0.05 * 2.94 >= np.abs(bench.twin.env.data.actuator_force).max() - 1e-9


def test_servo_positions_match_the_joints(bench):
    bench.torque()
    bench.command(to_ticks([20, -40, 30, 40, 10, 60]))
    for _ in range(40):
        bench.slices(9)
        read = [int.from_bytes(servo.read(registers.POSITION, 2), "little") for servo in bench.servos]
        assert np.abs(from_ticks(read) - bench.twin.joints()).max() <= 360 / 4095


def test_joint_trajectory_has_every_slice(bench):
    bench.slices(10)
    bench.torque()
    bench.slices(4000)
    times, positions, goals, late = bench.twin.joint_trajectory(0.0)
    assert times.shape == (4010,) and positions.shape == goals.shape == (4010, 6)
    assert np.allclose(np.diff(times), 1 / 360)
    assert np.isnan(goals[:10]).all() and np.isfinite(goals[10:]).all()
    assert np.allclose(positions[-1], bench.twin.joints()) and late.shape == times.shape
    later, *_ = bench.twin.joint_trajectory(times[3999])
    assert np.array_equal(later, times[4000:])


def test_new_episode_resets_torque_and_state(bench):
    bench.torque()
    bench.command(to_ticks([20, -40, 30, 40, 10, 60]))
    bench.slices(300)
    bench.twin.prepare(EpisodeSetup("desk_object", "red_cube", initial_state=3, seed=0))
    assert [servo.table[registers.TORQUE_ENABLE] for servo in bench.servos] == [0] * 6
    assert bench.twin.joint_trajectory(0.0)[0].size == 0
    fresh = DeskEnv("desk_object", "red_cube", image_size=64)
    fresh.rendering_enabled = False
    fresh.reset(seed=0, options={"initial_state": 3})
    assert np.array_equal(bench.twin.env.data.qpos, fresh.data.qpos)
    # The goal stays the old one: set it before switching torque on.
    assert bench.servos[0].goal_ticks() == to_ticks([20, 0, 0, 0, 0, 0])[0]


def test_prepare_changes_the_task_and_refuses_an_unknown_one(bench):
    before = bench.twin.env
    with pytest.raises(InputError):
        bench.twin.prepare(EpisodeSetup("desk_object", "red_cub", 0, 0))
    assert bench.twin.env is before
    bench.slices(5)
    bench.twin.prepare(EpisodeSetup("desk_memory", first_task("desk_memory"), 1, 0))
    bench.slices(5)
    assert bench.twin.outcome()["instruction"]


def first_task(suite):
    from saccade.sim.desk.tasks import find_suite

    return find_suite(suite)[0].name
