"""Many episodes in worker processes: seeded one by one, recorded as they finish, unharmed by a worker's death."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import InputError, WorldError
from .episode import Actor, Overlay, Watcher, run_episode
from .records import EpisodeRecord, Job, RecordFile, error_record
from .worker import MakeActor, MakeEnv, work

__all__ = ["Actor", "EpisodeRecord", "Job", "Overlay", "Watcher", "run_episode", "run_jobs"]

RECORDS = "records.jsonl"

ATTEMPTS = 2
"""How often an episode is tried before it is recorded as an error."""

HOPELESS = 3
"""After so many errors without a single episode that ran to its end, the fault is not an episode's."""

START_SECONDS = 600.0
"""How long a worker may take to import its libraries and load its policy."""

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Mesa's CPU renderer: its threads cost more than they save at the size of a policy's images.
    "LP_NUM_THREADS": "0",
}


@dataclass
class _Worker:
    """A worker process, the job it has (None while it is idle) and the moment by which it must have answered."""

    process: Any
    connection: Any
    deadline: float
    ready: bool = False
    job: Job | None = None
    scene: tuple[str, str] | None = None


def run_jobs(
    jobs: Sequence[Job],
    make_env: MakeEnv,
    make_actor: MakeActor,
    workers: int,
    out: Path,
    *,
    videos: int = 0,
    episode_seconds: float = 600.0,
    progress: bool = True,
) -> list[EpisodeRecord]:
    """Run every job that `out` holds no finished record of, and return the records of all jobs in their order.

    Each worker is a fresh process with one thread, its own world and its own actor, and an episode depends on its job
    alone: the same jobs give the same records, however many workers share them. Records are appended to
    `out/records.jsonl` as they finish, so a killed run goes on where it was. A worker that dies, raises or takes longer
    than `episode_seconds` costs its episode a second attempt and then an error record. `videos` films of every outcome
    are kept for each task, in `out/videos`.

    Raises InputError for no jobs, doubled jobs or a bad number of workers, and whatever InputError the factories raise
    (a contract that does not fit); WorldError when workers cannot start or nothing at all can be run.
    """
    _check(jobs, workers, videos, episode_seconds)
    file = RecordFile(out / RECORDS)
    wanted = {job.key for job in jobs}
    records = {key: record for key, record in file.load().items() if key in wanted and record.outcome != "error"}
    pool = _Pool(
        waiting=[(job, 1) for job in jobs if job.key not in records],
        factories=(make_env, make_actor, out / "videos" if videos else None),
        episode_seconds=episode_seconds,
    )
    films = Counter(_film_kind(record) for record in records.values() if record.video)
    with tqdm(total=len(jobs), initial=len(records), unit="episode", mininterval=0.5, disable=not progress) as bar:
        _show_rate(bar, records)
        try:
            for finished in pool.run(min(workers, len(pool.waiting))):
                record = _keep_film(finished, films, videos, out)
                file.append(record)
                records[record.key] = record
                _show_rate(bar, records)
                bar.update()
                outcomes = Counter(each.outcome for each in records.values())
                if outcomes["error"] >= HOPELESS and outcomes["error"] == len(records):
                    raise WorldError(f"no episode could be run; the last error was: {record.error}")
        finally:
            pool.close()
    return [records[job.key] for job in jobs]


def _check(jobs: Sequence[Job], workers: int, videos: int, episode_seconds: float) -> None:
    if not jobs:
        raise InputError("episodes", got="none", expected="at least one", fix="Ask for one or more episodes.")
    doubled = [key for key, count in Counter(job.key for job in jobs).items() if count > 1]
    if doubled:
        raise InputError(
            "episodes", got=f"{doubled[0]} twice", expected="each episode once", fix="Give repeats another seed."
        )
    if workers < 1:
        raise InputError("workers", got=workers, expected="1 or more", fix="One for each CPU core is a good choice.")
    if videos < 0:
        raise InputError("videos", got=videos, expected="0 or more", fix="0 films nothing.")
    if episode_seconds <= 0:
        raise InputError("episode_seconds", got=episode_seconds, expected="more than 0", fix="The default is 600.")


def _film_kind(record: EpisodeRecord) -> tuple[str, str, str]:
    return record.suite, record.task, record.outcome


def _keep_film(record: EpisodeRecord, films: Counter[tuple[str, str, str]], videos: int, out: Path) -> EpisodeRecord:
    """Count an episode's film, or delete it where there are enough of its kind."""
    if record.video is None:
        return record
    if films[_film_kind(record)] >= videos:
        (out / record.video).unlink(missing_ok=True)
        return replace(record, video=None)
    films[_film_kind(record)] += 1
    return record


def _show_rate(bar: tqdm, records: dict[str, EpisodeRecord]) -> None:
    outcomes = Counter(record.outcome for record in records.values())
    finished = outcomes["success"] + outcomes["failure"]
    rate = f"success {100 * outcomes['success'] / finished:.1f} %" if finished else "success -"
    bar.set_postfix_str(rate + (f", errors {outcomes['error']}" if outcomes["error"] else ""), refresh=False)


@contextmanager
def _one_thread() -> Iterator[None]:
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


class _Pool:
    """The workers and the jobs that wait for them."""

    def __init__(
        self,
        waiting: list[tuple[Job, int]],
        factories: tuple[MakeEnv, MakeActor, Path | None],
        episode_seconds: float,
    ) -> None:
        self.waiting = waiting
        self.factories = factories
        self.episode_seconds = episode_seconds
        self.attempts = {job.key: attempt for job, attempt in waiting}
        self.workers: list[_Worker] = []
        # Spawned, not forked: neither torch's threads nor a GL context survive a fork.
        self.context = multiprocessing.get_context("spawn")

    def run(self, count: int) -> Iterator[EpisodeRecord]:
        """Yield a record for every waiting job, as they finish."""
        left = len(self.waiting)
        self.workers = [self._start() for _ in range(count)]
        while left:
            pause = max(0.0, min(worker.deadline for worker in self.workers) - time.monotonic())
            answering = wait([worker.connection for worker in self.workers], timeout=min(pause, 1.0))
            for worker in list(self.workers):
                record = None
                if worker.connection in answering:
                    record = self._hear(worker)
                elif time.monotonic() > worker.deadline:
                    record = self._lose(worker, f"no answer within {self.episode_seconds:.0f} s")
                if record is not None:
                    left -= 1
                    yield record
            for worker in self.workers:
                if worker.ready and worker.job is None and self.waiting:
                    self._send(worker)

    def close(self) -> None:
        for worker in self.workers:
            self._stop(worker)
        self.workers = []

    def _start(self) -> _Worker:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=work, args=(theirs, *self.factories), daemon=True)
        with _one_thread():
            process.start()
        theirs.close()
        return _Worker(process, ours, time.monotonic() + START_SECONDS)

    def _stop(self, worker: _Worker) -> None:
        with suppress(OSError):  # It may have ended by itself.
            if worker.job is None:
                worker.connection.send(None)
                worker.process.join(timeout=5)
        worker.process.kill()
        worker.process.join()
        worker.connection.close()

    def _send(self, worker: _Worker) -> None:
        """Give a worker its next job: of the scene it has built, else of one that no other worker is at."""
        taken = {other.scene for other in self.workers if other is not worker}

        def distance(entry: tuple[Job, int]) -> int:
            scene = (entry[0].suite, entry[0].task)
            return 0 if scene == worker.scene else 2 if scene in taken else 1

        entry = min(self.waiting, key=distance)
        self.waiting.remove(entry)
        worker.job, self.attempts[entry[0].key] = entry
        worker.scene = (worker.job.suite, worker.job.task)
        worker.deadline = time.monotonic() + self.episode_seconds
        with suppress(OSError):  # It died while it was idle: its closed connection is heard next.
            worker.connection.send(worker.job)

    def _hear(self, worker: _Worker) -> EpisodeRecord | None:
        """Take a worker's message and return the record that it settles, if it settles one."""
        try:
            kind, *content = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(timeout=5)
            return self._lose(worker, f"the worker died (exit code {worker.process.exitcode})")
        worker.deadline = float("inf")
        if kind == "ready":
            worker.ready = True
            return None
        if kind == "refused":
            what, got, expected, fix = content
            raise InputError(what, got=got, expected=expected, fix=fix)
        if kind == "broken":
            raise WorldError(f"a worker could not start: {content[0].strip()}")
        job, worker.job = worker.job, None
        if job is None:
            raise WorldError("a worker answered without having been asked; please report this.")
        if kind == "error":
            return self._retry(job, content[0].strip())
        return replace(content[0], attempts=self.attempts[job.key])

    def _lose(self, worker: _Worker, reason: str) -> EpisodeRecord | None:
        """Replace a worker that died or hangs, and settle its job."""
        if not worker.ready:
            raise WorldError(f"a worker could not start: {reason}. Fewer workers need less memory.")
        job, worker.job = worker.job, None
        worker.process.kill()
        self._stop(worker)
        self.workers[self.workers.index(worker)] = self._start()
        return self._retry(job, reason) if job is not None else None

    def _retry(self, job: Job, reason: str) -> EpisodeRecord | None:
        attempt = self.attempts[job.key]
        if attempt >= ATTEMPTS:
            return error_record(job, reason, attempt)
        self.waiting.append((job, attempt + 1))
        return None
