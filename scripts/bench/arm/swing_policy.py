"""A policy that swings all joints without end, and what a broken policy may do to its chunks."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ....policy.contract import CameraSpec, Contract

IMAGE_SIZE = 32
"""Camera pixels where no policy looks at the images."""

SWING_CENTER = np.array([0.0, -62.0, 50.0, 65.0, 5.0, 35.0])
SWING_AMPLITUDE = np.array([30.0, 12.0, 14.0, 14.0, 25.0, 15.0])
SWING_PERIODS = np.array([2.7, 2.3, 2.0, 1.9, 2.5, 2.2])
"""Centre, amplitude and period in seconds of each joint's swing [A]; the joints never all turn round at once."""

TRACKING_TOLERANCE = 9.0
"""Distance from the swing, in units, beyond which the arm is led back at `APPROACH_SPEED` units a second."""

APPROACH_SPEED = 60.0
LATENCY = 0.05
"""Typical age of an observation in seconds when the policy decides."""

FAULT_FREE_DECISIONS = 10
"""Decisions without a fault at the start: those before the session moves the arm."""

ChunkFault = Callable[[np.ndarray], np.ndarray]
"""Changes the actions [T, A] of a chunk."""


class SwingPolicy:
    """A policy that swings all joints without end, and leads the arm there slowly from elsewhere.

    The swing starts again with every episode, so that each fault meets the same motion.
    """

    def __init__(self, contract: Contract, corrupt: ChunkFault | None = None) -> None:
        """Start a swing.

        Args:
            contract: The robot's contract.
            corrupt: Changes every chunk before it is returned.
        """
        self.contract, self.corrupt, self.tracking_tolerance = contract, corrupt, TRACKING_TOLERANCE
        self.began = time.monotonic()
        self.instructions: list[str] = []

    def reset(self, instruction: str) -> None:
        """Begin an episode, and the swing with it."""
        self.instructions.append(instruction)
        self.began = time.monotonic()

    def decide(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return a chunk float32 [T, A]."""
        observed = time.monotonic() - LATENCY
        actions = self.plan(np.asarray(observation["agent_pos"], dtype=np.float64), observed)
        return actions if self.corrupt is None else self.corrupt(actions)

    def plan(self, pose: np.ndarray, observed: float) -> np.ndarray:
        """Return the chunk float32 [T, A] for a pose [A] that was observed at a steady time."""
        period = 1.0 / self.contract.control_hz
        path = self._path(observed + period * np.arange(self.contract.chunk))  # [T, A]
        if not self.is_near_path(pose, observed):
            reach = APPROACH_SPEED * period * np.arange(1, self.contract.chunk + 1)[:, None]  # [T, 1]
            path = pose + np.clip(path - pose, -reach, reach)
        return path.astype(np.float32)

    def is_near_path(self, pose: np.ndarray, observed: float) -> bool:
        """Tell whether a pose [A] is close enough to the swing to follow it without an approach."""
        return bool(np.abs(self._path(np.array([observed]))[0] - pose).max() <= self.tracking_tolerance)

    def _path(self, times: np.ndarray) -> np.ndarray:
        """Return the swing's poses [T, A] at steady times [T]."""
        return SWING_CENTER + SWING_AMPLITUDE * np.sin(2.0 * math.pi * (times[:, None] - self.began) / SWING_PERIODS)


def small_contract(size: int = IMAGE_SIZE) -> Contract:
    """Return the starter's contract with cameras of `size` pixels."""
    from ....policy.checkpoint.folder import read_contract

    contract = read_contract("starter")
    cameras = tuple(CameraSpec(each.name, size, size) for each in contract.cameras)
    return dataclasses.replace(contract, cameras=cameras)


class ChunkFaultInjector:
    """Applies a random fault of `CHUNK_FAULTS` to some chunks; `counts` holds how often each was applied."""

    def __init__(self, fault_probability: float, seed: int) -> None:
        self._fault_probability, self._rng, self._decisions = fault_probability, random.Random(seed), 0
        self.counts: dict[str, int] = {}

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        self._decisions += 1
        if self._decisions <= FAULT_FREE_DECISIONS or self._rng.random() >= self._fault_probability:
            return actions
        kind = self._rng.choice(sorted(CHUNK_FAULTS))
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind == "slow decision":
            time.sleep(self._rng.uniform(0.2, 0.9))
        return CHUNK_FAULTS[kind](actions)


def not_finite(actions: np.ndarray, value: float = np.nan) -> np.ndarray:
    """Return the chunk with one value that is not finite."""
    changed = actions.copy()
    changed[len(actions) // 2, 0] = value
    return changed


def jump(actions: np.ndarray, units: float = 60.0) -> np.ndarray:
    """Return the chunk with the first joint offset in its second half."""
    changed = actions.copy()
    changed[len(actions) // 2 :, 0] += units
    return changed


def outside(actions: np.ndarray, units: float = 500.0) -> np.ndarray:
    """Return the chunk with the first joint's targets at `units`, out of range."""
    changed = actions.copy()
    changed[:, 0] = units
    return changed


CHUNK_FAULTS: dict[str, ChunkFault] = {
    "not a number": not_finite,
    "infinity": lambda actions: not_finite(actions, np.inf),
    "wrong shape": lambda actions: actions[:, :-1],
    "wrong length": lambda actions: actions[:-1],
    "wrong type": lambda actions: actions.astype(np.int32),
    "objects": lambda actions: actions.astype(object),
    "jump": jump,
    "out of range": outside,
    "slightly out of range": lambda actions: outside(actions, 113.0),
    "shivering": lambda actions: actions + 25.0 * (np.arange(len(actions)) % 2)[:, None].astype(np.float32),
    "slow decision": lambda actions: actions,
    "huge": lambda actions: actions * np.float32(1e30),
}
"""What a broken policy may do to a chunk."""
