"""`saccade collect`: demonstrations of the desk's tasks or LIBERO's, as a LeRobotDataset v3."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..sim import worlds
from ..sim.desk.tasks import FIRST_DEMONSTRATION_STATE

if TYPE_CHECKING:
    from ..sim.demonstrations.attempt import DemonstrationWorld
    from ..sim.demonstrations.collection import CollectionRequest, CollectionSummary


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
    """Names of the tasks, such as red_cube or left, or numbers of LIBERO's; all tasks when none is named."""
    left_out: Literal["with", "without", "only"] = "with"
    """When no task is named: the tasks that the starter checkpoint never saw, collect them too, not, or only them."""
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
    recordings: tuple[Path, ...] = ()
    """LIBERO's human demonstrations (*_demo.hdf5) to act again and draw anew, in place of the scripted ones. Each is
    tried once; suites, tasks, episodes and initial states are theirs."""
    resume: bool = False
    """Carry on where an interrupted collection stopped."""
    overwrite: bool = False
    """Replace a dataset that is already there, once the new one is whole."""
    libero: worlds.LiberoOptions = field(default_factory=worlds.LiberoOptions)
    """For LIBERO's suites alone."""

    def __post_init__(self) -> None:
        family = worlds.LIBERO if self.recordings else worlds.find_family(self.suites)
        family.check(self.libero)
        if self.recordings:
            return
        family.check_first_demonstration_state(self.first_initial_state)


def choose_tasks(config: CollectConfig) -> tuple[worlds.SuiteTask, ...]:
    """Return the tasks that the options name, in the order of the suites; raises InputError as worlds.choose_tasks."""
    return worlds.choose_tasks(config.suites, config.tasks, config.left_out)


def run(config: CollectConfig) -> int:
    """Collect, and print what was collected; return the exit code."""
    print(summary_table(collect_demonstrations(config)))
    return 0


def collect_demonstrations(config: CollectConfig) -> CollectionSummary:
    """Collect as configured and return what was collected; raises InputError for whatever does not fit."""
    from ..sim.demonstrations.collection import CollectedTask, CollectionRequest, collect
    from ..sim.rendering import choose_backend
    from ..training.statistics import write_exact_statistics

    choose_backend()
    if config.recordings:
        request, world = make_replay_request(config)
    else:
        tasks = tuple(
            CollectedTask(task.suite, task.name, _instructions(task, config)) for task in choose_tasks(config)
        )
        request = CollectionRequest(tasks, config.episodes, config.seed, config.first_initial_state)
        family = worlds.find_family(config.suites)
        world = worlds.make_demonstration_world(family, config.image_size, config.libero)
    return collect(
        request,
        world,
        config.out,
        workers=config.workers,
        resume=config.resume,
        overwrite=config.overwrite,
        finish=write_exact_statistics,
    )


def make_replay_request(config: CollectConfig) -> tuple[CollectionRequest, DemonstrationWorld]:
    """Return what to collect from human demonstrations, and their world; raises InputError for files that are none."""
    from ..sim.demonstrations.collection import CollectedTask, CollectionRequest
    from ..sim.libero.conventions import Conventions
    from ..sim.libero.recordings.recordings import recorded_task
    from ..sim.libero.recordings.replay import RecordedWorld

    options, conventions = config.libero, Conventions(image_size=config.image_size)
    assets = None if options.libero_assets is None else str(options.libero_assets)
    world = RecordedWorld.from_files(config.recordings, conventions, options.visuals, assets)
    recorded_tasks = [recorded_task(path) for path in config.recordings]
    tasks = tuple(
        CollectedTask(task.suite, task.name, _instructions(task, config), count) for task, count in recorded_tasks
    )
    return CollectionRequest(tasks, episodes=1, seed=config.seed, first_initial_state=0), world


def _instructions(task: worlds.SuiteTask, config: CollectConfig) -> tuple[str, ...]:
    return (task.instruction, *(task.paraphrases if config.paraphrases else ()))


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
