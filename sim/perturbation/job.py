"""The episodes of an evaluation as jobs: what to run, from which seed, and with which perturbation or swap."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...errors import InputError

if TYPE_CHECKING:
    from .axes import Perturbation
    from .swap import Swap


@dataclass(frozen=True)
class Job:
    """One episode to run.

    Attributes:
        suite: Name of the suite.
        task: Name of the task.
        initial_state: Number of the task's initial state.
        seed: Seed of everything random in the episode.
        instruction: Replaces the task's instruction; None keeps it.
        perturbation: Changes the world or the instruction for this episode.
        swap: Changes the world or the instruction for this episode, see `swap`.
        other_task_instructions: Instructions of other tasks, one of which a swap of the instruction may use.
    """

    suite: str
    task: str
    initial_state: int
    seed: int
    instruction: str | None = None
    perturbation: Perturbation | None = None
    swap: Swap | None = None
    other_task_instructions: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Identifies the episode within a run."""
        perturbation = None if self.perturbation is None else str(self.perturbation)
        return episode_key(self.suite, self.task, self.initial_state, self.seed, perturbation, self.swap)

    @property
    def suite_task(self) -> tuple[str, str]:
        """Suite and task: jobs that share them can share an environment."""
        return self.suite, self.task

    @property
    def unchanged(self) -> bool:
        """Whether the episode is neither perturbed nor swapped."""
        return self.perturbation is None and self.swap is None

    @property
    def changes_instruction(self) -> bool:
        """Whether the perturbation or the swap gives the actor another instruction than the task's."""
        language = self.perturbation is not None and self.perturbation.axis == "language"
        return language or self.swap in ("object", "instruction")

    @property
    def file_stem(self) -> str:
        """A short file name that is unique to the episode, with letters and digits of the task's name only."""
        task = "".join(letter if letter.isalnum() else "_" for letter in self.task)[:48]
        return f"{task}-{self.initial_state:03d}-{hashlib.sha256(self.key.encode()).hexdigest()[:8]}"


def episode_key(
    suite: str, task: str, initial_state: int, seed: int, perturbation: str | None, swap: str | None
) -> str:
    """Return the key of a job or of its record; `perturbation` is written as "camera=3"."""
    changes = [perturbation, None if swap is None else f"swap={swap}"]
    return "/".join([suite, task, str(initial_state), str(seed), *filter(None, changes)])


def episode_seed(seed: int, suite: str, task: str, initial_state: int) -> int:
    """Derive an episode's seed (31 bits) from the run's seed; it does not depend on which other episodes are run."""
    digest = hashlib.sha256(f"{seed}/{suite}/{task}/{initial_state}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF


def changed_jobs(
    jobs: Sequence[Job], perturbations: Sequence[Perturbation], swaps: Sequence[Swap], *, unchanged: bool
) -> list[Job]:
    """Repeat jobs with perturbations and swaps; task, initial state and seed stay the same.

    Args:
        jobs: Unchanged jobs.
        perturbations: Each job is run once under each of them.
        swaps: Each job is run once with each of them.
        unchanged: Whether each job is also run as it is.

    Returns:
        For each job: the unchanged one, then one for each perturbation, then one for each swap.
    """
    changed = []
    for job in jobs:
        changed += [job] * unchanged
        changed += [replace(job, perturbation=perturbation) for perturbation in perturbations]
        changed += [replace(job, swap=swap) for swap in swaps]
    return changed


def require_swaps(wanted: Sequence[Swap], offered: Sequence[Sequence[Swap]]) -> None:
    """Check that every wanted swap makes sense in at least one task.

    Args:
        wanted: The swaps to run.
        offered: For each task, the swaps that make sense in it.

    Raises:
        InputError: A swap makes sense in none of the tasks.
    """
    for swap in wanted:
        if not any(swap in swaps for swaps in offered):
            raise InputError(
                f"swap {swap}",
                got=f"{len(offered)} tasks in which it makes no sense",
                expected="a task with another object to ask for, or with one that looks different to exchange",
                fix="Remove the swap, or choose other tasks: desk_object has all swaps.",
            )
