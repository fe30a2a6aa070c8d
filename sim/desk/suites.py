"""The desk's suite family, listed in `sim/worlds.py`; importing it does not import MuJoCo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..reset import EVALUATION_STATES, FIRST_DEMONSTRATION_STATE
from ..suite_family import SuiteFamily
from .scene import IMAGE_SIZES
from .tasks.catalogue import SUITES, find_suite

if TYPE_CHECKING:
    from ...policy.contract import Contract
    from .world import DeskWorld


def build_evaluation_world(contract: Contract, options: object) -> DeskWorld:
    """Return the desk for a policy's contract.

    Raises:
        ContractMismatch: The desk does not fit the contract.
    """
    from .world import DeskWorld

    world = DeskWorld(contract.cameras[0].height)
    contract.check(world.offer())
    return world


def build_demonstration_world(image_size: int, options: object) -> DeskWorld:
    """Return the desk with square images of `image_size` pixels."""
    from .world import DeskWorld

    return DeskWorld(image_size)


DESK = SuiteFamily(
    name="desk",
    title="the desk",
    suites=tuple(SUITES),
    evaluation_states=EVALUATION_STATES,
    first_demonstration_state=FIRST_DEMONSTRATION_STATE,
    has_sampled_states=True,
    episodes=5,
    find_suite=find_suite,
    build_evaluation_world=build_evaluation_world,
    build_demonstration_world=build_demonstration_world,
    image_sizes=IMAGE_SIZES,
)
