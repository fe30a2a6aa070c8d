"""`saccade quickstart`: collect demonstrations, train, evaluate and report, on two CPU cores in minutes."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

from ...errors import InputError
from ..bench.metrics import command_line, write_metrics
from .options import EVALUATION_NAMES, METRICS_FILE, OPTIONS_FILE, REPORT_FILE, TIMINGS_FILE, QuickstartConfig
from .stages import Quickstart, format_success_rate, select_result
from .stopwatch import run_stages

CHANGEABLE_ON_RESUME = ("out", "workers", "threads", "overwrite")
"""Options that may change when a quickstart is continued, because the result does not depend on them."""


def run(config: QuickstartConfig) -> int:
    """Run the stages that are not done yet, print the metrics and their files, and return the exit code."""
    from ...sim.rendering import choose_backend

    quickstart = Quickstart(config)
    if not config.from_scratch:
        from ...policy.checkpoint.folder import find_checkpoint, read_contract

        read_contract(find_checkpoint("starter"))
    choose_backend()
    claim_folder(config)
    print("Quickstart: collect, train, evaluate, report. You can stop it at any time; the same command continues.")
    seconds = run_stages(quickstart.stages(), config.out / TIMINGS_FILE)
    metrics = make_metrics(quickstart, seconds)
    write_metrics(config.out / METRICS_FILE, metrics, command_line("quickstart", config))
    write_comparison(quickstart)
    print(summary(quickstart, metrics))
    return 0


def claim_folder(config: QuickstartConfig) -> None:
    """Check that --out is new or holds a quickstart with the same options, and write the options there.

    Raises:
        InputError: The folder holds other files, or a quickstart with other options and --overwrite is not given.
    """
    from ...sim.json_files import read_json, write_json

    path = config.out / OPTIONS_FILE
    options = {name: value for name, value in asdict(config).items() if name not in CHANGEABLE_ON_RESUME}
    if config.overwrite and path.is_file():
        shutil.rmtree(config.out)
    if path.is_file():
        changed = [name for name, value in read_json(path).items() if options.get(name) != value]
        if changed:
            raise InputError(
                f"--{changed[0].replace('_', '-')}",
                got=options.get(changed[0]),
                expected=f"{read_json(path)[changed[0]]}, as in the first run in {config.out}",
                fix="Use the options of the first run, choose another --out, or start again with --overwrite.",
            )
        return
    if config.out.is_file() or (config.out.is_dir() and any(config.out.iterdir())):
        raise InputError(
            "--out", got=f"{config.out}, which holds other files", expected="a new folder", fix="Choose another --out."
        )
    write_json(path, json.loads(json.dumps(options)))


def make_metrics(quickstart: Quickstart, seconds: dict[str, float]) -> dict[str, float | int | None]:
    """Return the metrics of a complete quickstart by name.

    Args:
        quickstart: The quickstart whose stages are done.
        seconds: The seconds of each stage, by the stage's name.

    Returns:
        Success rates before and after, the rate of episodes in which a swapped instruction is ignored, and minutes;
        None for a stage that was skipped.
    """
    before, after = quickstart.results("before") or {}, quickstart.results("after") or {}
    swapped = quickstart.results("swapped")
    stages = {
        "minutes_collect": ("collect", "rehearsal"),
        "minutes_train": ("train",),
        "minutes_eval": EVALUATION_NAMES,
    }
    minutes = {name: _minutes(seconds, parts) for name, parts in stages.items()}
    return {
        "success_rate": after.get("rate"),
        "success_before": before.get("rate"),
        "success_low": after.get("low"),
        "success_high": after.get("high"),
        "episodes": quickstart.config.episodes,
        "swapped_success_rate": select_result("swapped", swapped)["rate"] if swapped else None,
        "minutes_total": _minutes(seconds, tuple(seconds)),
        **minutes,
    }


def write_comparison(quickstart: Quickstart) -> None:
    """Write the report that compares the evaluations."""
    from ...sim.evaluation.run_folder import read_evaluation
    from ...sim.report.report import write_report

    folders = [quickstart.config.out / f"evaluation_{name}" for name in quickstart.evaluations]
    write_report([read_evaluation(folder) for folder in folders], quickstart.config.out / REPORT_FILE)


def summary(quickstart: Quickstart, metrics: dict[str, float | int | None]) -> str:
    """Return the metrics as text; the last line is the path of the report."""
    titles = {
        "before": "before",
        "after": "after",
        "swapped": "instruction names another object: the first one picked anyway",
    }
    lines = [
        "",
        *(
            f"{titles[name]}: {format_success_rate(select_result(name, results))}"
            for name in quickstart.evaluations
            if (results := quickstart.results(name))
        ),
    ]
    parts = ", ".join(
        f"{part} {minutes:.1f}"
        for part in ("total", "collect", "train", "eval")
        if (minutes := metrics[f"minutes_{part}"]) is not None
    )
    out = quickstart.config.out
    return "\n".join([*lines, f"minutes: {parts}", f"Metrics: {out / METRICS_FILE}", f"Report: {out / REPORT_FILE}"])


def _minutes(seconds: dict[str, float], parts: tuple[str, ...]) -> float | None:
    known = [seconds[part] for part in parts if part in seconds]
    return round(sum(known) / 60, 2) if known else None
