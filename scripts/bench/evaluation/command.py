"""Episodes per hour beside `lerobot-eval`, on one task with one policy, and a Ray cluster that loses a node."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import InputError, WorldError
from ....sim.desk.tasks import EVALUATION_STATES, find_task
from ..metrics import Metrics, usable_cores
from .cluster import ClusterRun, measure_node_loss

LEROBOT_VIDEO_COUNT = 10
"""Episodes that `lerobot-eval` films, whatever it is asked for: ours films as many of each outcome."""

RECORDS = "records.jsonl"


@dataclass(frozen=True)
class EvaluationBenchConfig:
    """Measure how many episodes an hour `saccade eval` runs, and `lerobot-eval`: same policy, same task, same episodes.

    Both run as commands, in turns, and both film. No figure is given unless every episode ends alike under both.
    """

    suite: str = "desk_object"
    """Suite of the task."""
    task: str = "red_cube"
    """Task that the starter is evaluated on."""
    episodes: int = EVALUATION_STATES
    """Episodes of a run."""
    rounds: int = 3
    """Runs of each command; the median counts."""
    workers: int = usable_cores()
    """Worker processes of ours."""
    lerobot_batch_size: int = 0
    """Worlds that LeRobot steps together; 0 leaves the choice to LeRobot."""
    cluster: bool = True
    """Kill a node of a Ray cluster in the middle of an evaluation, too, and count its episodes."""
    out: Path | None = None
    """JSON file for the figures."""

    def __post_init__(self) -> None:
        find_task(self.suite, self.task)
        for name, least in (("episodes", 2), ("rounds", 1), ("workers", 1), ("lerobot_batch_size", 0)):
            if getattr(self, name) < least:
                raise InputError(name, got=getattr(self, name), expected=f"{least} or more", fix=f"Raise --{name}.")
        if self.episodes > EVALUATION_STATES:
            fix = "LeRobot begins anew with the first state after the last one."
            raise InputError("episodes", got=self.episodes, expected=f"at most {EVALUATION_STATES}", fix=fix)


@dataclass(frozen=True)
class CommandTiming:
    """A command that ran: `seconds` from start to end, `steady_seconds_per_episode` seconds an episode once it ran, and each success."""

    seconds: float
    steady_seconds_per_episode: float
    successes: list[bool]


def bench_evaluation(config: EvaluationBenchConfig) -> tuple[Metrics, list[str]]:
    """Return the speeds as figures and as lines for people; raises WorldError when the episodes do not agree."""
    lerobot_runs, saccade_runs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(config.rounds):
            lerobot_runs.append(run_lerobot(config, Path(folder) / f"lerobot{number}"))
            saccade_runs.append(run_saccade(config, Path(folder) / f"saccade{number}"))
            _check_agreement(lerobot_runs[-1], saccade_runs[-1])
        metrics: dict[str, float | int | None] = _speed_metrics(config, lerobot_runs, saccade_runs)
        lines = _format_lines(config, metrics, lerobot_runs, saccade_runs)
        if config.cluster:
            node_loss = measure_node_loss(
                ClusterRun(config.suite, config.task, config.episodes, Path(folder) / "cluster")
            )
            metrics |= node_loss
            lines.append(
                f"Ray cluster of two nodes, one of them killed: {node_loss['ray_episodes_lost']} episodes lost, "
                f"{node_loss['ray_episodes_double']} counted twice, {node_loss['ray_redone']} run again"
            )
    return metrics, lines


def _speed_metrics(
    config: EvaluationBenchConfig, lerobot_runs: Sequence[CommandTiming], saccade_runs: Sequence[CommandTiming]
) -> dict[str, Any]:
    median, pairs = statistics.median, list(zip(lerobot_runs, saccade_runs, strict=True))
    return {
        "episodes_per_hour_over_lerobot_eval": round(median(a.seconds / b.seconds for a, b in pairs), 3),
        "episodes_per_hour_over_lerobot_eval_steady": round(
            median(a.steady_seconds_per_episode / b.steady_seconds_per_episode for a, b in pairs), 3
        ),
        "episodes_per_hour": round(3600 * config.episodes / median(each.seconds for each in saccade_runs)),
        "lerobot_episodes_per_hour": round(3600 * config.episodes / median(each.seconds for each in lerobot_runs)),
        "episodes_per_hour_steady": round(3600 / median(each.steady_seconds_per_episode for each in saccade_runs)),
        "lerobot_episodes_per_hour_steady": round(
            3600 / median(each.steady_seconds_per_episode for each in lerobot_runs)
        ),
        "episodes": config.episodes,
        "rounds": config.rounds,
        "workers": config.workers,
        "successes": sum(saccade_runs[0].successes),
        "load_average": round(os.getloadavg()[0], 1),
    }


def _format_lines(
    config: EvaluationBenchConfig,
    metrics: dict[str, Any],
    lerobot_runs: Sequence[CommandTiming],
    saccade_runs: Sequence[CommandTiming],
) -> list[str]:
    def seconds(runs: Sequence[CommandTiming]) -> str:
        return ", ".join(f"{each.seconds:.1f}" for each in runs)

    return [
        f"{metrics['episodes_per_hour']} episodes an hour, {metrics['episodes_per_hour_over_lerobot_eval']:.2f} times "
        f"those of lerobot-eval ({metrics['lerobot_episodes_per_hour']}), at {config.episodes} episodes with the start",
        f"once they run: {metrics['episodes_per_hour_steady']} and {metrics['lerobot_episodes_per_hour_steady']}, "
        f"{metrics['episodes_per_hour_over_lerobot_eval_steady']:.2f} times",
        f"  seconds of saccade eval: {seconds(saccade_runs)}; of lerobot-eval: {seconds(lerobot_runs)}",
        f"checked: every episode ended alike under both ({metrics['successes']} of {config.episodes} succeeded)",
    ]


def _check_agreement(lerobot_runs: CommandTiming, saccade_runs: CommandTiming) -> None:
    pairs = zip(lerobot_runs.successes, saccade_runs.successes, strict=True)
    different_states = [state for state, (one, other) in enumerate(pairs) if one != other]
    if different_states:
        raise WorldError(
            f"initial states {', '.join(map(str, different_states))} ended otherwise under lerobot-eval than under saccade eval: "
            "no speed is given"
        )


def run_lerobot(config: EvaluationBenchConfig, out: Path) -> CommandTiming:
    """Run `lerobot-eval` on the starter and return how long it took; raises WorldError when it fails."""
    from ....policy.checkpoint.folder import find_checkpoint

    command = [
        _find_executable("lerobot-eval"),
        f"--policy.path={find_checkpoint('starter')}",
        "--policy.device=cpu",
        "--env.type=saccade_desk",
        f"--env.task={config.suite}",
        f"--env.tasks=[{config.task}]",
        f"--eval.n_episodes={config.episodes}",
        f"--eval.batch_size={config.lerobot_batch_size}",
        f"--output_dir={out}",
    ]
    began = time.perf_counter()
    for _ in _run_and_poll(command):
        pass
    seconds = time.perf_counter() - began
    results = json.loads((out / "eval_info.json").read_text())
    successes = results["per_task"][0]["metrics"]["successes"]
    return CommandTiming(seconds, results["overall"]["eval_s"] / config.episodes, [bool(each) for each in successes])


def run_saccade(config: EvaluationBenchConfig, out: Path) -> CommandTiming:
    """Run `saccade eval` on the starter and return how long it took; raises WorldError when it fails."""
    options = {
        "suites": config.suite,
        "tasks": config.task,
        "episodes": config.episodes,
        "workers": config.workers,
        "videos": LEROBOT_VIDEO_COUNT,
        "out": out,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = [_find_executable("saccade"), "eval", *words]
    began = time.perf_counter()
    counts: list[tuple[float, int]] = []
    for now in _run_and_poll(command):
        count = (out / RECORDS).read_bytes().count(b"\n") if (out / RECORDS).exists() else 0
        if count and (not counts or count > counts[-1][1]):
            counts.append((now, count))
    seconds = time.perf_counter() - began
    records = sorted(_records(out), key=lambda record: record["initial_state"])
    (first, before), (last, after) = counts[0], counts[-1]
    steady_seconds_per_episode = (last - first) / (after - before) if after > before else seconds / config.episodes
    return CommandTiming(seconds, steady_seconds_per_episode, [record["outcome"] == "success" for record in records])


def _run_and_poll(command: Sequence[str]) -> Iterator[float]:
    """Run a command and yield the time again and again while it does; raises WorldError when it fails."""
    # As a user's shell would start it: what this process has set for itself stays here.
    environment = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    environment |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as process:
            try:
                while process.poll() is None:
                    yield time.perf_counter()
                    time.sleep(0.02)
            finally:
                process.kill()
        if process.returncode:
            output.seek(0)
            raise WorldError(f"{Path(command[0]).name} failed: {output.read()[-2000:].strip()}")


def _find_executable(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise InputError("lerobot-eval", got=f"no command {name}", expected="it to be installed", fix="uv sync")
    return found


def _records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / RECORDS).read_text().splitlines()]
