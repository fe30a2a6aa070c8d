"""What becomes of an evaluation on a Ray cluster that loses a node in the middle of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import InputError, WorldError

if TYPE_CHECKING:
    from ....sim.evaluation.cluster import ClusterPool
    from ....sim.evaluation.worker import EpisodeResult

STORE_BYTES = 80 * 2**20
"""Memory of a test node's object store, the least that Ray takes."""


@dataclass(frozen=True)
class ClusterRun:
    """Episodes of one task, from initial state 0 on, whose records go into `out`."""

    suite: str
    task: str
    episodes: int
    out: Path


def measure_node_loss(run: ClusterRun) -> dict[str, int]:
    """Kill one of two nodes of a Ray cluster on this machine in the middle of an evaluation, and count its episodes.

    Lost is an episode without a record that ran to its end, double a record too many, redone one that was on the node.
    Raises WorldError when an episode went another way than in a process of this machine.
    """
    from ....policy.checkpoint.folder import find_checkpoint, read_contract
    from ....sim.evaluation.cluster import ClusterOptions, ClusterPool
    from ....sim.evaluation.records import episodes_that_differ
    from ....sim.evaluation.runner import run_and_record, run_jobs
    from ....sim.libero.options import LiberoOptions
    from ....sim.perturbation.job import Job, episode_seed
    from ....sim.rendering import choose_backend
    from ....sim.worlds import find_family, make_evaluation_world
    from ...checkpoints.worker_policies import PolicyFactory
    from ...evaluate.plan import EnvironmentFactory

    choose_backend()
    folder = find_checkpoint("starter")
    contract = read_contract(folder)
    world = make_evaluation_world(find_family((run.suite,)), contract, LiberoOptions())
    make_env, policies = EnvironmentFactory(contract, world), PolicyFactory(folder, "cpu", "fp32")
    jobs = [
        Job(run.suite, run.task, state, episode_seed(0, run.suite, run.task, state)) for state in range(run.episodes)
    ]
    expected = run_jobs(jobs, make_env, policies, 1, run.out / "here", progress=False)
    pools: list[ClusterPool] = []
    with TwoNodeCluster() as cluster:

        def make_pool(*waiting: Any) -> InterruptedPool:
            options, fingerprint = ClusterOptions(cluster.address, cpus=1), world.fingerprint
            pools.append(
                ClusterPool(options, make_env, policies, fingerprint, fingerprint(), run.out / "there", *waiting)
            )
            return InterruptedPool(pools[0], max(1, len(jobs) // 3), cluster.kill_worker_node)

        records = run_and_record(jobs, make_pool, run.out / "there", progress=False)
    differ = episodes_that_differ(expected, records)
    if differ:
        raise WorldError(f"{', '.join(differ)} went another way on the cluster: no figure is given")
    return {
        "ray_episodes": len(jobs),
        **count_lost_and_duplicate(run.out / "there", len(jobs)),
        "ray_redone": pools[0].node_losses,
    }


def count_lost_and_duplicate(out: Path, requested: int) -> dict[str, int]:
    """Return how many of the episodes that were asked for are lost, and how many records are one too many."""
    written = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    finished_keys = [
        (record["suite"], record["task"], record["initial_state"], record["seed"])
        for record in written
        if record["outcome"] != "error"
    ]
    return {
        "ray_episodes_lost": requested - len(set(finished_keys)),
        "ray_episodes_double": len(finished_keys) - len(set(finished_keys)),
    }


class InterruptedPool:
    """A pool in whose middle something happens: `event` is called when `after_jobs` jobs have finished."""

    def __init__(self, pool: ClusterPool, after_jobs: int, event: Callable[[], None]) -> None:
        self._pool, self._after_jobs, self._event = pool, after_jobs, event

    def run(self) -> Iterator[EpisodeResult]:
        for number, finished in enumerate(self._pool.run(), start=1):
            yield finished
            if number == self._after_jobs:
                self._event()

    def close(self) -> None:
        self._pool.close()


class TwoNodeCluster:
    """A Ray cluster of two nodes of one CPU each on this machine; `address` is its head's.

    Nothing is reported to anybody, no page is served, and it listens on the loopback interface alone, unless this
    process has imported Ray before. Raises InputError without Ray.
    """

    def __init__(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        try:
            from ray.cluster_utils import Cluster
        except ImportError as error:
            fix = "Install it (uv sync --extra cluster), or leave this part out (--no-cluster)."
            raise InputError("cluster", got="no Ray", expected="the extra 'cluster'", fix=fix) from error
        node = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=dict(node))
        self._second = self._cluster.add_node(**node)
        self.address = self._cluster.address

    def __enter__(self) -> TwoNodeCluster:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(Exception):  # What was killed is not there to be stopped.
            self._cluster.shutdown()

    def kill_worker_node(self) -> None:
        """Kill the node that is not the head, as a machine that loses its power."""
        self._cluster.remove_node(self._second, allow_graceful=False)

    def kill_head(self) -> None:
        """Kill what holds the cluster together."""
        self._cluster.head_node.kill_gcs_server()
