"""Collecting demonstrations with worker processes, so that a kill at any moment costs at most the running episodes.

Every attempt is settled by one file that appears atomically in `<out>.partial/`: the encoded episode of a success, or
a line of JSON for a failure. When a task has its successes, in the order of their attempts, it is done; when all are,
the dataset is built in a folder of its own and renamed into place. Which attempts are made, and what each one draws,
depends on the request alone: neither on the number of workers nor on interruptions.
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
    """A task to demonstrate and the instructions to draw from, one for each attempt.

    `recordings` counts the starts that there are, where demonstrations were recorded elsewhere: each is tried once, and
    what succeeds is kept.
    """

    suite: str
    task: str
    instructions: tuple[str, ...]
    recordings: int | None = None


@dataclass(frozen=True)
class CollectionRequest:
    """What to collect: `episodes` successes for each task.

    Attempt k of a task starts from initial state `first_initial_state + k`. A task that has not its successes after
    `attempts_per_episode` times as many attempts is given up with a WorldError.
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
    """How a task went: its kept episodes and failed attempts."""

    suite: str
    task: str
    successes: int
    failures: int


@dataclass(frozen=True)
class CollectionSummary:
    """What was collected: the dataset's folder, its size and a count for every task; `seconds` of this very run."""

    root: Path
    episodes: int
    frames: int
    tasks: tuple[TaskCount, ...]
    seconds: float
    already_complete: bool = False


def plan_attempt(request: CollectionRequest, task: CollectedTask, number: int) -> Attempt:
    """Return attempt `number` of a task."""
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
    """Collect the request's demonstrations into the new LeRobotDataset folder `out`.

    `finish` is called with the dataset's folder before it is renamed into place. `resume` carries on after an
    interruption and returns at once when all is there; `overwrite` puts the new dataset in an old one's place when it
    is whole, and not before. Raises InputError when `out` is taken or was started with another request, and
    WorldError when a worker dies or the demonstrator fails too often.
    """
    started = time.perf_counter()
    if workers < 1:
        raise InputError("workers", got=workers, expected="1 or more", fix="The number of CPU cores is a good choice.")
    frame_rate(world.offer())
    out = Path(out).absolute()
    request_content = json.loads(json.dumps({"request": asdict(request), "world": repr(world)}))
    staging, building = out.with_name(f"{out.name}.partial"), out.with_name(f"{out.name}.building")
    with report_disk_errors(out):
        restore_previous(out)
        if _is_complete(out, request_content, resume, overwrite):
            if _read_request(staging / REQUEST_FILE) == request_content:
                shutil.rmtree(staging)  # killed between the last two lines of this block
            return _read_summary(out)
        _open_staging(staging, request_content, resume, overwrite)
        kept_attempts = _process_all_attempts(request, world, staging, workers, progress)
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


def _is_complete(out: Path, request_content: dict[str, Any], resume: bool, overwrite: bool) -> bool:
    """Tell whether this very dataset is there already; refuse to touch anything else that is."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / "meta" / "info.json").is_file():
        raise InputError(f"output {out}", got="something else", expected="no folder yet", fix="Choose another --out.")
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


def _open_staging(staging: Path, request_content: dict[str, Any], resume: bool, overwrite: bool) -> None:
    if staging.exists() and overwrite and not resume:
        shutil.rmtree(staging)
    if staging.exists():
        if not resume:
            raise InputError(
                f"output {staging}",
                got="an unfinished collection",
                expected="none",
                fix="Carry on with --resume, or start over with --overwrite.",
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
            fix="Repeat the first command's options, choose another --out, or start over with --overwrite.",
        )


def _process_all_attempts(
    request: CollectionRequest, world: DemonstrationWorld, staging: Path, workers: int, progress: bool
) -> dict[CollectedTask, list[Attempt]]:
    """Settle attempts until every task has its successes; return the kept attempts in order."""
    settled = {path.name for path in staging.iterdir()}
    outcome: dict[str, bool] = {name.removesuffix(".npz"): True for name in settled if name.endswith(".npz")}
    failed = (name.removesuffix(".failed.json") for name in settled if name.endswith(".failed.json"))
    outcome |= dict.fromkeys(failed, False)
    plan: dict[CollectedTask, list[Attempt]] = {task: [] for task in request.tasks}
    running: dict[Future[bool], tuple[CollectedTask, Attempt]] = {}
    # Spawned, not forked: a renderer's context does not survive a fork.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initialize_worker, (world, staging))
    wanted = sum(request.episodes if task.recordings is None else task.recordings for task in plan)
    bar = tqdm(total=wanted, desc="collecting", unit="episode", disable=not progress)

    def extend(task: CollectedTask) -> None:
        """Plan as many attempts as successes are missing, once all that were planned are settled."""
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
                    f"the demonstrator succeeds too seldom at {task.suite}/{task.task}: "
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
            "a worker process died (out of memory, or killed); what was collected is kept: run again with --resume"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        bar.close()
    kept_attempts = {
        task: [attempt for attempt in attempts if outcome[attempt.name]] for task, attempts in plan.items()
    }
    for task, attempts in kept_attempts.items():
        if not attempts:
            raise WorldError(f"none of the {task.recordings} recordings of {task.suite}/{task.task} succeeds here")
    return kept_attempts


def _read_summary(out: Path) -> CollectionSummary:
    found = _read_request(out / SUMMARY_FILE)
    counts = tuple(TaskCount(**count) for count in found["tasks"])
    return CollectionSummary(out, found["episodes"], found["frames"], counts, 0.0, already_complete=True)
