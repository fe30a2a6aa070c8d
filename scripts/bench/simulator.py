"""Measure how many steps a second the desk makes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError, WorldError
from ...sim.desk.tasks import find_task
from .metrics import Metrics, usable_cores


@dataclass(frozen=True)
class SimBenchConfig:
    """Measure environment steps per second and process, both cameras drawn, with all processes at work at once.

    A demonstration is recorded, then replayed and timed. No figure is given unless every replay gives the same states
    to the last bit and the pictures show something.
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
    """Processes that are timed side by side."""
    out: Path | None = None
    """JSON file for the figures."""

    def __post_init__(self) -> None:
        find_task(self.suite, self.task)
        _require_at_least_one(self, "runs", "workers")


def bench_sim(config: SimBenchConfig) -> tuple[Metrics, list[str]]:
    """Return the simulator's speed as figures and as lines for people; raises WorldError when it is not correct."""
    with _spawn_pool(config.workers) as pool:
        speeds = list(pool.map(measure_steps, [config] * config.workers))
    # The slowest process counts: the figure is what every one of them reaches.
    slowest = min(statistics.median(speed) for speed in speeds)
    lines = [
        f"{slowest:.0f} steps per second and process, both cameras at {config.image_size} pixels, "
        f"{config.workers} processes (slowest process, median of {config.runs} runs)",
        *(
            f"  process {number}: {', '.join(f'{each:.0f}' for each in speed)}"
            for number, speed in enumerate(speeds, 1)
        ),
        "checked: every replay gave the same states, and the pictures show something",
    ]
    return {"desk_steps_per_second": round(slowest, 1), "processes": config.workers}, lines


def measure_steps(config: SimBenchConfig) -> list[float]:
    """Return the steps per second of each timed replay of one demonstration; runs in a worker process.

    Raises WorldError when a replay does not repeat the states of the first, or when a picture shows nothing.
    """
    import numpy as np

    from ...sim.desk.demonstrator.demonstrator import DeskDemonstrator
    from ...sim.desk.environment import DeskEnv

    env = DeskEnv(config.suite, config.task, image_size=config.image_size)

    def reset_env() -> dict[str, Any]:
        return env.reset(seed=0, options={"initial_state": 0})[0]

    def check_images(observation: dict[str, Any]) -> None:
        for name, image in observation["pixels"].items():
            if image.std() < 1.0:
                raise WorldError(f"the {name} camera shows nothing: the renderer of this machine does not work")

    check_images(reset_env())
    demonstrator, commands, states, done = DeskDemonstrator(env, np.random.default_rng(0)), [], [], False
    while not done:
        commands.append(demonstrator.decide()[1])
        observation, _, terminated, truncated, _ = env.step(commands[-1])
        states.append(observation["agent_pos"])
        done = terminated or truncated
    speeds = []
    for _ in range(config.runs):
        reset_env()
        replayed = []
        began = time.perf_counter()
        for command in commands:
            observation = env.step(command)[0]
            replayed.append(observation["agent_pos"])
        speeds.append(len(commands) / (time.perf_counter() - began))
        check_images(observation)
        if not np.array_equal(states, replayed):
            raise WorldError("a replay of the same commands from the same start went another way: no speed is given")
    env.close()
    return speeds


def _require_at_least_one(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise InputError(name, got=getattr(config, name), expected="1 or more", fix=f"Raise --{name}.")


def _spawn_pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a renderer's context does not survive a fork.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), init_worker_process)


def init_worker_process() -> None:
    """Make a worker process ready: one thread, set before its libraries load."""
    from ...sim.evaluation.pool import SINGLE_THREAD_VARIABLES

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once and without a traceback
    os.environ.update(SINGLE_THREAD_VARIABLES)
