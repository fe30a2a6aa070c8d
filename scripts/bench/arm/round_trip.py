"""How long a decision takes through a policy server of this machine, and how much of that is the way there and back."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....errors import InputError
from ....robot.chunk_policy import ChunkPolicy
from ....robot.remote.client import RemotePolicy
from ....robot.remote.protocol import new_token
from ....robot.remote.server_settings import ServerSettings
from ....robot.remote.serving import serve_in_background
from ...checkpoints.checkpoint_policy import blank_observation

TIMEOUT = 30.0
WARM_UP = 10


@dataclass(frozen=True)
class RoundTrip:
    """Milliseconds, over `decisions` of them: as the client sees a decision, and what the policy alone took of it."""

    decisions: int
    round_trip_p50_ms: float
    round_trip_p99_ms: float
    inference_p50_ms: float
    inference_p99_ms: float
    wire_p50_ms: float
    wire_p99_ms: float


def measure_round_trip(
    chunk_policy: ChunkPolicy, decisions: int = 1000, observation: dict[str, Any] | None = None
) -> RoundTrip:
    """Serve a decider in a thread of this process, decide through a client, and return how long that took.

    `observation` stands in for pictures of noise. Raises InputError for less than one decision.
    """
    if decisions < 1:
        raise InputError("decisions", got=decisions, expected="1 or more", fix="Raise it; 1000 give a p99.")
    observation = observation or noise_observation(chunk_policy)
    token, times = new_token(), []
    with serve_in_background(chunk_policy, ServerSettings(token=token)) as url, RemotePolicy(url, token, TIMEOUT) as policy:
        policy.reset("measure")
        for number in range(WARM_UP + decisions):
            started = time.perf_counter()
            policy.decide(observation)
            if number >= WARM_UP:
                times.append((time.perf_counter() - started, policy.timing.inference))
    whole, inference = 1000 * np.array(times).T
    figures = [float(np.percentile(row, part)) for row in (whole, inference, whole - inference) for part in (50, 99)]
    return RoundTrip(decisions, *figures)


def noise_observation(chunk_policy: ChunkPolicy) -> dict[str, Any]:
    """Return an observation that fits the decider's contract: pictures of noise, which nothing shrinks."""
    blank, numbers = blank_observation(chunk_policy.contract), np.random.default_rng(0)
    pixels = {name: numbers.integers(0, 256, each.shape, dtype=np.uint8) for name, each in blank["pixels"].items()}
    return {**blank, "pixels": pixels}
