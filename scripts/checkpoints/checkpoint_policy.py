"""A checkpoint as a chunk policy: the interface that the robot side expects of a policy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...machine import Device, require_device
from ...policy.contract import Contract
from ...policy.inference.actor import PolicyActor
from .worker_policies import PolicyFactory, Precision

WARMUP_DECISIONS = 5
"""Decisions before the first timed one: the first decisions allocate memory, compile and capture CUDA graphs."""


class CheckpointPolicy:
    """Decides with a checkpoint on this machine.

    Args:
        folder: Folder of the checkpoint.
        device: Where the network runs.
        precision: Precision of its weights and arithmetic.
        threads: CPU threads of PyTorch, for the whole process.

    Raises:
        InputError: The folder holds no checkpoint, or the device does not exist.
    """

    def __init__(
        self, folder: Path, *, device: Device = "cpu", precision: Precision = "fp32", threads: int = 1
    ) -> None:
        import torch

        require_device(device)
        self._actor: PolicyActor = PolicyFactory(folder, device, precision)()
        torch.set_num_threads(threads)

    @property
    def contract(self) -> Contract:
        """The contract that the policy was trained with."""
        return self._actor.contract

    @property
    def skill(self) -> str | None:
        """The active skill of a merged policy; None before the first decision, and for any other policy."""
        return self._actor.skill

    @property
    def abstained(self) -> str | None:
        """Why a merged policy holds still; None while it acts."""
        return self._actor.abstained

    def reset(self, instruction: str) -> None:
        """Begin an episode."""
        self._actor.reset(instruction, seed=0)

    def decide(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return an action chunk.

        Args:
            observation: `pixels`, a dictionary from camera name to uint8 [H, W, 3], and `agent_pos`, float32 [S].

        Returns:
            The chunk, float32 [T, A], in the units of the contract.
        """
        return np.asarray(self._actor.decide(dict(observation)), dtype=np.float32)


def blank_observation(contract: Contract) -> dict[str, Any]:
    """Return an observation of a contract's form with black images and every joint at its lowest value."""
    pixels = {each.name: np.zeros((each.height, each.width, 3), dtype=np.uint8) for each in contract.cameras}
    return {"pixels": pixels, "agent_pos": np.array(contract.normalization.state_low, dtype=np.float32)}


def warm_up(chunk_policy: CheckpointPolicy, decisions: int = WARMUP_DECISIONS) -> float:
    """Decide on black images until memory, kernels and graphs are ready.

    Args:
        chunk_policy: The policy; it is reset.
        decisions: Decisions after the first one.

    Returns:
        The median latency of a decision after the first one, in seconds.
    """
    observation, seconds = blank_observation(chunk_policy.contract), []
    chunk_policy.reset("warm up")
    for _ in range(decisions + 1):
        started = time.perf_counter()
        chunk_policy.decide(observation)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])
