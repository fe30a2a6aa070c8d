"""What a world lets a perturbation do: a small protocol beside gymnasium's methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ...errors import InputError
from ...policy.contract import Offer


class PerturbableWorld(Protocol):
    """A MuJoCo world that can be disturbed between a reset and the first step; an axis needs some of this, not all."""

    model: Any
    """The mujoco.MjModel of now: a world that builds its model anew at a reset returns the new one."""
    data: Any
    """Its mujoco.MjData."""
    offer: Offer
    arm_joints: Sequence[str]
    """Names in the model of the arm's joints, without the gripper's."""
    background: Sequence[int]
    """Numbers in the model of the geometries that are scenery: table, floor, walls; neither things nor fixtures."""

    def observe(self) -> dict[str, Any]:
        """Return the observation of the present state, drawn anew; nothing moves."""
        ...

    def recreate_renderers(self) -> None:
        """Make whatever draws take the model's textures and shadow size from the model again."""

    def settle_and_start(self) -> None:
        """Let what was displaced come to rest, the arm held where it is, and count the episode from there."""

    def movable_objects(self) -> Mapping[str, str]:
        """Return, for the body of each thing in play, what it is; those that look alike are the same."""
        ...

    def add_object(self, generator: np.random.Generator) -> str | None:
        """Put one more thing among those in play, as clutter; return its body, None when there is none or no room."""
        ...

    def is_layout_valid(self) -> bool:
        """Tell whether, as things stand now, the instruction is true of the scene and the task within reach."""
        ...

    def other_instructions(self) -> Mapping[str, str | None]:
        """Return words that ask for another thing of this very scene, each with its body, None where there is none."""
        ...


def require_members(world: Any, members: Sequence[str], purpose: str) -> PerturbableWorld:
    """Return the world, typed; raises InputError, naming what it lacks, when it cannot be disturbed in this way."""
    missing = [name for name in members if not hasattr(world, name)]
    if missing:
        raise InputError(
            f"{purpose} in {type(world).__name__}",
            got=f"a world without {', '.join(missing)}",
            expected="a world that can be disturbed in this way",
            fix="Leave it out, or give the world these members (see sim/perturbation/world.py).",
        )
    return world
