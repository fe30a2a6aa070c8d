"""Episodes on a Ray cluster: a lost node loses and duplicates no episode, and faults give clear errors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import saccade
from saccade.errors import InputError, WorldError
from saccade.scripts.bench.evaluation.cluster import InterruptedPool, TwoNodeCluster, count_lost_and_duplicate
from saccade.sim.evaluation import cluster, cluster_node
from saccade.sim.evaluation.cluster import ClusterOptions, ClusterPool
from saccade.sim.evaluation.cluster_node import NodeSetup, folder_digest, with_checkpoint_files
from saccade.sim.evaluation.records import episodes_that_differ
from saccade.sim.evaluation.runner import run_and_record, run_jobs
from saccade.sim.evaluation.worker import EpisodeRequest
from saccade.sim.perturbation.job import Job, episode_seed
from saccade_testing import SUPPORT
from saccade_testing.cluster_world import Actors, Fingerprint, SlowWorlds
from saccade_testing.fake_world import make_actor, make_env


def jobs_of(count: int) -> list[Job]:
    return [Job("fake", "reach", state, episode_seed(0, "fake", "reach", state)) for state in range(count)]


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "checkpoint" / "deep").mkdir(parents=True)
    (tmp_path / "checkpoint" / "deep" / "weights").write_text("weights")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("address", ["somewhere", "host:", "host:0", "host:99999", "ray://host:10001", ""])
def test_invalid_address_is_refused(address):
    with pytest.raises(InputError, match=r"cluster: got .*expected 'local', or the head's host:port"):
        ClusterOptions(address, 1)


def pool_of(options, checkpoint, out, jobs):
    return ClusterPool(options, make_env, Actors(checkpoint), Fingerprint(), {}, out, jobs, EpisodeRequest)


def test_address_without_a_head_is_refused(checkpoint, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        options = ClusterOptions(f"127.0.0.1:{free.getsockname()[1]}", 1)
    with pytest.raises(InputError, match=r"which does not answer, expected the head of a running Ray cluster"):
        list(pool_of(options, checkpoint, tmp_path, jobs_of(1)).run())


def test_missing_ray_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"got no Ray, .*uv sync --extra cluster"):
        cluster._connect(ClusterOptions("local", 1))


def test_pool_without_jobs_connects_to_no_cluster(checkpoint, tmp_path):
    pool = pool_of(ClusterOptions("local", 1), checkpoint, tmp_path, [])
    assert list(pool.run()) == []
    pool.close()


def test_checkpoint_is_transferred_unless_the_node_has_it(checkpoint, tmp_path, monkeypatch):
    def setup(folder):
        sent = with_checkpoint_files(NodeSetup(make_env, Actors(checkpoint), Fingerprint(), {}, {}, 1.0))
        return replace(sent, make_actor=Actors(folder))

    with cluster_node._checkpoint(setup(checkpoint)) as folder:
        assert folder == checkpoint
    elsewhere = tmp_path / "elsewhere"
    for content in (None, "other weights"):
        if content is not None:
            (elsewhere / "deep").mkdir(parents=True)
            (elsewhere / "deep" / "weights").write_text(content)
        with cluster_node._checkpoint(setup(elsewhere)) as folder:
            assert Path(folder) not in (checkpoint, elsewhere)
            assert folder_digest(Path(folder)) == folder_digest(checkpoint)
            Actors(Path(folder))()
    monkeypatch.setattr(cluster_node, "MAX_TRANSFER_BYTES", 3)
    with pytest.raises(InputError, match=r"checkpoint on node .* a disk that all machines see"):
        cluster_node._checkpoint(setup(elsewhere))


@pytest.mark.slow
def test_lost_node_loses_no_episode(checkpoint, tmp_path, monkeypatch):
    """One cluster for all faults, as it starts slowly: other versions, a lost node, a dead worker, a hang, no head."""
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    jobs, actors, head = jobs_of(8), Actors(checkpoint), Fingerprint()
    expected = run_jobs(jobs, make_env, make_actor, 1, tmp_path / "here", progress=False)

    def evaluate(address, out, wrap, *, count=8, worlds=None, fingerprint=head, **options):
        def make_pool(*waiting):
            pool = ClusterPool(
                ClusterOptions(address, 1),
                worlds or SlowWorlds(),
                actors,
                fingerprint,
                fingerprint(),
                tmp_path / out,
                *waiting,
                **options,
            )
            return wrap(pool)

        return run_and_record(jobs[:count], make_pool, tmp_path / out, videos=1, progress=False)

    with TwoNodeCluster() as nodes:
        # The nodes have another MuJoCo.
        strange = Fingerprint("3.4.0", os.getpid())
        with pytest.raises(InputError, match=r"got packages\.mujoco: 3\.3\.2 and 3\.4\.0, expected the head's"):
            evaluate(nodes.address, "strange", lambda pool: pool, fingerprint=strange)

        pools = []
        interrupt = nodes.kill_worker_node
        records = evaluate(
            nodes.address, "lost", lambda pool: pools.append(pool) or InterruptedPool(pool, 2, interrupt)
        )
        assert episodes_that_differ(expected, records) == ()
        assert [record.attempts for record in records] == [1] * 8
        assert count_lost_and_duplicate(tmp_path / "lost", 8) == {"ray_episodes_lost": 0, "ray_episodes_double": 0}
        videos = [record.video for record in records if record.video]
        assert len(videos) == 2 and all((tmp_path / "lost" / video).stat().st_size for video in videos)

        # On the remaining node one process dies and another hangs; the second attempt of the first succeeds.
        unlucky = SlowWorlds(tmp_path / "marker")
        records = evaluate(nodes.address, "unlucky", lambda pool: pool, count=6, worlds=unlucky, episode_seconds=3.0)
        assert [record.outcome for record in records] == ["success", "failure"] * 2 + ["success", "error"]
        assert [record.attempts for record in records] == [1, 1, 1, 2, 1, 2]
        assert "exceeded the time limit" in records[5].error
        # Complete episodes do not run again.
        lines = (tmp_path / "unlucky" / "records.jsonl").read_text().splitlines()
        records = evaluate(nodes.address, "unlucky", lambda pool: pool, count=6)
        assert (tmp_path / "unlucky" / "records.jsonl").read_text().splitlines()[:-1] == lines
        assert records[5].outcome == "failure"

        # The head is lost, too.
        monkeypatch.setattr(cluster, "HEAD_TIMEOUT_SECONDS", 2)
        with pytest.raises(WorldError, match=r"the head no longer answers.*--resume"):
            evaluate(nodes.address, "gone", lambda pool: InterruptedPool(pool, 2, nodes.kill_head))
        assert 2 <= len((tmp_path / "gone" / "records.jsonl").read_text().splitlines()) < 8

    # Ray leaves the environment alone: under `uv run` it would install a copy of the project over it.
    script = "import saccade; print(saccade.__file__)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == saccade.__file__
