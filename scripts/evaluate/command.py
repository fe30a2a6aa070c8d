"""`saccade eval`: a policy judged in simulation, episode by episode, with intervals and a report."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ...errors import InputError, WorldError, suggest
from ...sim import worlds
from ...sim.perturbation.axes import parse_perturbations
from ..checkpoints.worker_policies import MODULE, Device, Policies, Precision, actors, batch_size

if TYPE_CHECKING:
    from ...policy.contract import Contract
    from ...sim.records import Job


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a policy on the desk's tasks or LIBERO's; write records, figures and a report for the browser.

    Every episode has a seed of its own, so the same command gives the same episodes, whatever the number of workers.
    Interrupted? Repeat the command with --resume.
    """

    checkpoint: Annotated[str, tyro.conf.Positional] = "starter"
    """Folder of a checkpoint or of a training, or `starter`, the checkpoint that ships in the package."""
    against: tuple[str, ...] = ()
    """Further checkpoints to evaluate on the same episodes, each into a folder of its own below --out; the report
    compares each with the first, episode by episode."""
    suites: tuple[str, ...] = ("desk_object", "desk_spatial")
    """Suites to take tasks from, all of one world: the desk's, or LIBERO's libero_spatial, libero_object, libero_goal
    and libero_10 (also called libero_long)."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks, such as red_cube or left, or numbers of LIBERO's, 0 to 9; all tasks when none is named."""
    left_out: Literal["with", "without", "only"] = "without"
    """When no task is named: the tasks that the starter never saw, evaluate them too, not, or only them."""
    episodes: int | None = None
    """Episodes of each task, each from an initial state of its own: 5 on the desk and 50 in LIBERO unless given."""
    first_initial_state: int = 0
    """Number of the first initial state; 0 to 49 are kept for evaluation and the same for everybody."""
    instruction_from: Literal["task", "paraphrase"] = "task"
    """What is said: the task's own words, or the world's other words for the same."""
    perturb: tuple[str, ...] = ()
    """Run every episode under these perturbations, too: camera, lighting, background, start_pose, layout, sensor,
    language, or all; at level 3 of 5, or at others: camera=1-5 lighting=2,4 all=5. Gives a table of axes and levels."""
    swap: tuple[Literal["object", "position", "instruction"], ...] = ()
    """Run every episode with these swaps, too, which show what was learned by heart: another object of the scene is
    asked for; the object and another exchange places; the words ask for nothing that is there."""
    unchanged: bool = True
    """With --perturb or --swap: run the episodes as they are, too, to measure the others against, or leave them out."""
    seed: int = 0
    """Seed of the run; each episode derives its own from it."""
    device: Device = "cpu"
    """Where the policy decides. On the CPU every worker process holds a copy of it; a GPU holds one for all of them."""
    precision: Precision = "fp32"
    """Precision of the policy's weights and arithmetic."""
    kernels: Literal["torch", "saccade"] | None = None
    """What computes the trunk's and the expert's attention, PyTorch or the package's own operators; as the checkpoint
    says when none is given."""
    skill: str | None = None
    """Of a merged policy: the skill that acts in all episodes; the policy finds it by looking when left out."""
    batch: int | None = None
    """Decisions made at once for all workers, by one copy of the policy; 8 on a GPU when none is given."""
    workers: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    """Worker processes."""
    cluster: str | None = None
    """Run the episodes on a Ray cluster: its head's host:port, or `local` for one of this machine. Every CPU takes
    an episode, or every GPU with --device cuda; the results lie here. Needs the extra `cluster`."""
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
    libero: worlds.LiberoOptions = field(default_factory=worlds.LiberoOptions)
    """For LIBERO's suites alone."""

    def __post_init__(self) -> None:
        family = worlds.find_family(self.suites)
        if self.episodes is None:
            object.__setattr__(self, "episodes", family.episodes)
        for name, least in (("episodes", 1), ("first_initial_state", 0), ("seed", 0), ("workers", 1), ("videos", 0)):
            if getattr(self, name) < least:
                raise InputError(name, got=getattr(self, name), expected=f"{least} or more", fix=f"Raise --{name}.")
        if self.batch is not None and self.batch < 1:
            raise InputError("batch", got=self.batch, expected="1 or more", fix="Leave it out to have it chosen.")
        if self.batch is not None and self.cluster is not None:
            fix = "On a cluster every episode has a policy of its own: leave --batch out."
            raise InputError("batch", got="--batch and --cluster", expected="one of them", fix=fix)
        parse_perturbations(self.perturb)
        family.check(self.libero)
        family.check_evaluated_states(self.first_initial_state, self.episodes)
        if self.against and self.label is not None:
            fix = "Leave --label out: each is called after its folder."
            raise InputError("label", got="--label and --against", expected="one checkpoint to name", fix=fix)
        if self.resume and self.out is None:
            raise InputError("resume", got="no --out", expected="the folder to go on with", fix="Name it with --out.")


@dataclass(frozen=True)
class Worlds:
    """Builds a world for a policy, in any process, and refuses one that the policy's contract does not fit."""

    contract: Contract
    world: worlds.World

    def __call__(self, suite: str, task: str) -> Any:
        env = self.world.environment(suite, task)
        self.contract.check(env.offer)
        return env


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
    from ...policy.checkpoint import find_checkpoint

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


def choose_tasks(config: EvaluateConfig) -> tuple[worlds.SuiteTask, ...]:
    """Return the tasks that the options name, in the order of the suites; raises InputError as worlds.choose_tasks."""
    return worlds.choose_tasks(config.suites, config.tasks, config.left_out)


def plan(config: EvaluateConfig) -> list[Job]:
    """Return the episodes to run, task by task; a task that a swap makes no sense in is left out of that swap."""
    from ...sim.perturbation.jobs import changed_jobs, require_swaps
    from ...sim.records import Job, episode_seed

    jobs = []
    tasks = choose_tasks(config)
    require_swaps(config.swap, [task.swaps for task in tasks])
    perturbations = parse_perturbations(config.perturb)
    for task in tasks:
        foreign = tuple(other.instruction for other in worlds.find_family([task.suite]).tasks(task.suite))
        for state in range(config.first_initial_state, config.first_initial_state + config.episodes):
            seed = episode_seed(config.seed, task.suite, task.name, state)
            instruction = None
            if config.instruction_from == "paraphrase" and task.paraphrases:
                instruction = task.paraphrases[seed % len(task.paraphrases)]
            words = tuple(each for each in foreign if each != task.instruction) if "instruction" in config.swap else ()
            job = Job(task.suite, task.name, state, seed, instruction, foreign=words)
            swaps = [swap for swap in task.swaps if swap in config.swap]
            plain = config.unchanged or not (config.perturb or config.swap)
            jobs += changed_jobs([job], perturbations, swaps, unchanged=plain)
    return jobs


def evaluate(
    config: EvaluateConfig, progress: bool = True, jobs: Sequence[Job] | None = None
) -> tuple[Path, dict[str, Any]]:
    """Evaluate, write everything into the output folder, and return that folder and the figures of `results.json`.

    `jobs` are the episodes to run; those of `plan(config)` when left out. Raises InputError for what does not fit,
    before anything moves, and WorldError when no episode could be run.
    """
    from ...policy.checkpoint import PROVENANCE, read_contract
    from ...sim.cluster import ClusterOptions, ClusterPool
    from ...sim.pool import prepare_workers
    from ...sim.rendering import choose_backend

    folder = checkpoint_folder(config.checkpoint)
    cluster = None
    if config.cluster is not None:
        cluster = ClusterOptions(config.cluster, config.workers, gpu=config.device == "cuda")
    if cluster is None:
        _require_device(config.device)
        prepare_workers([MODULE])
    jobs = plan(config) if jobs is None else list(jobs)
    contract = read_contract(folder)
    choose_backend()
    from ...sim.fingerprint import digest_of
    from ...sim.perturbation.summary import headline, memorising, robustness
    from ...sim.report import write_report
    from ...sim.run_folder import RESULTS, prepare, read_evaluation, read_json, write_json
    from ...sim.runner import keep_records, run_jobs
    from ...sim.statistics import summarize

    world = worlds.world_for(worlds.find_family(config.suites), contract, config.libero)
    provenance = read_json(folder / PROVENANCE)
    batch = None if config.cluster else batch_size(config.device, config.batch)
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
            **({"kernels": config.kernels} if config.kernels else {}),
            **({"skill": config.skill} if config.skill else {}),
            **({"batch": batch} if batch else {}),
            **_changes(config),
            **world.describe(),
        },
        "contract": read_json(folder / "contract.json"),
        "provenance": provenance,
        "tasks": list(dict.fromkeys((job.suite, job.task) for job in jobs)),
        "planned": len(jobs),
    }
    fingerprint = world.fingerprint()
    prepare(out, run, fingerprint, resume=config.resume, overwrite=config.overwrite)
    make_env, policies = (
        Worlds(contract, world),
        Policies(folder, config.device, config.precision, config.kernels, config.skill),
    )
    kept = {"videos": config.videos, "progress": progress}
    if cluster is None:
        run_jobs(jobs, make_env, actors(policies, batch), config.workers, out, **kept)
    else:
        make_pool = functools.partial(ClusterPool, cluster, make_env, policies, world.fingerprint, fingerprint, out)
        keep_records(jobs, make_pool, out, **kept)
    # Figures and report are of the same episodes: all that the folder holds, those of an earlier command included.
    evaluation = read_evaluation(out)
    records = evaluation.records
    results = {
        **{key: run[key] for key in ("label", "command", "checkpoint", "protocol")},
        "fingerprint_sha256": digest_of(fingerprint),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **summarize(headline(records)),
        "robustness": robustness(records),
        "swaps": memorising(records),
    }
    results["errors"] = sum(record.outcome == "error" for record in records)
    write_json(out / RESULTS, results)
    write_report([evaluation], out / "report.html")
    return out, results


def _changes(config: EvaluateConfig) -> dict[str, Any]:
    """Return what of the protocol is perturbations and swaps: nothing where there are none."""
    if not (config.perturb or config.swap):
        return {}
    from ...sim import perturbation
    from ...sim.fingerprint import hash_sources

    return {
        "perturb": [str(each) for each in parse_perturbations(config.perturb)],
        "swap": list(config.swap),
        "unchanged": config.unchanged,
        "perturbation_sha256": hash_sources(Path(perturbation.__file__).parent),
    }


def run(config: EvaluateConfig) -> int:
    """Evaluate, print the figures and where the report is, and return the exit code."""
    if config.against:
        out, errors = evaluate_all(config)
    else:
        out, results = evaluate(config)
        print(results_table(results))
        errors = results["errors"]
    print(f"Report: {out / 'report.html'}")
    if errors:
        raise WorldError(
            f"{errors} episodes could not be run and are not counted (see records.jsonl). "
            f"Try them again: repeat the command with --out {out} --resume."
        )
    return 0


def evaluate_all(config: EvaluateConfig, progress: bool = True) -> tuple[Path, int]:
    """Evaluate every checkpoint on the same episodes, print the figures, and write a report that compares them.

    Returns its folder and how many episodes could not be run. What does not fit any of them is found before anything
    moves: InputError.
    """
    from ...policy.checkpoint import read_contract
    from ...sim.rendering import choose_backend
    from ...sim.report import write_report
    from ...sim.run_folder import read_evaluation
    from ..report import comparison_lines

    names = (config.checkpoint, *config.against)
    family = worlds.find_family(config.suites)
    contracts = [read_contract(checkpoint_folder(name)) for name in names]
    choose_backend()
    for contract in contracts:
        worlds.world_for(family, contract, config.libero)
    # A checkpoint's folder is often called "checkpoint": what tells them apart is the first part that differs.
    labels = _distinct(names)
    out = config.out or Path("evaluations") / f"comparison-{datetime.now():%Y%m%d-%H%M%S}"
    folders, errors = [], 0
    for name, label in zip(names, labels, strict=True):
        print(f"{label}:")
        each = replace(config, checkpoint=name, against=(), label=label, out=out / label)
        folder, results = evaluate(each, progress)
        print(results_table(results))
        folders.append(folder)
        errors += results["errors"]
    evaluations = [read_evaluation(folder) for folder in folders]
    print("\n".join(comparison_lines(evaluations)))
    write_report(evaluations, out / "report.html")
    return out, errors


def _distinct(names: Sequence[str]) -> list[str]:
    """Return short names of checkpoints' folders, all different; raises InputError for one that is named twice."""
    paths = [Path(name).resolve() for name in names]
    for depth in range(1, max(len(path.parts) for path in paths)):
        short = ["-".join(path.parts[-depth:]).strip("/") for path in paths]
        if len(set(short)) == len(short):
            return short
    raise InputError("checkpoints", got=", ".join(names), expected="every one once", fix="Leave the repeated one out.")


def results_table(results: dict[str, Any]) -> str:
    """Return the figures as lines for people: a row for each task and one for all, then perturbations and swaps."""
    from ...sim.perturbation.summary import swap_table, table

    # Perturbed and swapped episodes of different kinds have no rate in common.
    parts = [_task_table(results)] if results["protocol"].get("unchanged", True) else []
    if results.get("robustness"):
        parts.append(table(results["robustness"]))
    if results.get("swaps"):
        parts.append(swap_table(results["swaps"]))
    return "\n\n".join("\n".join(part) for part in parts)


def _task_table(results: dict[str, Any]) -> list[str]:
    rows = [(f"{task['suite']}/{task['task']}", task) for task in results["tasks"]] + [("all", results)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'task':<{width}}  {'success':>13}  95 % interval  episodes"]
    for name, figures in rows:
        if figures["rate"] is None:
            lines.append(f"{name:<{width}}  {'none could be run':>28}  {0:8d}")
            continue
        interval = f"{100 * figures['low']:5.1f} to {100 * figures['high']:5.1f}"
        lines.append(f"{name:<{width}}  {100 * figures['rate']:11.1f} %  {interval:>13}  {figures['episodes']:8d}")
    return lines
