"""`saccade bench demonstrator`: measure the success rate of the scripted demonstrators, with intervals."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...machine import usable_cores
from ...ranges import require_at_least
from ...sim.demonstrations.attempt import DemonstrationWorld
from ...sim.desk.tasks.catalogue import SUITES
from ...sim.libero.options import LiberoOptions
from ...sim.reset import EVALUATION_STATES
from ...sim.worlds import find_family, make_demonstration_world
from .metrics import Metrics
from .workers import simulator_pool

STATES_PER_JOB = 10
"""Initial states of one task in a job of a worker process."""

IMAGE_SIZE = 16
"""The demonstrator does not use images: small ones save time."""


@dataclass(frozen=True)
class DemonstratorBenchConfig:
    """Measure the success rate of the scripted demonstrator on the initial states that are reserved for evaluation.

    LIBERO suites use the step limits of OpenVLA; SACCADE_LIBERO_ASSETS names the folder of their assets. With --out the
    metrics are written as JSON.
    """

    suites: tuple[str, ...] = tuple(SUITES)
    """Suites to take all tasks from, all of one world."""
    first_state: int = 0
    """First initial state of each task."""
    states: int = EVALUATION_STATES
    """Number of initial states of each task."""
    workers: int = usable_cores()
    """Worker processes. Default: the number of CPU cores."""
    out: Path | None = None
    """JSON file for the metrics."""

    def __post_init__(self) -> None:
        family = find_family(self.suites)
        require_at_least(self, 0, "first_state", option=True)
        require_at_least(self, 1, "states", "workers", option=True)
        family.check_evaluation_states(self.first_state, self.states)


@dataclass(frozen=True)
class DemonstrationJob:
    """Initial states of one task, for one worker process.

    Attributes:
        world: What builds the environment and the demonstrator.
        suite: Suite of the task.
        task: Name of the task.
        states: The initial states.
    """

    world: DemonstrationWorld
    suite: str
    task: str
    states: range


def bench_demonstrator(config: DemonstratorBenchConfig) -> tuple[Metrics, list[str]]:
    """Measure the demonstrator's success rate of every task, with 95 % Wilson intervals.

    Returns:
        The metrics, and the lines to print.

    Raises:
        WorldError: Nothing can be rendered here, or a worker process died.
    """
    from tqdm import tqdm

    jobs = list(plan_demonstration_jobs(config))
    successes = {f"{job.suite}/{job.task}": 0 for job in jobs}
    with (
        simulator_pool(config.workers) as pool,
        tqdm(total=len(successes) * config.states, desc="demonstrating", unit="episode") as bar,
    ):
        for job, count in zip(jobs, pool.map(count_successes, jobs), strict=True):
            name = f"{job.suite}/{job.task}"
            successes[name] += count
            bar.write(f"{name}: {count} of {len(job.states)}, from state {job.states.start} on")
            bar.update(len(job.states))
    return _success_metrics(successes, config.states), _format_lines(successes, config.states)


def _success_metrics(successes: Mapping[str, int], states: int) -> Metrics:
    """Return the success rates of tasks and suites from the successes by `suite/task`, each of `states` episodes."""
    from ...sim.evaluation.statistics import wilson_interval

    rates = {name: count / states for name, count in successes.items()}
    metrics: dict[str, float | int | None] = {
        "demonstrator_success_min": min(rates.values()),
        "demonstrator_success_mean": statistics.mean(rates.values()),
        "episodes": len(successes) * states,
    }
    for suite in dict.fromkeys(name.partition("/")[0] for name in successes):
        counts = [count for name, count in successes.items() if name.startswith(f"{suite}/")]
        low, high = wilson_interval(sum(counts), len(counts) * states)
        metrics[f"{suite}_mean"] = sum(counts) / (len(counts) * states)
        metrics |= {f"low/{suite}_mean": round(low, 4), f"high/{suite}_mean": round(high, 4)}
    for name, count in successes.items():
        low, high = wilson_interval(count, states)
        metrics |= {name: rates[name], f"low/{name}": round(low, 4), f"high/{name}": round(high, 4)}
    return metrics


def _format_lines(successes: Mapping[str, int], states: int) -> list[str]:
    """Return the lines to print: the success rate of every task with its interval, then the lowest."""
    from ...sim.evaluation.statistics import wilson_interval

    width = max(map(len, successes))
    lines = [f"{'task':<{width}}  success"]
    for name, count in successes.items():
        low, high = wilson_interval(count, states)
        lines.append(f"{name:<{width}}  {100 * count / states:5.1f} %  [{100 * low:.1f}, {100 * high:.1f}]")
    worst = min(successes, key=lambda name: successes[name])
    lines.append(f"lowest: {100 * successes[worst] / states:.1f} % ({worst}); {states} initial states of each task")
    return lines


def plan_demonstration_jobs(config: DemonstratorBenchConfig) -> Iterator[DemonstrationJob]:
    """Yield the jobs of the worker processes, task by task."""
    family = find_family(config.suites)
    libero = LiberoOptions(protocol="openvla", visuals="fast")
    world = make_demonstration_world(family, IMAGE_SIZE, LiberoOptions() if family.name == "desk" else libero)
    end = config.first_state + config.states
    for suite in config.suites:
        for task in family.tasks(suite):
            for first in range(config.first_state, end, STATES_PER_JOB):
                yield DemonstrationJob(world, task.suite, task.name, range(first, min(first + STATES_PER_JOB, end)))


def count_successes(job: DemonstrationJob) -> int:
    """Return the number of successes in a job; runs in a worker process."""
    import numpy as np

    environment = job.world.environment(job.suite, job.task)
    environment.rendering_enabled = False
    successes = 0
    for state in job.states:
        environment.reset(seed=state, options={"initial_state": state})
        demonstrator, done, info = job.world.demonstrator(environment, np.random.default_rng(state)), False, {}
        while not done:
            _, _, terminated, truncated, info = environment.step(demonstrator.decide()[1])
            done = terminated or truncated
        successes += bool(info["is_success"])
    environment.close()
    return successes
