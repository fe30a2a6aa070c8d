"""A checkpoint as a decider, which is all that an arm's side asks of a policy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...policy.contract import Contract
from ...policy.inference.actor import PolicyActor
from .worker_policies import Device, PolicyFactory, Precision

WARMUP_DECISIONS = 5
"""Decisions before anything counts: the first ones allocate, compile and capture."""


class CheckpointPolicy:
    """Decides with a checkpoint of this machine: `contract`, `reset`, `decide`.

    `threads` sets torch's CPU threads for the whole process. Raises InputError for a folder that is no checkpoint and
    for a device that is not there.
    """

    def __init__(
        self, folder: Path, *, device: Device = "cpu", precision: Precision = "fp32", threads: int = 1
    ) -> None:
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            got = "cuda, but torch sees no such device"
            raise InputError("device", got=got, expected="a device of this machine", fix="Use --device cpu.")
        self._actor: PolicyActor = PolicyFactory(folder, device, precision)()
        torch.set_num_threads(threads)

    @property
    def contract(self) -> Contract:
        """The contract that the policy was trained under."""
        return self._actor.contract

    @property
    def skill(self) -> str | None:
        """The skill that a merged policy acts by; None before the first decision, and for any other policy."""
        return self._actor.skill

    @property
    def abstained(self) -> str | None:
        """Why a merged policy holds still; None while it acts."""
        return self._actor.abstained

    def reset(self, instruction: str) -> None:
        """Begin an episode."""
        self._actor.reset(instruction, seed=0)

    def decide(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return a chunk float32 [T, A] for an observation of the desk's form."""
        return np.asarray(self._actor.decide(dict(observation)), dtype=np.float32)


def blank_observation(contract: Contract) -> dict[str, Any]:
    """Return an observation that fits a contract and shows nothing: black pictures, every joint at its lowest."""
    pixels = {each.name: np.zeros((each.height, each.width, 3), dtype=np.uint8) for each in contract.cameras}
    return {"pixels": pixels, "agent_pos": np.array(contract.normalization.state_low, dtype=np.float32)}


def warm_up(chunk_policy: CheckpointPolicy, decisions: int = WARMUP_DECISIONS) -> float:
    """Decide on blank pictures until all is prepared; return the median seconds of a decision after the first one."""
    observation, seconds = blank_observation(chunk_policy.contract), []
    chunk_policy.reset("warm up")
    for _ in range(decisions + 1):
        started = time.perf_counter()
        chunk_policy.decide(observation)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])
