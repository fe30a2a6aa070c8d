"""Worker processes on this machine and the jobs that wait for them: a worker that dies or hangs is replaced."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from multiprocessing.connection import wait
from typing import Any

from ...errors import InputError, WorldError
from ..job import Job
from .records import error_record
from .shared_policy import Questions, SharedPolicy, serve
from .worker import Finished, MakeActor, MakeEnv, Order, work

ATTEMPTS = 2
"""How often an episode is tried before it is recorded as an error."""

START_SECONDS = 600.0
"""How long a process may take to import its libraries and load its policy."""

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Mesa's CPU renderer: its threads cost more than they save at the size of a policy's images.
    "LP_NUM_THREADS": "0",
}

RENDERING = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
"""What a worker must be told of this process: its own environment may be older."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Give child processes one thread each, from before their libraries load; this process keeps its own setting."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def prepare_workers(modules: Sequence[str] = ()) -> None:
    """Begin to import modules for the workers to come, in the background; the first call in a process counts.

    Workers are forked from a process that has the modules already: they are imported once, not once for each.
    """
    if _start_method() == "forkserver":
        from multiprocessing import forkserver

        multiprocessing.get_context("forkserver").set_forkserver_preload([work.__module__, *modules])
        with one_thread():
            forkserver.ensure_running()


def _start_method() -> str:
    # Never a fork of this process: neither torch's threads nor a GL context survive one.
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


@dataclass
class _Worker:
    """A worker process, the job it has (None while it is idle) and the moment by which it must have answered."""

    slot: int
    process: Any
    connection: Any
    deadline: float
    ready: bool = False
    job: Job | None = None
    scene: tuple[str, str] | None = None


class LocalPool:
    """Runs jobs in `workers` processes; `order` turns a job into what a worker is sent.

    With a SharedPolicy one more process decides for all of them.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        make_env: MakeEnv,
        make_actor: MakeActor | SharedPolicy,
        workers: int,
        episode_seconds: float,
        order: Callable[[Job], Order],
    ) -> None:
        self._waiting = [(job, 1) for job in jobs]
        self._attempts = dict.fromkeys((job.key for job in jobs), 1)
        self._make_env, self._make_actor, self._order = make_env, make_actor, order
        self._count = min(workers, len(jobs))
        self._episode_seconds = episode_seconds
        self._workers: list[_Worker] = []
        self._policy: Questions | None = None
        self._slots = count()
        self._context = multiprocessing.get_context(_start_method())

    def run(self) -> Iterator[Finished]:
        """Yield what came of every job, as they finish."""
        left = len(self._waiting)
        if left:
            prepare_workers()
        if isinstance(self._make_actor, SharedPolicy) and left:
            self._policy = self._start_policy(self._make_actor)
        self._workers = [self._start() for _ in range(self._count)]
        while left:
            for finished in self._turn():
                left -= 1
                yield finished

    def close(self) -> None:
        # All are told before one is waited for, and what is in the middle of something is not waited for at all.
        for worker in self._workers:
            if worker.job is None:
                with suppress(OSError):  # It may have ended by itself.
                    worker.connection.send(None)
            else:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join(timeout=5)
            _end(worker)
        self._workers = []
        if self._policy is not None:
            _end(self._policy)
            self._policy = None

    def _turn(self) -> Iterator[Finished]:
        """Wait for news, hear it, and give idle workers something to do."""
        policy = self._policy
        processes = [*self._workers, *([policy] if policy else [])]
        pause = min(1.0, max(0.0, min(each.deadline for each in processes) - time.monotonic()))
        patience = policy.patience(self._playing()) if policy else None
        answering = wait([each.connection for each in processes], pause if patience is None else min(pause, patience))
        if policy is not None and policy.connection in answering:
            self._hear_policy(policy)
        elif policy is not None and time.monotonic() > policy.deadline:
            self._lose_policy(policy, f"no decision within {self._episode_seconds:.0f} s")
        for worker in list(self._workers):
            finished = None
            if worker.connection in answering:
                finished = self._hear(worker)
            elif time.monotonic() > worker.deadline:
                finished = self._lose(worker, f"no answer within {self._episode_seconds:.0f} s")
            if finished is not None:
                yield finished
        for worker in self._workers:
            if worker.ready and worker.job is None and self._waiting:
                self._send(worker)
        if self._policy is not None and self._policy.patience(self._playing()) == 0.0:
            self._policy.send_open(self._episode_seconds)

    def _playing(self) -> int:
        return sum(worker.job is not None for worker in self._workers)

    def _start(self) -> _Worker:
        environment = {name: os.environ[name] for name in RENDERING if name in os.environ}
        process, ours = self._launch(work, environment, self._make_env, self._make_actor)
        return _Worker(next(self._slots), process, ours, time.monotonic() + START_SECONDS)

    def _start_policy(self, shared: SharedPolicy) -> Questions:
        process, ours = self._launch(serve, shared.make_policy)
        return Questions(process, ours, time.monotonic() + START_SECONDS)

    def _launch(self, target: Callable[..., None], *arguments: Any) -> tuple[Any, Any]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=target, args=(theirs, *arguments), daemon=True)
        with one_thread():
            process.start()
        theirs.close()
        return process, ours

    def _send(self, worker: _Worker) -> None:
        """Give a worker its next job: of the scene it has built, else of one that no other worker is at."""
        taken = {other.scene for other in self._workers if other is not worker}

        def distance(entry: tuple[Job, int]) -> int:
            scene = (entry[0].suite, entry[0].task)
            return 0 if scene == worker.scene else 2 if scene in taken else 1

        entry = min(self._waiting, key=distance)
        self._waiting.remove(entry)
        worker.job, self._attempts[entry[0].key] = entry
        worker.scene = (worker.job.suite, worker.job.task)
        worker.deadline = time.monotonic() + self._episode_seconds
        with suppress(OSError):  # It died while it was idle: its closed connection is heard next.
            worker.connection.send(self._order(worker.job))

    def _hear(self, worker: _Worker) -> Finished | None:
        """Take a worker's message and return what it settles, if it settles a job."""
        try:
            kind, *content = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(timeout=5)
            return self._lose(worker, f"the worker died (exit code {worker.process.exitcode})")
        if kind == "ask":
            if self._policy is None or not self._policy.ask(worker.slot, *content):
                _tell(worker, False, "it began anew in the middle of the episode")
            return None
        worker.deadline = float("inf")
        if kind == "ready":
            worker.ready = True
            return None
        raise_from_process(kind, content, "a worker")
        job, worker.job = worker.job, None
        if job is None:
            raise WorldError("a worker answered without having been asked; please report this.")
        if kind == "error":
            return self._retry(job, content[0].strip())
        finished = content[0]
        return replace(finished, record=replace(finished.record, attempts=self._attempts[job.key]))

    def _lose(self, worker: _Worker, reason: str) -> Finished | None:
        """Replace a worker that died or hangs, and settle its job."""
        if not worker.ready:
            raise WorldError(f"a worker could not start: {reason}. Fewer workers need less memory.")
        job = worker.job
        _end(worker)
        if self._policy is not None:
            self._policy.forget(worker.slot)
        self._workers[self._workers.index(worker)] = self._start()
        return self._retry(job, reason) if job is not None else None

    def _retry(self, job: Job, reason: str) -> Finished | None:
        attempt = self._attempts[job.key]
        if attempt >= ATTEMPTS:
            return Finished(error_record(job, reason, attempt))
        self._waiting.append((job, attempt + 1))
        return None

    def _hear_policy(self, policy: Questions) -> None:
        try:
            kind, *content = policy.connection.recv()
        except (EOFError, OSError):
            policy.process.join(timeout=5)
            self._lose_policy(policy, f"it died (exit code {policy.process.exitcode})")
            return
        if kind == "ready":
            policy.rows, policy.deadline = content[0], float("inf")
        elif kind == "broken" and policy.rows is not None:
            self._lose_policy(policy, content[0].strip())
        else:
            raise_from_process(kind, content, "the policy's process")
            policy.answered(content[0])
            asking = {worker.slot: worker for worker in self._workers}
            for slot, answer in content[0]:
                if slot in asking:
                    _tell(asking[slot], True, answer)

    def _lose_policy(self, policy: Questions, reason: str) -> None:
        """Replace a policy's process that died or hangs; the episodes that wait for it are tried again."""
        if policy.rows is None or not isinstance(self._make_actor, SharedPolicy):
            raise WorldError(f"the policy's process could not start: {reason}.")
        _end(policy)
        self._policy = self._start_policy(self._make_actor)
        for worker in self._workers:
            if worker.slot in policy.asked or worker.slot in policy.open:
                _tell(worker, False, reason)


def raise_from_process(kind: str, content: Sequence[Any], who: str) -> None:
    """Raise what ended another process: its InputError, or a WorldError for anything that kept it from working."""
    if kind == "refused":
        what, got, expected, fix = content
        raise InputError(what, got=got, expected=expected, fix=fix)
    if kind == "broken":
        raise WorldError(f"{who} could not start: {content[0].strip()}")


def _tell(worker: _Worker, answered: bool, content: Any) -> None:
    with suppress(OSError):  # It died: its closed connection is heard next.
        worker.connection.send((answered, content))


def _end(other: _Worker | Questions) -> None:
    other.process.kill()
    other.process.join()
    other.connection.close()
