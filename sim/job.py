"""An episode that is to be run, and the seed that it follows from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .perturbation.axes import Perturbation
    from .perturbation.swap import Swap


@dataclass(frozen=True)
class Job:
    """One episode to run: a task, one of its initial states, and the seed of everything random in it.

    `instruction` replaces the task's own words. `perturbation` and `swap` change the world or the words for this
    episode (see `perturbation`); a swap of the instruction takes its words, among others, from `other_task_instructions`, those of
    other tasks.
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
        """What tells this episode from every other of a run."""
        perturbation = None if self.perturbation is None else str(self.perturbation)
        return _key(self.suite, self.task, self.initial_state, self.seed, perturbation, self.swap)

    @property
    def unchanged(self) -> bool:
        """Whether the episode is neither perturbed nor swapped."""
        return self.perturbation is None and self.swap is None

    @property
    def changes_instruction(self) -> bool:
        """Whether the actor hears other words than the task's because of the perturbation or the swap."""
        language = self.perturbation is not None and self.perturbation.axis == "language"
        return language or self.swap in ("object", "instruction")

    @property
    def file_stem(self) -> str:
        """A short file name that is unique to the episode, whatever characters its task has."""
        task = "".join(letter if letter.isalnum() else "_" for letter in self.task)[:48]
        return f"{task}-{self.initial_state:03d}-{hashlib.sha256(self.key.encode()).hexdigest()[:8]}"


def _key(suite: str, task: str, initial_state: int, seed: int, perturbation: str | None, swap: str | None) -> str:
    changes = [perturbation, None if swap is None else f"swap={swap}"]
    return "/".join([suite, task, str(initial_state), str(seed), *filter(None, changes)])


def episode_seed(seed: int, suite: str, task: str, initial_state: int) -> int:
    """Derive an episode's own seed (31 bits) from the run's; it does not depend on which other episodes are run."""
    digest = hashlib.sha256(f"{seed}/{suite}/{task}/{initial_state}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF
