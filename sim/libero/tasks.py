"""LIBERO's tasks as data, so that they can be planned where the simulator is not installed."""

from __future__ import annotations

import functools
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError, unknown_name

if TYPE_CHECKING:
    from ..perturbation.swap import Swap

TASK_CATALOGUE_FILE = Path(__file__).with_name("catalogue.json")
"""Names, sentences and sha256 sums of the two files of every task, as hf-libero 0.1.4 ships them."""

EVALUATION_STATES = 50
"""The benchmark's own initial states, 0 to 49 of every task."""

FIRST_DEMONSTRATION_STATE = 1000
"""From this number on, initial states are drawn from the task's own regions: none of them is ever evaluated."""

ALIASES = {"libero_long": "libero_10"}


@dataclass(frozen=True)
class LiberoTask:
    """One task: `number` is its place in the benchmark's order, which published results count by."""

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
        """The swaps that make sense in it: its scenes do not say what else could be asked for or exchanged."""
        return ("instruction",)

    def start_seed(self, initial_state: int) -> int:
        """Return the seed [31 bits] of what an initial state leaves open: it depends on task and state alone."""
        return zlib.crc32(f"{self.suite}/{self.name}/{initial_state}".encode()) & 0x7FFFFFFF


@functools.cache
def suites() -> dict[str, tuple[LiberoTask, ...]]:
    """Return the four suites, each with its ten tasks in the benchmark's order."""
    content = json.loads(TASK_CATALOGUE_FILE.read_text())["suites"]
    return {
        suite: tuple(LiberoTask(suite, number, **entry) for number, entry in enumerate(entries))
        for suite, entries in content.items()
    }


def suite_name(suite: str) -> str:
    """Return a suite's own name for any of its names; an unknown one is an InputError with the nearest."""
    name = ALIASES.get(suite, suite)
    if name not in suites():
        raise unknown_name("suite", suite, (*suites(), *ALIASES))
    return name


def find_suite(suite: str) -> tuple[LiberoTask, ...]:
    """Return the tasks of a suite; an unknown name is an InputError with the nearest one."""
    return suites()[suite_name(suite)]


def find_task(suite: str, name: str) -> LiberoTask:
    """Return one task of a suite by its name or its number; an unknown one is an InputError with the nearest."""
    tasks = find_suite(suite)
    named = {task.name: task for task in tasks} | {str(task.number): task for task in tasks}
    if name not in named:
        raise unknown_name(f"task of {suite}", name, named)
    return named[name]


def check_initial_state(state: int) -> int:
    """Return the number of an initial state; InputError for one that is neither the benchmark's nor drawn."""
    if not (0 <= state < EVALUATION_STATES or state >= FIRST_DEMONSTRATION_STATE):
        raise InputError(
            "initial_state",
            got=state,
            expected=f"0 to {EVALUATION_STATES - 1}, or {FIRST_DEMONSTRATION_STATE} and more",
            fix="The first are the benchmark's own; the others are drawn anew, to demonstrate from.",
        )
    return int(state)
