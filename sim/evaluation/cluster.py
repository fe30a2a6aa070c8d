"""The same episodes on the machines of a Ray cluster: Ray places them, this file keeps count.

A node gets the checkpoint from the head unless it sees the same files under the same path, and is refused when its
packages, its renderer or its worlds are others than the head's. Episodes whose node is lost are run again, as often as
that takes; whatever else goes wrong is tried twice, as on one machine. The run folder lies with the driver alone.
"""

from __future__ import annotations

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
"""Memory for what Ray passes around on one machine: a small checkpoint, and films."""

HEAD_TIMEOUT_SECONDS = 10
"""How long the head may not answer before it is given up: Ray itself would end this process after a minute."""

RESUME_HINT = "The episodes that finished are recorded: start the cluster again, and repeat the command with --resume."


@dataclass(frozen=True)
class ClusterOptions:
    """A Ray cluster: `address` is its head's, as host:port, or `local` for one of this machine with `cpus` CPUs.

    On a cluster an episode takes a CPU, or with `gpu` a GPU, so that one holds one policy.
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
                fix="`ray status` tells the address; the port is 6379 unless it was chosen.",
            )


class ClusterPool:
    """Runs jobs on a Ray cluster, as many at once as it has room for; `order` turns a job into what a node is sent.

    `out` is where films go. `node_losses` counts how often an episode lost its node and was run again. Another process speaks
    with Ray (see `run_ray_driver`), for Ray ends the process that loses its head.
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
        order: Callable[[Job], EpisodeRequest],
        *,
        episode_seconds: float = 600.0,
    ) -> None:
        self._options, self._out, self._make_request = options, out, order
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
        return self._losses.total()

    def run(self) -> Iterator[EpisodeResult]:
        """Yield what came of every job, as they finish.

        Raises InputError without Ray, where no cluster answers and for a node that does not fit; WorldError when the
        cluster cannot be joined or is gone.
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
                raise WorldError(
                    f"cluster {self._options.address}: Ray gave up (exit code {self._driver.exitcode}). {RESUME_HINT}"
                ) from None
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
        if self._driver is None:
            return
        with suppress(OSError):  # It may have ended by itself.
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
                got=f"{self._options.address}, where nobody answers",
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
        """Return the next orders; which films are wanted is decided only now."""
        requests = []
        while self._waiting and len(requests) < free_slots:
            job, attempt = self._waiting.pop(0)
            self._running[job.key] = job, attempt
            requests.append(replace(self._make_request(job), folder=None))
        return requests

    def _finish_job(self, kind: str, key: str, content: Any) -> EpisodeResult | None:
        """Return what came of a job, or put it back."""
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
            raise WorldError(f"cluster {self._head}: the head does not answer any more. {RESUME_HINT}")


def run_ray_driver(connection: Connection, options: ClusterOptions, setup: NodeSetup) -> None:
    """Speak with Ray: take orders from `connection` and have them run, until it closes or sends None.

    Sends ("ready", the head's address), then ("room", episodes) and expects a list of orders; for every order
    ("finished", key, (Finished, film)), ("error", key, reason) or ("lost", key, reason) where the node is gone. Sends
    ("refused", four strings) or ("broken", reason) for what no further try would mend.
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
            for order in requests:
                running[remote.remote([reference], order)] = order.job.key
            for finished_task in ray.wait(list(running), num_returns=1, timeout=1.0)[0] if running else ():
                connection.send(_outcome(ray, finished_task, running.pop(finished_task)))
        ray.shutdown()
    except InputError as error:
        connection.send(refused_message(error))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # Whoever sent the orders is gone; there is nobody left to tell.
    except WorldError as error:
        connection.send(("broken", str(error)))
    except Exception:
        connection.send(("broken", traceback.format_exc()))


def _free_slots(ray: Any, options: ClusterOptions, running: int) -> int:
    """Return how many more episodes the cluster has room for now; nodes may come and go."""
    kind = "GPU" if options.gpu else "CPU"
    capacity = int(ray.cluster_resources().get(kind, 0))
    if capacity < 1 and not running:
        raise WorldError(f"it has no {kind}")
    return max(capacity - running, 0)


def _outcome(ray: Any, reference: Any, key: str) -> tuple[Any, ...]:
    errors = ray.exceptions
    try:
        kind, *content = ray.get(reference)
    except errors.NodeDiedError as error:
        return "lost", key, _first_line(error)
    except errors.RayTaskError as error:
        # What a task itself catches comes back as a value: this is a node that cannot even begin.
        return "broken", f"a node: {_first_line(error.cause or error)}"
    except errors.RayError as error:
        return "error", key, f"the worker died, or took longer than allowed: {_first_line(error)}"
    return (kind, *content) if kind in ("refused", "broken") else (kind, key, content[0])


def _connect(options: ClusterOptions) -> Any:
    """Return Ray, connected; nothing is reported to anybody, and no page is served."""
    # Read when Ray is imported. Under `uv run` Ray would copy this project, and install the copy over the environment
    # in use; nodes bring their own. The third has a cluster that starts here stay on the loopback interface.
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
    # A cluster of this machine is as large as asked for; one that runs already has its own size.
    own = {"num_cpus": options.cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(
            address=options.address,
            log_to_driver=False,
            logging_level="error",
            **(own if options.address == "local" else {}),
        )
    except Exception as error:  # Ray raises the bare class, too, for a node that is slow to start.
        raise WorldError(f"{_first_line(error)}. Run this on a machine of the cluster, with the same Ray") from error
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
