"""Measure what an evaluation on a Ray cluster loses when one of its nodes dies."""

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
"""Memory of a test node's object store, the minimum of Ray."""


@dataclass(frozen=True)
class ClusterRun:
    """Episodes of one task, from initial state 0 on.

    Attributes:
        suite: Suite of the task.
        task: Name of the task.
        episodes: Number of episodes.
        out: Output folder.
    """

    suite: str
    task: str
    episodes: int
    out: Path


def measure_node_loss(run: ClusterRun) -> dict[str, int]:
    """Kill one of two nodes of a Ray cluster on this machine during an evaluation, and count lost episodes.

    Returns:
        The number of episodes; those without a finished record (`ray_episodes_lost`); surplus records
        (`ray_episodes_double`); and episodes that ran on the node and were run again (`ray_redone`).

    Raises:
        InputError: Ray is not installed.
        WorldError: An episode differs from the same episode in a process of this machine.
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
    expected = run_jobs(jobs, make_env, policies, 1, run.out / "local", progress=False)
    pools: list[ClusterPool] = []
    with TwoNodeCluster() as cluster:

        def make_pool(*waiting: Any) -> InterruptedPool:
            options, fingerprint = ClusterOptions(cluster.address, cpus=1), world.fingerprint
            pools.append(
                ClusterPool(options, make_env, policies, fingerprint, fingerprint(), run.out / "cluster", *waiting)
            )
            return InterruptedPool(pools[0], max(1, len(jobs) // 3), cluster.kill_worker_node)

        records = run_and_record(jobs, make_pool, run.out / "cluster", progress=False)
    different = episodes_that_differ(expected, records)
    if different:
        raise WorldError(f"{', '.join(different)} differ on the cluster: no number is given")
    return {
        "ray_episodes": len(jobs),
        **count_lost_and_duplicate(run.out / "cluster", len(jobs)),
        "ray_redone": pools[0].node_losses,
    }


def count_lost_and_duplicate(out: Path, requested: int) -> dict[str, int]:
    """Count lost and duplicate episodes in the records of an evaluation.

    Args:
        out: Output folder of the evaluation.
        requested: Number of episodes that it should have run.
    """
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
    """A pool that calls a function during its run.

    Args:
        pool: The pool that runs the jobs.
        after_jobs: Number of finished jobs after which the function is called.
        event: The function.
    """

    def __init__(self, pool: ClusterPool, after_jobs: int, event: Callable[[], None]) -> None:
        self._pool, self._after_jobs, self._event = pool, after_jobs, event

    def run(self) -> Iterator[EpisodeResult]:
        """Yield the result of every job as it finishes."""
        for number, finished in enumerate(self._pool.run(), start=1):
            yield finished
            if number == self._after_jobs:
                self._event()

    def close(self) -> None:
        """Close the pool."""
        self._pool.close()


class TwoNodeCluster:
    """A Ray cluster on this machine with two nodes of one CPU each.

    It sends no usage statistics, serves no dashboard, and listens on the loopback interface only, unless this process
    has imported Ray before.

    Attributes:
        address: host:port of its head.

    Raises:
        InputError: Ray is not installed.
    """

    def __init__(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        try:
            from ray.cluster_utils import Cluster
        except ImportError as error:
            fix = "Install it (uv sync --extra cluster), or leave this part out with --no-cluster."
            raise InputError("--cluster", got="no Ray", expected="the extra 'cluster'", fix=fix) from error
        node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=dict(node))
        self._second = self._cluster.add_node(**node)
        if self._cluster.address is None:
            raise WorldError("Ray started no head node")
        self.address: str = self._cluster.address

    def __enter__(self) -> TwoNodeCluster:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(Exception):  # a killed node cannot be stopped again
            self._cluster.shutdown()

    def kill_worker_node(self) -> None:
        """Kill the node that is not the head, as a power failure would."""
        self._cluster.remove_node(self._second, allow_graceful=False)

    def kill_head(self) -> None:
        """Kill the head's control service, which the whole cluster needs."""
        if self._cluster.head_node is not None:
            self._cluster.head_node.kill_gcs_server()
