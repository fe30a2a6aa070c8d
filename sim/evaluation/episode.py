"""Run one episode: an actor in an environment, from reset to the end, and its record."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from ...errors import InputError, WorldError
from ..perturbation.environment import perturbed_environment
from ..perturbation.job import Job
from .records import EpisodeRecord

Overlay = Mapping[str, np.ndarray]
"""The visual tokens of a policy, by camera name: floats [M, 4] of x and y (0 to 1 from the image's top left corner),
weight (0 to 1) and kept (1 for a token that reached the last layer, 0 for one that was dropped before)."""


class StepCallback(Protocol):
    """Called at every step, for example to record a video; it must not change its arguments.

    Attributes:
        stride: The callback needs the images of every `stride`-th observation; the others may come without images.
    """

    stride: int

    def __call__(self, observation: Mapping[str, Any], overlay: Overlay | None) -> None:
        """Receive an observation, and the overlay of the decision that was made from it."""


class Actor(Protocol):
    """Chooses actions: a policy, a demonstrator, or a fake in a test.

    Optional members are used if an actor has them:

    - `overlay() -> Overlay | None`: the visual tokens of the last decision; the same object until the next decision.
    - `decision_seconds: list[float]`: duration of each decision of this episode, for an actor that decides once for
      many steps. Without it every `act` counts as a decision.
    - `pending: int`: number of actions that are decided already and need no further observation.
    - `skill` and `abstained`: of a merged policy, see `EpisodeRecord`.
    """

    def reset(self, instruction: str, seed: int) -> None:
        """Start an episode: forget the last one, and seed everything random with `seed`."""

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the action [A] for an observation, in the contract's units."""
        ...


def run_episode(env: Any, actor: Actor, job: Job, step_callback: StepCallback | None = None) -> EpisodeRecord:
    """Run one episode and return its record.

    An action that is not finite ends the episode as a failure of the policy; so does a changed instruction that the
    policy refuses. The job's perturbation or swap applies to this episode only.

    Args:
        env: A gymnasium environment. Its infos hold `is_success` and `instruction`, and `target` and `picked` if there
            is something to pick; its reset takes the options `initial_state` and `instruction`; its step limit is
            `_max_episode_steps`. If it has the attribute `rendering_enabled`, this is set to False for steps whose
            images neither the actor nor `step_callback` needs.
        actor: Chooses the actions.
        job: What to run.
        step_callback: Called at every step.

    Raises:
        WorldError: The environment has no step limit.
        Exception: Whatever the environment or the actor raises.
    """
    with perturbed_environment(env, job) as world:
        return _run(world, actor, job, step_callback)


def _run(env: Any, actor: Actor, job: Job, step_callback: StepCallback | None) -> EpisodeRecord:
    started = time.perf_counter()
    limit = getattr(env.unwrapped, "_max_episode_steps", None)
    if not limit:
        raise WorldError(f"world {job.suite}: got no step limit, expected _max_episode_steps to be set.")
    # Rendering takes most of a step's time, and a policy needs images once for many steps.
    may_skip = hasattr(env, "rendering_enabled")
    if hasattr(env.unwrapped, "rendering_enabled"):
        env.unwrapped.rendering_enabled = True
    options = {"initial_state": job.initial_state, "instruction": job.instruction}
    observation, info = env.reset(seed=job.seed, options=options)
    error = _reset_actor(actor, str(info["instruction"]), job)
    overlay = getattr(actor, "overlay", None)

    act_seconds: list[float] = []
    trajectory = hashlib.sha256()
    steps = 0
    while error is None:
        before = time.perf_counter()
        action = np.asarray(actor.act(observation))
        act_seconds.append(time.perf_counter() - before)
        if step_callback is not None:
            step_callback(observation, overlay() if overlay is not None else None)
        if not np.isfinite(action).all():
            error = f"the policy's action at step {steps} is not finite"
            break
        trajectory.update(np.ascontiguousarray(action).tobytes())
        if may_skip:
            frame_needed = step_callback is not None and (steps + 1) % step_callback.stride == 0
            env.rendering_enabled = frame_needed or getattr(actor, "pending", 0) == 0
        observation, _, terminated, truncated, info = env.step(action)
        steps += 1
        if terminated or truncated or steps >= limit:
            break
    tokens = overlay() if step_callback is not None and overlay is not None else None
    if step_callback is not None and error is None:
        step_callback(observation, tokens)

    decision_seconds = list(getattr(actor, "decision_seconds", act_seconds))
    return EpisodeRecord(
        suite=job.suite,
        task=job.task,
        initial_state=job.initial_state,
        seed=job.seed,
        instruction=str(info["instruction"]),
        target=info.get("target"),
        picked=info.get("picked"),
        outcome="success" if info["is_success"] and error is None else "failure",
        steps=steps,
        seconds=round(time.perf_counter() - started, 3),
        decisions=len(decision_seconds),
        decision_milliseconds=round(1000 * statistics.median(decision_seconds or [0.0]), 3),
        slowest_decision_milliseconds=round(1000 * max(decision_seconds, default=0.0), 3),
        trajectory=trajectory.hexdigest()[:16],
        visual_tokens=sum(len(view) for view in tokens.values()) if tokens else None,
        visual_tokens_kept=sum(int((view[:, 3] > 0.5).sum()) for view in tokens.values()) if tokens else None,
        error=error,
        perturbation=None if job.perturbation is None else str(job.perturbation),
        swap=job.swap,
        other=getattr(env, "other", None),
        drawn=getattr(env, "drawn", None),
        skill=getattr(actor, "skill", None),
        abstained=getattr(actor, "abstained", None),
    )


def _reset_actor(actor: Actor, instruction: str, job: Job) -> str | None:
    """Reset the actor; return why it refuses the instruction, if that is not the task's own."""
    try:
        actor.reset(instruction, job.seed)
    except InputError as refusal:
        if not job.changes_instruction:
            raise
        return f"the policy refuses this instruction: {refusal}"
    return None
