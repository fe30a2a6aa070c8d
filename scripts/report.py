"""`saccade report`: the HTML report of one evaluation, or of several side by side, from the records on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..errors import InputError


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
    from ..sim.comparison import compare
    from ..sim.report import write_report
    from ..sim.run_folder import REPORT, read_evaluation

    evaluations = [read_evaluation(folder) for folder in config.runs]
    path = config.out or (config.runs[0] if len(config.runs) == 1 else config.runs[0].parent) / REPORT
    for later in evaluations[1:]:
        labels = later.run["label"], evaluations[0].run["label"]
        print(f"{labels[0]} against {labels[1]}: {compare(evaluations[0].records, later.records)}")
    print(f"Report: {write_report(evaluations, path)}")
    return 0
