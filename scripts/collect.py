"""`saccade collect`: collect demonstrations in simulation (desk or LIBERO) as a LeRobotDataset v3."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..machine import usable_cores
from ..ranges import require_at_least
from ..sim import worlds
from ..sim.libero.options import LiberoOptions
from ..sim.reset import FIRST_DEMONSTRATION_STATE

if TYPE_CHECKING:
    from ..sim.demonstrations.attempt import DemonstrationWorld
    from ..sim.demonstrations.collection import CollectionRequest, CollectionSummary


@dataclass(frozen=True)
class CollectConfig:
    """Collect demonstrations with the scripted demonstrator, and write them as a LeRobotDataset v3.

    Only successful episodes are kept; failures are counted. The same options give the same dataset, with any number of
    workers. After an interruption repeat the command with --resume. Train on the dataset with `saccade train --data`.
    """

    out: Path
    """Folder of the new dataset."""
    suites: tuple[str, ...] = ("desk_object", "desk_spatial")
    """Suites to take tasks from."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks, such as red_cube or left, or numbers of LIBERO tasks. Default: all tasks."""
    left_out: Literal["with", "without", "only"] = "with"
    """The held-out tasks, which the starter was not trained on: with, without, or only those. Used when --tasks is
    empty."""
    episodes: int = 50
    """Successful demonstrations of each task."""
    workers: int = usable_cores()
    """Worker processes. Default: the number of CPU cores."""
    seed: int = 0
    """Seed for the demonstrator's noise and the choice of paraphrases."""
    first_initial_state: int = FIRST_DEMONSTRATION_STATE
    """Index of the first initial state. States below 50 are reserved for evaluation."""
    image_size: int = 128
    """Height and width of both cameras' images, in pixels."""
    paraphrases: bool = True
    """Use several paraphrases of each instruction; --no-paraphrases uses the main one only."""
    recordings: tuple[Path, ...] = ()
    """LIBERO's human demonstrations (*_demo.hdf5) to replay and render again, instead of scripted ones. Each is
    replayed once. Suites, tasks, episodes and initial states come from the files."""
    resume: bool = False
    """Continue an interrupted run."""
    overwrite: bool = False
    """Replace an existing dataset when the new one is complete."""
    libero: LiberoOptions = field(default_factory=LiberoOptions)
    """Options for LIBERO suites only."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "episodes", "workers", option=True)
        require_at_least(self, 0, "seed", option=True)
        family = worlds.LIBERO if self.recordings else worlds.find_family(self.suites)
        family.check_image_size(self.image_size)
        worlds.check_options(family, self.libero)
        if not self.recordings:
            family.check_first_demonstration_state(self.first_initial_state)


def choose_tasks(config: CollectConfig) -> tuple[worlds.SuiteTask, ...]:
    """Return the tasks that the options name, in the order of the suites.

    Raises:
        InputError: A suite or a task is unknown, or no task is left (see `worlds.choose_tasks`).
    """
    return worlds.choose_tasks(config.suites, config.tasks, config.left_out)


def run(config: CollectConfig) -> int:
    """Collect, print the counts, and return the exit code."""
    print(summary_table(collect_demonstrations(config)))
    return 0


def collect_demonstrations(config: CollectConfig) -> CollectionSummary:
    """Collect demonstrations and write the dataset.

    Returns:
        The successes and failures of each task, and the folder of the dataset.

    Raises:
        InputError: An option does not fit; nothing has been written then.
        WorldError: Nothing can be rendered here, or a worker process died.
    """
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
    """Return the request that replays every recording once, and the world that replays them.

    Raises:
        InputError: A file holds no demonstrations of LIBERO, or the files are of different worlds.
    """
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
    """Return the successes and failures of each task as text."""
    width = max(len(f"{count.suite}/{count.task}") for count in summary.tasks)
    lines = [f"{'task':<{width}}  kept  failed"]
    lines += [
        f"{f'{count.suite}/{count.task}':<{width}}  {count.successes:4d}  {count.failures:6d}"
        for count in summary.tasks
    ]
    failures = sum(count.failures for count in summary.tasks)
    lines.append(f"{'all':<{width}}  {summary.episodes:4d}  {failures:6d}")
    duration = "was complete already" if summary.already_complete else f"took {summary.seconds:.0f} s"
    lines.append(f"{summary.frames} frames in {summary.root} ({duration})")
    return "\n".join(lines)
