"""What `saccade bench kernels` checks without timing: errors in float32, the interpreted suite, and registers."""

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
    "plans": "what plans visit and take at the sizes of policies",
    "errors": "the kernels under Triton's interpreter and the torch path, in float32, against float64",
    "suite": "the tests that run the kernels in Triton's interpreter",
    "gate": "every shipped kernel, compiled for sm_90",
}
"""What can be checked."""

INTERPRETED_TESTS = Path(__file__).parents[3] / "tests" / "kernels" / "interpreted"
TIMEOUT_SECONDS = 3600


@dataclass(frozen=True)
class CheckResult:
    """What a check found: figures, lines for people, everything for the JSON, and in what it failed, if it did."""

    metrics: Metrics
    lines: list[str]
    content: Any
    wrong: str = ""


def run_check(name: str, on_gpu: bool) -> CheckResult:
    """Run one of CHECKS in processes of its own."""
    steps: dict[str, Callable[[], CheckResult]] = {
        "plans": check_plans,
        "errors": lambda: check_errors(on_gpu),
        "suite": check_suite,
        "gate": check_gate,
    }
    return steps[name]()


def _run_python(arguments: list[str], interpreted: bool) -> subprocess.CompletedProcess:
    """Run Python where the package is; Triton reads TRITON_INTERPRET once, so it takes a process of its own."""
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
    """Find which share of tiles is visited, and the bytes of plans and of written masks, at full size."""
    from .memory import plan_costs

    content = plan_costs()
    most = max(each["plan_bytes"] for each in content)
    masks = max(each["mask_bytes"] for each in content)
    line = f"plans at full size: {most / 2**20:.1f} MiB at most, masks written out {masks / 2**20:.0f} MiB at most"
    return CheckResult({}, [line], content)


def check_errors(on_gpu: bool) -> CheckResult:
    """Find the largest errors of our outputs and gradients, over all families and every way to compute."""
    modes = {"torch": ("cpu", False)} | ({"gpu": ("cuda", False)} if on_gpu else {})
    if importlib.util.find_spec("triton") is not None:
        modes["interpreter"] = ("cpu", True)
    content, lines = {}, []
    for mode, (device, interpreted) in modes.items():
        process = _run_python(["-m", "saccade.scripts.bench.kernels.errors", device], interpreted)
        if process.returncode:
            return CheckResult({}, lines, content, f"errors could not be measured ({mode}): {_last_line(process)}")
        content[mode] = json.loads(process.stdout.strip().splitlines()[-1])
        worst = [_largest_error(content[mode], part) for part in ("forward", "backward")]
        lines.append(
            f"float32 against float64, {mode}: outputs off by {worst[0]:.1e} of the largest number at most, gradients "
            f"by {worst[1]:.1e}"
        )
    wrong = [
        f"{mode}, {each['case']}: {each['wrong']}" for mode, found in content.items() for each in found if each["wrong"]
    ]
    every = [each for found in content.values() for each in found]
    metrics = {
        "worst_forward_error_fp32": _largest_error(every, "forward"),
        "worst_gradient_error_fp32": _largest_error(every, "backward"),
    }
    return CheckResult(metrics, lines, content, wrong[0] if wrong else "")


def _largest_error(found: list[dict[str, Any]], part: str) -> float:
    return max(each[part] for each in found if each[part] is not None)


def check_suite() -> CheckResult:
    """Run the interpreted tests and measure what a core spends on them; they are there in a checkout alone.

    Those seconds do not depend on what else the machine does, as the time until they are done would.
    """
    if not INTERPRETED_TESTS.is_dir():
        return CheckResult({}, ["interpreted tests: not available, they come with the repository alone"], None)
    began, before = time.perf_counter(), _children_cpu_seconds()
    process = _run_python(
        ["-m", "pytest", str(INTERPRETED_TESTS), "-q", "-x", "--tb=short", "-p", "no:cacheprovider"], True
    )
    seconds, wall = _children_cpu_seconds() - before, time.perf_counter() - began
    summary_lines = process.stdout.strip().splitlines()[-1:] or [_last_line(process)]
    content = {"seconds": seconds, "wall_seconds": wall, "said": summary_lines[0]}
    if process.returncode:
        return CheckResult({}, [], content, f"the interpreted tests fail: {summary_lines[0]}")
    passed = summary_lines[0].strip("= ").split(" in ")[0]
    line = f"interpreted tests: {passed}; {seconds:.0f} s of a core, done after {wall:.0f} s"
    return CheckResult({"interpreter_suite_seconds": seconds}, [line], content)


def _children_cpu_seconds() -> float:
    """Return the seconds that processes which have ended spent on cores."""
    used = os.times()
    return used.children_user + used.children_system


def gate_table(builds: list[dict[str, Any]]) -> list[str]:
    """Return what the compiled kernels need, as a table in Markdown: a line for each kernel, over all its builds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for each in builds:
        words = itertools.takewhile(lambda word: not any(letter.isdigit() for letter in word), each["name"].split())
        exact = ", float32" if "fp32" in each["name"] or "float32" in each["name"] else ""
        groups.setdefault(" ".join(words) + exact, []).append(each)
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
    """Compile every shipped kernel and count those that keep registers in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gate.json"
        process = _run_python(["-m", "saccade.kernels.gate.compile", "--json", str(path)], False)
        if not path.is_file():
            return CheckResult({}, [f"compile gate: not available, {_last_line(process)}"], None)
        content = json.loads(path.read_text(encoding="utf-8"))
    spilled = [builds for builds in content if builds["spilled"]]
    most = max((builds["spilled"] for builds in content), default=0)
    refused = [f"{builds['name']} {builds['complaints'][0]}" for builds in content if builds["complaints"]]
    line = (
        f"compile gate: {len(content)} kernels for sm_90, {len(spilled)} keep registers in memory, {most} bytes at most"
    )
    wrong = f"the compile gate refuses {len(refused)} kernels: {refused[0]}" if refused else ""
    return CheckResult({"spilled_configurations": len(spilled)}, [line], content, wrong)
