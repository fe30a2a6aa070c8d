"""Complete sessions with a fake arm: episodes, and how policies, cameras and operators end them."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from saccade.errors import InputError, WorldError
from saccade.policy.contract import ContractMismatch
from saccade.robot.control.loop import LoopSettings
from saccade.robot.governor.recorder import read_flight_record, replay_flight_record
from saccade.robot.session.settings import EpisodePlan
from saccade.robot.session.summary import SessionObserver
from saccade_testing import SUPPORT
from saccade_testing.fake_arm import HOME, goals, recorded_lines
from saccade_testing.stage import WARM_UP, ClimbingPolicy, SessionRig

pytestmark = pytest.mark.real_time


@pytest.fixture
def rig(tmp_path):
    return SessionRig(tmp_path)


def at_decision(decisions: int, chunk_policy: ClimbingPolicy, act) -> None:
    """Call `act` at a decision after the warm-up; it may replace the actions."""

    def replace_actions(actions):
        replaced = act()
        return actions if replaced is None else replaced

    chunk_policy.script[WARM_UP + decisions] = replace_actions


class EventLog(SessionObserver):
    """Records the kinds of events, and the chunks."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.chunks = 0

    def on_event(self, event):
        self.kinds.append(event.kind)

    def on_chunk(self, chunk, seconds):
        self.chunks += 1

    def has(self, *kinds: str) -> bool:
        """Return whether events of these kinds came, in this order."""
        rest = iter(self.kinds)
        return all(kind in rest for kind in kinds)


def ends_when(condition):
    """Return an end condition: an episode ends once `condition()` is true."""
    return lambda: "reached" if condition() else None


LONG = 30.0
"""Seconds of an episode that ends earlier for another reason."""


def test_episode_ends_after_its_time_with_the_arm_held(rig):
    summary = rig.run()
    (episode,) = summary.episodes
    assert episode.ended_by == "time"
    assert 1.0 <= episode.seconds < 1.5
    assert episode.decisions > 2
    assert summary.stopped == ""
    assert goals(rig.folder)[-1][0] > HOME[0] + 5
    rig.assert_held()
    metrics = summary.metrics
    assert metrics.chunks >= episode.decisions - 1
    assert metrics.decisions == episode.decisions
    assert metrics.decision_p50_ms > 10.0
    assert metrics.round_trip_p50_ms > 10.0
    assert summary.warm_up_ms > 10.0
    assert any("observation to command" in line for line in summary.lines())
    assert replay_flight_record(rig.folder / "flight.jsonl").identical


def test_end_condition_ends_the_episode_with_its_outcome(rig):
    calls = []

    def succeeds_at_the_fourth_call():
        calls.append(time.monotonic())
        return {"success": True} if len(calls) > 3 else None

    summary = rig.run(EpisodePlan("go up", LONG), end_condition=succeeds_at_the_fourth_call)
    assert summary.episodes[0].ended_by == "condition"
    assert summary.episodes[0].outcome == {"success": True}
    assert len(calls) == 4
    assert np.diff(calls).min() > 0.05, "ten calls a second"


def test_every_episode_is_prepared_and_has_its_own_instruction(rig):
    prepared = []

    def prepare(index):
        torque = [line["torque"] for line in recorded_lines(rig.folder, "torque")]
        prepared.append((index, torque[-1] if torque else None))
        return "paraphrased" if index == 1 else None

    plans = (EpisodePlan("first", 0.2), EpisodePlan("second", 0.2), EpisodePlan("third", 0.2))
    summary = rig.run(*plans, prepare=prepare, release_between_episodes=True)
    assert [each.instruction for each in summary.episodes] == ["first", "paraphrased", "third"]
    assert rig.chunk_policy.instructions[0] == "first"
    assert rig.chunk_policy.instructions[-2:] == ["paraphrased", "third"]
    assert prepared == [(0, None), (1, False), (2, False)], "torque is off between episodes"
    assert [line["torque"] for line in recorded_lines(rig.folder, "torque")] == [True, False, True, False, True]
    rig.assert_held()


def test_observer_gets_every_call(rig):
    class CallRecorder(SessionObserver):
        def __init__(self) -> None:
            self.calls, self.views = [], []

        def on_session_start(self, arm):
            self.calls.append("started")

        def on_episode_start(self, episode, instruction):
            self.calls.append(f"began {episode} {instruction}")

        def on_step(self, view):
            self.views.append(view)

        def on_chunk(self, chunk, seconds):
            self.calls.append("decided")

        def on_event(self, event):
            self.calls.append(event.kind)

        def on_episode_end(self, summary):
            self.calls.append("ended")

    recorder = CallRecorder()
    is_done = ends_when(lambda: len(recorder.views) > 15 and "moving" in recorder.calls)
    summary = rig.run(EpisodePlan("go up", LONG), observer=recorder, end_condition=is_done)
    assert recorder.calls[0] == "started"
    assert {"began 0 go up", "decided", "ready", "moving", "ended"} <= set(recorder.calls)
    assert 15 < len(recorder.views) <= 30 * summary.episodes[0].seconds + 3, "30 a second"
    assert recorder.views[-1].frames["front"].image.shape == (16, 16, 3)
    assert recorder.views[-1].state == "moving"


def test_nothing_moves_in_a_dry_run(rig):
    loop, log = LoopSettings(heartbeat_seconds=2.0, raise_priority=False, dry_run=True), EventLog()
    summary = rig.run(
        EpisodePlan("go up", LONG), loop=loop, observer=log, end_condition=ends_when(lambda: log.chunks > 2)
    )
    assert summary.dry_run
    assert summary.episodes[0].decisions > 2
    assert summary.metrics.chunks > 1
    assert not recorded_lines(rig.folder)
    assert not recorded_lines(rig.folder, "torque")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda actions: np.full_like(actions, np.nan), "not_finite"),
        (lambda actions: actions[:3], "shape"),
        (lambda actions: actions.astype(np.int32), "dtype"),
        (lambda actions: np.full((16, 3), None), "dtype"),
    ],
)
def test_malformed_actions_stop_the_arm(rig, broken, reason):
    rig.chunk_policy.script[WARM_UP + 3] = broken
    summary = rig.run(EpisodePlan("go up", LONG))
    assert summary.stopped == reason
    assert summary.episodes[0].ended_by == f"stopped: {reason}"
    rig.assert_held()


def test_policy_error_is_raised_after_the_arm_is_held(rig):
    def fail():
        raise ZeroDivisionError("in the network")

    at_decision(3, rig.chunk_policy, fail)
    with pytest.raises(WorldError, match="the policy failed: ZeroDivisionError: in the network"):
        rig.run(EpisodePlan("go up", LONG))
    rig.assert_held()


def test_hanging_policy_is_reported_and_the_arm_is_held(rig):
    gate = threading.Event()
    at_decision(3, rig.chunk_policy, lambda: gate.wait(30) and None)
    with pytest.raises(WorldError, match="the policy has given no answer for"):
        rig.run(EpisodePlan("go up", 60.0), decision_seconds=0.7)
    assert not gate.is_set(), "the session did not wait for the decision"
    gate.set()
    rig.assert_held()
    states = [line["state"] for line in read_flight_record(rig.folder / "flight.jsonl") if line["call"] == "tick"]
    assert "holding" in states


def test_late_decision_is_rejected(rig):
    at_decision(3, rig.chunk_policy, lambda: time.sleep(0.8))
    log = EventLog()
    resumed = ends_when(lambda: log.has("holding", "rejected", "moving") and goals(rig.folder)[-1][0] > HOME[0] + 5)
    summary = rig.run(EpisodePlan("go up", LONG), observer=log, end_condition=resumed)
    assert summary.metrics.rejected["age"] >= 1
    assert summary.episodes[0].holds["starved"] >= 1
    assert goals(rig.folder)[-1][0] > HOME[0] + 5, "fresh chunks move the arm again"


def test_too_slow_policy_is_refused_before_torque(rig):
    rig.chunk_policy.decision_seconds = 0.4
    with pytest.raises(InputError, match=r"policy: got a decision in 4\d\d ms, expected at most 250 ms"):
        rig.run(warm_up_decisions=2)
    assert not recorded_lines(rig.folder, "torque")


def test_contract_mismatch_lists_every_difference(rig):
    contract = rig.chunk_policy.contract
    names = ("shoulder_roll.pos", "elbow_flex.pos", "gripper.pos")
    units = ("degrees", "radians", "percent")
    rig.chunk_policy.contract = dataclasses.replace(
        contract,
        state=dataclasses.replace(contract.state, names=names, units=units),
        action=dataclasses.replace(contract.action, names=names, units=units),
    )
    with pytest.raises(ContractMismatch, match="not met in 4 places") as mismatch:
        rig.run()
    assert "add shoulder_roll.pos and leave out shoulder_pan.pos" in str(mismatch.value).lower()
    assert not recorded_lines(rig.folder, "torque")


def test_arm_error_is_raised(rig):
    rig.refusal = "Check its cable."
    with pytest.raises(InputError, match="servo 3"):
        rig.run()


def test_distant_first_command_is_refused_or_reached_by_a_ramp(rig, tmp_path):
    rig.chunk_policy.script = {number: lambda actions: actions + np.float32([40.0, 0.0, 0.0]) for number in range(100)}
    with pytest.raises(InputError, match=r"first command: got .*shoulder_pan.pos by 4"):
        rig.run()
    assert np.all(np.abs(goals(rig.folder) - HOME).max() < 0.5), "the arm has not moved"
    other = SessionRig(tmp_path / "other")
    other.folder.mkdir()
    other.chunk_policy.script[WARM_UP + 1] = lambda actions: actions + np.float32([40.0, 0.0, 0.0])
    log = EventLog()
    summary = other.run(
        EpisodePlan("go up", LONG),
        start="ramp",
        observer=log,
        end_condition=ends_when(lambda: log.has("ramping", "moving")),
    )
    assert summary.episodes[0].ended_by == "condition"


@pytest.mark.parametrize(("mode", "reason"), [("frozen", "camera_frozen"), ("dropped", "camera_age")])
def test_camera_fault_holds_the_arm_until_it_ends(rig, mode, reason):
    log = EventLog()

    def fail() -> None:
        rig.camera.mode = mode

    def resumed() -> str | None:
        if rig.cameras.refused[reason] and "holding" in log.kinds:
            rig.camera.mode = "live"
        return "reached" if log.has("moving", "holding", "moving") else None

    at_decision(3, rig.chunk_policy, fail)
    summary = rig.run(EpisodePlan("go up", LONG), observer=log, end_condition=resumed)
    assert summary.episodes[0].ended_by == "condition"
    assert summary.episodes[0].refused_observations[reason] >= 1
    assert set(summary.episodes[0].holds) & {reason, "starved"}
    states = [line["state"] for line in read_flight_record(rig.folder / "flight.jsonl") if line["call"] == "tick"]
    held = states.index("holding")
    assert "moving" in states[held:]


def test_new_instruction_drops_earlier_chunks(rig):
    at_decision(3, rig.chunk_policy, lambda: rig.operator_commands.change_instruction("go elsewhere"))
    log = EventLog()

    def moved_again() -> bool:
        return rig.chunk_policy.instructions[-1] == "go elsewhere" and log.has("holding", "moving")

    summary = rig.run(EpisodePlan("go up", LONG), observer=log, end_condition=ends_when(moved_again))
    assert summary.episodes[0].instruction == "go elsewhere"
    assert rig.chunk_policy.instructions[-1] == "go elsewhere"
    lines = list(read_flight_record(rig.folder / "flight.jsonl"))
    place = next(index for index, line in enumerate(lines) if line["call"] == "drop")
    later = [line for line in lines[place:] if line["call"] == "submit" and line["accepted"]]
    assert later
    assert all(line["observed"] >= lines[place]["now"] for line in later)


def test_stop_ends_the_episode(rig):
    at_decision(3, rig.chunk_policy, lambda: rig.operator_commands.stop("stop button"))
    summary = rig.run(EpisodePlan("go up", LONG))
    assert summary.stopped == "stop"
    rig.assert_held()


def test_episode_continues_after_rearm(rig):
    def stop_for_a_while() -> None:
        rig.operator_commands.stop("stop button")
        threading.Timer(0.2, rig.operator_commands.rearm).start()

    at_decision(3, rig.chunk_policy, stop_for_a_while)
    log = EventLog()
    moved_again = ends_when(lambda: log.has("stopped", "moving"))
    summary = rig.run(EpisodePlan("go up", LONG), rearm_wait_seconds=20.0, observer=log, end_condition=moved_again)
    assert summary.episodes[0].ended_by == "condition"
    assert summary.metrics.stops == 1
    states = [line["state"] for line in read_flight_record(rig.folder / "flight.jsonl") if line["call"] == "tick"]
    assert "moving" in states[states.index("stopped") :]


def test_session_continues_after_a_stop_if_set_to_rearm(rig):
    at_decision(3, rig.chunk_policy, lambda: rig.operator_commands.stop("stop button"))
    summary = rig.run(EpisodePlan("first", LONG), EpisodePlan("second", 0.2), rearm_between_episodes=True)
    assert [each.ended_by for each in summary.episodes] == ["stopped: stop", "time"]
    assert summary.stopped == ""


def test_end_session_stops_the_arm_and_skips_further_episodes(rig):
    at_decision(3, rig.chunk_policy, lambda: rig.operator_commands.end_session("enough"))
    summary = rig.run(EpisodePlan("first", LONG), EpisodePlan("second", 0.2), rearm_between_episodes=True)
    assert [each.ended_by for each in summary.episodes] == ["stopped: stop"]
    assert summary.stopped == "stop"
    assert summary.metrics.stops == 1
    rig.assert_held()


def test_operator_ends_an_episode(rig):
    at_decision(3, rig.chunk_policy, rig.operator_commands.end_episode)
    summary = rig.run(EpisodePlan("go up", LONG))
    assert summary.episodes[0].ended_by == "asked"


def test_observer_error_is_raised_after_the_arm_is_held(rig):
    class FailingObserver(SessionObserver):
        def on_chunk(self, chunk, seconds):
            if chunk.sequence == 3:
                raise KeyError("the view was closed")

    with pytest.raises(KeyError, match="the view was closed"):
        rig.run(EpisodePlan("go up", LONG), observer=FailingObserver())
    rig.assert_held()


def test_dead_bus_stops_the_session(rig):
    at_decision(3, rig.chunk_policy, (rig.folder / "bus").touch)
    summary = rig.run(EpisodePlan("go up", LONG))
    assert summary.stopped == "bus"
    assert summary.metrics.bus_failures > 10


def test_control_process_crash_is_reported(rig):
    at_decision(3, rig.chunk_policy, (rig.folder / "crash").touch)
    with pytest.raises(WorldError, match="the control process ended"):
        rig.run(EpisodePlan("go up", LONG))
    rig.assert_held()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(dict(instruction=" "), "no words"), (dict(instruction="go", seconds=0.0), "seconds")],
)
def test_invalid_plans_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        EpisodePlan(**arguments)


SESSION = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from saccade.robot.session.settings import EpisodePlan
from saccade_testing.stage import SessionRig

if __name__ == "__main__":
    rig = SessionRig(Path({folder!r}))
    rig.chunk_policy.script = {{5: lambda actions: (print("moving", flush=True), actions)[1]}}
    rig.run(EpisodePlan("go up", 60.0))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_arm_is_held_after_a_signal_ends_the_session(tmp_path, number):
    program = tmp_path / "session.py"
    program.write_text(SESSION.format(tests=str(SUPPORT), folder=str(tmp_path)))
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    session = subprocess.Popen([sys.executable, str(program)], start_new_session=True, **pipes)
    try:
        assert session.stdout.readline().strip() == "moving"
        # A terminal sends Ctrl-C to the control process, too.
        send = os.killpg if number == signal.SIGINT else os.kill
        send(session.pid, number)
        session.wait(timeout=30)
        ends = time.monotonic() + 20.0
        while not recorded_lines(tmp_path, "closed"):
            assert time.monotonic() < ends
            time.sleep(0.02)
        last = goals(tmp_path)[-3:]
        assert np.all(last == last[0])
        assert [line["torque"] for line in recorded_lines(tmp_path, "torque")] == [True]
        assert replay_flight_record(tmp_path / "flight.jsonl").identical
        if number == signal.SIGTERM:
            assert session.returncode == 128 + number
    finally:
        session.kill()
        session.wait()
