"""`saccade quickstart`: the whole way from nothing to a judged policy, on two CPU cores in minutes."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from ...errors import InputError
from ...sim.desk.tasks import EVALUATION_STATES
from ..bench.figures import command_line, usable_cores, write_figures
from .stages import EVALUATED, Quickstart, judged, new_tasks, rate_in_words
from .stopwatch import run_stages

OPTIONS_FILE, TIMINGS_FILE, FIGURES_FILE, REPORT_FILE = "options.json", "timings.json", "quickstart.json", "report.html"

FREE_TO_CHANGE = ("out", "workers", "threads", "overwrite")
"""Options that may differ from run to run: they do not change the result."""


@dataclass(frozen=True)
class QuickstartConfig:
    """Teach the starter three tasks that it has never seen, and see whether it learned them: at most 20 minutes.

    Collects demonstrations of tasks that were left out of the starter's training, fine-tunes the starter on them, and
    evaluates before and after, from initial states that no demonstration used. Then another object is asked for in the
    same scenes: a policy that reads must not pick the first one. Ends with the figures and a report. Stop it whenever
    you like: the same command goes on where it stopped.
    """

    out: Path = Path("quickstart")
    """Folder of everything: demonstrations, training, evaluations, figures and report."""
    from_scratch: bool = False
    """Train without the starter. Minutes are not enough then: raise --steps and --demonstrations, and give it hours."""
    demonstrations: int = 50
    """Successful demonstrations of each new task."""
    rehearsal: int = 10
    """Demonstrations of each task of the suite that the starter knows, to keep it from forgetting them; 0 for none."""
    steps: int | None = None
    """Training steps; 800 for fine-tuning, 20000 from scratch when left out."""
    batch_size: int = 64
    """Frames in a training step."""
    learning_rate: float | None = None
    """Peak learning rate; 5e-4 for fine-tuning, 1e-3 from scratch when left out."""
    episodes: int = 50
    """Episodes of each evaluation, shared out among the new tasks, each from an initial state of its own."""
    videos: int = 2
    """Videos to keep of each task's successes, and as many of its failures."""
    workers: int = usable_cores()
    """Processes that collect and evaluate."""
    threads: int | None = None
    """Threads that train; all cores when left out."""
    seed: int = 0
    """Seed of demonstrations, training and evaluation."""
    overwrite: bool = False
    """Throw an earlier quickstart in --out away and begin anew."""

    def __post_init__(self) -> None:
        for name in ("demonstrations", "batch_size", "workers", *(["steps"] if self.steps is not None else [])):
            if getattr(self, name) < 1:
                raise InputError(name, got=getattr(self, name), expected="1 or more", fix=f"Raise --{name}.")
        for name in ("rehearsal", "seed", "videos"):
            if getattr(self, name) < 0:
                raise InputError(name, got=getattr(self, name), expected="0 or more", fix=f"Raise --{name}.")
        tasks = len(new_tasks())
        if not tasks <= self.episodes <= EVALUATION_STATES:
            raise InputError(
                "episodes",
                got=self.episodes,
                expected=f"{tasks} to {EVALUATION_STATES}",
                fix=f"There are {tasks} new tasks, and {EVALUATION_STATES} initial states are kept for evaluation.",
            )


def run(config: QuickstartConfig) -> int:
    """Do what is left of the quickstart, print the figures and where they are, and return the exit code."""
    from ...sim.rendering import choose_backend

    quickstart = Quickstart(config)
    if not config.from_scratch:
        from ...policy.checkpoint import find_checkpoint, read_contract

        read_contract(find_checkpoint("starter"))
    choose_backend()
    claim_folder(config)
    print("Quickstart: collect, train, evaluate, report. Stop it whenever you like: the same command goes on.")
    seconds = run_stages(quickstart.stages(), config.out / TIMINGS_FILE)
    figures = make_figures(quickstart, seconds)
    write_figures(config.out / FIGURES_FILE, figures, command_line("quickstart", config))
    write_comparison(quickstart)
    print(summary(quickstart, figures))
    return 0


def claim_folder(config: QuickstartConfig) -> None:
    """Make sure that --out is new, or an earlier run of the same quickstart; InputError for anything else."""
    from ...sim.run_folder import read_json, write_json

    path = config.out / OPTIONS_FILE
    options = {name: value for name, value in asdict(config).items() if name not in FREE_TO_CHANGE}
    if config.overwrite and path.is_file():
        shutil.rmtree(config.out)
    if path.is_file():
        changed = [name for name, value in read_json(path).items() if options.get(name) != value]
        if changed:
            raise InputError(
                changed[0].replace("_", "-"),
                got=options.get(changed[0]),
                expected=f"{read_json(path)[changed[0]]}, with which {config.out} was begun",
                fix="Repeat the first options, choose another --out, or begin anew with --overwrite.",
            )
        return
    if config.out.is_file() or (config.out.is_dir() and any(config.out.iterdir())):
        raise InputError(
            "out", got=f"{config.out}, which holds other files", expected="a new folder", fix="Choose another --out."
        )
    write_json(path, json.loads(json.dumps(options)))


def make_figures(quickstart: Quickstart, seconds: dict[str, float]) -> dict[str, float | int | None]:
    """Return the figures of a complete quickstart as one flat dictionary; None for what was left out."""
    before, after, swapped = map(quickstart.results, ("before", "after", "swapped"))
    stages = {"minutes_collect": ("collect", "rehearsal"), "minutes_train": ("train",), "minutes_eval": EVALUATED}
    minutes = {name: _minutes(seconds, parts) for name, parts in stages.items()}
    return {
        "success_rate": after and after["rate"],
        "success_before": before and before["rate"],
        "success_low": after and after["low"],
        "success_high": after and after["high"],
        "episodes": quickstart.config.episodes,
        "swapped_success_rate": swapped and judged("swapped", swapped)["rate"],
        "minutes_total": _minutes(seconds, tuple(seconds)),
        **minutes,
    }


def write_comparison(quickstart: Quickstart) -> None:
    """Write the report that sets the evaluations side by side."""
    from ...sim.report import write_report
    from ...sim.run_folder import read_evaluation

    folders = [quickstart.config.out / f"evaluation_{name}" for name in quickstart.evaluations]
    write_report([read_evaluation(folder) for folder in folders], quickstart.config.out / REPORT_FILE)


def summary(quickstart: Quickstart, figures: dict[str, float | int | None]) -> str:
    """Return the figures as lines for people, the report's path last."""
    titles = {
        "before": "before",
        "after": "after",
        "swapped": "another object asked for, the first picked all the same",
    }
    lines = [""]
    for name in quickstart.evaluations:
        if results := quickstart.results(name):
            lines.append(f"{titles[name]}: {rate_in_words(judged(name, results))}")
    parts = ", ".join(
        f"{part} {minutes:.1f}"
        for part in ("total", "collect", "train", "eval")
        if (minutes := figures[f"minutes_{part}"]) is not None
    )
    out = quickstart.config.out
    return "\n".join([*lines, f"minutes: {parts}", f"Figures: {out / FIGURES_FILE}", f"Report: {out / REPORT_FILE}"])


def _minutes(seconds: dict[str, float], parts: tuple[str, ...]) -> float | None:
    known = [seconds[part] for part in parts if part in seconds]
    return round(sum(known) / 60, 2) if known else None
