"""The skill of an episode of a merged policy: selected by the router, named by the user, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...errors import InputError
from ..contract import Contract

if TYPE_CHECKING:
    from ..merging.router import RoutingDecision


class SkillSelector:
    """Select the skill of one episode.

    Args:
        core: A merged policy, see `merging.merged`.
        fixed: A skill to use without the router.

    Attributes:
        name: The selected skill; None before the selection, and if the router abstains.
        reason: Why the router abstains; None if it does not.
        route: The router's decision; None before the selection and for a fixed skill.
    """

    def __init__(self, core: Any, fixed: str | None = None) -> None:
        self._core, self._fixed = core, fixed
        self._hold_position = HoldPosition(core.contract)
        self.reset()

    def reset(self) -> None:
        """Start an episode or a new instruction: forget the selected skill."""
        self.name: str | None = self._fixed
        self.reason: str | None = None
        self.route: RoutingDecision | None = None

    def select_skill(self, images: torch.Tensor, instruction: str, state: torch.Tensor) -> bool:
        """Select and activate the skill for one observation.

        Args:
            images: uint8 [1, V, 3, H, W].
            instruction: The instruction of the episode.
            state: [1, S], in the contract's units.

        Returns:
            Whether there is a skill; False if the router abstains.
        """
        if self._fixed is None and (self.name is None or self._core.switch == "chunk"):
            self.route = route = self._core.route(images, instruction, state)
            self.name = None if route.skill is None else self._core.skills[route.skill]
            self.reason = route.reason or None
        self.activate()
        return self.name is not None

    def activate(self) -> None:
        """Load the weights of the selected skill, if there is one, into the policy."""
        if self.name is not None:
            self._core.select(self._core.skills.index(self.name))

    def hold(self, state: np.ndarray) -> np.ndarray:
        """Return a chunk [T, A] that stays at the state [S]."""
        return self._hold_position(state)


def validate_skill(core: Any, skill: str | None) -> str | None:
    """Return the full name of a skill, None for the router's choice; InputError unless the policy has it."""
    if skill is not None and not core.skills:
        got, fix = f"{skill}, of a policy that is not merged", "Leave --skill out."
        raise InputError("skill", got=got, expected="a merged policy", fix=fix)
    return skill if skill is None else core.skills[core.number(skill)]


class HoldPosition:
    """Make chunks that hold the position: absolute targets equal to the state, or relative targets of zero.

    A relative action opens its gripper, because a gripper has no zero.

    Raises:
        InputError: An absolute target has no state.
    """

    def __init__(self, contract: Contract) -> None:
        action, states = contract.action, contract.state.names
        self._steps = contract.chunk
        self._state_indices: list[int] | None = None
        self._hold_action = np.zeros(len(action.names), dtype=np.float32)
        if action.kind == "absolute":
            missing = [name for name in action.names if name not in states]
            if missing:
                raise InputError(
                    "merged policy",
                    got=f"the target {missing[0]}, which is not in the state",
                    expected="a state for every absolute target, to hold still where the router abstains",
                    fix="Merge skills whose state has every action element.",
                )
            self._state_indices = [states.index(name) for name in action.names]
        elif action.gripper is not None:
            self._hold_action[action.names.index(action.gripper.name)] = action.gripper.open

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Return a chunk [T, A] for a state [S], float32."""
        still = (
            self._hold_action
            if self._state_indices is None
            else np.asarray(state, dtype=np.float32)[self._state_indices]
        )
        return np.repeat(still[None], self._steps, axis=0)
