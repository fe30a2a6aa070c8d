"""Episodes in worker processes: reproducible, resumable, and with errors reported."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from saccade.errors import InputError, WorldError
from saccade.sim.evaluation.records import EpisodeRecord, RecordFile, episodes_that_differ
from saccade.sim.evaluation.robustness import acted_from_memorisation
from saccade.sim.evaluation.runner import Job, run_episode, run_jobs
from saccade.sim.perturbation.job import episode_seed
from saccade_testing.fake_world import FakeActor, FakeEnv, Mishap, break_actor, make_actor, make_env, refuse_actor


def jobs_of(count: int, *tasks: str) -> list[Job]:
    return [Job("fake", task, state, episode_seed(0, "fake", task, state)) for task in tasks for state in range(count)]


def test_record_has_outcome_and_decision_times():
    record = run_episode(FakeEnv("reach"), FakeActor(), Job("fake", "reach", 0, 5))
    assert (record.outcome, record.picked, record.target) == ("success", "cube", "cube")
    assert record.decisions == (record.steps + 1) // 2
    assert record.slowest_decision_milliseconds == 2 * record.decisions - 1
    assert record.decision_milliseconds == record.decisions
    assert run_episode(FakeEnv("reach"), FakeActor(), Job("fake", "reach", 1, 5)).outcome == "failure"


def test_episode_stops_at_the_step_limit():
    class Idle(FakeActor):
        def act(self, observation):
            return np.zeros(2, np.float32)

    record = run_episode(FakeEnv("reach"), Idle(), Job("fake", "reach", 0, 5))
    assert (record.steps, record.outcome, record.picked) == (FakeEnv._max_episode_steps, "failure", None)


def test_non_finite_action_is_a_failure_of_the_policy():
    class Broken(FakeActor):
        def act(self, observation):
            return np.array([np.nan, 0.0])

    record = run_episode(FakeEnv("reach"), Broken(), Job("fake", "reach", 0, 5))
    assert (record.outcome, record.steps) == ("failure", 0)
    assert "not finite" in record.error


def test_swapped_instruction_ends_at_the_first_pick():
    own = run_episode(FakeEnv("reach"), FakeActor(), Job("fake", "reach", 0, 4, swap="object"))
    other = run_episode(FakeEnv("reach"), FakeActor(), Job("fake", "reach", 1, 4, swap="object"))
    assert (own.instruction, own.other) == ("reach the ball", "ball")
    assert (own.outcome, own.picked, acted_from_memorisation(own)) == ("failure", "cube", True)
    assert (other.outcome, other.picked, acted_from_memorisation(other)) == ("success", "ball", False)
    assert other.steps < FakeEnv._max_episode_steps


def test_seeds_differ_between_episodes_and_not_between_selections():
    seeds = {episode_seed(seed, "fake", task, state) for seed in (0, 1) for task in "ab" for state in range(50)}
    assert len(seeds) == 200
    assert episode_seed(0, "fake", "a", 3) == episode_seed(0, "fake", "a", 3) < 2**31


def test_records_do_not_depend_on_the_number_of_workers(tmp_path):
    jobs = jobs_of(5, "reach", "lift")
    one = run_jobs(jobs, make_env, make_actor, 1, tmp_path / "one", progress=False)
    three = run_jobs(jobs[::-1], make_env, make_actor, 3, tmp_path / "three", progress=False)
    assert [record.key for record in one] == [job.key for job in jobs]
    assert {record.outcome for record in one} == {"success", "failure"}
    assert episodes_that_differ(one, three) == ()
    assert len({record.trajectory for record in one}) == len(jobs)


def test_resumed_run_counts_no_episode_twice(tmp_path):
    jobs = jobs_of(4, "reach")
    first = run_jobs(jobs[:2], make_env, make_actor, 1, tmp_path, progress=False)
    path = tmp_path / "records.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(first[0].to_json())[:40])  # a kill cuts a record off
    run_jobs(jobs, make_env, make_actor, 2, tmp_path, progress=False)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line["initial_state"] for line in lines) == [0, 1, 2, 3]
    unchanged = path.read_bytes()
    again = run_jobs(jobs, make_env, make_actor, 2, tmp_path, progress=False)
    assert path.read_bytes() == unchanged
    assert again[:2] == first


@pytest.mark.parametrize("kind", ["die", "raise", "hang"])
def test_failing_episode_is_repeated_once_and_then_an_error(kind, tmp_path):
    jobs = jobs_of(4, "reach")
    mishap = Mishap(kind, tmp_path / "marker")
    records = run_jobs(jobs, mishap, make_actor, 2, tmp_path, progress=False, episode_seconds=2.0)
    assert [record.outcome for record in records] == ["success", "failure", "error", "failure"]
    assert records[2].attempts == 2
    assert {"die": "exit code 9", "raise": "the world broke", "hang": "no answer"}[kind] in records[2].error
    # A later run repeats the episode with an error only.
    resumed = run_jobs(jobs, make_env, make_actor, 1, tmp_path, progress=False)
    assert [record.outcome for record in resumed] == ["success", "failure", "success", "failure"]
    assert resumed[:2] == records[:2]


def test_episode_that_fails_once_gives_the_same_record(tmp_path):
    jobs = jobs_of(4, "reach")
    mishap = Mishap("die", tmp_path / "marker", once=True)
    records = run_jobs(jobs, mishap, make_actor, 1, tmp_path / "mishap", progress=False)
    assert [record.attempts for record in records] == [1, 1, 2, 1]
    undisturbed = run_jobs(jobs, make_env, make_actor, 1, tmp_path / "undisturbed", progress=False)
    assert episodes_that_differ(records, undisturbed) == ()


def test_run_ends_if_every_episode_fails(tmp_path):
    everything = Mishap("raise", tmp_path / "marker", initial_state=None)
    with pytest.raises(WorldError, match="the world broke"):
        run_jobs(jobs_of(9, "reach"), everything, make_actor, 2, tmp_path, progress=False)


def test_actor_that_cannot_be_built_is_reported(tmp_path):
    with pytest.raises(InputError, match=r"contract: got wrist, expected front\. Rename"):
        run_jobs(jobs_of(2, "reach"), make_env, refuse_actor, 2, tmp_path, progress=False)
    with pytest.raises(WorldError, match="no weights here"):
        run_jobs(jobs_of(2, "reach"), make_env, break_actor, 1, tmp_path, progress=False)


def test_videos_are_kept_for_each_task_and_outcome(tmp_path):
    records = run_jobs(jobs_of(6, "reach"), make_env, make_actor, 2, tmp_path, videos=2, progress=False)
    kept = [record for record in records if record.video]
    assert sorted(record.outcome for record in kept) == ["failure"] * 2 + ["success"] * 2
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == sorted(
        record.video.removeprefix("videos/") for record in kept
    )


def test_videos_prefer_unchanged_episodes(tmp_path):
    jobs = jobs_of(2, "reach")
    swapped = [replace(job, swap="object") for job in jobs]
    both = run_jobs([*swapped, *jobs], make_env, make_actor, 1, tmp_path / "both", videos=1, progress=False)
    assert {record.swap for record in both if record.video} == {None}
    alone = run_jobs(swapped, make_env, make_actor, 1, tmp_path / "alone", videos=1, progress=False)
    assert {record.swap for record in alone if record.video} == {"object"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jobs": []}, "episodes: got none"),
        ({"jobs": jobs_of(1, "reach") * 2}, "twice"),
        ({"workers": 0}, "workers: got 0"),
        ({"videos": -1}, "videos: got -1"),
        ({"episode_seconds": 0.0}, "episode_seconds"),
    ],
)
def test_invalid_arguments_are_refused(changes, message, tmp_path):
    options = {"jobs": jobs_of(1, "reach"), "workers": 1, "out": tmp_path, **changes}
    with pytest.raises(InputError, match=message):
        run_jobs(make_env=make_env, make_actor=make_actor, **options)


def test_run_leaves_thread_variables_of_the_parent_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    run_jobs(jobs_of(1, "reach"), make_env, make_actor, 1, tmp_path, progress=False)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "LP_NUM_THREADS" not in os.environ


def test_damaged_record_file_is_refused(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("not json\n")
    with pytest.raises(InputError, match=r"records\.jsonl line 1"):
        RecordFile(path).load()
    path.write_text('{"suite": "fake"}\n')
    with pytest.raises(InputError, match="missing"):
        RecordFile(path).load()


def test_full_disk_is_an_input_error(tmp_path):
    record = run_episode(FakeEnv("reach"), FakeActor(), Job("fake", "reach", 0, 5))
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with pytest.raises(InputError, match="No space left on device"):
        RecordFile(tmp_path.joinpath("/dev/full")).append(record)


def test_record_survives_a_json_round_trip(tmp_path):
    record = run_episode(FakeEnv("reach"), FakeActor(), Job("fake", "reach", 0, 5))
    assert EpisodeRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
