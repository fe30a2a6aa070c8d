"""Options of `saccade quickstart`, and the tasks that it trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...machine import usable_cores
from ...ranges import require_at_least
from ...sim.desk.tasks.catalogue import SUITES, Task
from ...sim.reset import EVALUATION_STATES

OPTIONS_FILE, TIMINGS_FILE, METRICS_FILE, REPORT_FILE = "options.json", "timings.json", "quickstart.json", "report.html"

SUITE = "desk_object"
"""The suite of the new and the known tasks."""

EVALUATION_NAMES = ("before", "after", "swapped")
"""The evaluations: the starter, the trained policy, and the trained policy with another object in the instruction."""


@dataclass(frozen=True)
class QuickstartConfig:
    """Fine-tune the starter checkpoint on three new tasks and evaluate it before and after; takes at most 20 minutes.

    The command collects demonstrations of tasks that the starter was not trained on, fine-tunes the starter on them,
    and evaluates before and after, from initial states that no demonstration used. Then the instruction names another
    object of the same scene: a policy that follows the instruction must not pick the first one. At the end the metrics
    (quickstart.json) and a report (report.html) are in --out. You can stop the command at any time; the same command
    continues. Next steps: `saccade run OUT/training` on the virtual arm, or the same stages with your own options:
    `saccade collect`, `train` and `eval`.
    """

    out: Path = Path("quickstart")
    """Output folder: demonstrations, training, evaluations, metrics and report."""
    from_scratch: bool = False
    """Train without the starter. This takes hours: also raise --steps and --demonstrations."""
    demonstrations: int = 50
    """Successful demonstrations of each new task."""
    rehearsal: int = 10
    """Demonstrations of each known task, for rehearsal against forgetting; 0 for none."""
    steps: int | None = None
    """Training steps. Default: 800 for fine-tuning, 20000 from scratch."""
    batch_size: int = 64
    """Batch size of the training."""
    learning_rate: float | None = None
    """Peak learning rate. Default: 5e-4 for fine-tuning, 1e-3 from scratch."""
    episodes: int = 50
    """Episodes of each evaluation, divided among the new tasks. Every episode has its own initial state."""
    videos: int = 2
    """Videos to record for each task: so many successes and so many failures; 0 for none."""
    workers: int = usable_cores()
    """Worker processes that collect and evaluate. Default: the number of CPU cores."""
    threads: int | None = None
    """CPU threads of the training. Default: all cores."""
    seed: int = 0
    """Seed of demonstrations, training and evaluation."""
    overwrite: bool = False
    """Delete an earlier quickstart in --out and start again."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "demonstrations", "batch_size", "workers", "steps", option=True)
        require_at_least(self, 0, "rehearsal", "seed", "videos", option=True)
        tasks = len(new_tasks())
        if not tasks <= self.episodes <= EVALUATION_STATES:
            raise InputError(
                "--episodes",
                got=self.episodes,
                expected=f"{tasks} to {EVALUATION_STATES}: the number of new tasks to the number of initial states",
                fix=f"Set --episodes to {tasks} to {EVALUATION_STATES}.",
            )


def new_tasks() -> tuple[Task, ...]:
    """Return the tasks of the suite that the starter was not trained on."""
    return tuple(task for task in SUITES[SUITE] if task.held_out)


def known_tasks() -> tuple[Task, ...]:
    """Return the tasks of the suite that the starter was trained on."""
    return tuple(task for task in SUITES[SUITE] if not task.held_out)
