"""Options of `saccade eval`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ...errors import InputError
from ...sim import worlds
from ...sim.perturbation.axes import parse_perturbations
from ..checkpoints.worker_policies import Device, Precision


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
        family.check_evaluation_states(self.first_initial_state, self.episodes)
        if self.against and self.label is not None:
            fix = "Leave --label out: each is called after its folder."
            raise InputError("label", got="--label and --against", expected="one checkpoint to name", fix=fix)
        if self.resume and self.out is None:
            raise InputError("resume", got="no --out", expected="the folder to go on with", fix="Name it with --out.")
