"""LIBERO's tasks as data: an evaluation can be planned without the simulator."""

from __future__ import annotations

import functools
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError, unknown_name
from ..reset import EVALUATION_STATES, FIRST_DEMONSTRATION_STATE

if TYPE_CHECKING:
    from ..perturbation.swap import Swap

TASK_CATALOGUE_FILE = Path(__file__).with_name("catalogue.json")
"""Name, instruction and the sha256 of both files of every task, as in hf-libero 0.1.4."""

ALIASES = {"libero_long": "libero_10"}
"""Other names of suites."""


@dataclass(frozen=True)
class LiberoTask:
    """One task of LIBERO.

    Attributes:
        suite: Name of the suite.
        number: Index of the task in the benchmark's order, 0 to 9; published results use it.
        name: Name of the task and of its files.
        instruction: What the policy is told to do.
        problem_sha256: sha256 of the problem file (BDDL), in hexadecimal.
        initial_states_sha256: sha256 of the file with the benchmark's initial states.
        held_out: Whether the task is missing from the starter checkpoint's training data; always False.
        paraphrases: Other wordings of the instruction; none.
    """

    suite: str
    number: int
    name: str
    instruction: str
    problem_sha256: str
    initial_states_sha256: str
    held_out: bool = False
    paraphrases: tuple[str, ...] = ()

    @property
    def swaps(self) -> tuple[Swap, ...]:
        """The swaps that make sense: LIBERO's scenes do not list other targets or exchangeable objects."""
        return ("instruction",)

    def start_seed(self, initial_state: int) -> int:
        """Return the seed (31 bits) of the random parts of an initial state; it depends only on task and state."""
        return zlib.crc32(f"{self.suite}/{self.name}/{initial_state}".encode()) & 0x7FFFFFFF


@functools.cache
def suites() -> dict[str, tuple[LiberoTask, ...]]:
    """Return the four suites by name, each with its ten tasks in the benchmark's order."""
    content = json.loads(TASK_CATALOGUE_FILE.read_text())["suites"]
    return {
        suite: tuple(LiberoTask(suite, number, **entry) for number, entry in enumerate(entries))
        for suite, entries in content.items()
    }


def suite_name(suite: str) -> str:
    """Return the suite's name for a name or an alias; raises InputError, with the nearest name, for an unknown one."""
    name = ALIASES.get(suite, suite)
    if name not in suites():
        raise unknown_name("suite", suite, (*suites(), *ALIASES))
    return name


def find_suite(suite: str) -> tuple[LiberoTask, ...]:
    """Return the tasks of a suite; raises InputError, with the nearest name, for an unknown suite."""
    return suites()[suite_name(suite)]


def find_task(suite: str, name: str) -> LiberoTask:
    """Return a task.

    Args:
        suite: Name or alias of the suite.
        name: Name of the task, or its number in the benchmark's order.

    Raises:
        InputError: The suite or the task is unknown; the error suggests the nearest name.
    """
    tasks = find_suite(suite)
    named = {task.name: task for task in tasks} | {str(task.number): task for task in tasks}
    if name not in named:
        raise unknown_name(f"task of {suite}", name, named)
    return named[name]


def check_initial_state(state: int) -> int:
    """Return the number of an initial state; raises InputError unless it is the benchmark's or a sampled one."""
    if not (0 <= state < EVALUATION_STATES or state >= FIRST_DEMONSTRATION_STATE):
        raise InputError(
            "initial_state",
            got=state,
            expected=f"0 to {EVALUATION_STATES - 1}, or {FIRST_DEMONSTRATION_STATE} and more",
            fix=f"Choose a state of the benchmark, or {FIRST_DEMONSTRATION_STATE} and more for a sampled one.",
        )
    return int(state)
