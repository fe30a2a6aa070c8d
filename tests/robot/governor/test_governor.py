"""The governor, one rule at a time, with a virtual clock."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.robot.governor.governor import Governor
from saccade.robot.governor.outputs import MotorCommand
from saccade.robot.governor.rules import Rules
from saccade_testing.stand_in import PERIOD, TICK, make_chunk, make_limits, make_rules

HOME = np.array([10.0, 20.0, 30.0])


class GovernorRig:
    """A governor with an ideal arm that follows at once; every `tick` advances the time by one tick."""

    def __init__(self, **rules: object) -> None:
        self.governor = Governor(make_rules(**rules))
        self.now, self.pose, self.sequence = 100.0, HOME.copy(), -1
        self.follows, self.is_readable, self.measured = True, True, self.pose
        assert self.governor.begin(0, self.pose, self.now).accepted

    def send(self, target: object, *, age: float = 0.0, **changes: object):
        self.sequence += 1
        fields = {"observed": self.now - age, "sequence": self.sequence, **changes}
        return self.governor.submit(make_chunk(target, **fields), self.now)

    def tick(self, **changes: object) -> MotorCommand:
        self.now += TICK
        measured = self.pose.copy() if self.is_readable else None
        self.measured = self.measured if measured is None else measured
        command = self.governor.tick(self.now, measured, measured_at=self.now, **changes)
        if self.follows:
            self.pose = command.target.copy()
        return command

    def ticks(self, seconds: float, **changes: object) -> list[MotorCommand]:
        return [self.tick(**changes) for _ in range(round(seconds / TICK))]

    def kinds(self, commands: list[MotorCommand]) -> list[str]:
        return [event.kind for command in commands for event in command.events]


def offset_home(*difference: float) -> np.ndarray:
    return HOME + np.array(difference)


def towards(target: np.ndarray, degrees: float = 4.0) -> np.ndarray:
    """Return 16 steps from HOME towards a target, at most `degrees` a step."""
    return np.array([HOME + np.clip(target - HOME, -degrees * (step + 1), degrees * (step + 1)) for step in range(16)])


def test_measured_pose_is_held_before_the_first_chunk():
    rig = GovernorRig()
    for command in rig.ticks(1.0):
        assert command.state == "ready"
        assert np.array_equal(command.target, HOME)


def test_arm_follows_fresh_steps_and_holds_when_the_queue_is_empty():
    rig = GovernorRig()
    assert rig.send(towards(HOME + 40)).accepted
    commands = rig.ticks(0.4)
    assert commands[-1].state == "moving"
    assert np.all(commands[-1].target > HOME + 30)
    commands = rig.ticks(1.0)
    held = [command.target for command in commands if command.state == "holding"]
    assert len(held) > 30
    assert all(np.array_equal(target, held[0]) for target in held)
    assert rig.governor.holds == {"starved": 1}
    assert rig.send(towards(HOME + 40)[-1]).accepted
    assert rig.tick().state == "moving"


def test_hold_commands_the_measured_pose_within_one_tick():
    rig = GovernorRig()
    rig.send(towards(HOME + 40))
    rig.ticks(0.2)
    measured = rig.measured
    rig.governor.hold("camera", "frozen", rig.now)
    command = rig.tick()
    assert command.state == "holding"
    assert np.array_equal(command.target, measured)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(session="elsewhere"), "session"),
        (dict(episode=1), "episode"),
        (dict(episode=-1), "episode"),
        (dict(sequence=-1), "sequence"),
        (dict(observed=99.4), "age"),
        (dict(observed=101.0), "future"),
        (dict(observed=float("nan")), "future"),
        (dict(observed=99.99), "before_hold"),
        (dict(period=0.05), "period"),
    ],
)
def test_stale_or_foreign_chunks_are_rejected(change, reason):
    rig = GovernorRig()
    verdict = rig.send(HOME + 1, **change)
    assert (verdict.accepted, verdict.reason) == (False, reason)
    assert rig.governor.rejected == {reason: 1}
    commands = rig.ticks(0.3)
    assert all(np.array_equal(command.target, HOME) for command in commands)
    assert commands[0].state == "ready"


@pytest.mark.parametrize(
    ("actions", "reason"),
    [
        (np.where(np.eye(16, 3) > 0, np.nan, 10.0), "not_finite"),
        (np.where(np.eye(16, 3) > 0, np.inf, 10.0), "not_finite"),
        (np.where(np.eye(16, 3) > 0, -np.inf, 10.0), "not_finite"),
        (np.zeros((15, 3)), "shape"),
        (np.zeros((16, 4)), "shape"),
        (np.zeros((16, 3, 1)), "shape"),
        (np.zeros((16, 3), np.int64), "dtype"),
        (np.zeros((16, 3), bool), "dtype"),
        (np.zeros((16, 3), np.complex128), "dtype"),
        (np.full((16, 3), None), "dtype"),
    ],
)
def test_malformed_chunk_stops_the_arm_until_rearm(actions, reason):
    rig = GovernorRig()
    rig.send(towards(HOME + 40))
    rig.ticks(0.1)
    pose = rig.measured
    chunk = dataclasses.replace(make_chunk(HOME, observed=rig.now, sequence=5), actions=actions)
    assert rig.governor.submit(chunk, rig.now).reason == reason
    commands = rig.ticks(0.2)
    assert {command.state for command in commands} == {"stopped"}
    assert all(np.array_equal(command.target, pose) for command in commands)
    assert rig.send(HOME, sequence=6).reason == "stopped"
    assert rig.governor.rearm(rig.now).accepted
    assert rig.send(pose, sequence=7).accepted
    assert rig.tick().state == "moving"


def test_malformed_chunk_of_another_session_does_not_stop_the_arm():
    rig = GovernorRig()
    assert rig.send(np.full((16, 3), np.nan), session="elsewhere").reason == "session"
    assert rig.tick().state == "ready"


def test_old_sequence_number_is_rejected_despite_a_fresh_observation():
    rig = GovernorRig()
    assert rig.send(HOME, sequence=7).accepted
    assert rig.send(HOME, sequence=7).reason == "sequence"
    assert rig.send(HOME, sequence=6).reason == "sequence"
    assert rig.send(HOME, sequence=8).accepted


def test_out_of_range_targets_are_clamped_and_hold_beyond_the_tolerance():
    rig = GovernorRig(limits=dataclasses.replace(make_limits(), high=(12.0, 97.0, 100.0)))
    rig.send(offset_home(4.0, 0.0, 0.0))
    assert max(command.target[0] for command in rig.ticks(0.4)) == 12.0
    assert rig.governor.counts["position_clamps"] > 1
    assert not rig.governor.holds
    rig.send(offset_home(8.5, 0.0, 0.0))
    rig.ticks(0.2)
    assert rig.governor.holds == {"position": 1}, "three steps in a row beyond the tolerance of 5"
    rig.send(offset_home(13.0, 0.0, 0.0))
    rig.tick()
    assert max(command.target[0] for command in rig.ticks(0.4)) == 12.0
    assert rig.governor.state == "holding", "more than twice the tolerance"


def test_too_fast_steps_are_clamped_and_counted():
    rig = GovernorRig()
    steps = np.repeat(HOME[None], 16, axis=0)
    steps[3:, 0] += 12.0  # 9 degrees a step are allowed
    rig.send(steps)
    commands = rig.ticks(0.4)
    moved = np.diff([command.target[0] for command in commands])
    assert moved.max() <= 270.0 * TICK + 1e-9
    assert commands[-1].target[0] == pytest.approx(HOME[0] + 12.0)
    assert rig.governor.counts["speed_clamps"] == 1
    assert not rig.governor.holds


def test_repeated_or_gross_speed_violations_hold_the_arm():
    rig = GovernorRig()
    steps = HOME + np.outer(np.arange(16), [12.0, 0.0, 0.0])
    rig.send(np.minimum(steps, 105.0))
    rig.ticks(0.3)
    assert rig.governor.holds == {"speed": 1}
    rig = GovernorRig()
    steps = np.repeat(HOME[None], 16, axis=0)
    steps[3:, 1] += 19.0
    rig.send(steps)
    commands = rig.ticks(0.4)
    assert rig.governor.holds == {"speed": 1}
    assert all(np.array_equal(command.target, HOME) for command in commands), "no part of the step is played"


def test_only_an_observation_after_the_hold_moves_the_arm_again():
    rig = GovernorRig()
    steps = np.repeat(HOME[None], 16, axis=0)
    steps[3:, 1] += 19.0
    rig.send(steps)
    rig.ticks(0.2)
    assert rig.send(HOME + 1, age=0.15).reason == "before_hold"
    assert rig.send(HOME + 1).accepted
    assert rig.tick().state == "moving"


def test_first_command_far_from_the_measured_pose_is_refused():
    rig = GovernorRig()
    rig.send(offset_home(0.0, 40.0, 0.0))
    commands = rig.ticks(0.3)
    assert {command.state for command in commands} == {"holding"}
    assert all(np.array_equal(command.target, HOME) for command in commands)
    assert any("elbow_flex.pos by 40.0" in event.detail for command in commands for event in command.events)


def test_ramp_leads_to_a_distant_first_command():
    rig = GovernorRig(start="ramp")
    states = []
    for _ in range(20):
        rig.send(offset_home(0.0, 60.0, 0.0))
        commands = rig.ticks(0.1)
        states += [command.state for command in commands]
        assert max(np.diff([command.target[1] for command in commands])) <= 270.0 * TICK + 1e-9
        if "moving" not in states:
            assert max(np.diff([command.target[1] for command in commands])) <= 90.0 * TICK + 1e-9
    assert states[0] == "ramping"
    assert states[-1] == "moving"
    assert 25 < states.index("moving") < 45
    assert rig.pose[1] == pytest.approx(HOME[1] + 60.0)


def test_ramp_holds_without_fresh_targets():
    rig = GovernorRig(start="ramp")
    rig.send(offset_home(0.0, 60.0, 0.0))
    commands = rig.ticks(1.0)
    assert commands[-1].state == "holding"
    assert rig.pose[1] < HOME[1] + 50.0


def test_ramp_that_never_arrives_stops_the_arm():
    rig = GovernorRig(start="ramp", ramp_seconds=1.0)
    for step in range(20):
        rig.send(offset_home(0.0, 60.0 if step % 2 else -60.0, 0.0))
        rig.ticks(0.1)
    assert rig.governor.state == "stopped"
    assert rig.governor.reason == "ramp"


def test_drop_empties_the_queue_and_rejects_earlier_observations():
    rig = GovernorRig()
    rig.send(towards(HOME + 40))
    rig.ticks(0.1)
    pose = rig.measured
    before = rig.now
    rig.governor.drop(rig.now)
    assert rig.governor.remaining(rig.now) == 0
    assert np.array_equal(rig.tick().target, pose)
    assert rig.send(towards(HOME + 40), observed=before - 0.01).reason == "before_hold"
    assert rig.send(pose).accepted
    assert rig.tick().state == "moving"


def test_stop_is_latched_until_rearm():
    rig = GovernorRig()
    rig.send(towards(HOME + 40))
    rig.ticks(0.1)
    pose = rig.measured
    rig.governor.stop("stop requested", rig.now)
    assert rig.send(HOME).reason == "stopped"
    assert all(np.array_equal(command.target, pose) for command in rig.ticks(5.0))
    assert rig.governor.begin(1, pose, rig.now).reason == "stopped"
    old = rig.now
    rig.ticks(0.1)
    assert rig.governor.rearm(rig.now).accepted
    assert not rig.governor.rearm(rig.now).accepted
    assert np.array_equal(rig.tick().target, pose)
    assert rig.send(HOME, observed=old).reason == "before_hold"
    assert rig.send(pose).accepted
    assert rig.tick().state == "moving"


def test_long_hold_becomes_a_stop():
    rig = GovernorRig()
    rig.send(HOME)
    rig.ticks(2.4)
    assert rig.governor.state == "holding"
    rig.ticks(0.4)
    assert rig.governor.state == "stopped"
    assert rig.send(HOME).reason == "stopped"


def test_goal_follows_a_stopped_arm_that_is_moved_by_hand():
    rig = GovernorRig()
    rig.governor.stop("stop requested", rig.now)
    rig.ticks(0.3)
    rig.follows = False
    for step in range(40):
        rig.pose = offset_home(-step, 0, 0)
        command = rig.tick()
        assert np.abs(command.target - rig.pose).max() <= 5.0
        assert command.state == "stopped"
    rig.pose = offset_home(-42, 0, 0)
    assert np.abs(rig.tick().target - command.target).max() <= 6.0
    assert rig.governor.counts["displaced"] > 5


def test_held_arm_that_is_moved_by_hand_stops():
    rig = GovernorRig()
    rig.send(HOME)
    rig.ticks(1.0)
    assert rig.governor.state == "holding"
    rig.pose = offset_home(0, 6, 0)
    command = rig.tick()
    assert (command.state, rig.governor.reason) == ("stopped", "displaced")
    assert np.array_equal(command.target, rig.measured)


def test_moving_the_arm_by_hand_is_allowed_in_a_dry_run():
    rig = GovernorRig(follows=False)
    rig.send(HOME)
    rig.ticks(1.0)
    rig.pose = offset_home(0, 30, 0)
    assert rig.tick().state == "holding"


def test_unreadable_arm_is_held_until_a_later_observation():
    rig = GovernorRig()
    rig.send(towards(HOME + 40))
    rig.ticks(0.2)
    measured, unreadable_since = rig.measured, rig.now
    rig.is_readable = False
    commands = rig.ticks(0.2)
    assert {command.state for command in commands} == {"holding"}
    assert all(np.array_equal(command.target, measured) for command in commands)
    assert rig.governor.holds == {"bus": 1}
    rig.is_readable = True
    assert rig.send(measured, observed=unreadable_since).reason == "before_hold"
    assert rig.send(measured).accepted
    assert rig.tick().state == "moving"


def test_hold_waits_for_a_fresh_measurement():
    rig = GovernorRig(measurement_age=0.2)
    rig.send(towards(HOME + 40))
    rig.ticks(0.1)
    at, pose = rig.now, rig.pose - 2.0
    targets = []
    for _ in range(9):
        rig.now += TICK
        targets.append(rig.governor.tick(rig.now, pose, measured_at=at).target)
    rig.governor.hold("camera", "frozen", rig.now)
    rig.now += TICK
    assert np.array_equal(rig.governor.tick(rig.now, pose, measured_at=at).target, targets[-1])
    rig.pose = pose
    assert np.array_equal(rig.tick().target, pose)
    rig.pose = pose - 1.0
    assert np.array_equal(rig.tick().target, pose), "the goal follows once"


def test_old_measurement_counts_as_missing():
    rig = GovernorRig()
    rig.send(towards(HOME + 40))
    rig.ticks(0.1)
    at = rig.now
    for _ in range(6):
        rig.now += TICK
        command = rig.governor.tick(rig.now, rig.pose, measured_at=at)
    assert command.state == "holding"
    assert rig.governor.holds == {"measurement_age": 1}


@pytest.mark.parametrize("measured", [np.array([np.nan, 0, 0]), np.zeros(2), None])
def test_malformed_measurement_counts_as_missing(measured):
    rig = GovernorRig()
    rig.send(towards(HOME + 40))
    rig.ticks(0.1)
    rig.now += TICK
    command = rig.governor.tick(rig.now, measured, measured_at=rig.now)
    assert command.state == "holding"
    assert np.isfinite(command.target).all()


def test_no_motion_begins_without_a_measurement():
    rig = GovernorRig()
    rig.is_readable = False
    rig.send(HOME + 1)
    assert all(np.array_equal(command.target, HOME) for command in rig.ticks(0.3))


def test_stuck_joint_stops_the_arm():
    rig = GovernorRig()
    rig.follows = False
    for step in range(8):
        rig.send(HOME + np.outer(np.arange(16) + 4 * step, [0.0, 3.0, 0.0]).clip(max=75))
        commands = rig.ticks(4 * PERIOD)
    assert rig.governor.reason == "stuck"
    assert np.array_equal(commands[-1].target, HOME), "the motor stops pushing"


def test_sustained_overruns_lead_to_a_slow_stop():
    rig = GovernorRig()
    for _ in range(6):
        for _ in range(2):
            rig.send(rig.pose + np.outer(np.arange(16), [0.5, 0.0, 0.0]))
            rig.ticks(0.28)
        rig.tick(overran=True)
        assert rig.governor.state == "moving"
    assert rig.governor.counts["overruns"] == 6
    rig.send(rig.pose + np.outer(np.arange(16), [4.0, 0.0, 0.0]))
    commands = rig.ticks(0.14, overran=True) + rig.ticks(0.4)
    states = [command.state for command in commands]
    assert "stopping" in states
    assert states[-1] == "stopped"
    speeds = np.diff([command.target[0] for command in commands if command.state == "stopping"])
    assert len(speeds) > 5
    assert np.all(speeds >= 0.0)
    assert speeds[-1] < 0.5 * speeds.max()
    assert rig.send(HOME).reason == "stopped"


def test_steps_skipped_by_a_late_tick_are_no_speed_violation():
    rig = GovernorRig()
    rig.send(towards(HOME + 60, degrees=6.0))
    rig.ticks(0.1)
    rig.now += 0.1
    command = rig.tick(overran=True)
    assert command.state == "moving"
    assert not rig.governor.holds


def test_time_that_does_not_advance_moves_nothing():
    rig = GovernorRig()
    rig.send(towards(HOME + 40))
    rig.ticks(0.1)
    for now in (rig.now, rig.now - 0.01):
        command = rig.governor.tick(now, rig.pose, measured_at=now)
        assert np.array_equal(command.target, rig.pose)


def test_episode_begins_only_with_a_pose_within_the_limits():
    rig = GovernorRig()
    rig.governor.end(rig.now)
    assert rig.send(HOME).reason == "episode"
    verdict = rig.governor.begin(1, np.array([0.0, 130.0, 50.0]), rig.now)
    assert verdict.reason == "outside"
    assert "elbow_flex.pos at 130.0" in verdict.detail
    assert rig.governor.begin(1, np.array([0.0, np.nan, 50.0]), rig.now).reason == "measurement"
    assert rig.tick().state == "idle"
    assert rig.governor.begin(1, HOME, rig.now).accepted
    assert rig.send(HOME, episode=0).reason == "episode"
    assert rig.send(HOME, episode=1).accepted


def test_nothing_moves_between_episodes():
    rig = GovernorRig()
    rig.send(towards(HOME + 40))
    rig.ticks(0.1)
    rig.governor.end(rig.now)
    pose = rig.measured
    assert all(np.array_equal(command.target, pose) for command in rig.ticks(3.0))
    assert rig.governor.state == "idle"


def test_dry_run_starts_every_chunk_at_the_measured_pose():
    rig = GovernorRig(follows=False)
    rig.follows = False
    states = set()
    for _ in range(5):
        rig.send(towards(HOME + 40))
        states |= {command.state for command in rig.ticks(0.26)}
    assert states == {"moving"}
    assert not rig.governor.holds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(start="jump"), "Rules.start"),
        (dict(aggregation="sum"), "Rules.aggregation"),
        (dict(tick=0.0), "Rules.tick"),
        (dict(tick=0.05), "Run the control loop at least at the contract's rate"),
        (dict(age_limit=0.7), "at most 0.5 seconds"),
        (dict(at_once=1.0), "Rules.at_once"),
        (dict(ramp_share=1.5), "Rules.ramp_share"),
    ],
)
def test_invalid_rules_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make_rules(**changes)


def test_rules_survive_a_json_round_trip():
    rules = make_rules(start="ramp")
    assert Rules.from_json(rules.to_json()) == rules
    assert make_rules(chunk=3).max_step_age == pytest.approx(0.1)
