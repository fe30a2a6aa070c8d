"""One episode: an actor in a world, from reset to the end, and what came of it."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from ..errors import InputError, WorldError
from .records import EpisodeRecord, Job

Overlay = Mapping[str, np.ndarray]
"""Where a policy looks: per camera name, floats [M, 4] of x and y (0 to 1 from the top left corner of the image),
weight (0 to 1) and kept (1 for a token that reached the last layer, 0 for one that was dropped on the way)."""

Watcher = Callable[[Mapping[str, Any], "Overlay | None"], None]
"""Called with every observation and the overlay of the decision that follows it; it must change neither."""


class Actor(Protocol):
    """What acts: a policy, a demonstrator, or a stand-in of a test.

    Two more things are used where an actor has them. `overlay() -> Overlay | None`: where the last decision looked; the
    same object until the next one. `decision_seconds: list[float]`: how long each decision of this episode took, for an
    actor that decides once for many steps; without it every `act` counts as a decision.
    """

    def reset(self, instruction: str, seed: int) -> None:
        """Start an episode: forget the last one, and seed everything random by `seed`."""

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the action [A] for an observation, in the contract's units."""
        ...


def run_episode(env: Any, actor: Actor, job: Job, watch: Watcher | None = None) -> EpisodeRecord:
    """Run one episode and return its record.

    `env` is a gymnasium environment whose infos hold `is_success` and `instruction` (and `target` and `picked`, where
    there is something to pick), whose reset takes the options `initial_state` and `instruction`, and which names its
    limit of steps `_max_episode_steps`. An action with a number that is not finite ends the episode as a failure: that
    is the policy's doing. Raises WorldError for a world without a limit, and whatever the world or the actor raise.
    """
    started = time.perf_counter()
    limit = getattr(env.unwrapped, "_max_episode_steps", None)
    if not limit:
        raise WorldError(f"world {job.suite}: got no limit of steps, expected _max_episode_steps to be set.")
    observation, info = _reset(env, job)
    actor.reset(str(info["instruction"]), job.seed)
    overlay = getattr(actor, "overlay", None)

    act_seconds: list[float] = []
    trajectory = hashlib.sha256()
    error: str | None = None
    steps = 0
    while True:
        before = time.perf_counter()
        action = np.asarray(actor.act(observation))
        act_seconds.append(time.perf_counter() - before)
        if watch is not None:
            watch(observation, overlay() if overlay is not None else None)
        if not np.isfinite(action).all():
            error = f"the policy's action at step {steps} is not finite"
            break
        trajectory.update(np.ascontiguousarray(action).tobytes())
        observation, _, terminated, truncated, info = env.step(action)
        steps += 1
        first_pick = job.swap_object and info.get("picked") is not None
        if terminated or truncated or first_pick or steps >= limit:
            break
    tokens = overlay() if watch is not None and overlay is not None else None
    if watch is not None and error is None:
        watch(observation, tokens)

    decision_seconds = list(getattr(actor, "decision_seconds", act_seconds))
    target, picked = info.get("target"), info.get("picked")
    success = picked is not None and picked == target if job.swap_object else bool(info["is_success"])
    return EpisodeRecord(
        suite=job.suite,
        task=job.task,
        initial_state=job.initial_state,
        seed=job.seed,
        instruction=str(info["instruction"]),
        target=target,
        picked=picked,
        outcome="success" if success and error is None else "failure",
        steps=steps,
        seconds=round(time.perf_counter() - started, 3),
        decisions=len(decision_seconds),
        decision_milliseconds=round(1000 * statistics.median(decision_seconds or [0.0]), 3),
        slowest_decision_milliseconds=round(1000 * max(decision_seconds, default=0.0), 3),
        trajectory=trajectory.hexdigest()[:16],
        visual_tokens=sum(len(view) for view in tokens.values()) if tokens else None,
        visual_tokens_kept=sum(int((view[:, 3] > 0.5).sum()) for view in tokens.values()) if tokens else None,
        error=error,
    )


def _reset(env: Any, job: Job) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Bring the world to the job's initial state with the words that the actor is to hear."""
    options = {"initial_state": job.initial_state, "instruction": job.instruction}
    observation, info = env.reset(seed=job.seed, options=options)
    if not job.swap_object:
        return observation, info
    others = env.unwrapped.other_instructions()
    if not others:
        raise InputError(
            "instruction of another object",
            got=f"no other object in {job.suite}/{job.task}",
            expected="a scene with at least two objects to pick",
            fix="Leave this task out.",
        )
    # The seed picks the words, so that a repeated run swaps alike.
    options["instruction"] = others[job.seed % len(others)]
    return env.reset(seed=job.seed, options=options)
