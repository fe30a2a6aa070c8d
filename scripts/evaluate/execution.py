"""Run a planned evaluation, and summarise the episodes that its folder holds."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..checkpoints.worker_policies import PRELOADED_MODULE, worker_policy_factory
from .plan import EnvironmentFactory, EvaluationPlan


def run_plan(plan: EvaluationPlan, *, progress: bool = True) -> None:
    """Run every episode of a plan that has no finished record in the output folder yet.

    Nothing is written before the policy fits the world and the output folder may be used.

    Args:
        plan: The evaluation to run.
        progress: Whether to show a progress bar.

    Raises:
        InputError: The world does not fit the policy, or the output folder is in use.
        WorldError: Nothing can be rendered here, or no episode could be run.
    """
    from ...sim.evaluation.pool import prepare_workers
    from ...sim.rendering import choose_backend

    if plan.cluster is None:
        # The workers' imports run in the background during the checks below.
        prepare_workers([PRELOADED_MODULE])
    choose_backend()  # before MuJoCo is imported

    from ...sim.evaluation.cluster import ClusterPool
    from ...sim.evaluation.run_folder import prepare_run_folder
    from ...sim.evaluation.runner import run_and_record, run_jobs

    config, jobs, out = plan.config, plan.jobs, plan.out
    world = plan.make_world()
    description, fingerprint = plan.describe(world), world.fingerprint()
    prepare_run_folder(out, description, fingerprint, resume=config.resume, overwrite=config.overwrite)
    make_env = EnvironmentFactory(plan.contract, world)
    if plan.cluster is None:
        make_actor = worker_policy_factory(plan.policies, plan.batch_size)
        run_jobs(jobs, make_env, make_actor, config.workers, out, videos=config.videos, progress=progress)
    else:
        make_pool = functools.partial(
            ClusterPool, plan.cluster, make_env, plan.policies, world.fingerprint, fingerprint, out
        )
        run_and_record(jobs, make_pool, out, videos=config.videos, progress=progress)


def summarize_run(out: Path) -> dict[str, Any]:
    """Write `results.json` and `report.html` of all episodes in a run folder, including those of earlier commands.

    Args:
        out: The output folder of an evaluation.

    Returns:
        The content of `results.json`: success rates with intervals, per task and for all, perturbations, swaps and
        the number of episodes that could not be run (`errors`).

    Raises:
        InputError: The folder holds no episode, or the disk refuses.
    """
    from ...sim.evaluation.robustness import headline_records, memorisation_rows, robustness_summary
    from ...sim.evaluation.run_folder import REPORT_FILE, RESULTS_FILE, read_evaluation
    from ...sim.evaluation.statistics import summarize
    from ...sim.fingerprint import fingerprint_digest
    from ...sim.json_files import write_json
    from ...sim.report.report import write_report

    evaluation = read_evaluation(out)
    records = evaluation.records
    results = {
        **{key: evaluation.run[key] for key in ("label", "command", "checkpoint", "protocol")},
        "fingerprint_sha256": fingerprint_digest(evaluation.fingerprint),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **summarize(headline_records(records)),
        "robustness": robustness_summary(records),
        "swaps": memorisation_rows(records),
        "errors": sum(record.outcome == "error" for record in records),
    }
    write_json(out / RESULTS_FILE, results)
    write_report([evaluation], out / REPORT_FILE)
    return results
