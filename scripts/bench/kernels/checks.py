"""The checks of `saccade bench kernels`: plans, float32 errors, the interpreted tests, and register spilling."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..metrics import Metrics

CHECKS = {
    "plans": "visited tiles and memory of plans at the sizes of real policies",
    "errors": "float32 errors of the interpreted kernels and the torch path against float64",
    "suite": "the tests that run the kernels in the Triton interpreter",
    "gate": "registers and spilling of every shipped kernel, compiled for sm_90",
}
"""Description of each check."""

INTERPRETED_TESTS = Path(__file__).parents[3] / "tests" / "kernels" / "interpreted"
TIMEOUT_SECONDS = 3600


@dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    Attributes:
        metrics: Metrics of the run.
        lines: Lines to print.
        content: Everything for kernels.json; None if the check could not run.
        wrong: Why the check failed; empty if it passed.
    """

    metrics: Metrics
    lines: list[str]
    content: Any
    wrong: str = ""


def run_check(name: str, *, on_gpu: bool) -> CheckResult:
    """Run one of CHECKS; `on_gpu`: also measure errors on the GPU."""
    steps: dict[str, Callable[[], CheckResult]] = {
        "plans": check_plans,
        "errors": lambda: check_errors(on_gpu=on_gpu),
        "suite": check_suite,
        "gate": check_gate,
    }
    return steps[name]()


def _run_python(arguments: list[str], *, interpreted: bool) -> subprocess.CompletedProcess:
    """Run Python in a new process, because Triton reads TRITON_INTERPRET once, at import."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, *arguments]
    try:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"took more than {TIMEOUT_SECONDS} s")


def _last_line(process: subprocess.CompletedProcess) -> str:
    lines = (process.stderr.strip() or process.stdout.strip()).splitlines()
    return " ".join(lines[-1].split())[:200] if lines else f"exit code {process.returncode}"


def check_plans() -> CheckResult:
    """Measure the fraction of visited tiles, and the bytes of plans and of dense masks, at full size."""
    from .memory import plan_costs

    content = plan_costs()
    most = max(each["plan_bytes"] for each in content)
    masks = max(each["mask_bytes"] for each in content)
    line = f"plans at full size: {most / 2**20:.1f} MiB at most, dense masks {masks / 2**20:.0f} MiB at most"
    return CheckResult({}, [line], content)


def check_errors(*, on_gpu: bool) -> CheckResult:
    """Measure the largest float32 errors of our outputs and gradients: torch, interpreter and, if asked, GPU."""
    modes = {"torch": ("cpu", False)} | ({"gpu": ("cuda", False)} if on_gpu else {})
    if importlib.util.find_spec("triton") is not None:
        modes["interpreter"] = ("cpu", True)
    content, lines = {}, []
    for mode, (device, interpreted) in modes.items():
        process = _run_python(["-m", "saccade.scripts.bench.kernels.errors", device], interpreted=interpreted)
        if process.returncode:
            return CheckResult({}, lines, content, f"errors could not be measured ({mode}): {_last_line(process)}")
        content[mode] = json.loads(process.stdout.strip().splitlines()[-1])
        worst = [_largest_error(content[mode], part) for part in ("forward", "backward")]
        lines.append(
            f"float32 against float64, {mode}: largest error {worst[0]:.1e} of outputs, {worst[1]:.1e} of gradients, "
            "relative to the largest number"
        )
    wrong = [
        f"{mode}, {each['case']}: {each['wrong']}"
        for mode, errors in content.items()
        for each in errors
        if each["wrong"]
    ]
    all_errors = [each for errors in content.values() for each in errors]
    metrics = {
        "worst_forward_error_fp32": _largest_error(all_errors, "forward"),
        "worst_gradient_error_fp32": _largest_error(all_errors, "backward"),
    }
    return CheckResult(metrics, lines, content, wrong[0] if wrong else "")


def _largest_error(errors: list[dict[str, Any]], part: str) -> float:
    return max(each[part] for each in errors if each[part] is not None)


def check_suite() -> CheckResult:
    """Run the interpreted tests and measure their CPU time; they exist only in a checkout of the repository.

    CPU time depends less than wall time on what else the machine does.
    """
    if not INTERPRETED_TESTS.is_dir():
        return CheckResult({}, ["interpreted tests: not available, they exist only in a checkout"], None)
    began, before = time.perf_counter(), _children_cpu_seconds()
    process = _run_python(
        ["-m", "pytest", str(INTERPRETED_TESTS), "-q", "-x", "--tb=short", "-p", "no:cacheprovider"], interpreted=True
    )
    seconds, wall = _children_cpu_seconds() - before, time.perf_counter() - began
    summary_lines = process.stdout.strip().splitlines()[-1:] or [_last_line(process)]
    content = {"seconds": seconds, "wall_seconds": wall, "said": summary_lines[0]}
    if process.returncode:
        return CheckResult({}, [], content, f"the interpreted tests fail: {summary_lines[0]}")
    passed = summary_lines[0].strip("= ").split(" in ")[0]
    line = f"interpreted tests: {passed}; {seconds:.0f} s of CPU time, {wall:.0f} s of wall time"
    return CheckResult({"interpreter_suite_seconds": seconds}, [line], content)


def _children_cpu_seconds() -> float:
    """Return the CPU seconds of child processes that have ended."""
    used = os.times()
    return used.children_user + used.children_system


def gate_table(builds: list[dict[str, Any]]) -> list[str]:
    """Return registers, spilling and shared memory as a Markdown table: a line for each kernel, over its builds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for each in builds:
        words = itertools.takewhile(lambda word: not any(letter.isdigit() for letter in word), each["name"].split())
        precision = ", float32" if "fp32" in each["name"] or "float32" in each["name"] else ""
        groups.setdefault(" ".join(words) + precision, []).append(each)
    lines = ["| kernel | builds | registers | spilling, most bytes | shared KiB | wgmma | mma |", "|---|" + "---:|" * 6]
    for name, group in groups.items():
        spilled = [each["spilled"] for each in group if each["spilled"]]
        cells = [
            name,
            str(len(group)),
            _format_range([each["registers"] for each in group]),
            f"{len(spilled)}, {max(spilled)}" if spilled else "none",
            f"{max(each['shared'] for each in group) / 1024:.0f}",
            _format_range([each["warpgroup_products"] for each in group]),
            _format_range([each["warp_products"] for each in group]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _format_range(values: list[int]) -> str:
    return f"{min(values)}-{max(values)}" if min(values) < max(values) else str(values[0])


def check_gate() -> CheckResult:
    """Compile every shipped kernel and count the builds that spill registers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gate.json"
        process = _run_python(["-m", "saccade.kernels.gate.compile", "--json", str(path)], interpreted=False)
        if not path.is_file():
            return CheckResult({}, [f"compile gate: not available, {_last_line(process)}"], None)
        content = json.loads(path.read_text(encoding="utf-8"))
    spilled = [builds for builds in content if builds["spilled"]]
    most = max((builds["spilled"] for builds in content), default=0)
    rejected = [f"{builds['name']} {builds['complaints'][0]}" for builds in content if builds["complaints"]]
    line = f"compile gate: {len(content)} kernels for sm_90, {len(spilled)} spill registers, {most} bytes at most"
    wrong = f"the compile gate rejects {len(rejected)} kernels: {rejected[0]}" if rejected else ""
    return CheckResult({"spilled_configurations": len(spilled)}, [line], content, wrong)
