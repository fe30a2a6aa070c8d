"""The table of all worlds: find the world of a suite, choose its tasks, and build it.

Planning needs no simulator: a world's packages are imported when the world is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InputError, unknown_name
from .desk.suites import DESK
from .libero.options import LiberoOptions
from .libero.suites import LIBERO
from .suite_family import EvaluationWorld, SuiteFamily, SuiteTask

if TYPE_CHECKING:
    from ..policy.contract import Contract
    from .demonstrations.attempt import DemonstrationWorld

__all__ = [
    "DESK",
    "FAMILIES",
    "LIBERO",
    "EvaluationWorld",
    "LiberoOptions",
    "SuiteFamily",
    "SuiteTask",
    "check_options",
    "choose_tasks",
    "find_family",
    "make_demonstration_world",
    "make_evaluation_world",
]

FAMILIES: tuple[SuiteFamily, ...] = (DESK, LIBERO)
"""One entry for each world."""


def find_family(suites: Sequence[str], families: Sequence[SuiteFamily] = FAMILIES) -> SuiteFamily:
    """Return the world that all of `suites` belong to.

    Args:
        suites: Names of suites, all of one world.
        families: The worlds to search.

    Raises:
        InputError: No suite, an unknown one (with the nearest name), or suites of several worlds.
    """
    owners = {name: family for family in families for name in (*family.suites, *family.aliases)}
    for suite in suites:
        if suite not in owners:
            raise unknown_name("suite", suite, owners)
    found = {owners[suite].name: owners[suite] for suite in suites}
    if len(found) != 1:
        raise InputError(
            "suites",
            got=" and ".join(f"some of {name}" for name in found) or "none",
            expected="suites of one world",
            fix=f"Choose from {'; or from '.join(', '.join(family.suites) for family in families)}.",
        )
    return next(iter(found.values()))


def choose_tasks(
    suites: Sequence[str],
    names: Sequence[str],
    held_out: Literal["with", "without", "only"],
    families: Sequence[SuiteFamily] = FAMILIES,
) -> tuple[SuiteTask, ...]:
    """Return the tasks of `suites` to run, in the suites' order.

    Args:
        suites: Names of suites, all of one world.
        names: Names of tasks (for LIBERO also numbers); empty for all tasks that `held_out` admits.
        held_out: Whether the tasks that the starter was not trained on are included; ignored if `names` are given.
        families: The worlds to search.

    Raises:
        InputError: An unknown suite or task, with the nearest name, or no task is left.
    """
    family = find_family(suites, families)
    offered = [task for suite in suites for task in family.tasks(suite)]
    known = {name for task in offered for name in family.task_names(task)}
    for name in names:
        if name not in known:
            raise unknown_name("task", name, sorted(known))
    admitted = {"with": (True, False), "without": (False,), "only": (True,)}[held_out]
    chosen = tuple(
        task for task in offered if (set(names) & set(family.task_names(task)) if names else task.held_out in admitted)
    )
    if not chosen:
        raise InputError(
            "tasks",
            got=f"none of {', '.join(suites)} with --left-out {held_out}",
            expected="at least one",
            fix="Use --suites desk_object, which has held-out tasks, or name tasks with --tasks.",
        )
    return chosen


def check_options(family: SuiteFamily, options: Any, families: Sequence[SuiteFamily] = FAMILIES) -> None:
    """Check that options of a world are used with suites of that world.

    Args:
        family: The world of the chosen suites.
        options: Options of any world; options with default values are always accepted.
        families: All worlds, to name the one that the options belong to.

    Raises:
        InputError: The options belong to another world.
    """
    if family.options_type is type(options) or options == type(options)():
        return
    for owner in families:
        if owner.options_type is type(options):
            raise InputError(
                f"options of {owner.title}",
                got=f"suites of {family.title}",
                expected=f"suites of {owner.title}",
                fix=f"Remove the options, or choose from {', '.join(owner.suites)}.",
            )


def make_evaluation_world(family: SuiteFamily, contract: Contract, options: Any) -> EvaluationWorld:
    """Build a world for a policy's contract.

    Args:
        family: The world's entry in the table.
        contract: What the policy observes and commands.
        options: Options of the world.

    Raises:
        ContractMismatch: The world cannot fulfil the contract; checked before any simulator is imported.
        InputError: Options of another world; for LIBERO also missing packages or assets.
        WorldError: LIBERO's physics differs from that of published results.
    """
    check_options(family, options)
    return family.build_evaluation_world(contract, options)


def make_demonstration_world(family: SuiteFamily, image_size: int, options: Any) -> DemonstrationWorld:
    """Build a world with its scripted demonstrator and square images of `image_size` pixels.

    Raises as `make_evaluation_world`.
    """
    check_options(family, options)
    return family.build_demonstration_world(image_size, options)
