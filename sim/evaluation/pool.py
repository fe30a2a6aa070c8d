"""Run jobs in worker processes on this machine; a worker that dies or hangs is replaced."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, cast

from ...errors import WorldError
from ..perturbation.job import Job
from ..processes import raise_from_process
from .records import error_record
from .shared_policy import PolicyProcess, SharedPolicyFactory, serve_policy
from .worker import ActorFactory, EnvFactory, EpisodeRequest, EpisodeResult, worker_main

if TYPE_CHECKING:
    from multiprocessing.context import SpawnContext

ATTEMPTS = 2
"""How often an episode is tried before it is recorded as an error."""

START_SECONDS = 600.0
"""Time limit for a process to import its libraries and load its policy."""

SINGLE_THREAD_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Mesa's CPU renderer: at the size of a policy's images its threads cost more than they save.
    "LP_NUM_THREADS": "0",
}

RENDERER_VARIABLES = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
"""Variables that a worker must get from this process: it may be forked from an older environment."""


@contextmanager
def single_thread_environment() -> Iterator[None]:
    """Start child processes with one thread each, set before their libraries load; this process keeps its setting."""
    before = {name: os.environ.get(name) for name in SINGLE_THREAD_VARIABLES}
    os.environ.update(SINGLE_THREAD_VARIABLES)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def prepare_workers(modules: Sequence[str] = ()) -> None:
    """Import modules for future workers in the background; only the first call in a process has an effect.

    Workers are forked from a server process that has imported the modules: they are imported once, not per worker.

    Args:
        modules: Names of the modules.
    """
    if _start_method() == "forkserver":
        from multiprocessing import forkserver

        multiprocessing.get_context("forkserver").set_forkserver_preload([worker_main.__module__, *modules])
        with single_thread_environment():
            forkserver.ensure_running()


def _start_method() -> str:
    # Do not fork this process: torch's threads and GL contexts do not survive a fork.
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


@dataclass
class _WorkerProcess:
    """A worker process, its job (None while it is idle) and the time by which it must have answered."""

    slot: int
    process: Any
    connection: Any
    deadline: float
    ready: bool = False
    job: Job | None = None
    suite_task: tuple[str, str] | None = None


class LocalPool:
    """Runs jobs in worker processes on this machine.

    Args:
        jobs: The jobs to run.
        make_env: Builds the environment of a suite and task, in a worker.
        make_actor: Builds a worker's actor; a `SharedPolicyFactory` puts one policy for all workers in one process.
        workers: Number of worker processes.
        episode_seconds: Time limit of an episode, and of a decision of a shared policy.
        make_request: Turns a job into the request that is sent to a worker.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        make_env: EnvFactory,
        make_actor: ActorFactory | SharedPolicyFactory,
        workers: int,
        episode_seconds: float,
        make_request: Callable[[Job], EpisodeRequest],
    ) -> None:
        self._waiting = [(job, 1) for job in jobs]
        self._attempts = dict.fromkeys((job.key for job in jobs), 1)
        self._make_env, self._make_actor, self._make_request = make_env, make_actor, make_request
        self._count = min(workers, len(jobs))
        self._episode_seconds = episode_seconds
        self._workers: list[_WorkerProcess] = []
        self._policy: PolicyProcess | None = None
        self._slots = count()
        # The base class of contexts, which get_context returns for a variable name, lacks Process in its stub.
        self._context = cast("SpawnContext", multiprocessing.get_context(_start_method()))

    def run(self) -> Iterator[EpisodeResult]:
        """Run all jobs and yield their results as they finish; raises as `run_and_record`."""
        remaining_jobs = len(self._waiting)
        if remaining_jobs:
            prepare_workers()
        if isinstance(self._make_actor, SharedPolicyFactory) and remaining_jobs:
            self._policy = self._start_policy(self._make_actor)
        self._workers = [self._start() for _ in range(self._count)]
        while remaining_jobs:
            for finished in self._poll():
                remaining_jobs -= 1
                yield finished

    def close(self) -> None:
        """End all processes."""
        # Tell all workers to stop before waiting for one; kill those that are in an episode.
        for worker in self._workers:
            if worker.job is None:
                with suppress(OSError):  # The process may have ended already.
                    worker.connection.send(None)
            else:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join(timeout=5)
            _kill_process(worker)
        self._workers = []
        if self._policy is not None:
            _kill_process(self._policy)
            self._policy = None

    def _poll(self) -> Iterator[EpisodeResult]:
        """Wait for messages, handle them, and send jobs to idle workers."""
        policy = self._policy
        processes = [*self._workers, *([policy] if policy else [])]
        poll_timeout = min(1.0, max(0.0, min(each.deadline for each in processes) - time.monotonic()))
        seconds_until_batch = policy.seconds_until_batch(self._count_busy_workers()) if policy else None
        readable_connections = wait(
            [each.connection for each in processes],
            poll_timeout if seconds_until_batch is None else min(poll_timeout, seconds_until_batch),
        )
        if policy is not None and policy.connection in readable_connections:
            self._receive_from_policy(policy)
        elif policy is not None and time.monotonic() > policy.deadline:
            self._replace_policy_process(policy, f"no decision within {self._episode_seconds:.0f} s")
        for worker in list(self._workers):
            finished = None
            if worker.connection in readable_connections:
                finished = self._receive(worker)
            elif time.monotonic() > worker.deadline:
                finished = self._replace_worker(worker, f"no answer within {self._episode_seconds:.0f} s")
            if finished is not None:
                yield finished
        for worker in self._workers:
            if worker.ready and worker.job is None and self._waiting:
                self._send(worker)
        if self._policy is not None and self._policy.seconds_until_batch(self._count_busy_workers()) == 0.0:
            self._policy.send_batch(self._episode_seconds)

    def _count_busy_workers(self) -> int:
        return sum(worker.job is not None for worker in self._workers)

    def _start(self) -> _WorkerProcess:
        environment = {name: os.environ[name] for name in RENDERER_VARIABLES if name in os.environ}
        process, parent_connection = self._launch(worker_main, environment, self._make_env, self._make_actor)
        return _WorkerProcess(next(self._slots), process, parent_connection, time.monotonic() + START_SECONDS)

    def _start_policy(self, shared: SharedPolicyFactory) -> PolicyProcess:
        process, parent_connection = self._launch(serve_policy, shared.make_policy)
        return PolicyProcess(process, parent_connection, time.monotonic() + START_SECONDS)

    def _launch(self, target: Callable[..., None], *arguments: Any) -> tuple[Any, Any]:
        parent_connection, child_connection = self._context.Pipe()
        process = self._context.Process(target=target, args=(child_connection, *arguments), daemon=True)
        with single_thread_environment():
            process.start()
        child_connection.close()
        return process, parent_connection

    def _send(self, worker: _WorkerProcess) -> None:
        """Send a worker its next job: of the suite and task it has built, else of one that no other worker has."""
        taken = {other.suite_task for other in self._workers if other is not worker}

        def distance(entry: tuple[Job, int]) -> int:
            suite_task = entry[0].suite_task
            return 0 if suite_task == worker.suite_task else 2 if suite_task in taken else 1

        entry = min(self._waiting, key=distance)
        self._waiting.remove(entry)
        worker.job, self._attempts[entry[0].key] = entry
        worker.suite_task = worker.job.suite_task
        worker.deadline = time.monotonic() + self._episode_seconds
        with suppress(OSError):  # It died while idle: the next poll sees the closed connection.
            worker.connection.send(self._make_request(worker.job))

    def _receive(self, worker: _WorkerProcess) -> EpisodeResult | None:
        """Handle a worker's message; return the result if it finishes a job."""
        try:
            kind, *content = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(timeout=5)
            return self._replace_worker(worker, f"the worker died (exit code {worker.process.exitcode})")
        if kind == "ask":
            if self._policy is None or not self._policy.submit_request(worker.slot, *content):
                _reply(worker, "it was restarted during the episode", answered=False)
            return None
        worker.deadline = float("inf")
        if kind == "ready":
            worker.ready = True
            return None
        raise_from_process(kind, content, "a worker")
        job, worker.job = worker.job, None
        if job is None:
            raise WorldError("a worker sent a result without a job: please report this.")
        if kind == "error":
            return self._retry(job, content[0].strip())
        finished = content[0]
        return replace(finished, record=replace(finished.record, attempts=self._attempts[job.key]))

    def _replace_worker(self, worker: _WorkerProcess, reason: str) -> EpisodeResult | None:
        """Replace a worker that died or hangs; retry its job, or return an error record."""
        if not worker.ready:
            raise WorldError(f"a worker could not start: {reason}. Use fewer workers: they need less memory.")
        job = worker.job
        _kill_process(worker)
        if self._policy is not None:
            self._policy.drop_slot(worker.slot)
        self._workers[self._workers.index(worker)] = self._start()
        return self._retry(job, reason) if job is not None else None

    def _retry(self, job: Job, reason: str) -> EpisodeResult | None:
        attempt = self._attempts[job.key]
        if attempt >= ATTEMPTS:
            return EpisodeResult(error_record(job, reason, attempt))
        self._waiting.append((job, attempt + 1))
        return None

    def _receive_from_policy(self, policy: PolicyProcess) -> None:
        try:
            kind, *content = policy.connection.recv()
        except (EOFError, OSError):
            policy.process.join(timeout=5)
            self._replace_policy_process(policy, f"it died (exit code {policy.process.exitcode})")
            return
        if kind == "ready":
            policy.max_batch_size, policy.deadline = content[0], float("inf")
        elif kind == "broken" and policy.max_batch_size is not None:
            self._replace_policy_process(policy, content[0].strip())
        else:
            raise_from_process(kind, content, "the policy's process")
            policy.record_answers(content[0])
            asking = {worker.slot: worker for worker in self._workers}
            for slot, answer in content[0]:
                if slot in asking:
                    _reply(asking[slot], answer, answered=True)

    def _replace_policy_process(self, policy: PolicyProcess, reason: str) -> None:
        """Replace a policy's process that died or hangs; the episodes that wait for it are retried."""
        if policy.max_batch_size is None or not isinstance(self._make_actor, SharedPolicyFactory):
            raise WorldError(f"the policy's process could not start: {reason}.")
        _kill_process(policy)
        self._policy = self._start_policy(self._make_actor)
        for worker in self._workers:
            if worker.slot in policy.awaiting_slots or worker.slot in policy.pending_observations:
                _reply(worker, reason, answered=False)


def _reply(worker: _WorkerProcess, content: Any, *, answered: bool) -> None:
    with suppress(OSError):  # It died: the next poll sees the closed connection.
        worker.connection.send((answered, content))


def _kill_process(other: _WorkerProcess | PolicyProcess) -> None:
    other.process.kill()
    other.process.join()
    other.connection.close()
