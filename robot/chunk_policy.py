"""The interface of a policy: it turns an observation into a chunk of actions, here or on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from ..policy.contract import Contract


class ChunkPolicy(Protocol):
    """A policy that decides chunks: one episode at a time, one decision after the other, from one thread."""

    @property
    def contract(self) -> Contract:
        """The conventions that observations and actions follow."""
        ...

    def reset(self, instruction: str) -> None:
        """Begin an episode, or continue under another instruction; state from earlier decisions is dropped."""
        ...

    def decide(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return a chunk of actions.

        Args:
            observation: `pixels`, camera name to uint8 [H, W, 3], and `agent_pos`, float32 [S].

        Returns:
            Actions float32 [T, A] in the contract's units.
        """
        ...
