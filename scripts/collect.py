"""`saccade collect`: demonstrations of desk tasks, as a LeRobotDataset v3."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import InputError, unknown_name
from ..sim.desk.tasks import EVALUATION_STATES, FIRST_DEMONSTRATION_STATE, SUITES, Task, find_suite

if TYPE_CHECKING:
    from ..sim.collection import CollectionSummary


@dataclass(frozen=True)
class CollectConfig:
    """Collect demonstrations with the scripted demonstrator, and write them as a LeRobotDataset v3.

    Only successes are kept; failures are counted. The same options give the same dataset, whatever the number of
    workers. Interrupted? Repeat the command with --resume.
    """

    out: Path
    """Folder of the new dataset."""
    suites: tuple[str, ...] = ("desk_object", "desk_spatial")
    """Suites to take tasks from."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks, such as red_cube or left; all tasks of the suites when none is named."""
    left_out: Literal["with", "without", "only"] = "with"
    """What to do with the tasks that the starter checkpoint never saw: collect them too, not, or only them."""
    episodes: int = 50
    """Successful demonstrations of each task."""
    workers: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    """Worker processes."""
    seed: int = 0
    """Seed of the demonstrator's noise and of the choice of sentences."""
    first_initial_state: int = FIRST_DEMONSTRATION_STATE
    """Number of the first initial state; those below 50 belong to evaluation."""
    image_size: int = 128
    """Height and width of both cameras' images, in pixels."""
    paraphrases: bool = True
    """Say each task in several ways; otherwise always in the same words."""
    resume: bool = False
    """Carry on where an interrupted collection stopped."""
    overwrite: bool = False
    """Replace a dataset that is already there, once the new one is whole."""

    def __post_init__(self) -> None:
        if self.first_initial_state < EVALUATION_STATES:
            raise InputError(
                "first_initial_state",
                got=self.first_initial_state,
                expected=f"{EVALUATION_STATES} or more",
                fix="The states below are for evaluation: a demonstration of them would spoil it.",
            )


def choose_tasks(config: CollectConfig) -> tuple[Task, ...]:
    """Return the tasks that the options name, in the order of the suites.

    Raises InputError for an unknown suite or task, with the nearest name, and when nothing is left.
    """
    offered = [task for suite in config.suites for task in find_suite(suite)]
    for name in config.tasks:
        if name not in {task.name for task in offered}:
            raise unknown_name("task", name, (task.name for task in offered))
    wanted = {"with": (True, False), "without": (False,), "only": (True,)}[config.left_out]
    named = [task for task in offered if not config.tasks or task.name in config.tasks]
    chosen = tuple(task for task in named if task.left_out in wanted)
    if not chosen:
        raise InputError(
            "tasks",
            got=f"none of suites {', '.join(config.suites)} with left_out={config.left_out}",
            expected="at least one",
            fix=f"Choose from the suites {', '.join(SUITES)}.",
        )
    return chosen


def run(config: CollectConfig) -> int:
    """Collect, and print what was collected; return the exit code."""
    print(summary_table(collect_demonstrations(config)))
    return 0


def collect_demonstrations(config: CollectConfig) -> CollectionSummary:
    """Collect as configured and return what was collected; raises InputError for whatever does not fit."""
    from ..sim.collection import CollectedTask, CollectionRequest, collect
    from ..sim.demonstrations import DeskWorld
    from ..sim.rendering import choose_backend
    from ..training.statistics import write_exact_statistics

    tasks = tuple(
        CollectedTask(
            suite=task.suite,
            task=task.name,
            instructions=(task.instruction, *(task.paraphrases if config.paraphrases else ())),
        )
        for task in choose_tasks(config)
    )
    choose_backend()
    return collect(
        CollectionRequest(tasks, config.episodes, config.seed, config.first_initial_state),
        DeskWorld(config.image_size),
        config.out,
        workers=config.workers,
        resume=config.resume,
        overwrite=config.overwrite,
        finish=write_exact_statistics,
    )


def summary_table(summary: CollectionSummary) -> str:
    """Return the counts of a collection as lines for people."""
    width = max(len(f"{count.suite}/{count.task}") for count in summary.tasks)
    lines = [f"{'task':<{width}}  kept  failed"]
    for count in summary.tasks:
        lines.append(f"{f'{count.suite}/{count.task}':<{width}}  {count.successes:4d}  {count.failures:6d}")
    failures = sum(count.failures for count in summary.tasks)
    lines.append(f"{'all':<{width}}  {summary.episodes:4d}  {failures:6d}")
    how = "was complete already" if summary.already_complete else f"took {summary.seconds:.0f} s"
    lines.append(f"{summary.frames} frames in {summary.root} ({how})")
    return "\n".join(lines)
