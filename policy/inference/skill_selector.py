"""Which skill an episode of a merged policy is acted by: found by looking, named by the user, or none at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...errors import InputError
from ..contract import Contract

if TYPE_CHECKING:
    from ..merging.router import RoutingDecision


class SkillSelector:
    """One episode's skill: `name`, or None and the `reason` where the router abstains; `route` is what it found.

    `core` is a merged policy, see `merging.merged`. A `fixed` skill is not looked for.
    """

    def __init__(self, core: Any, fixed: str | None = None) -> None:
        self._core, self._fixed = core, fixed
        self._hold_position = HoldPosition(core.contract)
        self.begin()

    def begin(self) -> None:
        """Begin an episode, or hear another instruction: what was found before holds no longer."""
        self.name: str | None = self._fixed
        self.reason: str | None = None
        self.route: RoutingDecision | None = None

    def select_skill(self, images: torch.Tensor, instruction: str, state: torch.Tensor) -> bool:
        """Have the policy become the skill that one observation [1, ...] asks for; False where it abstains."""
        if self._fixed is None and (self.name is None or self._core.switch == "chunk"):
            self.route = self._core.route(images, instruction, state)
            found = self.route.skill
            self.name, self.reason = None if found is None else self._core.skills[found], self.route.reason or None
        self.activate()
        return self.name is not None

    def activate(self) -> None:
        """Have the policy become the skill that was found; nothing happens where there is none."""
        if self.name is not None:
            self._core.select(self._core.skills.index(self.name))

    def hold(self, state: np.ndarray) -> np.ndarray:
        """Return a chunk [T, A] that stays where the state [S] is."""
        return self._hold_position(state)


def validate_skill(core: Any, skill: str | None) -> str | None:
    """Return the skill that is to act, None for the router's choice; InputError unless the policy has it."""
    if skill is not None and not core.skills:
        got, fix = f"{skill}, of a policy that is not merged", "Leave it out."
        raise InputError("skill", got=got, expected="a merged policy", fix=fix)
    return skill if skill is None else core.skills[core.number(skill)]


class HoldPosition:
    """Make chunks that move nothing: absolute targets that are the state itself, or relative ones of zero.

    A relative gripper, which has no zero, is told to open. Raises InputError for an absolute target without a state.
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
                    got=f"the target {missing[0]}, which no state measures",
                    expected="a state for every absolute target, to hold still where the router abstains",
                    fix="Merge skills whose arm measures what it moves.",
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
