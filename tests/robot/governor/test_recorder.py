"""The flight record: it holds all calls of the governor, and their replay gives the same commands."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saccade.errors import InputError
from saccade.robot.governor.governor import Governor
from saccade.robot.governor.recorder import FlightRecorder, RecordedGovernor, read_flight_record, replay_flight_record
from saccade_testing.stand_in import TICK, make_chunk, make_rules

HOME = np.array([10.0, 20.0, 30.0])


def record_flight(path, seed: int = 0, ticks: int = 400) -> RecordedGovernor:
    """Record a governor with random calls, from good chunks to broken ones."""
    rng = np.random.default_rng(seed)
    rules = make_rules(start="ramp", aggregation="weighted")
    recorder = FlightRecorder(path, rules)
    governor = RecordedGovernor(Governor(rules), recorder)
    now, pose = 1000.0 + rng.random(), HOME.copy()
    governor.begin(0, pose, now)
    for sequence in range(ticks):
        now += TICK * rng.uniform(0.9, 1.6)
        kind = rng.integers(0, 60)
        if kind < 12:
            actions = pose + np.cumsum(rng.normal(0, 2.0, (16, 3)), axis=0)
            governor.submit(make_chunk(actions, observed=now - rng.uniform(0, 0.6), sequence=sequence), now)
        elif kind == 12:
            broken = [np.full((16, 3), np.nan), np.zeros((2, 3)), np.full((16, 3), None), np.zeros((16, 3), np.int8)]
            actions = broken[rng.integers(4)]
            governor.submit(make_chunk(actions, observed=now, sequence=sequence), now)
        elif kind == 13:
            governor.stop("stop requested", now)
        elif kind == 14:
            governor.drop(now)
        elif kind == 15:
            governor.hold("camera", "frozen", now)
        elif kind < 22:
            governor.rearm(now)
        elif kind == 22:
            governor.end(now)
            governor.begin(0, pose, now)
        measured = None if rng.random() < 0.03 else pose.copy()
        command = governor.tick(now, measured, measured_at=now, overran=bool(rng.random() < 0.02))
        pose = pose + 0.7 * (command.target - pose)
    recorder.close()
    assert recorder.failure is None
    return governor


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000))
def test_replay_gives_identical_commands(tmp_path, seed):
    path = tmp_path / "flight.jsonl"
    path.unlink(missing_ok=True)
    record_flight(path, seed)
    again = replay_flight_record(path)
    assert again.identical, again.differences
    assert again.ticks == 400
    assert again.calls > again.ticks


def test_record_contains_every_event(tmp_path):
    governor = record_flight(tmp_path / "flight.jsonl")
    lines = list(read_flight_record(tmp_path / "flight.jsonl"))
    kinds = {kind for line in lines for kind, _, _ in line.get("events", ())}
    assert {"ready", "moving", "holding", "stopped", "rejected"} <= kinds
    rejected = [event for line in lines for event in line.get("events", ()) if event[0] == "rejected"]
    assert len(rejected) == sum(governor.governor.rejected.values())


def test_replay_detects_a_changed_record(tmp_path):
    path = tmp_path / "flight.jsonl"
    record_flight(path)
    lines = path.read_text().splitlines()
    place = next(index for index, line in enumerate(lines) if '"state":"moving"' in line)
    line = json.loads(lines[place])
    line["target"][0] += 1e-12
    lines[place] = json.dumps(line)
    path.write_text("\n".join(lines) + "\n")
    assert not replay_flight_record(path).identical


def test_truncated_record_is_read_up_to_its_last_complete_line(tmp_path):
    path = tmp_path / "flight.jsonl"
    record_flight(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    again = replay_flight_record(path)
    assert again.identical
    assert 100 < again.ticks < 400


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a first line without rules"),
        ('{"call":"tick"}\n', "a first line without rules"),
        ("what is this\n", "line 1, which is no JSON"),
        ("[]\n", "line 1 without a call"),
    ],
)
def test_files_that_are_no_flight_record_are_refused(tmp_path, content, message):
    (tmp_path / "flight.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        replay_flight_record(tmp_path / "flight.jsonl")


def test_call_without_arguments_is_refused(tmp_path):
    path = tmp_path / "flight.jsonl"
    record_flight(path, ticks=3)
    path.write_text(path.read_text().splitlines()[0] + '\n{"call":"tick","now":1.0}\n')
    with pytest.raises(InputError, match="line 2, which is no call"):
        replay_flight_record(path)


def test_existing_record_is_not_overwritten_and_missing_record_is_refused(tmp_path):
    record_flight(tmp_path / "flight.jsonl", ticks=2)
    with pytest.raises(InputError, match="expected a new file"):
        FlightRecorder(tmp_path / "flight.jsonl", make_rules())
    with pytest.raises(InputError, match="Check the path"):
        replay_flight_record(tmp_path / "nowhere.jsonl")


def test_full_write_buffer_does_not_block_the_loop(tmp_path):
    recorder = FlightRecorder(tmp_path / "flight.jsonl", make_rules())
    recorder.close()
    for _ in range(20_000):
        recorder.write_line({"call": "tick"})
    assert "wait for the disk" in recorder.failure
