"""`saccade report`: write the HTML report of one evaluation, or compare several, from the records on disk."""

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
    """Write the HTML report of an evaluation from its records. Several evaluations are compared on one page.

    The command reads the folders that `saccade eval` wrote, also those of interrupted runs, and changes nothing in
    them but report.html. Open the report with a browser.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that `saccade eval` wrote."""
    out: Path | None = None
    """HTML file to write. Default: report.html in the folder of the run, or in the parent folder of the first of
    several."""

    def __post_init__(self) -> None:
        if not self.runs:
            fix = "Give the output folder of `saccade eval`."
            raise InputError("runs", got="none", expected="at least one folder", fix=fix)


def run(config: ReportConfig) -> int:
    """Write the report, print the comparison and the path, and return the exit code."""
    from ..sim.evaluation.run_folder import REPORT_FILE, read_evaluation
    from ..sim.report.report import write_report

    evaluations = [read_evaluation(folder) for folder in config.runs]
    path = config.out or (config.runs[0] if len(config.runs) == 1 else config.runs[0].parent) / REPORT_FILE
    for line in comparison_lines(evaluations):
        print(line)
    print(f"Report: {write_report(evaluations, path)}")
    return 0


def comparison_lines(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return a line for every evaluation but the first: its difference from the first on the episodes of both.

    Args:
        evaluations: The evaluations; perturbed and swapped episodes are compared only if there are no others.
    """
    from ..sim.evaluation.comparison import compare
    from ..sim.evaluation.robustness import headline_records

    first, *others = evaluations
    baseline = headline_records(first.records)
    return [
        f"{later.run['label']} against {first.run['label']}: {compare(baseline, headline_records(later.records))}"
        for later in others
    ]
