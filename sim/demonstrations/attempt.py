"""Attempts at demonstrations: the world that they need, one attempt, and the worker process that runs them."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...disk import write_atomically
from ...errors import WorldError
from ..processes import exit_with_parent
from .staging import RecordedEpisode, stage_episode

if TYPE_CHECKING:
    from ...policy.contract import Offer


class DemonstrationWorld(Protocol):
    """A world with a scripted demonstrator; it is pickled and sent to the worker processes.

    An environment needs `reset`, `step`, `close`, `_max_episode_steps` and `grounding() -> float32 [G]`. A demonstrator
    needs `decide()`, which returns the action [A] to record and the command [A] to execute instead.
    """

    @property
    def robot_type(self) -> str: ...

    def offer(self) -> Offer: ...

    def environment(self, suite: str, task: str) -> Any: ...

    def demonstrator(self, environment: Any, generator: np.random.Generator) -> Any: ...


@dataclass(frozen=True)
class Attempt:
    """One attempt at one task; everything random in it follows from these fields."""

    suite: str
    task: str
    number: int
    initial_state: int
    seed: int
    instruction: str

    @property
    def name(self) -> str:
        return f"{self.suite}.{self.task}.{self.number:06d}"


def run_attempt(world: DemonstrationWorld, environment: Any, attempt: Attempt) -> RecordedEpisode | None:
    """Run one attempt.

    Args:
        world: The world that makes the demonstrator.
        environment: The world's environment of the attempt's task.
        attempt: What to run.

    Returns:
        The recorded episode, or None if the demonstrator failed.
    """
    observation, _ = environment.reset(
        seed=attempt.seed, options={"initial_state": attempt.initial_state, "instruction": attempt.instruction}
    )
    demonstrator = world.demonstrator(environment, np.random.default_rng(attempt.seed))
    pixels, state, actions, grounding, success = [], [], [], [], False
    for _ in range(environment._max_episode_steps):
        pixels.append(observation["pixels"])
        state.append(observation["agent_pos"])
        grounding.append(environment.grounding())
        action, command = demonstrator.decide()
        actions.append(action)
        observation, _, terminated, truncated, info = environment.step(command)
        success = bool(info["is_success"])
        if terminated or truncated:
            break
    if not success:
        return None
    images = {camera: np.stack([frame[camera] for frame in pixels]) for camera in pixels[0]}
    return RecordedEpisode(images, np.stack(state), np.stack(actions), np.stack(grounding), attempt.instruction)


class DemonstrationWorker:
    """Runs attempts in one worker process; it keeps the environment while the task stays the same.

    Args:
        world: The world to demonstrate in.
        staging: Folder for the outcomes of attempts.
    """

    def __init__(self, world: DemonstrationWorld, staging: Path) -> None:
        self.world, self.staging, self.offer = world, staging, world.offer()
        self.environment: Any = None
        self.suite_task: tuple[str, str] | None = None

    def process_attempt(self, attempt: Attempt) -> bool:
        """Run an attempt and write its outcome as one file; return whether it succeeded.

        Raises:
            WorldError: The world failed; any exception of its simulator is converted.
            OSError: The outcome could not be written.
        """
        try:
            episode = run_attempt(self.world, self._environment(attempt.suite, attempt.task), attempt)
        except WorldError:
            raise
        except Exception as error:  # A simulator's own exception may not be picklable.
            where = f"{attempt.suite}/{attempt.task}, initial state {attempt.initial_state}, seed {attempt.seed}"
            raise WorldError(f"the world failed at {where}: {type(error).__name__}: {error}") from error
        if episode is None:
            write_atomically(self.staging / f"{attempt.name}.failed.json", json.dumps(asdict(attempt)))
            return False
        stage_episode(self.staging / f"{attempt.name}.npz", episode, self.offer)
        return True

    def _environment(self, suite: str, task: str) -> Any:
        if self.suite_task != (suite, task):
            if self.environment is not None:
                self.environment.close()
            self.environment = self.world.environment(suite, task)
            self.suite_task = (suite, task)
        return self.environment


_worker: DemonstrationWorker | None = None
"""This worker process's state: a process pool passes functions and arguments, but no objects, to its processes."""


def initialize_worker(world: DemonstrationWorld, staging: Path) -> None:
    """Prepare a worker process; the initializer of a process pool."""
    global _worker  # noqa: PLW0603 (the initializer of a process pool has no other place)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Only the main process handles Ctrl-C.
    exit_with_parent()
    _worker = DemonstrationWorker(world, staging)


def process_attempt(attempt: Attempt) -> bool:
    """Run one attempt in a worker process that `initialize_worker` prepared; return whether it succeeded."""
    if _worker is None:
        raise WorldError("no worker in this process: call initialize_worker before process_attempt.")
    return _worker.process_attempt(attempt)
