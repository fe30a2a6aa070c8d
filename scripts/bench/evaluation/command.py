"""`saccade bench evaluation`: measure episodes per hour, compared with `lerobot-eval`, and a node's loss."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....errors import WorldError
from ..metrics import Metrics
from .cluster import ClusterRun, measure_node_loss
from .options import EvaluationBenchConfig
from .timed_commands import CommandTiming, run_lerobot, run_saccade


def bench_evaluation(config: EvaluationBenchConfig) -> tuple[Metrics, list[str]]:
    """Measure the speed of both commands, and with --cluster the loss of a node.

    Returns:
        The metrics, and the lines to print.

    Raises:
        InputError: A command or Ray is not installed.
        WorldError: A command fails, or an episode has different outcomes.
    """
    lerobot_runs, saccade_runs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(config.rounds):
            lerobot_runs.append(run_lerobot(config, Path(folder) / f"lerobot{number}"))
            saccade_runs.append(run_saccade(config, Path(folder) / f"saccade{number}"))
            _check_agreement(lerobot_runs[-1], saccade_runs[-1])
        metrics: dict[str, float | int | None] = _speed_metrics(config, lerobot_runs, saccade_runs)
        lines = _format_lines(config, metrics, lerobot_runs, saccade_runs)
        if config.cluster:
            run = ClusterRun(config.suite, config.task, config.episodes, Path(folder) / "cluster")
            node_loss = measure_node_loss(run)
            metrics |= node_loss
            lines.append(
                f"Ray cluster of two nodes, one of them killed: {node_loss['ray_episodes_lost']} episodes lost, "
                f"{node_loss['ray_episodes_double']} counted twice, {node_loss['ray_redone']} run again"
            )
    return metrics, lines


def _speed_metrics(
    config: EvaluationBenchConfig, lerobot_runs: Sequence[CommandTiming], saccade_runs: Sequence[CommandTiming]
) -> dict[str, Any]:
    """Return the medians of the rounds, with the start of the commands and without it (steady)."""
    median, pairs = statistics.median, list(zip(lerobot_runs, saccade_runs, strict=True))
    return {
        "episodes_per_hour_over_lerobot_eval": round(
            median(lerobot.seconds / saccade.seconds for lerobot, saccade in pairs), 3
        ),
        "episodes_per_hour_over_lerobot_eval_steady": round(
            median(
                lerobot.steady_seconds_per_episode / saccade.steady_seconds_per_episode for lerobot, saccade in pairs
            ),
            3,
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
    """Return the lines to print."""

    def seconds(runs: Sequence[CommandTiming]) -> str:
        return ", ".join(f"{each.seconds:.1f}" for each in runs)

    return [
        (
            f"{metrics['episodes_per_hour']} episodes per hour, "
            f"{metrics['episodes_per_hour_over_lerobot_eval']:.2f} times lerobot-eval "
            f"({metrics['lerobot_episodes_per_hour']}), at {config.episodes} episodes with the start"
        ),
        (
            f"without the start: {metrics['episodes_per_hour_steady']} and "
            f"{metrics['lerobot_episodes_per_hour_steady']}, "
            f"{metrics['episodes_per_hour_over_lerobot_eval_steady']:.2f} times"
        ),
        f"  seconds of saccade eval: {seconds(saccade_runs)}; of lerobot-eval: {seconds(lerobot_runs)}",
        f"checked: every episode has the same outcome in both ({metrics['successes']} of {config.episodes} succeeded)",
    ]


def _check_agreement(lerobot: CommandTiming, saccade: CommandTiming) -> None:
    """Raise WorldError if an episode succeeded in one run only."""
    pairs = zip(lerobot.successes, saccade.successes, strict=True)
    different_states = [state for state, (one, other) in enumerate(pairs) if one != other]
    if different_states:
        raise WorldError(
            f"initial states {', '.join(map(str, different_states))} have other outcomes in lerobot-eval than in "
            "saccade eval: no speed is given"
        )
