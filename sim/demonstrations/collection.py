"""Collect demonstrations with worker processes; a kill loses at most the running episodes.

Each attempt ends with one file that is written atomically to `<out>.partial/`: the encoded episode of a success, or
JSON for a failure. A task is finished when it has enough successes, in the order of their attempts. When all tasks are
finished, the dataset is built in `<out>.building/` and renamed. Which attempts are made, and their random numbers,
depend on the request only: neither on the number of workers nor on interruptions.
"""

from __future__ import annotations

import json
import shutil
import time
import zlib
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...disk import replace_folder, report_disk_errors, restore_previous, write_atomically
from ...errors import InputError, WorldError
from ...ranges import require_at_least
from ..json_files import read_json
from .attempt import Attempt, DemonstrationWorld, initialize_worker, process_attempt
from .dataset_writer import write_dataset
from .staging import frame_rate

REQUEST_FILE, SUMMARY_FILE = "request.json", "collection.json"

OVERWRITE = "Choose another --out, or start again with --overwrite."


@dataclass(frozen=True)
class CollectedTask:
    """A task to demonstrate.

    Attributes:
        suite: Name of the suite.
        task: Name of the task.
        instructions: Each attempt draws one of them.
        recordings: Number of recordings to replay: each is tried once, and successes are kept. None for a scripted
            demonstrator.
    """

    suite: str
    task: str
    instructions: tuple[str, ...]
    recordings: int | None = None


@dataclass(frozen=True)
class CollectionRequest:
    """What to collect. Raises InputError for a number that is too small, and for no or duplicate tasks.

    Attributes:
        tasks: The tasks.
        episodes: Successful episodes of each task.
        seed: Seed of all attempts.
        first_initial_state: Attempt k of a task starts from initial state `first_initial_state + k`.
        attempts_per_episode: The collection fails when a task has made this many times `episodes` attempts.
    """

    tasks: tuple[CollectedTask, ...]
    episodes: int
    seed: int = 0
    first_initial_state: int = 1000
    attempts_per_episode: int = 4

    def __post_init__(self) -> None:
        require_at_least(self, 1, "episodes", "attempts_per_episode")
        require_at_least(self, 0, "seed", "first_initial_state")
        names = [(task.suite, task.task) for task in self.tasks]
        if not names or len(set(names)) != len(names):
            raise InputError("tasks", got=names, expected="at least one, none twice", fix="Name each task once.")


@dataclass(frozen=True)
class TaskCount:
    """Kept episodes and failed attempts of a task."""

    suite: str
    task: str
    successes: int
    failures: int


@dataclass(frozen=True)
class CollectionSummary:
    """What was collected.

    Attributes:
        root: Folder of the dataset.
        episodes: Number of episodes.
        frames: Number of frames.
        tasks: Counts for each task.
        seconds: Duration of this run.
        already_complete: Whether the dataset was complete before this run.
    """

    root: Path
    episodes: int
    frames: int
    tasks: tuple[TaskCount, ...]
    seconds: float
    already_complete: bool = False


def plan_attempt(request: CollectionRequest, task: CollectedTask, number: int) -> Attempt:
    """Return attempt `number` of a task; its random numbers depend on the request only."""
    sequence = np.random.SeedSequence([request.seed, zlib.crc32(f"{task.suite}/{task.task}".encode()), number])
    generator = np.random.default_rng(sequence)
    return Attempt(
        suite=task.suite,
        task=task.task,
        number=number,
        initial_state=request.first_initial_state + number,
        seed=int(generator.integers(2**31)),
        instruction=task.instructions[int(generator.integers(len(task.instructions)))],
    )


def collect(
    request: CollectionRequest,
    world: DemonstrationWorld,
    out: Path,
    *,
    workers: int = 2,
    resume: bool = False,
    overwrite: bool = False,
    finish: Callable[[Path], None] | None = None,
    progress: bool = True,
) -> CollectionSummary:
    """Collect demonstrations as a new LeRobotDataset.

    Args:
        request: What to collect.
        world: The world to demonstrate in.
        out: Folder of the dataset.
        workers: Number of worker processes.
        resume: Continue an interrupted collection; returns at once if the dataset is complete.
        overwrite: Replace an existing dataset when the new one is complete.
        finish: Called with the dataset's folder before it is renamed to `out`.
        progress: Whether to show progress bars.

    Returns:
        What was collected.

    Raises:
        InputError: `out` exists or was started with another request, or the disk refused to write.
        WorldError: A worker died, or the demonstrator fails too often.
    """
    started = time.perf_counter()
    if workers < 1:
        raise InputError("workers", got=workers, expected="1 or more", fix="Use the number of CPU cores.")
    frame_rate(world.offer())
    out = Path(out).absolute()
    request_content = json.loads(json.dumps({"request": asdict(request), "world": repr(world)}))
    staging, building = out.with_name(f"{out.name}.partial"), out.with_name(f"{out.name}.building")
    with report_disk_errors(out):
        restore_previous(out)
        if _is_complete(out, request_content, resume=resume, overwrite=overwrite):
            if _read_request(staging / REQUEST_FILE) == request_content:
                shutil.rmtree(staging)  # The last run was killed just before this.
            return _read_summary(out)
        _open_staging(staging, request_content, resume=resume, overwrite=overwrite)
        kept_attempts = _process_all_attempts(request, world, staging, workers, progress=progress)
        shutil.rmtree(building, ignore_errors=True)
        paths = [staging / f"{attempt.name}.npz" for attempts in kept_attempts.values() for attempt in attempts]
        paths_with_progress = tqdm(paths, desc="writing the dataset", unit="episode", disable=not progress)
        frames = write_dataset(building, world.offer(), paths_with_progress, robot_type=world.robot_type)
        if finish is not None:
            finish(building)
        counts = tuple(
            TaskCount(
                task.suite, task.task, len(attempts), (task.recordings or attempts[-1].number + 1) - len(attempts)
            )
            for task, attempts in kept_attempts.items()
        )
        content = request_content | {
            "episodes": len(paths),
            "frames": frames,
            "tasks": [asdict(count) for count in counts],
        }
        write_atomically(building / SUMMARY_FILE, json.dumps(content, indent=2))
        replace_folder(building, out)
        shutil.rmtree(staging)
    return CollectionSummary(out, len(paths), frames, counts, time.perf_counter() - started)


def _is_complete(out: Path, request_content: dict[str, Any], *, resume: bool, overwrite: bool) -> bool:
    """Tell whether the requested dataset exists already; raise InputError if `out` holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / "meta" / "info.json").is_file():
        raise InputError(
            f"output {out}", got="something other than a dataset", expected="no folder yet", fix="Choose another --out."
        )
    if overwrite:
        return False
    if not resume:
        raise InputError(
            f"output {out}",
            got="a dataset",
            expected="no folder yet",
            fix="Choose another --out, keep it with --resume, or replace it with --overwrite.",
        )
    _require_same_request(out, _read_request(out / SUMMARY_FILE), request_content)
    return True


def _read_request(path: Path) -> dict[str, Any]:
    """Return the content of a request or a summary; empty where the file is missing."""
    return read_json(path, fix=OVERWRITE) if path.is_file() else {}


def _open_staging(staging: Path, request_content: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    if staging.exists() and overwrite and not resume:
        shutil.rmtree(staging)
    if staging.exists():
        if not resume:
            raise InputError(
                f"output {staging}",
                got="an unfinished collection",
                expected="none",
                fix="Continue with --resume, or start again with --overwrite.",
            )
        if (staging / REQUEST_FILE).is_file():
            _require_same_request(staging, _read_request(staging / REQUEST_FILE), request_content)
        for leftover in staging.glob(".*.partial"):
            leftover.unlink(missing_ok=True)
    staging.mkdir(parents=True, exist_ok=True)
    write_atomically(staging / REQUEST_FILE, json.dumps(request_content))


def _require_same_request(folder: Path, found: dict[str, Any], request_content: dict[str, Any]) -> None:
    previous = {"world": found.get("world"), **(found.get("request") or {})}
    wanted = {"world": request_content["world"], **request_content["request"]}
    different = [key for key in wanted if previous.get(key) != wanted[key]]
    if different:
        raise InputError(
            f"resuming {folder}",
            got="; ".join(f"{key} {wanted[key]!r}"[:160] for key in different),
            expected="; ".join(f"{key} {previous.get(key)!r}"[:160] for key in different),
            fix="Use the options of the first command, choose another --out, or start again with --overwrite.",
        )


def _process_all_attempts(
    request: CollectionRequest, world: DemonstrationWorld, staging: Path, workers: int, *, progress: bool
) -> dict[CollectedTask, list[Attempt]]:
    """Run attempts until every task has its successes; return the kept attempts in order."""
    ended = {path.name for path in staging.iterdir()}
    outcome: dict[str, bool] = {name.removesuffix(".npz"): True for name in ended if name.endswith(".npz")}
    failed = (name.removesuffix(".failed.json") for name in ended if name.endswith(".failed.json"))
    outcome |= dict.fromkeys(failed, False)
    plan: dict[CollectedTask, list[Attempt]] = {task: [] for task in request.tasks}
    running: dict[Future[bool], tuple[CollectedTask, Attempt]] = {}
    # Spawn, do not fork: a renderer's context does not survive a fork.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initialize_worker, (world, staging))
    wanted = sum(request.episodes if task.recordings is None else task.recordings for task in plan)
    bar = tqdm(total=wanted, desc="collecting", unit="episode", disable=not progress)

    def extend(task: CollectedTask) -> None:
        """Plan one attempt for each missing success, once all planned attempts have ended."""
        attempts = plan[task]
        while all(attempt.name in outcome for attempt in attempts):
            if task.recordings is not None:
                missing = task.recordings - len(attempts)
            else:
                missing = request.episodes - sum(outcome[attempt.name] for attempt in attempts)
            if missing <= 0:
                return
            if task.recordings is None and len(attempts) >= request.attempts_per_episode * request.episodes:
                raise WorldError(
                    f"the demonstrator fails too often at {task.suite}/{task.task}: "
                    f"{request.episodes - missing} of {len(attempts)} attempts, {request.episodes} wanted"
                )
            new = [plan_attempt(request, task, len(attempts) + offset) for offset in range(missing)]
            attempts.extend(new)
            for attempt in new:
                if attempt.name in outcome:
                    bar.update(outcome[attempt.name])
                else:
                    running[pool.submit(process_attempt, attempt)] = (task, attempt)

    try:
        for task in request.tasks:
            extend(task)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, attempt = running.pop(future)
                outcome[attempt.name] = future.result()
                bar.update(outcome[attempt.name])
                bar.set_postfix(failures=sum(not success for success in outcome.values()))
                extend(task)
    except BrokenProcessPool as error:
        raise WorldError(
            "a worker process died (out of memory, or killed). Finished episodes are kept: run again with --resume."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        bar.close()
    kept_attempts = {
        task: [attempt for attempt in attempts if outcome[attempt.name]] for task, attempts in plan.items()
    }
    for task, attempts in kept_attempts.items():
        if not attempts:
            raise WorldError(f"none of the {task.recordings} recordings of {task.suite}/{task.task} succeeds")
    return kept_attempts


def _read_summary(out: Path) -> CollectionSummary:
    found = _read_request(out / SUMMARY_FILE)
    counts = tuple(TaskCount(**count) for count in found["tasks"])
    return CollectionSummary(out, found["episodes"], found["frames"], counts, 0.0, already_complete=True)
