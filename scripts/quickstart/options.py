"""Options of `saccade quickstart`, and the tasks that it teaches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...sim.desk.tasks import EVALUATION_STATES, SUITES, Task
from ..bench.metrics import usable_cores

OPTIONS_FILE, TIMINGS_FILE, METRICS_FILE, REPORT_FILE = "options.json", "timings.json", "quickstart.json", "report.html"


@dataclass(frozen=True)
class QuickstartConfig:
    """Teach the starter three tasks that it has never seen, and see whether it learned them: at most 20 minutes.

    Collects demonstrations of tasks that were left out of the starter's training, fine-tunes the starter on them, and
    evaluates before and after, from initial states that no demonstration used. Then another object is asked for in the
    same scenes: a policy that reads must not pick the first one. Ends with the figures and a report. Stop it whenever
    you like: the same command goes on where it stopped.
    """

    out: Path = Path("quickstart")
    """Folder of everything: demonstrations, training, evaluations, figures and report."""
    from_scratch: bool = False
    """Train without the starter. Minutes are not enough then: raise --steps and --demonstrations, and give it hours."""
    demonstrations: int = 50
    """Successful demonstrations of each new task."""
    rehearsal: int = 10
    """Demonstrations of each task of the suite that the starter knows, to keep it from forgetting them; 0 for none."""
    steps: int | None = None
    """Training steps; 800 for fine-tuning, 20000 from scratch when left out."""
    batch_size: int = 64
    """Frames in a training step."""
    learning_rate: float | None = None
    """Peak learning rate; 5e-4 for fine-tuning, 1e-3 from scratch when left out."""
    episodes: int = 50
    """Episodes of each evaluation, shared out among the new tasks, each from an initial state of its own."""
    videos: int = 2
    """Videos to keep of each task's successes, and as many of its failures."""
    workers: int = usable_cores()
    """Processes that collect and evaluate."""
    threads: int | None = None
    """Threads that train; all cores when left out."""
    seed: int = 0
    """Seed of demonstrations, training and evaluation."""
    overwrite: bool = False
    """Throw an earlier quickstart in --out away and begin anew."""

    def __post_init__(self) -> None:
        for name in ("demonstrations", "batch_size", "workers", *(["steps"] if self.steps is not None else [])):
            if getattr(self, name) < 1:
                raise InputError(name, got=getattr(self, name), expected="1 or more", fix=f"Raise --{name}.")
        for name in ("rehearsal", "seed", "videos"):
            if getattr(self, name) < 0:
                raise InputError(name, got=getattr(self, name), expected="0 or more", fix=f"Raise --{name}.")
        tasks = len(new_tasks())
        if not tasks <= self.episodes <= EVALUATION_STATES:
            raise InputError(
                "episodes",
                got=self.episodes,
                expected=f"{tasks} to {EVALUATION_STATES}",
                fix=f"There are {tasks} new tasks, and {EVALUATION_STATES} initial states are kept for evaluation.",
            )


SUITE = "desk_object"


EVALUATION_NAMES = ("before", "after", "swapped")


def new_tasks() -> tuple[Task, ...]:
    """Return the tasks that the starter has never seen."""
    return tuple(task for task in SUITES[SUITE] if task.held_out)
