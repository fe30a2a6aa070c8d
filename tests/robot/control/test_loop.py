"""The control loop with a virtual clock, in the process of the test: deadlines, overruns, torque, and its end."""

from __future__ import annotations

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.robot.arm import ArmDescription, BusError
from saccade.robot.control import messages, system_events
from saccade.robot.control.channel import Channel
from saccade.robot.control.loop import ControlLoop, LoopSettings
from saccade.robot.governor.governor import Governor
from saccade.robot.governor.recorder import RecordedGovernor
from saccade_testing.stand_in import RANGES, TICK, make_chunk, make_rules

HOME = np.array([10.0, 20.0, 30.0])


class Clock:
    """A virtual clock: time passes only in `sleep` and in the arm's calls."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class ScriptedArm:
    """Records every call with its time. A read takes `read_seconds`; `plan` maps read numbers to functions."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.calls, self.reads, self.retries = clock, [], 0, 0
        self.pose, self.read_seconds, self.plan = HOME.copy(), 0.0, {}
        self.is_unreadable = self.is_limp = False

    def measure(self) -> np.ndarray:
        self.reads += 1
        self.plan.pop(self.reads, lambda: None)()
        self.clock.now += self.read_seconds
        if self.is_unreadable:
            raise BusError("no answer")
        return self.pose.copy()

    def command(self, target: np.ndarray) -> None:
        self.calls.append((self.clock.now, "goal", target.copy()))
        self.pose = target.copy()

    def hold(self) -> np.ndarray:
        self.calls.append((self.clock.now, "hold", self.pose.copy()))
        return self.pose

    def set_torque(self, *, on: bool) -> None:
        self.calls.append((self.clock.now, "torque", on))

    def has_torque(self) -> bool:
        return not self.is_limp

    def motors_in_protection(self) -> str:
        return ""

    def close(self) -> None:
        self.calls.append((self.clock.now, "closed", None))

    def kinds(self) -> list[str]:
        return [kind for _, kind, _ in self.calls]


class Rig:
    """A loop, its arm and the session's end of its channel."""

    def __init__(self, **settings: object) -> None:
        self.clock = Clock()
        self.arm = ScriptedArm(self.clock)
        ours, theirs = Channel.pair()
        self.session = Channel(ours)
        self.governor = RecordedGovernor(Governor(make_rules(start="ramp")), None)
        self.loop = ControlLoop(
            self.arm,
            ArmDescription("scripted", RANGES),
            self.governor,
            Channel(theirs),
            LoopSettings(raise_priority=False, **settings),
            clock=self.clock,
            sleep=self.clock.sleep,
        )
        self.sequence = 0
        self.at(1, self.begin)

    def at(self, read: int, action) -> None:
        self.arm.plan[read] = action

    def begin(self) -> None:
        self.session.send(messages.BeginEpisode(0))

    def chunk(self, target: np.ndarray | None = None) -> None:
        self.sequence += 1
        target = self.arm.pose + 1.0 if target is None else target
        chunk = make_chunk(target, observed=self.clock.now, sequence=self.sequence)
        self.session.send(messages.SubmitChunk(chunk))

    def close(self) -> None:
        self.session.send(messages.CloseSession(release=False))

    def received[Kind](self, kind: type[Kind]) -> list[Kind]:
        """Return the messages of a type that the loop has sent."""
        return [message for message in self.session.receive() if isinstance(message, kind)]


def test_goal_is_set_to_the_present_pose_before_torque():
    rig = Rig()
    rig.at(5, rig.close)
    rig.loop.run()
    assert rig.arm.kinds()[:2] == ["hold", "torque"]
    assert set(rig.arm.kinds()[2:]) == {"goal"}
    assert all(np.array_equal(value, HOME) for _, kind, value in rig.arm.calls if kind == "goal")


def test_dry_run_writes_nothing_and_leaves_torque_off():
    rig = Rig(dry_run=True)
    rig.at(4, rig.chunk)
    rig.at(20, rig.close)
    rig.loop.run()
    assert rig.arm.calls == []
    assert "moving" in {each.state for each in rig.received(messages.Measurement)}


def test_arm_outside_its_limits_gets_no_torque():
    rig = Rig()
    rig.arm.pose = np.array([0.0, 150.0, 30.0])
    rig.at(5, rig.close)
    rig.loop.run()
    assert rig.arm.calls == []


def test_deadlines_are_absolute():
    rig = Rig()
    rig.arm.read_seconds = 0.013
    rig.at(200, rig.close)
    rig.loop.run()
    times = [time for time, kind, _ in rig.arm.calls if kind == "goal"][5:150]
    assert np.allclose(np.diff(times), TICK)
    assert rig.loop.metrics().overruns == 0
    assert rig.loop.metrics().period_p99_ms == pytest.approx(20.0, abs=0.2)


def test_late_tick_is_counted_and_missed_ticks_are_skipped():
    rig = Rig()

    def stall() -> None:
        rig.clock.now += 0.11

    rig.at(50, stall)
    rig.at(100, rig.close)
    rig.loop.run()
    metrics = rig.loop.metrics()
    assert metrics.overruns == 1
    assert metrics.period_max_ms == pytest.approx(120.0)
    times = np.array([time for time, kind, _ in rig.arm.calls if kind == "goal"])
    assert np.min(np.diff(times[:90])) > 0.4 * TICK, "missed ticks are not made up for"


def test_sustained_overruns_stop_the_arm():
    rig = Rig()
    rig.arm.read_seconds = 0.03
    for read in range(4, 60, 4):
        rig.at(read, rig.chunk)
    rig.at(60, rig.close)
    rig.loop.run()
    assert rig.governor.governor.reason == "overruns"
    assert rig.governor.governor.counts["stops"] == 1


def test_missing_heartbeat_holds_the_arm():
    rig = Rig()
    rig.at(4, rig.chunk)
    rig.at(90, rig.close)
    rig.loop.run()
    assert rig.governor.governor.holds == {"heartbeat": 1}
    held = next(each.time for each in rig.received(messages.Measurement) if each.state == "holding")
    assert held - 100.0 == pytest.approx(0.3, abs=0.1)


def test_heartbeats_prevent_a_hold():
    rig = Rig()
    for read in range(2, 98, 8):
        rig.at(read, lambda: rig.session.send(messages.Heartbeat()))
    rig.at(98, rig.close)
    rig.loop.run()
    assert not rig.governor.governor.holds


def test_lost_session_holds_the_arm_within_one_tick_with_torque_on():
    rig = Rig()
    rig.at(4, rig.chunk)
    gone = []

    def end_session() -> None:
        rig.chunk(rig.arm.pose + 5.0)  # sent right before the session ends
        rig.session.close()
        gone.append((rig.clock.now, len(rig.arm.calls)))

    rig.at(9, end_session)
    rig.loop.run()
    time, calls = gone[0]
    after = [value for _, kind, value in rig.arm.calls[calls + 1 :] if kind == "goal"]
    assert len(after) >= 4
    assert all(np.array_equal(value, after[0]) for value in after)
    assert rig.arm.calls[calls + 1][0] - time <= TICK + 1e-9
    assert rig.arm.kinds().count("torque") == 1
    assert rig.governor.governor.state == "stopped"


def test_malformed_message_stops_the_arm():
    rig = Rig()
    rig.at(4, rig.chunk)
    rig.at(9, lambda: rig.session._socket.send((9).to_bytes(4, "little") + b'["Jump",0]'))
    rig.loop.run()
    assert rig.governor.governor.state == "stopped"
    held = [value for _, kind, value in rig.arm.calls[-4:] if kind == "goal"]
    assert len(held) == 4
    assert all(np.array_equal(value, held[0]) for value in held)


def test_bus_failure_holds_the_arm():
    rig = Rig()
    rig.at(4, rig.chunk)
    rig.at(9, lambda: setattr(rig.arm, "is_unreadable", True))
    rig.at(14, lambda: setattr(rig.arm, "is_unreadable", False))
    rig.at(15, rig.close)
    rig.loop.run()
    assert rig.governor.governor.holds == {"bus": 1}
    assert rig.loop.metrics().bus_failures == 5


def test_servo_that_lost_its_torque_stops_the_arm_until_rearm():
    rig = Rig()
    rig.at(4, rig.chunk)
    rig.at(9, lambda: setattr(rig.arm, "is_unreadable", True))

    def restore_bus() -> None:
        rig.arm.is_unreadable, rig.arm.is_limp = False, True

    def rearm() -> None:
        rig.arm.is_limp = False
        rig.arm.calls.append((rig.clock.now, "re-armed", None))
        rig.session.send(messages.RearmArm())

    rig.at(12, restore_bus)
    rig.at(20, rearm)
    rig.at(25, rig.close)
    rig.loop.run()
    kinds = rig.arm.kinds()
    place = kinds.index("re-armed")
    assert kinds[place : place + 4] == ["re-armed", "hold", "torque", "goal"]
    assert rig.governor.governor.counts["stops"] == 1
    written = [time for time, kind, _ in rig.arm.calls[:place] if kind == "goal"]
    assert rig.arm.calls[place][0] - written[-1] > 7 * TICK, "nothing is written to servos without torque"


def test_episode_does_not_begin_on_a_dead_bus():
    rig = Rig()
    rig.arm.is_unreadable = True
    rig.at(6, rig.close)
    rig.loop.run()
    assert rig.arm.calls == []
    assert [each.verdict.reason for each in rig.received(messages.EpisodeBegun)] == ["bus"]


def test_arm_is_held_before_an_error_is_raised():
    rig = Rig()
    rig.at(4, rig.chunk)

    def fail() -> None:
        raise ZeroDivisionError("a fault")

    rig.at(9, fail)
    with pytest.raises(ZeroDivisionError):
        rig.loop.run()
    held = [value for _, kind, value in rig.arm.calls[-4:] if kind == "goal"]
    assert len(held) == 4
    assert all(np.array_equal(value, held[0]) for value in held)


def test_arm_is_held_after_a_governor_error(monkeypatch):
    rig = Rig()

    def fail() -> None:
        monkeypatch.setattr(rig.governor, "tick", lambda *_, **__: 1 / 0)

    rig.at(9, fail)
    with pytest.raises(ZeroDivisionError):
        rig.loop.run()
    assert rig.arm.kinds()[-3:] == ["hold"] * 3


def test_recorder_failure_stops_the_arm():
    rig = Rig()
    rig.loop._recorder_failure = lambda: "no space left" if rig.arm.reads > 10 else None
    rig.at(20, rig.close)
    rig.loop.run()
    assert rig.governor.governor.reason == "stop"
    last = [each for each in rig.received(messages.Measurement) if each.events][-1]
    assert "no space left" in last.events[0].detail


def test_suspended_machine_stops_the_arm(monkeypatch):
    rig = Rig()
    monkeypatch.setattr(system_events, "_suspended_seconds", lambda: 5.0 if rig.arm.reads > 10 else 0.0)
    rig.loop._suspend_detector = system_events.SuspendDetector()
    rig.at(20, rig.close)
    rig.loop.run()
    assert rig.governor.governor.state == "stopped"
    events = [event for each in rig.received(messages.Measurement) for event in each.events]
    assert any("suspended for 5.0 s" in event.detail for event in events if event.kind == "stopped")


def test_end_of_episode_releases_the_torque_if_asked():
    for release in (True, False):
        rig = Rig()
        rig.at(6, lambda rig=rig, release=release: rig.session.send(messages.EndEpisode(release)))
        rig.at(12, rig.close)
        rig.loop.run()
        assert (rig.arm.kinds()[-1] == "goal") is not release
        torques = [value for _, kind, value in rig.arm.calls if kind == "torque"]
        assert torques == ([True, False] if release else [True])


def test_invalid_settings_are_refused():
    with pytest.raises(InputError, match="loop_hz"):
        LoopSettings(loop_hz=0.5)
    with pytest.raises(InputError, match="heartbeat_seconds"):
        LoopSettings(heartbeat_seconds=0.01)
