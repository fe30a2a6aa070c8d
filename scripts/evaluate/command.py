"""`saccade eval`: evaluate a policy in simulation, with confidence intervals and a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import WorldError
from .comparison import evaluate_against
from .execution import run_plan, summarize_run
from .options import EvaluateConfig
from .plan import plan_evaluation
from .tables import results_table

if TYPE_CHECKING:
    from ...sim.perturbation.job import Job


def run(config: EvaluateConfig) -> int:
    """Evaluate, print the results and the path of the report, and return the exit code."""
    if config.against:
        out, errors = evaluate_against(config)
    else:
        out, results = evaluate(config)
        print(results_table(results))
        errors = results["errors"]
    print(f"Report: {out / 'report.html'}")
    if errors:
        raise WorldError(
            f"{errors} episodes failed to run and are not counted (see records.jsonl). "
            f"Run them again with --out {out} --resume."
        )
    return 0


def evaluate(
    config: EvaluateConfig, *, progress: bool = True, jobs: Sequence[Job] | None = None
) -> tuple[Path, dict[str, Any]]:
    """Plan, run and summarise the evaluation of one checkpoint.

    Args:
        config: The options of `saccade eval`; `against` is ignored.
        progress: Whether to show a progress bar.
        jobs: The episodes to run. Default: those of `plan_jobs(config)`.

    Returns:
        The output folder, and the content of its `results.json`.

    Raises:
        InputError: An option does not fit; nothing has been written then.
        WorldError: Nothing can be rendered here, or no episode could be run.
    """
    plan = plan_evaluation(config, jobs)
    run_plan(plan, progress=progress)
    return plan.out, summarize_run(plan.out)
