"""One demonstration: an attempt, the world that it happens in, and the worker process that commits its outcome."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import asdict, dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...errors import WorldError
from .staging import RecordedEpisode, stage_episode, write_atomically

if TYPE_CHECKING:
    from ...policy.contract import Offer


class DemonstrationWorld(Protocol):
    """Where demonstrations come from; instances travel to the worker processes and must be picklable.

    An environment needs `reset`, `step`, `close`, `_max_episode_steps` and `grounding() -> float32 [G]`. A demonstrator
    needs `decide()`, which returns the action [A] to record and the command [A] to execute in its place.
    """

    @property
    def robot_type(self) -> str: ...

    def offer(self) -> Offer: ...

    def environment(self, suite: str, task: str) -> Any: ...

    def demonstrator(self, environment: Any, generator: np.random.Generator) -> Any: ...


@dataclass(frozen=True)
class Attempt:
    """One try at one task; everything that it draws follows from these fields."""

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
    """Run one attempt; return its episode, or None when the demonstrator failed."""
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
    """The state of one worker process: the world, and the environment of the task that it last worked on."""

    def __init__(self, world: DemonstrationWorld, staging: Path) -> None:
        self.world, self.staging, self.offer = world, staging, world.offer()
        self.environment: Any = None
        self.task: tuple[str, str] | None = None

    def process_attempt(self, attempt: Attempt) -> bool:
        """Run an attempt and commit its outcome as one file; tell whether it succeeded."""
        if self.task != (attempt.suite, attempt.task):
            if self.environment is not None:
                self.environment.close()
            self.environment = self.world.environment(attempt.suite, attempt.task)
            self.task = (attempt.suite, attempt.task)
        episode = run_attempt(self.world, self.environment, attempt)
        if episode is None:
            write_atomically(self.staging / f"{attempt.name}.failed.json", json.dumps(asdict(attempt)).encode())
            return False
        stage_episode(self.staging / f"{attempt.name}.npz", episode, self.offer)
        return True


_worker: DemonstrationWorker | None = None


def initialize_worker(world: DemonstrationWorld, staging: Path) -> None:
    """Make a worker process ready: the initializer of a process pool."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process alone answers Ctrl-C
    parent = parent_process()

    def exit_with_parent() -> None:
        if parent is not None:
            parent.join()  # a killed parent cannot say goodbye: without this, workers wait forever
            os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
    _worker = DemonstrationWorker(world, staging)


def process_attempt(attempt: Attempt) -> bool:
    """Settle one attempt in a worker process; tell whether it succeeded."""
    if _worker is None:
        raise WorldError("attempts are settled in worker processes: start_worker was not called in this one")
    try:
        return _worker.process_attempt(attempt)
    except (OSError, WorldError):
        raise
    except Exception as error:  # whatever a simulator throws must survive the way between processes
        where = f"{attempt.suite}/{attempt.task}, initial state {attempt.initial_state}, seed {attempt.seed}"
        raise WorldError(f"the world failed at {where}: {type(error).__name__}: {error}") from error
