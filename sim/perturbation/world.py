"""What perturbations need from a world, besides gymnasium's methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ...errors import InputError
from ...policy.contract import Offer


class PerturbableWorld(Protocol):
    """A MuJoCo world that can be perturbed between a reset and the first step; an axis needs some of these members."""

    model: Any
    """The present mujoco.MjModel; a world that builds a new model at a reset returns the new one."""
    data: Any
    """Its mujoco.MjData."""
    offer: Offer
    arm_joints: Sequence[str]
    """Names of the arm's joints in the model, without the gripper's."""
    background: Sequence[int]
    """Ids of the geoms of the background: table, floor, walls; neither objects nor fixtures."""

    def observe(self) -> dict[str, Any]:
        """Render and return the observation of the present state, without a physics step."""
        ...

    def recreate_renderers(self) -> None:
        """Create the renderers again, with the model's present textures and shadow size."""

    def settle_and_start(self) -> None:
        """Let displaced objects settle while the arm is held, and start the episode from there."""

    def movable_objects(self) -> Mapping[str, str]:
        """Return the kind of each object by its body; objects that look alike have the same kind."""
        ...

    def add_object(self, generator: np.random.Generator) -> str | None:
        """Add one object as clutter; return its body, or None if there is none left or no room."""
        ...

    def is_layout_valid(self) -> bool:
        """Tell whether the instruction is true of the present scene and the task is within reach."""
        ...

    def other_instructions(self) -> Mapping[str, str | None]:
        """Return instructions for other objects of this scene, each with the object's body or None."""
        ...


def require_members(world: Any, members: Sequence[str], purpose: str) -> PerturbableWorld:
    """Check that a world has the members that a perturbation needs, and return it with its type.

    Args:
        world: The world.
        members: Names of the members.
        purpose: Names the perturbation in the error.

    Raises:
        InputError: Members are missing; the error names them.
    """
    missing = [name for name in members if not hasattr(world, name)]
    if missing:
        raise InputError(
            f"{purpose} in {type(world).__name__}",
            got=f"a world without {', '.join(missing)}",
            expected="a world that supports this change",
            fix="Leave the change out, or add these members to the world (see sim/perturbation/world.py).",
        )
    return world
