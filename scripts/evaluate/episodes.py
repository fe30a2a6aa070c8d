"""List the episodes of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...sim import worlds
from ...sim.perturbation.axes import parse_perturbations
from .options import EvaluateConfig

if TYPE_CHECKING:
    from ...sim.perturbation.job import Job
    from ...sim.perturbation.swap import Swap


def choose_tasks(config: EvaluateConfig) -> tuple[worlds.SuiteTask, ...]:
    """Return the tasks that the options name, in the order of the suites.

    Raises:
        InputError: A suite or a task is unknown, or no task is left (see `worlds.choose_tasks`).
    """
    return worlds.choose_tasks(config.suites, config.tasks, config.left_out)


def plan_jobs(config: EvaluateConfig) -> list[Job]:
    """Return the episodes to run, task by task. A swap skips the tasks in which it makes no sense.

    Raises:
        InputError: A suite or a task is unknown, or a swap makes sense in no task.
    """
    from ...sim.perturbation.job import changed_jobs, episode_seed, require_swaps

    tasks = choose_tasks(config)
    require_swaps(config.swap, [task.swaps for task in tasks])
    perturbations = parse_perturbations(config.perturb)
    jobs: list[Job] = []
    for task in tasks:
        swaps: list[Swap] = [swap for swap in task.swaps if swap in config.swap]
        for state in range(config.first_initial_state, config.first_initial_state + config.episodes_per_task):
            job = _unchanged_job(config, task, state, episode_seed(config.seed, task.suite, task.name, state))
            jobs += changed_jobs([job], perturbations, swaps, unchanged=config.runs_unchanged)
    return jobs


def _unchanged_job(config: EvaluateConfig, task: worlds.SuiteTask, state: int, seed: int) -> Job:
    """Return the episode of one initial state, without perturbation and swap."""
    from ...sim.perturbation.job import Job

    instruction = None
    if config.instruction_from == "paraphrase" and task.paraphrases:
        instruction = task.paraphrases[seed % len(task.paraphrases)]
    other_instructions: tuple[str, ...] = ()
    if "instruction" in config.swap:
        suite_tasks = worlds.find_family([task.suite]).tasks(task.suite)
        other_instructions = tuple(each.instruction for each in suite_tasks if each.instruction != task.instruction)
    return Job(task.suite, task.name, state, seed, instruction, other_task_instructions=other_instructions)
