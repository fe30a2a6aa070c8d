"""Which world a suite belongs to, and that world built for a policy or to demonstrate in: the desk, and LIBERO.

Planning needs none of the simulators: a world's libraries are imported where it is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..errors import InputError, unknown_name
from .desk import tasks as desk_tasks
from .libero import tasks as libero_tasks
from .libero.options import LiberoOptions
from .libero.protocols import LEROBOT

if TYPE_CHECKING:
    from ..policy.contract import Contract, Offer
    from .demonstrations.attempt import DemonstrationWorld
    from .perturbation.swap import Swap


class SuiteTask(Protocol):
    """A task as it is planned: `held_out` is one that the starter checkpoint never saw."""

    @property
    def suite(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def instruction(self) -> str: ...

    @property
    def paraphrases(self) -> tuple[str, ...]: ...

    @property
    def held_out(self) -> bool: ...

    @property
    def swaps(self) -> tuple[Swap, ...]:
        """The swaps that make sense in it."""
        ...


class EvaluationWorld(Protocol):
    """A world as an evaluation needs it; instances travel to the worker processes and must be picklable."""

    def offer(self) -> Offer: ...

    def environment(self, suite: str, task: str) -> Any: ...

    def describe(self) -> dict[str, Any]:
        """Return what of an evaluation's protocol is the world's, as plain JSON values."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Return the environment's fingerprint; WorldError when nothing can be drawn here."""
        ...


@dataclass(frozen=True)
class SuiteFamily:
    """The suites of one world. Initial states below `evaluation_states` are for evaluation, demonstrations begin from
    `first_demonstration_state` on; `has_sampled_states` tells whether there are states in between to evaluate from, too;
    `episodes` is how many of each task an evaluation runs unless told otherwise."""

    name: str
    suites: tuple[str, ...]
    evaluation_states: int
    first_demonstration_state: int
    has_sampled_states: bool
    episodes: int

    def tasks(self, suite: str) -> tuple[SuiteTask, ...]:
        """Return a suite's tasks; an unknown name is an InputError with the nearest one."""
        return desk_tasks.find_suite(suite) if self.name == "desk" else libero_tasks.find_suite(suite)

    def check(self, options: LiberoOptions) -> None:
        """Raise InputError for options that this world has not."""
        if self.name == "desk" and options != LiberoOptions():
            raise InputError(
                "options of LIBERO",
                got=f"suites of the {self.name}",
                expected="suites of LIBERO",
                fix=f"Leave them out, or choose from {', '.join(LIBERO.suites)}.",
            )

    def check_evaluation_states(self, first: int, count: int) -> None:
        """Raise InputError unless an evaluation may begin from these initial states."""
        end = self.first_demonstration_state if self.has_sampled_states else self.evaluation_states
        if first + count > end:
            raise InputError(
                "episodes",
                got=f"initial states {first} to {first + count - 1}",
                expected=f"states below {end}",
                fix=f"Demonstrations start from the others; 0 to {self.evaluation_states - 1} are the ones to compare "
                "by.",
            )

    def check_first_demonstration_state(self, first: int) -> None:
        """Raise InputError unless demonstrations may begin from this initial state on."""
        least = self.evaluation_states if self.has_sampled_states else self.first_demonstration_state
        if first < least:
            raise InputError(
                "first_initial_state",
                got=first,
                expected=f"{least} or more",
                fix="The states below are for evaluation: a demonstration of them would spoil it.",
            )


DESK = SuiteFamily(
    name="desk",
    suites=tuple(desk_tasks.SUITES),
    evaluation_states=desk_tasks.EVALUATION_STATES,
    first_demonstration_state=desk_tasks.FIRST_DEMONSTRATION_STATE,
    has_sampled_states=True,
    episodes=5,
)
LIBERO = SuiteFamily(
    name="libero",
    suites=("libero_spatial", "libero_object", "libero_goal", "libero_10"),
    evaluation_states=libero_tasks.EVALUATION_STATES,
    first_demonstration_state=libero_tasks.FIRST_DEMONSTRATION_STATE,
    has_sampled_states=False,
    episodes=LEROBOT.episodes,
)


def find_family(suites: Sequence[str]) -> SuiteFamily:
    """Return the world that all of `suites` belong to.

    Raises InputError for no suite, an unknown one, with the nearest name, and suites of more than one world.
    """
    owners = {name: family for family in (DESK, LIBERO) for name in family.suites}
    owners |= dict.fromkeys(libero_tasks.ALIASES, LIBERO)
    for suite in suites:
        if suite not in owners:
            raise unknown_name("suite", suite, owners)
    families = {owners[suite].name: owners[suite] for suite in suites}
    if len(families) != 1:
        raise InputError(
            "suites",
            got=" and ".join(f"some of {name}" for name in families) or "none",
            expected="suites of one world",
            fix=f"Choose from {', '.join(DESK.suites)}, or from {', '.join(LIBERO.suites)}.",
        )
    return next(iter(families.values()))


def choose_tasks(
    suites: Sequence[str], names: Sequence[str], held_out: Literal["with", "without", "only"]
) -> tuple[SuiteTask, ...]:
    """Return the tasks of `suites` that are named, in the suites' order; without names those that `held_out` admits.

    A task of LIBERO has its number for a name, too. Raises InputError for an unknown suite or task, with the nearest
    name, and when nothing is left.
    """
    family = find_family(suites)
    offered = [task for suite in suites for task in family.tasks(suite)]
    known = {name for task in offered for name in _task_names(task)}
    for name in names:
        if name not in known:
            raise unknown_name("task", name, sorted(known))
    admitted = {"with": (True, False), "without": (False,), "only": (True,)}[held_out]
    chosen = tuple(task for task in offered if (set(names) & _task_names(task) if names else task.held_out in admitted))
    if not chosen:
        raise InputError(
            "tasks",
            got=f"none of {', '.join(suites)} with --left-out {held_out}",
            expected="at least one",
            fix="The tasks that the starter never saw are in desk_object; or name tasks with --tasks.",
        )
    return chosen


def make_evaluation_world(family: SuiteFamily, contract: Contract, options: LiberoOptions) -> EvaluationWorld:
    """Return the world as a policy's contract asks for it.

    Raises ContractMismatch when it does not fit however it is built, before any simulator is imported; for LIBERO also
    InputError for missing packages or assets, and WorldError where its physics is not that of published results.
    """
    family.check(options)
    if family.name == "desk":
        from .desk.world import DeskWorld

        world: EvaluationWorld = DeskWorld(contract.cameras[0].height)
        contract.check(world.offer())
        return world
    from .libero.conventions import Conventions
    from .libero.world import libero_world

    conventions = Conventions.from_contract(contract)
    contract.check(conventions.offer())
    return libero_world(conventions, options)


def make_demonstration_world(family: SuiteFamily, image_size: int, options: LiberoOptions) -> DemonstrationWorld:
    """Return the world with its scripted demonstrator and pictures of `image_size` pixels; raises as `make_evaluation_world`."""
    family.check(options)
    if family.name == "desk":
        from .desk.world import DeskWorld

        return DeskWorld(image_size)
    from .libero.conventions import Conventions
    from .libero.world import libero_world

    return libero_world(Conventions(image_size=image_size), options)


def _task_names(task: SuiteTask) -> set[str]:
    number = getattr(task, "number", None)
    return {task.name} if number is None else {task.name, str(number)}
