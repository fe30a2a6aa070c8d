"""Run many episodes in a pool, record them as they finish, and keep some videos."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from ...errors import InputError, WorldError
from ..perturbation.job import Job
from .episode import Actor, Overlay, StepCallback, run_episode
from .pool import LocalPool
from .records import EpisodeRecord, RecordFile
from .run_folder import RECORDS_FILE
from .shared_policy import SharedPolicyFactory
from .worker import ActorFactory, EnvFactory, EpisodeRequest, EpisodeResult

__all__ = ["Actor", "EpisodeRecord", "Job", "Overlay", "StepCallback", "run_episode", "run_jobs"]

MAX_INITIAL_ERRORS = 3
"""The run stops after this many errors if no episode ran without an error."""


class Pool(Protocol):
    """Runs jobs: in processes of this machine, or on a cluster."""

    def run(self) -> Iterator[EpisodeResult]:
        """Run all jobs and yield their results as they finish."""
        ...

    def close(self) -> None:
        """End all processes."""


def run_jobs(
    jobs: Sequence[Job],
    make_env: EnvFactory,
    make_actor: ActorFactory | SharedPolicyFactory,
    workers: int,
    out: Path,
    *,
    videos: int = 0,
    episode_seconds: float = 600.0,
    progress: bool = True,
) -> list[EpisodeRecord]:
    """Run the jobs that have no finished record in `out`, in worker processes on this machine.

    An episode depends on its job only: the same jobs give the same records with any number of workers. If a worker
    dies, raises or exceeds `episode_seconds`, its episode is tried once more and then recorded as an error.

    Args:
        jobs: The episodes to run.
        make_env: Builds the environment of a suite and task, in a worker.
        make_actor: Builds a worker's actor; a `SharedPolicyFactory` makes one policy for all workers.
        workers: Number of worker processes; each has one thread.
        out: The run folder.
        videos: Videos to keep for each task and outcome.
        episode_seconds: Time limit of an episode.
        progress: Whether to show a progress bar.

    Returns:
        All records, in the order of the jobs.

    Raises:
        InputError: A bad argument, or an InputError of the factories, as for a contract that does not fit.
        WorldError: The workers cannot start, or no episode can be run.
    """
    if workers < 1:
        raise InputError("workers", got=workers, expected="1 or more", fix="Use the number of CPU cores.")
    if episode_seconds <= 0:
        raise InputError("episode_seconds", got=episode_seconds, expected="more than 0", fix="Use 600.")

    def make_pool(waiting: Sequence[Job], make_request: Callable[[Job], EpisodeRequest]) -> Pool:
        return LocalPool(waiting, make_env, make_actor, workers, episode_seconds, make_request)

    return run_and_record(jobs, make_pool, out, videos=videos, progress=progress)


def run_and_record(
    jobs: Sequence[Job],
    make_pool: Callable[[Sequence[Job], Callable[[Job], EpisodeRequest]], Pool],
    out: Path,
    *,
    videos: int = 0,
    progress: bool = True,
) -> list[EpisodeRecord]:
    """Run the jobs that have no finished record in `out`, in a pool.

    Records are appended to `out/records.jsonl` as they finish: a killed run continues where it stopped, and no episode
    counts twice. Videos are kept in `out/videos`: of unchanged episodes if there are any, else of all.

    Args:
        jobs: The episodes to run.
        make_pool: Builds the pool from the jobs to run and a function that turns a job into a request.
        out: The run folder.
        videos: Videos to keep for each task and outcome.
        progress: Whether to show a progress bar.

    Returns:
        All records, in the order of the jobs.

    Raises:
        InputError: No jobs, duplicate jobs, or an InputError of the pool's factories.
        WorldError: The pool cannot start, or no episode can be run.
    """
    _check_jobs(jobs, videos)
    file = RecordFile(out / RECORDS_FILE)
    wanted = {job.key for job in jobs}
    records = {key: record for key, record in file.load().items() if key in wanted and record.outcome != "error"}
    video_quota = _VideoQuota(out, videos, jobs, records.values())
    pool = make_pool([job for job in jobs if job.key not in records], video_quota.make_request)
    not_repeated = 0
    with tqdm(total=len(jobs), initial=len(records), unit="episode", mininterval=0.5, disable=not progress) as bar:
        _show_rate(bar, records)
        try:
            for finished in pool.run():
                if finished.record.key in records:
                    continue
                record = video_quota.keep(finished.record)
                file.append(record)
                records[record.key] = record
                not_repeated += not finished.repeated
                _show_rate(bar, records)
                bar.update()
                outcomes = Counter(each.outcome for each in records.values())
                if outcomes["error"] >= MAX_INITIAL_ERRORS and outcomes["error"] == len(records):
                    raise WorldError(f"no episode could be run; the last error was: {record.error}")
        finally:
            pool.close()
    if not_repeated:
        warning = f"{not_repeated} episodes have no video, because they went differently when run again for it"
        print(f"saccade: warning: {warning}: this world or policy is not deterministic.", file=sys.stderr)
    return [records[job.key] for job in jobs]


def _check_jobs(jobs: Sequence[Job], videos: int) -> None:
    if not jobs:
        raise InputError("episodes", got="none", expected="at least one", fix="Set --episodes to 1 or more.")
    duplicate_keys = [key for key, count in Counter(job.key for job in jobs).items() if count > 1]
    if duplicate_keys:
        raise InputError(
            "episodes",
            got=f"{duplicate_keys[0]} twice",
            expected="each episode once",
            fix="Give repeated episodes different seeds.",
        )
    if videos < 0:
        raise InputError("videos", got=videos, expected="0 or more", fix="Use 0 for no videos.")


class _VideoQuota:
    """Decides which videos to keep: `videos` for each task and outcome.

    Perturbed and swapped episodes are not recorded if there are unchanged ones, which reports show one by one.
    """

    def __init__(self, out: Path, videos: int, jobs: Sequence[Job], records: Iterable[EpisodeRecord]) -> None:
        self._out, self._videos = out, videos
        self._recordable_jobs = {job.key for job in jobs if job.unchanged} or {job.key for job in jobs}
        self._video_counts = Counter(self._outcome_key(record) for record in records if record.video)

    def make_request(self, job: Job) -> EpisodeRequest:
        """Return the request for a worker: the job, and the outcomes to record."""
        kinds = ("success", "failure") if job.key in self._recordable_jobs else ()
        wanted = {kind for kind in kinds if self._video_counts[job.suite, job.task, kind] < self._videos}
        return EpisodeRequest(job, frozenset(wanted), self._out / "videos" if wanted else None)

    def keep(self, record: EpisodeRecord) -> EpisodeRecord:
        """Count an episode's video, or delete it if enough others of its task and outcome finished in the meantime."""
        if record.video is None:
            return record
        if self._video_counts[self._outcome_key(record)] >= self._videos:
            (self._out / record.video).unlink(missing_ok=True)
            return replace(record, video=None)
        self._video_counts[self._outcome_key(record)] += 1
        return record

    @staticmethod
    def _outcome_key(record: EpisodeRecord) -> tuple[str, str, str]:
        return record.suite, record.task, record.outcome


def _show_rate(bar: tqdm, records: dict[str, EpisodeRecord]) -> None:
    outcomes = Counter(record.outcome for record in records.values())
    finished = outcomes["success"] + outcomes["failure"]
    rate = f"success {100 * outcomes['success'] / finished:.1f} %" if finished else "success -"
    bar.set_postfix_str(rate + (f", errors {outcomes['error']}" if outcomes["error"] else ""), refresh=False)
