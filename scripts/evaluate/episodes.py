"""Plan the episodes of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...sim import worlds
from ...sim.perturbation.axes import parse_perturbations
from .options import EvaluateConfig

if TYPE_CHECKING:
    from ...sim.job import Job


def choose_tasks(config: EvaluateConfig) -> tuple[worlds.SuiteTask, ...]:
    """Return the tasks that the options name, in the order of the suites; raises InputError as worlds.choose_tasks."""
    return worlds.choose_tasks(config.suites, config.tasks, config.left_out)


def plan_jobs(config: EvaluateConfig) -> list[Job]:
    """Return the episodes to run, task by task; a task that a swap makes no sense in is left out of that swap."""
    from ...sim.job import Job, episode_seed
    from ...sim.perturbation.jobs import changed_jobs, require_swaps

    jobs = []
    tasks = choose_tasks(config)
    require_swaps(config.swap, [task.swaps for task in tasks])
    perturbations = parse_perturbations(config.perturb)
    for task in tasks:
        other_task_instructions = tuple(
            other.instruction for other in worlds.find_family([task.suite]).tasks(task.suite)
        )
        for state in range(config.first_initial_state, config.first_initial_state + config.episodes):
            seed = episode_seed(config.seed, task.suite, task.name, state)
            instruction = None
            if config.instruction_from == "paraphrase" and task.paraphrases:
                instruction = task.paraphrases[seed % len(task.paraphrases)]
            words = (
                tuple(each for each in other_task_instructions if each != task.instruction)
                if "instruction" in config.swap
                else ()
            )
            job = Job(task.suite, task.name, state, seed, instruction, other_task_instructions=words)
            swaps = [swap for swap in task.swaps if swap in config.swap]
            plain = config.unchanged or not (config.perturb or config.swap)
            jobs += changed_jobs([job], perturbations, swaps, unchanged=plain)
    return jobs
