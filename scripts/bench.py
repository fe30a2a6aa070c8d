"""`saccade bench`: how fast simulator and policies are, how reliable the demonstrator, each behind a check."""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..errors import InputError, WorldError
from ..sim.desk.tasks import EVALUATION_STATES, SUITES, find_suite, find_task
from .bench_latency import LatencyConfig, bench_latency
from .figures import Figures, command_line, usable_cores, write_figures

STATES_AT_ONCE = 10
"""Initial states of one task that a worker process gets in one go."""


@dataclass(frozen=True)
class SimConfig:
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


@dataclass(frozen=True)
class DemonstratorConfig:
    """Count how often the scripted demonstrator succeeds, on the initial states that are kept for evaluation."""

    suites: tuple[str, ...] = tuple(SUITES)
    """Suites to take all tasks from."""
    states: int = EVALUATION_STATES
    """Initial states of each task, from the first on."""
    workers: int = usable_cores()
    """Worker processes."""
    out: Path | None = None
    """JSON file for the figures."""

    def __post_init__(self) -> None:
        for suite in self.suites:
            find_suite(suite)
        _require_at_least_one(self, "states", "workers")


BenchConfig = (
    Annotated[SimConfig, tyro.conf.subcommand("sim")]
    | Annotated[DemonstratorConfig, tyro.conf.subcommand("demonstrator")]
    | Annotated[LatencyConfig, tyro.conf.subcommand("latency")]
)
"""What to measure; each measurement has options of its own."""


def run(config: SimConfig | DemonstratorConfig | LatencyConfig) -> int:
    """Measure, print the figures, write them where asked, and return the exit code."""
    if isinstance(config, LatencyConfig):
        command, (figures, lines) = "bench latency", bench_latency(config)
    else:
        command, (figures, lines) = _run_world(config)
    print("\n".join(lines))
    if config.out is not None:
        write_figures(config.out, figures, command_line(command, config))
        print(f"Figures: {config.out}")
    return 0


def _run_world(config: SimConfig | DemonstratorConfig) -> tuple[str, tuple[Figures, list[str]]]:
    """Measure what needs the simulator and worker processes."""
    from ..sim.rendering import choose_backend

    choose_backend()
    try:
        if isinstance(config, SimConfig):
            return "bench sim", bench_sim(config)
        return "bench demonstrator", bench_demonstrator(config)
    except BrokenProcessPool as error:
        raise WorldError("a worker process died (out of memory, or killed): try again with fewer --workers") from error


def bench_sim(config: SimConfig) -> tuple[Figures, list[str]]:
    """Return the simulator's speed as figures and as lines for people; raises WorldError when it is not correct."""
    with _pool(config.workers) as pool:
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


def measure_steps(config: SimConfig) -> list[float]:
    """Return the steps per second of each timed replay of one demonstration; runs in a worker process.

    Raises WorldError when a replay does not repeat the states of the first, or when a picture shows nothing.
    """
    import numpy as np

    from ..sim.desk.demonstrator import Demonstrator
    from ..sim.desk.environment import DeskEnv

    env = DeskEnv(config.suite, config.task, image_size=config.image_size)

    def start() -> dict[str, Any]:
        return env.reset(seed=0, options={"initial_state": 0})[0]

    def check(observation: dict[str, Any]) -> None:
        for name, picture in observation["pixels"].items():
            if picture.std() < 1.0:
                raise WorldError(f"the {name} camera shows nothing: the renderer of this machine does not work")

    check(start())
    demonstrator, commands, states, done = Demonstrator(env, np.random.default_rng(0)), [], [], False
    while not done:
        commands.append(demonstrator.decide()[1])
        observation, _, terminated, truncated, _ = env.step(commands[-1])
        states.append(observation["agent_pos"])
        done = terminated or truncated
    speeds = []
    for _ in range(config.runs):
        start()
        replayed = []
        began = time.perf_counter()
        for command in commands:
            observation = env.step(command)[0]
            replayed.append(observation["agent_pos"])
        speeds.append(len(commands) / (time.perf_counter() - began))
        check(observation)
        if not np.array_equal(states, replayed):
            raise WorldError("a replay of the same commands from the same start went another way: no speed is given")
    env.close()
    return speeds


def bench_demonstrator(config: DemonstratorConfig) -> tuple[Figures, list[str]]:
    """Return the demonstrator's success as figures and as lines for people, task by task."""
    from tqdm import tqdm

    tasks = [task for suite in config.suites for task in find_suite(suite)]
    starts = range(0, config.states, STATES_AT_ONCE)
    rounds = [range(first, min(first + STATES_AT_ONCE, config.states)) for first in starts]
    jobs = [(task.suite, task.name, states) for task in tasks for states in rounds]
    successes = {f"{task.suite}/{task.name}": 0 for task in tasks}
    with (
        _pool(config.workers) as pool,
        tqdm(total=len(tasks) * config.states, desc="demonstrating", unit="episode") as bar,
    ):
        for (suite, task, states), count in zip(jobs, pool.map(count_successes, jobs), strict=True):
            successes[f"{suite}/{task}"] += count
            bar.update(len(states))
    rates = {name: count / config.states for name, count in successes.items()}
    worst = min(rates, key=lambda name: rates[name])
    width = max(map(len, rates))
    lines = [f"{'task':<{width}}  success"]
    lines += [f"{name:<{width}}  {100 * rate:5.1f} %" for name, rate in rates.items()]
    lines.append(f"least: {100 * rates[worst]:.1f} % ({worst}); {config.states} initial states of each task")
    figures = {"demonstrator_success_min": rates[worst], "demonstrator_success_mean": statistics.mean(rates.values())}
    return {**figures, "episodes": len(tasks) * config.states, **rates}, lines


def count_successes(job: tuple[str, str, range]) -> int:
    """Return how often the demonstrator succeeds at (suite, task, initial states); runs in a worker process."""
    import numpy as np

    from ..sim.desk.demonstrator import Demonstrator
    from ..sim.desk.environment import DeskEnv

    suite, task, states = job
    # The demonstrator does not look: small pictures save time.
    env = DeskEnv(suite, task, image_size=16)
    successes = 0
    for state in states:
        env.reset(seed=state, options={"initial_state": state})
        demonstrator, done, info = Demonstrator(env, np.random.default_rng(state)), False, {}
        while not done:
            _, _, terminated, truncated, info = env.step(demonstrator.decide()[1])
            done = terminated or truncated
        successes += bool(info["is_success"])
    env.close()
    return successes


def _require_at_least_one(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise InputError(name, got=getattr(config, name), expected="1 or more", fix=f"Raise --{name}.")


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a renderer's context does not survive a fork.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_process)


def start_process() -> None:
    """Make a worker process ready: one thread, set before its libraries load."""
    from ..sim.runner import ONE_THREAD

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once and without a traceback
    os.environ.update(ONE_THREAD)
