"""A policy for the starter's contract without a network: it opens the gripper and keeps the other joints still."""

from __future__ import annotations

import numpy as np

from saccade.policy.checkpoint.folder import STARTER_FOLDER, read_contract


class NodPolicy:
    """Opens the gripper by one percent a step, without delay.

    Args:
        abstains: The reason of an abstention; the policy then keeps all joints still.
    """

    def __init__(self, abstains: str | None = None) -> None:
        self.contract = read_contract(STARTER_FOLDER)
        self.abstained, self.skill = abstains, None
        self.instructions: list[str] = []

    def reset(self, instruction: str) -> None:
        self.instructions.append(instruction)

    def decide(self, observation) -> np.ndarray:
        chunk = np.repeat(observation["agent_pos"][None], self.contract.chunk, axis=0)
        if self.abstained is None:
            chunk[:, 5] = np.minimum(chunk[:, 5] + np.arange(1, len(chunk) + 1), 90.0)
        return chunk
