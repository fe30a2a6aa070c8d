"""Run `lerobot-eval` and `saccade eval` as a user would, and time them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import InputError, WorldError
from .options import EvaluationBenchConfig

LEROBOT_VIDEO_COUNT = 10
"""Videos that `lerobot-eval` records, always. `saccade eval` records as many of each outcome."""

RECORDS_FILE = "records.jsonl"


@dataclass(frozen=True)
class CommandTiming:
    """One run of an evaluation command.

    Attributes:
        seconds: Time from start to end.
        steady_seconds_per_episode: Time per episode without the start of the command.
        successes: Whether each episode succeeded, by initial state.
    """

    seconds: float
    steady_seconds_per_episode: float
    successes: list[bool]


def run_lerobot(config: EvaluationBenchConfig, out: Path) -> CommandTiming:
    """Run `lerobot-eval` on the starter and time it.

    Raises:
        InputError: The command is not installed.
        WorldError: The command fails.
    """
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
    for _ in run_and_poll(command):
        pass
    seconds = time.perf_counter() - began
    results = json.loads((out / "eval_info.json").read_text())
    successes = results["per_task"][0]["metrics"]["successes"]
    return CommandTiming(seconds, results["overall"]["eval_s"] / config.episodes, [bool(each) for each in successes])


def run_saccade(config: EvaluationBenchConfig, out: Path) -> CommandTiming:
    """Run `saccade eval` on the starter and time it.

    Raises:
        InputError: The command is not installed.
        WorldError: The command fails.
    """
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
    for now in run_and_poll(command):
        count = (out / RECORDS_FILE).read_bytes().count(b"\n") if (out / RECORDS_FILE).exists() else 0
        if count and (not counts or count > counts[-1][1]):
            counts.append((now, count))
    seconds = time.perf_counter() - began
    records = sorted(_records(out), key=lambda record: record["initial_state"])
    (first, before), (last, after) = counts[0], counts[-1]
    steady_seconds_per_episode = (last - first) / (after - before) if after > before else seconds / config.episodes
    return CommandTiming(seconds, steady_seconds_per_episode, [record["outcome"] == "success" for record in records])


def run_and_poll(command: Sequence[str]) -> Iterator[float]:
    """Run a command and yield the time every 20 ms until it ends.

    Raises:
        WorldError: The command fails; the error shows the end of its output.
    """
    # A user's shell would not have the variables that this process has set for itself.
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
    """Return the path of a command of this Python environment, or of one on the PATH."""
    in_environment = Path(sys.executable).with_name(name)
    found = str(in_environment) if in_environment.exists() else shutil.which(name)
    if found is None:
        fix = "Install the package with its commands: uv sync."
        raise InputError(name, got="no such command", expected="an installed command", fix=fix)
    return found


def _records(out: Path) -> list[dict[str, Any]]:
    """Read the records of an evaluation."""
    return [json.loads(line) for line in (out / RECORDS_FILE).read_text().splitlines()]
