"""The control process with a fake arm: complete episodes, lost sessions, signals, crashes and dead buses."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from saccade.errors import InputError, WorldError
from saccade.robot.control.link import ControlLink
from saccade.robot.control.loop import LoopSettings
from saccade.robot.governor.recorder import read_flight_record, replay_flight_record
from saccade_testing import SUPPORT
from saccade_testing.fake_arm import HOME, FakeArm, goals, recorded_lines
from saccade_testing.stand_in import make_chunk, make_rules

pytestmark = pytest.mark.real_time

# A long heartbeat, as test machines are busy: the tests check what is commanded, not when.
SETTINGS = LoopSettings(heartbeat_seconds=2.0, raise_priority=False)
RULES = dict(overrun_share=1.0, measurement_age=1.0, resume_seconds=20.0)


@pytest.fixture
def link(tmp_path):
    link = ControlLink.start(partial(FakeArm, tmp_path), SETTINGS)
    link.start_governor(make_rules(**RULES), tmp_path / "flight.jsonl")
    yield link
    link.close()


def wait_for(link: ControlLink, condition, seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not condition(link.latest()):
        if time.monotonic() > ends:
            raise TimeoutError(f"{link.latest()} {link.take_events()}")
        link.send_heartbeat()
        time.sleep(0.005)


def drive(link: ControlLink, chunks: int = 8, *, first: int = 0) -> int:
    """Send fresh chunks that move up from the measured pose, 20 a second; return the last sequence number."""
    for sequence in range(first, first + chunks):
        pose, measured_at = link.joints()
        actions = pose + np.outer(np.arange(1, 17), [0.5, 0.5, 0.5])
        link.send(make_chunk(actions, observed=measured_at, sequence=sequence))
        time.sleep(0.05)
        link.poll()
    return first + chunks - 1


def begin(link: ControlLink, episode: int = 0) -> None:
    assert link.begin_episode(episode).accepted
    wait_for(link, lambda latest: latest is not None and latest.state == "ready")


def test_complete_episode(link, tmp_path):
    assert link.description.names == ("gripper.pos", "elbow_flex.pos", "shoulder_pan.pos")
    begin(link)
    drive(link)
    wait_for(link, lambda latest: latest.state == "moving" and latest.target[0] > HOME[0] + 2)
    link.end_episode(release=True)
    metrics = link.close()
    assert metrics.ticks > 10
    assert metrics.chunks > 5
    assert metrics.round_trip_p50_ms is not None
    assert [line["torque"] for line in recorded_lines(tmp_path, "torque")] == [True, False]
    first = recorded_lines(tmp_path)[0]
    assert first["goal"] == HOME.tolist(), "the present pose, before torque"
    assert first["time"] < recorded_lines(tmp_path, "torque")[0]["time"]
    moved = np.abs(np.diff(goals(tmp_path), axis=0)).max(axis=0)
    assert np.all(moved <= np.array([270.0, 270.0, 491.0]) / 50 + 1e-9)
    again = replay_flight_record(tmp_path / "flight.jsonl")
    assert again.identical, again.differences
    assert again.ticks == pytest.approx(metrics.ticks, abs=10)


def test_nan_in_a_chunk_stops_the_arm_until_rearm(link, tmp_path):
    begin(link)
    last = drive(link)
    link.send(make_chunk(np.full(3, np.nan), observed=time.monotonic(), sequence=last + 1))
    wait_for(link, lambda latest: latest.state == "stopped")
    stopped = time.monotonic()
    drive(link, 5, first=last + 2)
    held = goals(tmp_path, stopped)
    assert len(held) > 3
    assert np.all(held == held[0])
    assert link.rearm().accepted
    drive(link, 5, first=last + 100)
    wait_for(link, lambda latest: latest.state in ("moving", "holding"))
    reasons = {verdict.reason for _, verdict in link.take_verdicts()}
    assert {"not_finite", "stopped", ""} <= reasons


def test_object_array_in_a_chunk_stops_the_arm(link):
    begin(link)
    chunk = make_chunk(HOME, observed=time.monotonic())
    link.send(dataclasses.replace(chunk, actions=np.full((16, 3), None)))
    wait_for(link, lambda latest: latest.state == "stopped" and latest.reason == "dtype")


def test_sigint_stops_the_arm(link, tmp_path):
    begin(link)
    drive(link)
    os.kill(link.process_id, signal.SIGINT)
    wait_for(link, lambda latest: latest.state == "stopped")
    assert any("SIGINT" in event.detail for event in link.take_events())


@pytest.mark.parametrize("fault", ["crash", "terminate"])
def test_arm_is_held_before_a_crashed_or_terminated_process_ends(link, tmp_path, fault):
    begin(link)
    drive(link)
    (tmp_path / fault).touch()
    with pytest.raises(WorldError, match="the control process ended"):
        wait_for(link, lambda latest: False)
    lines = recorded_lines(tmp_path)
    held = np.array([line["goal"] for line in lines[-3:]])
    assert np.all(held == held[0])
    assert np.abs(held[0] - lines[-4]["pose"]).max() < 5.5, "the pose at the crash"
    assert [line["torque"] for line in recorded_lines(tmp_path, "torque")] == [True], "torque stays on"
    assert recorded_lines(tmp_path, "closed")


def test_arm_is_held_during_a_short_bus_failure(link, tmp_path):
    begin(link)
    last = drive(link)
    (tmp_path / "bus").touch()
    wait_for(link, lambda latest: latest.state == "holding" and latest.joints is None)
    (tmp_path / "bus").unlink()
    wait_for(link, lambda latest: latest.joints is not None)
    drive(link, first=last + 1)
    wait_for(link, lambda latest: latest.state in ("moving", "holding"))
    assert link.close().holds["bus"] == 1


def test_input_error_of_the_arm_reaches_the_session(tmp_path):
    with pytest.raises(InputError, match="servo 3: got no answer, expected an sts3215. Check its cable."):
        ControlLink.start(partial(FakeArm, tmp_path, "Check its cable."), SETTINGS)


def test_killed_control_process_is_reported(link):
    begin(link)
    os.kill(link.process_id, signal.SIGKILL)
    with pytest.raises(WorldError, match="the control process ended"):
        wait_for(link, lambda latest: False)


def wait_until(condition, seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def hold_reasons(folder: Path) -> set[str]:
    """Return the reasons of all holds in a flight record that is still being written."""
    events = [event for line in read_flight_record(folder / "flight.jsonl") for event in line.get("events", ())]
    return {detail.split(":")[0] for kind, detail, _ in events if kind == "holding"}


def assert_held(folder: Path) -> None:
    last = goals(folder)[-3:]
    assert np.all(last == last[0])


SESSION = """
import sys, time
from functools import partial
from pathlib import Path
sys.path.insert(0, {tests!r})
import numpy as np
from saccade_testing.fake_arm import FakeArm
from saccade_testing.stand_in import make_chunk, make_rules
from saccade.robot.control.link import ControlLink
from saccade.robot.control.loop import LoopSettings

if __name__ == "__main__":
    folder = Path({folder!r})
    settings = LoopSettings(heartbeat_seconds={heartbeat}, raise_priority=False)
    link = ControlLink.start(partial(FakeArm, folder), settings)
    link.start_governor(make_rules(overrun_share=1.0, measurement_age=1.0, start="ramp"), folder / "flight.jsonl")
    assert link.begin_episode(0).accepted
    for sequence in range(100000):
        while link.joints() is None:
            time.sleep(0.01)
        pose, measured_at = link.joints()
        actions = pose + np.outer(np.arange(1, 17), [0.5, 0.5, 0.5])
        link.send(make_chunk(actions, observed=measured_at, sequence=sequence))
        if sequence == 10:
            print("moving", flush=True)
        time.sleep(0.05)
"""


@pytest.mark.parametrize(("number", "heartbeat"), [(signal.SIGKILL, 2.0), (signal.SIGTERM, 2.0), (signal.SIGSTOP, 0.5)])
def test_arm_is_held_after_the_session_dies_or_freezes(tmp_path, number, heartbeat):
    program = tmp_path / "session.py"
    program.write_text(SESSION.format(tests=str(SUPPORT), folder=str(tmp_path), heartbeat=heartbeat))
    session = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    try:
        assert session.stdout.readline().strip() == "moving"
        control = recorded_lines(tmp_path, "connected")[0]["connected"]
        session.send_signal(number)
        if number == signal.SIGSTOP:
            wait_until(lambda: {"heartbeat", "starved"} & hold_reasons(tmp_path))
            held = len(goals(tmp_path))
            wait_until(lambda: len(goals(tmp_path)) > held + 5)
            assert_held(tmp_path)
            session.kill()
        wait_until(lambda: recorded_lines(tmp_path, "closed"))
        assert_held(tmp_path)
        assert [line["torque"] for line in recorded_lines(tmp_path, "torque")] == [True], "torque stays on"
        assert "the session process is gone" in (tmp_path / "flight.jsonl").read_text()
        assert replay_flight_record(tmp_path / "flight.jsonl").identical
        assert control != session.pid
    finally:
        session.kill()
        session.wait()
