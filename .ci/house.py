"""Measure the structure of the package and its tests, and write docs/results/house.json.

    uv run python .ci/house.py --suite suite.log --ci ci.log --load load1.log load2.log load3.log --starter BEFORE AFTER

The logs are what `pytest` and `.ci/run` print; BEFORE and AFTER are folders of `saccade eval starter`, made by the
version before and by this one. What is not given is null.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import networkx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from saccade.scripts.bench.metrics import Metrics, write_metrics  # noqa: E402
from saccade_testing import structure  # noqa: E402


def main() -> None:
    """Measure what can be measured here, read the rest from logs, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--suite", type=Path, help="output of `uv run pytest` on an idle machine")
    parser.add_argument("--ci", type=Path, help="output of `time .ci/run`")
    parser.add_argument("--load", type=Path, nargs="*", default=[], help="outputs of the suite at a load of 6")
    parser.add_argument("--starter", type=Path, nargs=2, help="evaluations of the starter, before and now")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "house.json")
    options = parser.parse_args()
    command = shlex.join(["python", ".ci/house.py", *sys.argv[1:]])
    write_metrics(options.out, measure(options), command)


def measure(options: argparse.Namespace) -> Metrics:
    """Return all metrics by name."""
    graph = networkx.DiGraph(structure.import_graph())
    began = time.perf_counter()
    collected = run("pytest", "--collect-only", "-q")
    collect_seconds = time.perf_counter() - began
    types = json.loads(run("pyright", "--outputjson"))
    return {
        "import_circles": sum(len(circle) > 1 for circle in networkx.strongly_connected_components(graph)),
        "imports_back_up": len(structure.imports_against_layers()),
        "largest_folder_files": max(structure.count_modules().values()),
        "class_names_used_twice": len(structure.duplicate_class_names()),
        "pyright_errors": types["summary"]["errorCount"],
        "pyright_files": types["summary"]["filesAnalyzed"],
        "suite_minutes": minutes(options.suite),
        "collect_seconds": round(collect_seconds, 1),
        "ci_minutes": minutes(options.ci),
        "tests": int(re.search(r"(\d+) tests? collected", collected)[1]),
        "tests_rerun_at_load_6": sum(count(log, "rerun") for log in options.load) if options.load else None,
        "tests_failed_at_load_6": sum(count(log, "failed") for log in options.load) if options.load else None,
        "starter_actions_that_differ": differing(*options.starter) if options.starter else None,
        "starter_episodes_compared": len(actions(options.starter[1])) if options.starter else None,
    }


def run(*command: str) -> str:
    """Run a tool of the environment in the root and return what it prints."""
    tool = [sys.executable, "-m", *command]
    return subprocess.run(tool, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def minutes(log: Path | None) -> float | None:
    """Return the duration in a log in minutes: that of `time`, or else pytest's own."""
    if log is None:
        return None
    text = log.read_text()
    if found := re.search(r"real\s+(\d+)m([\d.]+)s", text):
        return round(int(found[1]) + float(found[2]) / 60, 1)
    if found := re.search(r" in ([\d.]+)s", text):
        return round(float(found[1]) / 60, 1)
    raise SystemExit(f"{log}: got neither the output of `time` nor pytest's last line")


def count(log: Path, what: str) -> int:
    """Return how many tests pytest's last line counts as failed or rerun."""
    found = re.findall(rf"(\d+) {what}", log.read_text())
    return int(found[-1]) if found else 0


def actions(folder: Path) -> dict[tuple, str]:
    """Return the digest of the actions of every episode of an evaluation."""
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return {(each["suite"], each["task"], each["initial_state"]): each["trajectory"] for each in records}


def differing(before: Path, after: Path) -> int:
    """Return in how many episodes the actions of two evaluations differ in any bit."""
    first, second = actions(before), actions(after)
    return sum(first.get(episode) != digest for episode, digest in second.items())


if __name__ == "__main__":
    main()
