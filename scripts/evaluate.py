"""`saccade eval`: a policy judged in simulation, episode by episode, with intervals and a report."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ..errors import InputError, WorldError, suggest, unknown_name
from ..sim.desk.tasks import EVALUATION_STATES, FIRST_DEMONSTRATION_STATE, Task, find_suite

if TYPE_CHECKING:
    from ..policy.contract import Contract
    from ..sim.records import Job


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a policy on desk tasks, and write the records, the figures and a report that opens in a browser.

    Every episode has a seed of its own, so the same command gives the same episodes, whatever the number of workers.
    Interrupted? Repeat the command with --resume.
    """

    checkpoint: Annotated[str, tyro.conf.Positional] = "starter"
    """Folder of a checkpoint or of a training, or `starter`, the checkpoint that ships in the package."""
    suites: tuple[str, ...] = ("desk_object", "desk_spatial")
    """Suites to take tasks from."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks, such as red_cube or left; all tasks of the suites when none is named."""
    left_out: Literal["with", "without", "only"] = "without"
    """When no task is named: the tasks that the starter never saw, evaluate them too, not, or only them."""
    episodes: int = 5
    """Episodes of each task, each from an initial state of its own."""
    first_initial_state: int = 0
    """Number of the first initial state; 0 to 49 are kept for evaluation and the same for everybody."""
    instruction_from: Literal["task", "paraphrase", "other-object"] = "task"
    """What is said: the task's own words; other words for the same; or another object of the same scene is asked for,
    and success means that the task's own object was picked all the same (low is good: the policy reads)."""
    seed: int = 0
    """Seed of the run; each episode derives its own from it."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the policy decides; every worker process holds a copy of it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the policy's weights and arithmetic."""
    workers: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    """Worker processes."""
    out: Path | None = None
    """Folder of the results; named after the checkpoint and the time when none is given."""
    label: str | None = None
    """What the report calls this evaluation; the checkpoint's name when none is given."""
    videos: int = 2
    """Videos to keep of each task's successes, and as many of its failures; 0 films nothing."""
    resume: bool = False
    """Carry on where an interrupted evaluation stopped."""
    overwrite: bool = False
    """Replace an evaluation that is already there."""

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("first_initial_state", 0), ("seed", 0), ("workers", 1), ("videos", 0)):
            if getattr(self, name) < least:
                raise InputError(name, got=getattr(self, name), expected=f"{least} or more", fix=f"Raise --{name}.")
        if self.first_initial_state + self.episodes > FIRST_DEMONSTRATION_STATE:
            raise InputError(
                "episodes",
                got=f"initial states {self.first_initial_state} to {self.first_initial_state + self.episodes - 1}",
                expected=f"states below {FIRST_DEMONSTRATION_STATE}",
                fix=f"Demonstrations start from the others; 0 to {EVALUATION_STATES - 1} are the ones to compare by.",
            )
        if self.resume and self.out is None:
            raise InputError("resume", got="no --out", expected="the folder to go on with", fix="Name it with --out.")


@dataclass(frozen=True)
class DeskWorlds:
    """Builds the desk for a policy, in any process, and refuses a world that the policy's contract does not fit."""

    contract: Contract

    def __call__(self, suite: str, task: str) -> Any:
        from ..sim.desk.environment import DeskEnv

        env = DeskEnv(suite, task, image_size=self.contract.cameras[0].height)
        self.contract.check(env.offer)
        return env


@dataclass(frozen=True)
class Policies:
    """Loads a policy from its checkpoint folder, in any process, to run on one thread."""

    folder: Path
    device: str
    precision: str

    def __call__(self) -> Any:
        import torch

        from ..policy.actor import PolicyActor

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[self.precision]
        return PolicyActor(self.folder, threads=1, device=self.device, dtype=dtype)


def _require_device(device: str) -> None:
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        got = "cuda, but torch sees no such device"
        raise InputError("device", got=got, expected="a device of this machine", fix="Use --device cpu.")


def checkpoint_folder(name: str) -> Path:
    """Return the folder of a checkpoint, of a training's checkpoint, or of `starter`.

    Raises InputError, with the nearest name, when there is no such folder.
    """
    from ..policy.checkpoint import find_checkpoint

    folder = find_checkpoint(name)
    if name == "starter" or folder.is_dir():
        return folder
    parent = folder.parent if folder.parent.is_dir() else Path()
    beside = [str(path) for path in sorted(parent.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    near = suggest(name, ["starter", *beside])
    raise InputError(
        "checkpoint",
        got=repr(name),
        expected="the folder of a checkpoint, or 'starter'",
        fix=near if near.startswith("Did") else "Give the folder that holds model.safetensors.",
    )


def choose_tasks(config: EvaluateConfig) -> tuple[Task, ...]:
    """Return the tasks that the options name, in the order of the suites; raises InputError for an unknown one."""
    offered = [task for suite in config.suites for task in find_suite(suite)]
    for name in config.tasks:
        if name not in {task.name for task in offered}:
            raise unknown_name("task", name, (task.name for task in offered))
    if config.tasks:
        return tuple(task for task in offered if task.name in config.tasks)
    wanted = {"with": (True, False), "without": (False,), "only": (True,)}[config.left_out]
    chosen = tuple(task for task in offered if task.left_out in wanted)
    if not chosen:
        raise InputError(
            "tasks",
            got=f"none of {', '.join(config.suites) or 'no suite'} with --left-out {config.left_out}",
            expected="at least one",
            fix="The tasks that the starter never saw are in desk_object; or name tasks with --tasks.",
        )
    return chosen


def plan(config: EvaluateConfig) -> list[Job]:
    """Return the episodes to run, task by task."""
    from ..sim.records import Job, episode_seed

    jobs = []
    for task in choose_tasks(config):
        for state in range(config.first_initial_state, config.first_initial_state + config.episodes):
            seed = episode_seed(config.seed, task.suite, task.name, state)
            instruction = None
            if config.instruction_from == "paraphrase":
                instruction = task.paraphrases[seed % len(task.paraphrases)]
            swap = config.instruction_from == "other-object"
            jobs.append(Job(task.suite, task.name, state, seed, instruction, swap))
    return jobs


def evaluate(
    config: EvaluateConfig, progress: bool = True, jobs: Sequence[Job] | None = None
) -> tuple[Path, dict[str, Any]]:
    """Evaluate, write everything into the output folder, and return that folder and the figures of `results.json`.

    `jobs` are the episodes to run; those of `plan(config)` when left out. Raises InputError for what does not fit,
    before anything moves, and WorldError when no episode could be run.
    """
    from ..policy.checkpoint import PROVENANCE, read_contract
    from ..sim import desk
    from ..sim.rendering import choose_backend

    folder = checkpoint_folder(config.checkpoint)
    _require_device(config.device)
    jobs = plan(config) if jobs is None else list(jobs)
    contract = read_contract(folder)
    choose_backend()
    from ..sim.desk.environment import desk_offer
    from ..sim.fingerprint import digest_of, environment_fingerprint
    from ..sim.report import write_report
    from ..sim.run_folder import RESULTS, prepare, read_evaluation, read_json, write_json
    from ..sim.runner import run_jobs
    from ..sim.statistics import summarize

    contract.check(desk_offer(contract.cameras[0].height))
    provenance = read_json(folder / PROVENANCE)
    name = "starter" if config.checkpoint == "starter" else Path(config.checkpoint).resolve().name
    out = config.out or Path("evaluations") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    run = {
        "label": config.label or name,
        "command": shlex.join(["saccade", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": {"name": name, "digest": provenance.get("digest")},
        "protocol": {
            "seed": config.seed,
            "instruction_from": config.instruction_from,
            "device": config.device,
            "precision": config.precision,
        },
        "contract": read_json(folder / "contract.json"),
        "provenance": provenance,
        "tasks": list(dict.fromkeys((job.suite, job.task) for job in jobs)),
        "planned": len(jobs),
    }
    fingerprint = environment_fingerprint(Path(desk.__file__).parent)
    prepare(out, run, fingerprint, resume=config.resume, overwrite=config.overwrite)
    policies = Policies(folder, config.device, config.precision)
    records = run_jobs(
        jobs, DeskWorlds(contract), policies, config.workers, out, videos=config.videos, progress=progress
    )
    results = {
        **{key: run[key] for key in ("label", "command", "checkpoint", "protocol")},
        "fingerprint_sha256": digest_of(fingerprint),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **summarize(records),
    }
    write_json(out / RESULTS, results)
    write_report([read_evaluation(out)], out / "report.html")
    return out, results


def run(config: EvaluateConfig) -> int:
    """Evaluate, print the figures and where the report is, and return the exit code."""
    out, results = evaluate(config)
    print(results_table(results))
    print(f"Report: {out / 'report.html'}")
    if results["errors"]:
        raise WorldError(
            f"{results['errors']} episodes could not be run and are not counted (see records.jsonl). "
            f"Try them again: repeat the command with --out {out} --resume."
        )
    return 0


def results_table(results: dict[str, Any]) -> str:
    """Return the figures as lines for people: a row for each task, and one for all."""
    rows = [(f"{task['suite']}/{task['task']}", task) for task in results["tasks"]] + [("all", results)]
    width = max(len(name) for name, _ in rows)
    swapped = results["protocol"]["instruction_from"] == "other-object"
    lines = [f"{'task':<{width}}  {'picked anyway' if swapped else 'success':>13}  95 % interval  episodes"]
    for name, figures in rows:
        if figures["rate"] is None:
            lines.append(f"{name:<{width}}  {'none could be run':>28}  {0:8d}")
            continue
        interval = f"{100 * figures['low']:5.1f} to {100 * figures['high']:5.1f}"
        lines.append(f"{name:<{width}}  {100 * figures['rate']:11.1f} %  {interval:>13}  {figures['episodes']:8d}")
    return "\n".join(lines)
