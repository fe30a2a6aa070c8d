"""Options of `saccade eval`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ...errors import InputError
from ...machine import Device, usable_cores
from ...ranges import require_at_least
from ...sim.libero.options import LiberoOptions
from ...sim.perturbation.axes import parse_perturbations
from ...sim.worlds import check_options, find_family
from ..checkpoints.worker_policies import Precision


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a policy in simulation on desk or LIBERO tasks.

    The command writes into --out: one record per episode (records.jsonl), the success rates with intervals
    (results.json), videos and an HTML report (report.html). Every episode has its own seed, so the same options give
    the same episodes with any number of workers. After an interruption repeat the command with --resume. To compare
    evaluations afterwards use `saccade report`.
    """

    checkpoint: Annotated[str, tyro.conf.Positional] = "starter"
    """Folder of a checkpoint or of a training, or `starter`, the checkpoint that ships in the package."""
    against: tuple[str, ...] = ()
    """Other checkpoints to evaluate on the same episodes. Each gets a subfolder of --out. The report compares each with
    the first, episode by episode."""
    suites: tuple[str, ...] = ("desk_object", "desk_spatial")
    """Suites to take tasks from, all of one world: the desk's, or LIBERO's libero_spatial, libero_object, libero_goal
    and libero_10 (also called libero_long)."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks, such as red_cube or left, or numbers of LIBERO tasks, 0 to 9. Default: all tasks."""
    left_out: Literal["with", "without", "only"] = "without"
    """The held-out tasks, which the starter was not trained on: with, without, or only those. Used when --tasks is
    empty."""
    episodes: int | None = None
    """Episodes of each task, each from its own initial state. Default: 5 on the desk, 50 in LIBERO."""
    first_initial_state: int = 0
    """Index of the first initial state. States 0 to 49 are reserved for evaluation and are the same for every user."""
    instruction_from: Literal["task", "paraphrase"] = "task"
    """The instruction: the task's own, or a paraphrase of it."""
    perturb: tuple[str, ...] = ()
    """Also run every episode with these perturbations: camera, lighting, background, start_pose, layout, sensor,
    language, or all. The default level is 3 of 5; choose others as camera=1-5 lighting=2,4 all=5. The report shows a
    table of axes and levels."""
    swap: tuple[Literal["object", "position", "instruction"], ...] = ()
    """Also run every episode with these swaps, which test memorisation. object: the instruction names another object of
    the scene; position: two objects exchange places; instruction: the instruction names an object that is not
    there."""
    unchanged: bool = True
    """With --perturb or --swap: also run the unperturbed episodes as the baseline; --no-unchanged leaves them out."""
    seed: int = 0
    """Seed of the run; the seed of each episode is derived from it."""
    device: Device = "cpu"
    """Device of the policy. On the CPU every worker process has a copy; on a GPU all workers share one."""
    precision: Precision = "fp32"
    """Precision of the policy's weights and arithmetic."""
    kernels: Literal["torch", "saccade"] | None = None
    """Attention kernels of trunk and expert: torch (PyTorch) or saccade (our Triton kernels). Default: the setting of
    the checkpoint."""
    skill: str | None = None
    """Skill of a merged policy for all episodes. Default: the router selects it."""
    batch: int | None = None
    """Batch size of the shared policy. Default: 8 on a GPU, no batching on the CPU."""
    workers: int = usable_cores()
    """Worker processes. Default: the number of CPU cores."""
    cluster: str | None = None
    """Run the episodes on a Ray cluster: the host:port of its head, or `local` for a cluster on this machine. Every CPU
    (or every GPU with --device cuda) runs one episode at a time. The results are written on this machine. Needs the
    extra `cluster`."""
    out: Path | None = None
    """Output folder. Default: a folder in evaluations/, named after the checkpoint and the time."""
    label: str | None = None
    """Name of this evaluation in the report. Default: the name of the checkpoint."""
    videos: int = 2
    """Videos to record for each task: so many successes and so many failures; 0 for none."""
    resume: bool = False
    """Continue an interrupted run."""
    overwrite: bool = False
    """Replace an existing evaluation."""
    libero: LiberoOptions = field(default_factory=LiberoOptions)
    """Options for LIBERO suites only."""

    def __post_init__(self) -> None:
        family = find_family(self.suites)
        require_at_least(self, 1, "episodes", "workers", option=True)
        require_at_least(self, 0, "first_initial_state", "seed", "videos", option=True)
        require_at_least(self, 1, "batch", option=True, fix="Leave out {} for the default.")
        if self.batch is not None and self.cluster is not None:
            fix = "Leave out --batch: on a cluster every episode has its own policy."
            raise InputError("--batch", got="--batch and --cluster", expected="one of them", fix=fix)
        parse_perturbations(self.perturb)
        check_options(family, self.libero)
        family.check_evaluation_states(self.first_initial_state, self.episodes_per_task)
        if self.against and self.label is not None:
            fix = "Leave out --label: with --against each evaluation is named after its folder."
            raise InputError("--label", got="--label and --against", expected="one checkpoint to name", fix=fix)
        if self.resume and self.out is None:
            fix = "Give the folder with --out."
            raise InputError("--resume", got="no --out", expected="the folder of the interrupted run", fix=fix)

    @property
    def episodes_per_task(self) -> int:
        """Episodes of each task: --episodes, or the default of the suites' world."""
        return find_family(self.suites).episodes if self.episodes is None else self.episodes

    @property
    def runs_unchanged(self) -> bool:
        """Whether episodes without perturbation and swap are run."""
        return self.unchanged or not (self.perturb or self.swap)
