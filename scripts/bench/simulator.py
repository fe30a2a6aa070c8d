"""`saccade bench sim`: measure the environment steps per second of the desk."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import WorldError
from ...machine import usable_cores
from ...ranges import require_at_least
from ...sim.desk.tasks.catalogue import find_task
from .metrics import Metrics
from .workers import simulator_pool


@dataclass(frozen=True)
class SimBenchConfig:
    """Measure the environment steps per second of one process, with both cameras rendered and all processes running.

    A demonstration is recorded, then replayed and timed. The command prints no number unless every replay gives
    bit-identical states and non-empty images. With --out the metrics are written as JSON.
    """

    suite: str = "desk_object"
    """Suite of the task."""
    task: str = "red_cube"
    """Task whose scene is simulated."""
    image_size: int = 128
    """Height and width of both cameras' images, in pixels."""
    runs: int = 5
    """Timed replays in each process; the median counts."""
    workers: int = usable_cores()
    """Processes that run at the same time. Default: the number of CPU cores."""
    out: Path | None = None
    """JSON file for the metrics."""

    def __post_init__(self) -> None:
        find_task(self.suite, self.task)
        require_at_least(self, 1, "runs", "workers", option=True)


def bench_sim(config: SimBenchConfig) -> tuple[Metrics, list[str]]:
    """Measure the simulator's speed.

    Returns:
        The metrics, and the lines to print.

    Raises:
        WorldError: A replay gives other states, an image is empty, or a worker process died.
    """
    with simulator_pool(config.workers) as pool:
        speeds = list(pool.map(measure_steps, [config] * config.workers))
    # The slowest process counts: every process reaches this speed.
    slowest = min(statistics.median(speed) for speed in speeds)
    lines = [
        (
            f"{slowest:.0f} steps per second and process, both cameras at {config.image_size} pixels, "
            f"{config.workers} processes (slowest process, median of {config.runs} runs)"
        ),
        *(
            f"  process {number}: {', '.join(f'{each:.0f}' for each in speed)}"
            for number, speed in enumerate(speeds, 1)
        ),
        "checked: every replay gave the same states, and no image is empty",
    ]
    return {"desk_steps_per_second": round(slowest, 1), "processes": config.workers}, lines


def measure_steps(config: SimBenchConfig) -> list[float]:
    """Return the steps per second of each timed replay of one demonstration; runs in a worker process.

    Raises:
        WorldError: A replay gives other states than the demonstration, or an image is empty.
    """
    import numpy as np

    from ...sim.desk.demonstrator.demonstrator import DeskDemonstrator
    from ...sim.desk.environment import DeskEnv

    env = DeskEnv(config.suite, config.task, image_size=config.image_size)

    def reset_env() -> dict[str, Any]:
        return env.reset(seed=0, options={"initial_state": 0})[0]

    _check_images(reset_env())
    demonstrator, commands, states, done = DeskDemonstrator(env, np.random.default_rng(0)), [], [], False
    while not done:
        commands.append(demonstrator.decide()[1])
        observation, _, terminated, truncated, _ = env.step(commands[-1])
        states.append(observation["agent_pos"])
        done = terminated or truncated
    speeds = []
    for _ in range(config.runs):
        observation = reset_env()
        replayed = []
        began = time.perf_counter()
        for command in commands:
            observation = env.step(command)[0]
            replayed.append(observation["agent_pos"])
        speeds.append(len(commands) / (time.perf_counter() - began))
        _check_images(observation)
        if not np.array_equal(states, replayed):
            raise WorldError("a replay of the same commands gave other states: no speed is given")
    env.close()
    return speeds


def _check_images(observation: dict[str, Any]) -> None:
    """Raise WorldError for an image of a single colour."""
    for name, image in observation["pixels"].items():
        if image.std() < 1.0:
            raise WorldError(f"the image of the {name} camera is empty: the renderer of this machine does not work")
