"""What decides: anything that turns an observation into a chunk of actions, here or on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..policy.contract import Contract


class ChunkPolicy(Protocol):
    """A policy as the robot layer sees it: one episode at a time, one decision after the other, from one thread."""

    contract: Contract

    def reset(self, instruction: str) -> None:
        """Begin an episode, or go on under another instruction; nothing that was decided before counts any more."""
        ...

    def decide(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return a chunk float32 [T, A] for `pixels` (camera name to uint8 [H, W, 3]) and `agent_pos` (float32 [S])."""
        ...


@runtime_checkable
class RealTimeChunkPolicy(Protocol):
    """A decider that can continue a chunk which is still being played (real-time chunking)."""

    supports_real_time_chunking: bool

    def continue_chunk(self, observation: Mapping[str, Any], leftover: np.ndarray, inference_delay: int) -> np.ndarray:
        """Return a chunk float32 [T, A] that agrees with `leftover`, the steps [n, A] still to be played.

        The first `inference_delay` of them will be played before this chunk can begin.
        """
        ...


def supports_chunk_continuation(chunk_policy: ChunkPolicy) -> bool:
    """Return whether a decider supports real-time chunking."""
    return bool(getattr(chunk_policy, "supports_real_time_chunking", False))
