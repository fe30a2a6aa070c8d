"""Options of `saccade bench evaluation`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ....errors import InputError
from ....machine import usable_cores
from ....ranges import require_at_least
from ....sim.desk.tasks.catalogue import find_task
from ....sim.reset import EVALUATION_STATES


@dataclass(frozen=True)
class EvaluationBenchConfig:
    """Measure the episodes per hour of `saccade eval` and `lerobot-eval`: same policy, same task, same episodes.

    Both commands run in turns, and both record videos. The command prints no number unless every episode has the same
    outcome in both. With --out the metrics are written as JSON.
    """

    suite: str = "desk_object"
    """Suite of the task."""
    task: str = "red_cube"
    """Task that the starter is evaluated on."""
    episodes: int = EVALUATION_STATES
    """Episodes of a run."""
    rounds: int = 3
    """Runs of each command; the median counts."""
    workers: int = usable_cores()
    """Worker processes of `saccade eval`. Default: the number of CPU cores."""
    lerobot_batch_size: int = 0
    """Vectorised environments of lerobot-eval; 0 for the default of LeRobot."""
    cluster: bool = True
    """Also kill a node of a Ray cluster during an evaluation, and count lost and duplicate episodes; --no-cluster
    leaves this test out."""
    out: Path | None = None
    """JSON file for the metrics."""

    def __post_init__(self) -> None:
        find_task(self.suite, self.task)
        require_at_least(self, 2, "episodes", option=True)
        require_at_least(self, 1, "rounds", "workers", option=True)
        require_at_least(self, 0, "lerobot_batch_size", option=True)
        if self.episodes > EVALUATION_STATES:
            fix = f"Use {EVALUATION_STATES} episodes or fewer: LeRobot would repeat the states."
            raise InputError("--episodes", got=self.episodes, expected=f"at most {EVALUATION_STATES}", fix=fix)
