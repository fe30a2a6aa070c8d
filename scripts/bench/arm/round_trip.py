"""Measure how long a decision takes through a policy server on this machine, and which part the network adds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....errors import InputError, WorldError
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
    """Times of decisions in milliseconds.

    Attributes:
        decisions: Number of decisions.
        round_trip_p50_ms: Median time of a decision as the client sees it; likewise the p99.
        inference_p50_ms: Median time that the policy takes; likewise the p99.
        wire_p50_ms: Median of the difference; likewise the p99.
    """

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
    """Serve a policy in a thread of this process, decide through a client, and measure the time.

    Args:
        chunk_policy: The policy.
        decisions: Number of decisions to time, after `WARM_UP` others.
        observation: What to decide from; images of noise if None.

    Raises:
        InputError: Less than one decision.
        WorldError: The client did not report a time.
    """
    if decisions < 1:
        raise InputError("decisions", got=decisions, expected="1 or more", fix="Raise decisions; use 1000 for a p99.")
    observation = observation or noise_observation(chunk_policy)
    token, times = new_token(), []
    with (
        serve_in_background(chunk_policy, ServerSettings(token=token)) as url,
        RemotePolicy(url, token, TIMEOUT) as policy,
    ):
        policy.reset("measure")
        for number in range(WARM_UP + decisions):
            started = time.perf_counter()
            policy.decide(observation)
            if number >= WARM_UP:
                seconds = time.perf_counter() - started
                if policy.timing is None:
                    raise WorldError("the policy server did not report the time of a decision")
                times.append((seconds, policy.timing.inference))
    whole, inference = 1000 * np.array(times).T
    metrics = [float(np.percentile(row, part)) for row in (whole, inference, whole - inference) for part in (50, 99)]
    return RoundTrip(decisions, *metrics)


def noise_observation(chunk_policy: ChunkPolicy) -> dict[str, Any]:
    """Return an observation that fits the policy's contract, with images of noise, which do not compress."""
    blank, numbers = blank_observation(chunk_policy.contract), np.random.default_rng(0)
    pixels = {name: numbers.integers(0, 256, each.shape, dtype=np.uint8) for name, each in blank["pixels"].items()}
    return {**blank, "pixels": pixels}
