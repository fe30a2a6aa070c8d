"""Many episodes in worker processes: seeded one by one, recorded as they finish, unharmed by a worker's death."""

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
"""After so many errors without a single episode that ran to its end, the fault is not an episode's."""


class Pool(Protocol):
    """What runs jobs: processes of this machine, or a cluster."""

    def run(self) -> Iterator[EpisodeResult]:
        """Yield what came of every job, as they finish."""
        ...

    def close(self) -> None:
        """End whatever is still running."""


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
    """Run every job that `out` holds no finished record of, on this machine; return all records in the jobs' order.

    Each worker is a fresh process with one thread, its own world and its own actor, or all of them ask a SharedPolicyFactory.
    An episode depends on its job alone: the same jobs give the same records, however many workers share them. A worker
    that dies, raises or takes longer than `episode_seconds` costs its episode a second attempt and then an error
    record. For records, films and errors see `run_and_record`.
    """
    if workers < 1:
        raise InputError("workers", got=workers, expected="1 or more", fix="One for each CPU core is a good choice.")
    if episode_seconds <= 0:
        raise InputError("episode_seconds", got=episode_seconds, expected="more than 0", fix="The default is 600.")

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
    """Run every job that `out` holds no finished record of, in the pool that `make_pool` builds from jobs and orders.

    Records are appended to `out/records.jsonl` as they finish, so a killed run goes on where it was, and no episode is
    counted twice. `videos` films of every outcome are kept for each task, in `out/videos`: of unchanged episodes, where
    there are any.

    Raises InputError for no jobs or doubled jobs, and whatever InputError the pool's factories raise (a contract that
    does not fit); WorldError when the pool cannot start or nothing at all can be run.
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
        warn = f"{not_repeated} episodes went another way when they were run again for the film, and were not filmed:"
        print(f"saccade: warning: {warn} this world or policy does not repeat.", file=sys.stderr)
    return [records[job.key] for job in jobs]


def _check_jobs(jobs: Sequence[Job], videos: int) -> None:
    if not jobs:
        raise InputError("episodes", got="none", expected="at least one", fix="Ask for one or more episodes.")
    duplicate_keys = [key for key, count in Counter(job.key for job in jobs).items() if count > 1]
    if duplicate_keys:
        raise InputError(
            "episodes", got=f"{duplicate_keys[0]} twice", expected="each episode once", fix="Give repeats another seed."
        )
    if videos < 0:
        raise InputError("videos", got=videos, expected="0 or more", fix="0 films nothing.")


class _VideoQuota:
    """Which films are still wanted: `videos` of every outcome for each task.

    Beside unchanged episodes, which reports show one by one, those that are perturbed or swapped are not filmed.
    """

    def __init__(self, out: Path, videos: int, jobs: Sequence[Job], records: Iterable[EpisodeRecord]) -> None:
        self._out, self._videos = out, videos
        self._recordable_jobs = {job.key for job in jobs if job.unchanged} or {job.key for job in jobs}
        self._video_counts = Counter(self._outcome_key(record) for record in records if record.video)

    def make_request(self, job: Job) -> EpisodeRequest:
        """Return what a worker is sent: the job, and the outcomes that it should film."""
        kinds = ("success", "failure") if job.key in self._recordable_jobs else ()
        wanted = {kind for kind in kinds if self._video_counts[job.suite, job.task, kind] < self._videos}
        return EpisodeRequest(job, frozenset(wanted), self._out / "videos" if wanted else None)

    def keep(self, record: EpisodeRecord) -> EpisodeRecord:
        """Count an episode's film, or delete it where others of its kind have come before it in the meantime."""
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
