"""How often the scripted demonstrators succeed, task by task, with the interval that so many episodes leave."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...sim.demonstrations.attempt import DemonstrationWorld
from ...sim.desk.tasks import EVALUATION_STATES, SUITES
from ...sim.libero.options import LiberoOptions
from ...sim.worlds import find_family, make_demonstration_world
from .metrics import Metrics, usable_cores

STATES_PER_JOB = 10
"""Initial states of one task that a worker process gets in one go."""

IMAGE_SIZE = 16
"""The demonstrator does not look: small pictures save time."""


@dataclass(frozen=True)
class DemonstratorBenchConfig:
    """Count how often the scripted demonstrator succeeds, on the initial states that are kept for evaluation.

    LIBERO's suites follow OpenVLA's limits on steps; their assets are those that SACCADE_LIBERO_ASSETS names.
    """

    suites: tuple[str, ...] = tuple(SUITES)
    """Suites to take all tasks from, of one world."""
    first_state: int = 0
    """First initial state of each task."""
    states: int = EVALUATION_STATES
    """Initial states of each task, from the first on."""
    workers: int = usable_cores()
    """Worker processes."""
    out: Path | None = None
    """JSON file for the figures."""

    def __post_init__(self) -> None:
        family = find_family(self.suites)
        for name, least in (("first_state", 0), ("states", 1), ("workers", 1)):
            if getattr(self, name) < least:
                raise InputError(name, got=getattr(self, name), expected=f"{least} or more", fix=f"Raise --{name}.")
        family.check_evaluation_states(self.first_state, self.states)


@dataclass(frozen=True)
class DemonstrationJob:
    """Some initial states of one task, for one worker process."""

    world: DemonstrationWorld
    suite: str
    task: str
    states: range


def bench_demonstrator(config: DemonstratorBenchConfig) -> tuple[Metrics, list[str]]:
    """Return the demonstrator's success as figures and as lines for people, task by task."""
    from tqdm import tqdm

    from ...sim.evaluation.pool import single_thread_environment
    from ...sim.evaluation.statistics import wilson_interval

    jobs = list(plan_demonstration_jobs(config))
    successes = {f"{each.suite}/{each.task}": 0 for each in jobs}
    with (
        single_thread_environment(),
        # Spawned, not forked: a renderer's context does not survive a fork.
        ProcessPoolExecutor(config.workers, multiprocessing.get_context("spawn")) as pool,
        tqdm(total=len(successes) * config.states, desc="demonstrating", unit="episode") as bar,
    ):
        for each, count in zip(jobs, pool.map(count_successes, jobs), strict=True):
            name = f"{each.suite}/{each.task}"
            successes[name] += count
            bar.write(f"{name}: {count} of {len(each.states)}, from state {each.states.start} on")
            bar.update(len(each.states))
    rates = {name: count / config.states for name, count in successes.items()}
    intervals = {name: wilson_interval(count, config.states) for name, count in successes.items()}
    worst = min(rates, key=lambda name: rates[name])
    width = max(map(len, rates))
    lines = [f"{'task':<{width}}  success"]
    lines += [
        f"{name:<{width}}  {100 * rate:5.1f} %  [{100 * intervals[name][0]:.1f}, {100 * intervals[name][1]:.1f}]"
        for name, rate in rates.items()
    ]
    lines.append(f"least: {100 * rates[worst]:.1f} % ({worst}); {config.states} initial states of each task")
    metrics: dict[str, float | int | None] = {
        "demonstrator_success_min": rates[worst],
        "demonstrator_success_mean": statistics.mean(rates.values()),
        "episodes": sum(len(each.states) for each in jobs),
    }
    for suite in dict.fromkeys(each.suite for each in jobs):
        counts = [count for name, count in successes.items() if name.startswith(f"{suite}/")]
        low, high = wilson_interval(sum(counts), len(counts) * config.states)
        metrics[f"{suite}_mean"] = sum(counts) / (len(counts) * config.states)
        metrics |= {f"low/{suite}_mean": round(low, 4), f"high/{suite}_mean": round(high, 4)}
    for name, rate in rates.items():
        low, high = intervals[name]
        metrics |= {name: rate, f"low/{name}": round(low, 4), f"high/{name}": round(high, 4)}
    return metrics, lines


def plan_demonstration_jobs(config: DemonstratorBenchConfig) -> Iterator[DemonstrationJob]:
    """Return what the worker processes are to do, task after task."""
    family = find_family(config.suites)
    libero = LiberoOptions(protocol="openvla", visuals="fast")
    world = make_demonstration_world(family, IMAGE_SIZE, LiberoOptions() if family.name == "desk" else libero)
    end = config.first_state + config.states
    for suite in config.suites:
        for task in family.tasks(suite):
            for first in range(config.first_state, end, STATES_PER_JOB):
                yield DemonstrationJob(world, task.suite, task.name, range(first, min(first + STATES_PER_JOB, end)))


def count_successes(each: DemonstrationJob) -> int:
    """Return how often the demonstrator succeeds in a round; runs in a worker process."""
    import numpy as np

    environment = each.world.environment(each.suite, each.task)
    environment.rendering_enabled = False
    successes = 0
    for state in each.states:
        environment.reset(seed=state, options={"initial_state": state})
        demonstrator, done, info = each.world.demonstrator(environment, np.random.default_rng(state)), False, {}
        while not done:
            _, _, terminated, truncated, info = environment.step(demonstrator.decide()[1])
            done = terminated or truncated
        successes += bool(info["is_success"])
    environment.close()
    return successes
