"""`saccade report`: the HTML report of one evaluation, or of several side by side, from the records on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ..errors import InputError

if TYPE_CHECKING:
    from ..sim.evaluation.run_folder import Evaluation


@dataclass(frozen=True)
class ReportConfig:
    """Write the report again from an evaluation's records; several evaluations are set side by side on one page."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that `saccade eval` wrote."""
    out: Path | None = None
    """The HTML file; report.html in the folder of the only run, or beside the folders of several."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError("runs", got="none", expected="at least one folder", fix="Name a folder of `saccade eval`.")


def run(config: ReportConfig) -> int:
    """Write the report, print where it is, and return the exit code."""
    from ..sim.evaluation.run_folder import REPORT_FILE, read_evaluation
    from ..sim.report.report import write_report

    evaluations = [read_evaluation(folder) for folder in config.runs]
    path = config.out or (config.runs[0] if len(config.runs) == 1 else config.runs[0].parent) / REPORT_FILE
    for line in comparison_lines(evaluations):
        print(line)
    print(f"Report: {write_report(evaluations, path)}")
    return 0


def comparison_lines(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return a line for every later evaluation that says how it did beside the first, on the episodes of both."""
    from ..sim.evaluation.comparison import compare
    from ..sim.evaluation.robustness import headline_records

    first, *others = evaluations
    plain = headline_records(first.records)
    return [
        f"{later.run['label']} against {first.run['label']}: {compare(plain, headline_records(later.records))}"
        for later in others
    ]
