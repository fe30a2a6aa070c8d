"""LIBERO's suite family, listed in `sim/worlds.py`; this module does not import the simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..reset import EVALUATION_STATES, FIRST_DEMONSTRATION_STATE
from ..suite_family import SuiteFamily, SuiteTask
from .options import LiberoOptions
from .protocols import LEROBOT
from .tasks import ALIASES, LiberoTask, find_suite

if TYPE_CHECKING:
    from ...policy.contract import Contract
    from .world import LiberoWorld


def build_evaluation_world(contract: Contract, options: LiberoOptions) -> LiberoWorld:
    """Return LIBERO under the conventions of a policy's contract.

    Args:
        contract: The contract; it is checked before the simulator is imported.
        options: How to build LIBERO's environments.

    Raises:
        ContractMismatch: No conventions of LIBERO fit the contract.
        InputError: Packages or assets are missing.
        WorldError: The physics differs from that of published results.
    """
    from .conventions import Conventions
    from .world import libero_world

    conventions = Conventions.from_contract(contract)
    contract.check(conventions.offer())
    return libero_world(conventions, options)


def build_demonstration_world(image_size: int, options: LiberoOptions) -> LiberoWorld:
    """Return LIBERO with square images of `image_size` pixels.

    Raises:
        InputError: Packages or assets are missing, or `image_size` is out of range.
        WorldError: The physics differs from that of published results.
    """
    from .conventions import Conventions
    from .world import libero_world

    return libero_world(Conventions(image_size=image_size), options)


def task_names(task: SuiteTask) -> tuple[str, ...]:
    """Return the names by which a task can be chosen: its name, and its number in the benchmark's order."""
    return (task.name, str(task.number)) if isinstance(task, LiberoTask) else (task.name,)


LIBERO = SuiteFamily(
    name="libero",
    title="LIBERO",
    suites=("libero_spatial", "libero_object", "libero_goal", "libero_10"),
    evaluation_states=EVALUATION_STATES,
    first_demonstration_state=FIRST_DEMONSTRATION_STATE,
    has_sampled_states=False,
    episodes=LEROBOT.episodes,
    find_suite=find_suite,
    build_evaluation_world=build_evaluation_world,
    build_demonstration_world=build_demonstration_world,
    aliases=ALIASES,
    options_type=LiberoOptions,
    task_names=task_names,
)
