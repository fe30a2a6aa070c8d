"""One policy shared by all workers gives the same records as one policy each, also after a failure."""

from __future__ import annotations

import pytest

from saccade.errors import InputError, WorldError
from saccade.sim.evaluation.records import episodes_that_differ
from saccade.sim.evaluation.runner import run_jobs
from saccade.sim.evaluation.shared_policy import PolicyProcess, SharedPolicyFactory
from saccade.sim.perturbation.job import Job, episode_seed
from saccade_testing.batched_world import MakePolicy, break_policy, refuse_policy
from saccade_testing.fake_world import Mishap, make_actor, make_env


def jobs_of(count: int, *tasks: str) -> list[Job]:
    return [Job("fake", task, state, episode_seed(0, "fake", task, state)) for task in tasks for state in range(count)]


@pytest.fixture(scope="module")
def separate_records(tmp_path_factory):
    """The records of runs with one policy in every worker."""
    return run_jobs(jobs_of(4, "reach"), make_env, make_actor, 1, tmp_path_factory.mktemp("own"), progress=False)


@pytest.mark.parametrize(("workers", "max_batch_size"), [(1, 4), (3, 4), (3, 1)])
def test_shared_policy_gives_the_records_of_separate_policies(workers, max_batch_size, separate_records, tmp_path):
    log = tmp_path / "log"
    shared = SharedPolicyFactory(MakePolicy(max_batch_size, log))
    records = run_jobs(jobs_of(4, "reach"), make_env, shared, workers, tmp_path, progress=False)
    assert episodes_that_differ(separate_records, records) == ()
    assert [record.outcome for record in records] == ["success", "failure"] * 2
    assert [record.decisions for record in records] == [(record.steps + 1) // 2 for record in records]
    sizes = [int(line) for line in log.read_text().splitlines()]
    assert sum(sizes) == sum(record.decisions for record in records)
    assert max(sizes) <= min(max_batch_size, workers)


def test_videos_show_the_tokens_of_a_shared_policy(separate_records, tmp_path):
    shared = SharedPolicyFactory(MakePolicy())
    records = run_jobs(jobs_of(4, "reach"), make_env, shared, 2, tmp_path, videos=1, progress=False)
    recorded = [record for record in records if record.video]
    assert sorted(record.outcome for record in recorded) == ["failure", "success"]
    assert all((record.visual_tokens, record.visual_tokens_kept) == (8, 4) for record in recorded)
    assert episodes_that_differ(separate_records, records) == ()


@pytest.mark.parametrize("mishap", ["die", "hang", "raise"])
def test_lost_policy_is_restarted_and_its_episodes_are_repeated(mishap, separate_records, tmp_path):
    shared = SharedPolicyFactory(MakePolicy(mishap=mishap, marker=tmp_path / "marker"))
    records = run_jobs(jobs_of(4, "reach"), make_env, shared, 2, tmp_path, progress=False, episode_seconds=3.0)
    assert max(record.attempts for record in records) == 2
    assert episodes_that_differ(separate_records, records) == ()


def test_dead_worker_does_not_disturb_the_others(separate_records, tmp_path):
    world = Mishap("die", tmp_path / "marker", once=True)
    records = run_jobs(jobs_of(4, "reach"), world, SharedPolicyFactory(MakePolicy()), 2, tmp_path, progress=False)
    assert [record.attempts for record in records] == [1, 1, 2, 1]
    assert episodes_that_differ(separate_records, records) == ()


def test_policy_that_cannot_be_built_is_reported(tmp_path):
    with pytest.raises(InputError, match=r"contract: got wrist, expected front\. Rename"):
        run_jobs(jobs_of(2, "reach"), make_env, SharedPolicyFactory(refuse_policy), 1, tmp_path, progress=False)
    with pytest.raises(WorldError, match="no weights here"):
        run_jobs(jobs_of(2, "reach"), make_env, SharedPolicyFactory(break_policy), 1, tmp_path, progress=False)


class FakeConnection:
    """Replaces the connection to a policy process."""

    def __init__(self) -> None:
        self.sent = []

    def send(self, message) -> None:
        self.sent.append(message)


def test_requests_are_batched_until_all_active_slots_have_asked():
    connection = FakeConnection()
    policy_process = PolicyProcess(None, connection, 0.0, max_batch_size=2)
    for slot in (5, 6, 7):
        assert policy_process.submit_request(slot, "begin", ("go", 1))
    policy_process._inference_seconds = 60.0
    assert policy_process.seconds_until_batch(3) is None
    policy_process.submit_request(5, "decide", "a")
    assert 0 < policy_process.seconds_until_batch(3) <= 60
    assert policy_process.seconds_until_batch(1) == 0.0
    policy_process.submit_request(6, "decide", "b")
    policy_process.submit_request(7, "decide", "c")
    assert policy_process.seconds_until_batch(3) == 0.0
    policy_process.send_batch(9.0)
    assert connection.sent[-1] == ("decide", {5: "a", 6: "b"})
    # Nothing is sent during a decision; the next batch begins with the slot that waited longest.
    assert policy_process.seconds_until_batch(3) is None
    policy_process.record_answers([(5, None), (6, None)])
    policy_process.submit_request(5, "decide", "d")
    policy_process.send_batch(9.0)
    assert connection.sent[-1] == ("decide", {7: "c", 5: "d"})
    assert policy_process.awaiting_slots == {5, 7}


def test_request_of_an_unknown_slot_is_not_accepted():
    policy_process = PolicyProcess(None, FakeConnection(), 0.0, max_batch_size=2)
    assert not policy_process.submit_request(1, "decide", "a")
    assert not policy_process.pending_observations
