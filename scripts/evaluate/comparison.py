"""Evaluate several checkpoints on the same episodes and compare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from ...errors import InputError
from ..report import comparison_lines
from .execution import run_plan, summarize_run
from .options import EvaluateConfig
from .plan import plan_evaluation
from .tables import results_table


def evaluate_against(config: EvaluateConfig, *, progress: bool = True) -> tuple[Path, int]:
    """Evaluate --checkpoint and every --against on the same episodes, print the results, and write one report of all.

    All checkpoints are checked before the first episode.

    Returns:
        The output folder, and the number of episodes that could not be run.

    Raises:
        InputError: A checkpoint does not exist or does not fit the world, or one is named twice.
        WorldError: Nothing can be rendered here, or no episode could be run.
    """
    from ...sim.evaluation.run_folder import REPORT_FILE, read_evaluation
    from ...sim.rendering import choose_backend
    from ...sim.report.report import write_report

    names = (config.checkpoint, *config.against)
    labels = distinct_labels(names)
    out = config.out or Path("evaluations") / f"comparison-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    plans = [
        plan_evaluation(replace(config, checkpoint=name, against=(), label=label, out=out / label))
        for name, label in zip(names, labels, strict=True)
    ]
    choose_backend()
    for plan in plans:
        plan.make_world()
    errors = 0
    for plan, label in zip(plans, labels, strict=True):
        print(f"{label}:")
        run_plan(plan, progress=progress)
        results = summarize_run(plan.out)
        print(results_table(results))
        errors += results["errors"]
    evaluations = [read_evaluation(plan.out) for plan in plans]
    print("\n".join(comparison_lines(evaluations)))
    write_report(evaluations, out / REPORT_FILE)
    return out, errors


def distinct_labels(names: Sequence[str]) -> list[str]:
    """Return the shortest ends of the checkpoints' paths that are all different; raises InputError for a repeated one.

    A checkpoint's folder is often called "checkpoint", so its name alone is not enough.
    """
    paths = [Path(name).resolve() for name in names]
    for depth in range(1, max(len(path.parts) for path in paths)):
        labels = ["-".join(path.parts[-depth:]).strip("/") for path in paths]
        if len(set(labels)) == len(labels):
            return labels
    raise InputError(
        "checkpoints", got=", ".join(names), expected="different checkpoints", fix="Give every checkpoint once."
    )
