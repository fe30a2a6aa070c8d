"""Run episodes on a Ray cluster: Ray places them, this module counts and retries them.

A node gets the checkpoint from the head unless it finds the same files under the same path. A node whose packages,
renderer or worlds differ from the head's is refused. An episode whose node is lost is run again, up to
`MAX_NODE_LOSSES` times; after any other error it is tried twice, as on one machine. Only the driver writes to the run
folder.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ...errors import InputError, WorldError
from ..perturbation.job import Job
from ..processes import raise_from_process, refused_message
from .cluster_node import NodeSetup, RelocatableActorFactory, run_on_node, with_checkpoint_files
from .pool import ATTEMPTS, SINGLE_THREAD_VARIABLES
from .records import error_record
from .worker import EnvFactory, EpisodeRequest, EpisodeResult

MAX_NODE_LOSSES = 10
"""How often an episode may lose its node before it is recorded as an error."""

OBJECT_STORE_BYTES = 256 * 2**20
"""Memory of Ray's object store on one machine: enough for a small checkpoint and videos."""

HEAD_TIMEOUT_SECONDS = 10
"""How long the head may be unreachable before the run stops: Ray itself would kill this process after a minute."""

RESUME_HINT = "Finished episodes are recorded: start the cluster again and repeat the command with --resume."


@dataclass(frozen=True)
class ClusterOptions:
    """Which Ray cluster to use.

    Attributes:
        address: Address of the head, host:port, or "local" to start a cluster on this machine.
        cpus: CPUs of a local cluster.
        gpu: Whether an episode takes a GPU instead of a CPU; then each GPU holds one policy.
    """

    address: str
    cpus: int
    gpu: bool = False

    def __post_init__(self) -> None:
        if self.address != "local" and not _host_and_port(self.address):
            raise InputError(
                "cluster",
                got=repr(self.address),
                expected="'local', or the head's host:port",
                fix="Run `ray status` to see the address; the default port is 6379.",
            )


class ClusterPool:
    """Runs jobs on a Ray cluster, as many at once as it has room for.

    A separate process talks to Ray (`run_ray_driver`), because Ray kills a process that loses the head.

    Args:
        options: Which cluster to use.
        make_env: Builds the environment of a suite and task.
        make_actor: Builds the actor from its checkpoint folder.
        fingerprint: Computes a node's fingerprint.
        expected: The head's fingerprint.
        out: The run folder; videos are written below it.
        jobs: The jobs to run.
        make_request: Turns a job into the request that is sent to a node.
        episode_seconds: Time limit of an episode.
    """

    def __init__(
        self,
        options: ClusterOptions,
        make_env: EnvFactory,
        make_actor: RelocatableActorFactory,
        fingerprint: Callable[[], Mapping[str, Any]],
        expected: Mapping[str, Any],
        out: Path,
        jobs: Sequence[Job],
        make_request: Callable[[Job], EpisodeRequest],
        *,
        episode_seconds: float = 600.0,
    ) -> None:
        self._options, self._out, self._make_request = options, out, make_request
        self._waiting = [(job, 1) for job in jobs]
        self._running: dict[str, tuple[Job, int]] = {}
        self._losses: Counter[str] = Counter()
        self._setup = NodeSetup(make_env, make_actor, fingerprint, expected, SINGLE_THREAD_VARIABLES, episode_seconds)
        self._driver: Any = None
        self._connection: Any = None
        self._head: str | None = None
        self._last_contact = time.monotonic()

    @property
    def node_losses(self) -> int:
        """How many times an episode lost its node and was run again."""
        return self._losses.total()

    def run(self) -> Iterator[EpisodeResult]:
        """Run all jobs and yield their results as they finish.

        Raises:
            InputError: Ray is not installed, no cluster answers, or a node differs from the head.
            WorldError: The cluster cannot be joined, or is lost.
        """
        if self._waiting:
            self._start()
        while self._waiting or self._running:
            self._require_head()
            if not self._connection.poll(1.0):
                continue
            try:
                kind, *content = self._connection.recv()
            except (EOFError, OSError):
                self._driver.join(timeout=5)
                reason = f"the Ray process ended (exit code {self._driver.exitcode})"
                raise WorldError(f"cluster {self._options.address}: {reason}. {RESUME_HINT}") from None
            raise_from_process(kind, content, "the cluster")
            if kind == "ready":
                self._head = content[0]
            elif kind == "room":
                self._connection.send(self._next_requests(content[0]))
            else:
                finished = self._finish_job(kind, *content)
                if finished is not None:
                    yield finished

    def close(self) -> None:
        """End the process that talks to Ray, and with it all running episodes."""
        if self._driver is None:
            return
        with suppress(OSError):  # The process may have ended already.
            self._connection.send(None)
        self._driver.join(timeout=10 if self._reachable() else 0)
        self._driver.kill()
        self._driver.join()
        self._connection.close()
        self._driver = None

    def _start(self) -> None:
        if self._options.address != "local" and not _accepts_connections(self._options.address, seconds=5.0):
            raise InputError(
                "cluster",
                got=f"{self._options.address}, which does not answer",
                expected="the head of a running Ray cluster",
                fix="Start one with `ray start --head`, or use --cluster local.",
            )
        context = multiprocessing.get_context("spawn")
        self._connection, child_connection = context.Pipe()
        self._driver = context.Process(
            target=run_ray_driver, args=(child_connection, self._options, self._setup), daemon=True
        )
        self._driver.start()
        child_connection.close()

    def _next_requests(self, free_slots: int) -> list[EpisodeRequest]:
        """Return the next requests; which videos to record is decided only now."""
        requests = []
        while self._waiting and len(requests) < free_slots:
            job, attempt = self._waiting.pop(0)
            self._running[job.key] = job, attempt
            requests.append(replace(self._make_request(job), folder=None))
        return requests

    def _finish_job(self, kind: str, key: str, content: Any) -> EpisodeResult | None:
        """Return the result of a job, or put the job back to run it again."""
        job, attempt = self._running.pop(key)
        if kind == "lost":
            self._losses[key] += 1
            if self._losses[key] > MAX_NODE_LOSSES:
                return EpisodeResult(error_record(job, f"lost {MAX_NODE_LOSSES} nodes; the last: {content}", attempt))
            self._waiting.insert(0, (job, attempt))
            return None
        if kind == "error":
            if attempt >= ATTEMPTS:
                return EpisodeResult(error_record(job, content, attempt))
            self._waiting.append((job, attempt + 1))
            return None
        finished, video_bytes = content
        if video_bytes is not None:
            path = self._out / finished.record.video
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(video_bytes)
        return replace(finished, record=replace(finished.record, attempts=attempt))

    def _reachable(self) -> bool:
        return self._head is None or _accepts_connections(self._head, seconds=1.0)

    def _require_head(self) -> None:
        if self._reachable():
            self._last_contact = time.monotonic()
        elif time.monotonic() - self._last_contact > HEAD_TIMEOUT_SECONDS:
            raise WorldError(f"cluster {self._head}: the head no longer answers. {RESUME_HINT}")


def run_ray_driver(connection: Connection, options: ClusterOptions, setup: NodeSetup) -> None:
    """Talk to Ray: receive requests and run them, until the connection closes or sends None.

    Sends ("ready", the head's address), then ("room", free slots) and expects a list of requests. For every request it
    sends ("finished", key, (EpisodeResult, video bytes)), ("error", key, reason), or ("lost", key, reason) if the node
    is gone. It sends `refused_message` or ("broken", reason) for an error that a retry would not solve.

    Args:
        connection: This process's end of the pipe to `ClusterPool`.
        options: Which cluster to use.
        setup: What every node needs, without the checkpoint's files.
    """
    try:
        ray = _connect(options)
        connection.send(("ready", ray.get_runtime_context().gcs_address))
        resources = {"num_gpus": 1} if options.gpu else {}
        remote = ray.remote(num_cpus=1, max_retries=0, **resources)(run_on_node)
        reference, running = ray.put(with_checkpoint_files(setup, send=options.address != "local")), {}
        while True:
            connection.send(("room", _free_slots(ray, options, len(running))))
            requests = connection.recv()
            if requests is None:
                break
            for request in requests:
                running[remote.remote([reference], request)] = request.job.key
            for finished_task in ray.wait(list(running), num_returns=1, timeout=1.0)[0] if running else ():
                connection.send(_outcome(ray, finished_task, running.pop(finished_task)))
        ray.shutdown()
    except InputError as error:
        connection.send(refused_message(error))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # The parent has ended.
    except WorldError as error:
        connection.send(("broken", str(error)))
    except Exception:
        connection.send(("broken", traceback.format_exc()))


def _free_slots(ray: Any, options: ClusterOptions, running: int) -> int:
    """Return how many more episodes the cluster can run now; nodes may join and leave."""
    kind = "GPU" if options.gpu else "CPU"
    capacity = int(ray.cluster_resources().get(kind, 0))
    if capacity < 1 and not running:
        raise WorldError(f"the cluster has no {kind}")
    return max(capacity - running, 0)


def _outcome(ray: Any, reference: Any, key: str) -> tuple[Any, ...]:
    errors = ray.exceptions
    try:
        kind, *content = ray.get(reference)
    except errors.NodeDiedError as error:
        return "lost", key, _first_line(error)
    except errors.RayTaskError as error:
        # run_on_node returns the errors that it catches: this node could not even start.
        return "broken", f"a node: {_first_line(error.cause or error)}"
    except errors.RayError as error:
        return "error", key, f"the worker died, or exceeded the time limit: {_first_line(error)}"
    return (kind, *content) if kind in ("refused", "broken") else (kind, key, content[0])


def _connect(options: ClusterOptions) -> Any:
    """Connect and return Ray; usage statistics and the dashboard are off."""
    # Ray reads these variables when it is imported. Under `uv run` Ray would copy this project and install the copy
    # over the environment in use; nodes have their own. The third keeps a local cluster on the loopback interface.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    if options.address.startswith(("local", "127.")):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "cluster", got="no Ray", expected="the extra 'cluster'", fix="Install it: uv sync --extra cluster."
        ) from error
    # A local cluster gets the size that was asked for; a running cluster has its own.
    own = {"num_cpus": options.cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(
            address=options.address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(own if options.address == "local" else {}),
        )
    except Exception as error:  # Ray also raises a bare Exception, for a node that is slow to start.
        raise WorldError(
            f"{_first_line(error)}. Run this command on a machine of the cluster, with the same version of Ray."
        ) from error
    return ray


def _host_and_port(address: str) -> tuple[str, int] | None:
    host, _, port = address.rpartition(":")
    return (host, int(port)) if host and "/" not in host and port.isdecimal() and 0 < int(port) < 65536 else None


def _accepts_connections(address: str, seconds: float) -> bool:
    try:
        with socket.create_connection(_host_and_port(address) or ("", 0), timeout=seconds):
            return True
    except OSError:
        return False


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
