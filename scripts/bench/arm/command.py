"""`saccade bench arm`: faults of the whole stack, timing of the control loop, and success on the virtual arm."""

from __future__ import annotations

import ast
import importlib.util
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ....errors import InputError, unknown_name
from ....ranges import require_above
from ....sim.json_files import read_json, write_json
from ..metrics import command_line, write_metrics

PARTS = ("faults", "fuzz", "round_trip", "loop", "success", "soak", "lerobot")
TASKS = (
    "desk_object/red_cube",
    "desk_object/green_cube",
    "desk_object/red_can",
    "desk_spatial/left",
    "desk_spatial/right",
)
FIGURES = (
    *("virtual_success_rate", "eval_success_rate", "episodes", "loop_overrun_fraction", "loop_hz"),
    *("decision_p50_ms", "decision_p99_ms", "round_trip_p50_ms", "faults_in_catalogue", "faults_passed"),
    *("worst_hold_ms", "fuzz_inputs", "fuzz_crashes", "fuzz_wrongly_accepted", "soak_minutes", "unsafe_commands"),
    "memory_growth_fraction",
)
"""Metrics that are always written; None if not measured."""


@dataclass(frozen=True)
class ArmBenchConfig:
    """Measure the arm's stack on the virtual arm: every fault of the catalogue, the codec, the loop, and a long soak.

    The result of each part is kept in the folder, so an interrupted run continues with the next part. Safety is judged
    by the virtual arm's true motion.
    """

    parts: tuple[str, ...] = PARTS
    """What to measure: faults, fuzz, round_trip, loop, success, soak, lerobot."""
    again: bool = False
    """Measure the parts again, even if results exist in --folder."""
    folder: Path = Path("runs/arm")
    """Folder for the results of the parts."""
    fuzz_inputs: int = 1_000_000
    """Number of malformed messages for the codec fuzzing."""
    round_trips: int = 1000
    """Number of decisions through a policy server on this machine."""
    loop_seconds: float = 60.0
    """Minimum run time of the control loop with the starter policy, in seconds."""
    episodes: int = 50
    """Number of episodes on the virtual arm; the same episodes run in `saccade eval`."""
    tasks: tuple[str, ...] = TASKS
    """Tasks, as SUITE/TASK; each gets the same number of episodes."""
    soak_minutes: float = 60.0
    """Length of the soak test with random faults, in minutes."""
    seed: int = 0
    """Seed of fuzzing and soak."""
    out: Path | None = None
    """JSON file for the metrics."""

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise unknown_name("parts", part, PARTS)
        require_above(self, 0, "fuzz_inputs", "round_trips", "loop_seconds", "soak_minutes", option=True)
        if self.episodes < len(self.tasks) or self.episodes % len(self.tasks):
            expected = f"a multiple of {len(self.tasks)}, the number of tasks"
            raise InputError("episodes", got=self.episodes, expected=expected, fix="Set --episodes to 50.")


def run_arm_bench(config: ArmBenchConfig) -> int:
    """Measure the parts, print and write the metrics, and return the exit code: 3 if a fault or the soak was unsafe."""
    measures: dict[str, Callable[[ArmBenchConfig], dict[str, Any]]] = {
        "faults": measure_faults,
        "fuzz": measure_fuzzing,
        "round_trip": measure_round_trips,
        "loop": measure_loop,
        "success": measure_success,
        "soak": measure_soak,
        "lerobot": check_lerobot_support,
    }
    config.folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        path = config.folder / f"part_{part}.json"
        if part in config.parts and (config.again or not path.exists()):
            load = os.getloadavg()[0]
            write_json(path, {**measures[part](config), "load": [round(load, 1), round(os.getloadavg()[0], 1)]})
        if path.exists():
            print("\n".join(read_json(path)["lines"]), flush=True)
        if config.out is not None:
            write_metrics(config.out, collect_figures(config.folder), command_line("bench arm", config))
    figures = collect_figures(config.folder)
    if config.out is not None:
        print(f"Metrics: {config.out}")
    passed = figures["faults_passed"] == figures["faults_in_catalogue"] and not figures["unsafe_commands"]
    return 0 if passed else 3


def collect_figures(folder: Path) -> dict[str, float | int | None]:
    """Return the metrics of all parts with results, and the load average during each."""
    figures: dict[str, float | int | None] = dict.fromkeys(FIGURES)
    for part in PARTS:
        path = folder / f"part_{part}.json"
        if not path.exists():
            continue
        found = read_json(path)
        figures.update(found["figures"])
        if "load" in found:
            # The load of other work; the number of cores is in the file, too.
            figures[f"{part}_load"] = max(found["load"])
    return figures


def measure_faults(config: ArmBenchConfig) -> dict[str, Any]:
    """Inject every fault of the catalogue, and write the table as faults.md.

    Outcomes of an interrupted run are taken from the folder.
    """
    from ....sim.virtual_arm.world import VirtualArm
    from .faults.control_cases import CASES, rig_rules
    from .faults.control_faults import run_cases
    from .faults.outcome import CATALOGUE_ROWS, FaultOutcome
    from .faults.session_cases import SESSION_CASES
    from .faults.session_faults import run_session_cases
    from .faults.statistics_fault import STATISTICS, check_foreign_statistics
    from .page import fault_table, sort_rows
    from .rig import LinkRig
    from .swing_policy import IMAGE_SIZE

    path = config.folder / "faults.json"
    done: dict[str, dict[str, Any]] = {} if config.again or not path.exists() else read_json(path)

    def keep_outcome(outcome: FaultOutcome) -> None:
        done[outcome.name] = asdict(outcome)
        write_json(path, done)
        print(f"{'ok ' if outcome.passed else 'NOT'} {outcome.name}: {outcome.observed}", *outcome.problems, flush=True)

    with tempfile.TemporaryDirectory(prefix="saccade-faults-") as name:
        folder = Path(name)
        if STATISTICS not in done:
            keep_outcome(check_foreign_statistics(folder))
        cases = tuple(case for case in CASES if case.name not in done)
        if cases:
            with VirtualArm.start(rendering_enabled=False) as world:
                run_cases(
                    lambda rig: LinkRig(world, Path(tempfile.mkdtemp(dir=folder)), **rig_rules(rig)),
                    cases,
                    keep_outcome,
                )
        others = tuple(case for case in SESSION_CASES if case.name not in done)
        if others:
            with VirtualArm.start(image_size=IMAGE_SIZE) as world:
                run_session_cases(world, folder, others, keep_outcome)
    order = [STATISTICS, *(case.name for case in (*CASES, *SESSION_CASES))]
    rows = sort_rows(sorted(done.values(), key=lambda row: order.index(row["name"])), CATALOGUE_ROWS)
    (config.folder / "faults.md").write_text("\n".join(fault_table(rows)) + "\n", encoding="utf-8")
    return {"rows": rows, "figures": fault_figures(rows), "lines": fault_lines(rows)}


def fault_figures(rows: list[dict[str, Any]]) -> dict[str, float | int | None]:
    """Return how many rows of the catalogue passed in all their variants, and the longest times.

    Software times of cases that suspend the control process do not count.
    """
    from .faults.outcome import BUS_ROW, CATALOGUE_ROWS, OVERRUN_ROW

    passed = [
        row for row in CATALOGUE_ROWS if (of := [each for each in rows if each["row"] == row]) and _all_passed(of)
    ]
    devices = [each["device_ms"] for each in rows if each["device_ms"] is not None]
    running = [each for each in rows if each["row"] != OVERRUN_ROW and each["software_ms"] is not None]
    bus = [each["software_ms"] for each in running if each["row"] == BUS_ROW]
    software = [each["software_ms"] for each in running if each["row"] != BUS_ROW]
    return {
        "faults_in_catalogue": len(CATALOGUE_ROWS),
        "faults_passed": len(passed),
        "fault_variants": len(rows),
        "fault_variants_passed": sum(not each["problems"] for each in rows),
        "worst_hold_ms": _rounded(max(devices, default=None)),
        "worst_software_ms": _rounded(max(software, default=None)),
        "worst_bus_ms": _rounded(max(bus, default=None)),
    }


def fault_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the fault table as printed."""
    lines = [f"{'fault':<34} {'detected':>9} {'software':>9} {'device':>7}  observed"]
    for each in rows:
        times = [_milliseconds(each[name]) for name in ("detection_ms", "software_ms", "device_ms")]
        mark = "" if not each["problems"] else f"  NOT PASSED: {'; '.join(each['problems'])}"
        lines.append(f"{each['name']:<34} {times[0]:>9} {times[1]:>9} {times[2]:>7}  {each['observed']}{mark}")
    return lines


def measure_fuzzing(config: ArmBenchConfig) -> dict[str, Any]:
    """Decode malformed messages with the codec."""
    from .codec_fuzz import fuzz_codec

    found = fuzz_codec(config.fuzz_inputs, config.seed)
    figures = {
        "fuzz_inputs": found.inputs,
        "fuzz_crashes": found.crashes,
        "fuzz_wrongly_accepted": found.wrongly_accepted,
        "fuzz_wrongly_refused": found.wrongly_refused,
    }
    line = f"codec: {found.inputs} broken messages, {found.accepted} of them still valid, {found.crashes} crashes, "
    line += f"{found.wrongly_accepted} wrongly accepted, {found.wrongly_refused} wrongly refused"
    return {"figures": figures, "lines": [line], "examples": found.examples}


def measure_round_trips(config: ArmBenchConfig) -> dict[str, Any]:
    """Measure decisions through a policy server on this machine."""
    from ...checkpoints.checkpoint_policy import CheckpointPolicy
    from ...checkpoints.find import checkpoint_folder
    from .round_trip import measure_round_trip

    found = measure_round_trip(CheckpointPolicy(checkpoint_folder("starter")), config.round_trips)
    names = ("round_trip_p50_ms", "round_trip_p99_ms", "wire_p50_ms", "wire_p99_ms")
    figures = {name: _rounded(getattr(found, name)) for name in names}
    line = (
        f"policy server, there and back: p50 {found.round_trip_p50_ms:.1f} ms, p99 {found.round_trip_p99_ms:.1f} ms; "
    )
    line += f"without the decision p50 {found.wire_p50_ms:.1f} ms, p99 {found.wire_p99_ms:.1f} ms"
    return {"figures": figures, "lines": [line]}


def measure_loop(config: ArmBenchConfig) -> dict[str, Any]:
    """Run the starter on the virtual arm, and measure the timing of the control loop."""
    # An episode lasts 2 s or more.
    episodes = max(int(config.loop_seconds / 2.0), 1)
    summary = _run(config, ("desk_object/red_cube",), episodes, "loop", seconds=20.0)
    found = summary["figures"]
    figures = {
        "loop_hz": found["loop_hz"],
        "loop_overrun_fraction": found["overrun_fraction"],
        "loop_ticks": found["ticks"],
        "loop_period_p99_ms": _rounded(found["period_p99_ms"]),
        "decision_p50_ms": _rounded(found["decision_p50_ms"]),
        "decision_p99_ms": _rounded(found["decision_p99_ms"]),
        "observation_to_command_p50_ms": _rounded(found["round_trip_p50_ms"]),
        "observation_to_command_p99_ms": _rounded(found["round_trip_p99_ms"]),
    }
    line = f"loop: {found['ticks']} ticks at {found['loop_hz']:g} Hz, {100 * found['overrun_fraction']:.2f} % late; "
    line += f"decisions p50 {found['decision_p50_ms']:.1f} ms, p99 {found['decision_p99_ms']:.1f} ms"
    return {"figures": figures, "lines": [line]}


def measure_success(config: ArmBenchConfig) -> dict[str, Any]:
    """Measure the starter's success on the virtual arm and in `saccade eval`, from the same initial states."""
    from ...evaluate.command import evaluate
    from ...evaluate.options import EvaluateConfig

    each = config.episodes // len(config.tasks)
    summary = _run(config, config.tasks, each, "success")
    successes = episodes = 0
    for suite in dict.fromkeys(task.split("/")[0] for task in config.tasks):
        names = tuple(task.split("/")[1] for task in config.tasks if task.split("/")[0] == suite)
        out = config.folder / f"eval_{suite}"
        options = EvaluateConfig(
            suites=(suite,), tasks=names, episodes=each, workers=1, videos=0, out=out, overwrite=True
        )
        _, results = evaluate(options, progress=False)
        successes += results["successes"]
        episodes += results["episodes"]
    virtual = summary["success"]
    figures = {
        "virtual_success_rate": virtual["rate"],
        "eval_success_rate": successes / episodes,
        "episodes": virtual["episodes"],
    }
    line = f"success: {virtual['successes']} of {virtual['episodes']} on the virtual arm, "
    line += f"{successes} of {episodes} in saccade eval"
    return {"figures": figures, "lines": [line], "world": summary["world"], "loop": summary["figures"]}


def measure_soak(config: ArmBenchConfig) -> dict[str, Any]:
    """Run the soak test, unless the folder holds one that is long enough."""
    from .soak import soak

    folder = config.folder / "soak"
    path = folder / "soak.json"
    if config.again or not path.exists() or read_json(path)["minutes"] < config.soak_minutes:
        soak(folder, config.soak_minutes, config.seed)
    return soak_figures(read_json(path))


def soak_figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics and printed lines of a soak."""
    growths = [found[name] for name in ("session_growth", "control_growth") if found[name] is not None]
    faults = sum(found["faults"].values())
    figures = {
        "soak_minutes": round(found["minutes"], 1),
        "soak_faults": faults,
        "soak_holds": found["holds"],
        "soak_stops": found["stops"],
        "soak_moving_seconds": round(found["moving_seconds"]),
        "unsafe_commands": len(found["unsafe"]),
        "memory_growth_fraction": round(max(growths), 4) if growths else None,
    }
    line = f"soak: {found['minutes']:.0f} minutes, {faults} faults, {found['holds']} holds, {found['stops']} stops, "
    line += f"{len(found['unsafe'])} unsafe commands"
    if growths:
        line += f", memory grew by {100 * max(growths):.2f} %"
    return {"figures": figures, "lines": [line, *found["unsafe"]]}


def check_lerobot_support(config: ArmBenchConfig) -> dict[str, Any]:
    """Check whether LeRobot's asynchronous inference can run this policy; if not, nothing is compared."""
    supported, reasons = _supported_by_lerobot(), []
    if "saccade" not in supported:
        reasons.append(f"its server takes {', '.join(supported)} alone and no policy of a plugin")
    if importlib.util.find_spec("grpc") is None:
        reasons.append("it needs grpc, which is not installed")
    result = "; ".join(reasons) or "a comparison is possible, but was not made"
    figures = {"lerobot_async_success_rate": None, "lerobot_async_round_trip_ratio": None}
    return {"figures": figures, "lines": [f"LeRobot's asynchronous inference: {result}"]}


def _supported_by_lerobot() -> tuple[str, ...]:
    """Return the policies that its server accepts, read from the source: the import needs grpc."""
    found = importlib.util.find_spec("lerobot")
    if found is None or not found.submodule_search_locations:
        return ()
    path = Path(next(iter(found.submodule_search_locations))) / "async_inference" / "constants.py"
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and any(
            getattr(each, "id", "") == "SUPPORTED_POLICIES" for each in node.targets
        ):
            return tuple(ast.literal_eval(node.value))
    return ()


def _run(
    config: ArmBenchConfig, tasks: tuple[str, ...], episodes: int, name: str, seconds: float | None = None
) -> dict[str, Any]:
    from ...run.command import run_arm
    from ...run.options import RunConfig

    config.folder.mkdir(parents=True, exist_ok=True)
    out = Path(tempfile.mkdtemp(dir=config.folder, prefix=f"{name}_"))
    return run_arm(RunConfig(task=tasks, episodes=episodes, out=out, seconds=seconds))


def _all_passed(rows: list[dict[str, Any]]) -> bool:
    return all(not row["problems"] for row in rows)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"
