"""`saccade bench`: measure speed, cost and reliability, each behind a check of correctness."""

from __future__ import annotations

from typing import Annotated, Any

import tyro

from .arm.command import ArmBenchConfig, run_arm_bench
from .demonstrator import DemonstratorBenchConfig, bench_demonstrator
from .evaluation.command import bench_evaluation
from .evaluation.options import EvaluationBenchConfig
from .kernels.command import KernelBenchConfig, run_kernel_bench
from .latency.command import LatencyBenchConfig, bench_latency
from .merging.command import MergeBenchConfig, bench_merge
from .merging.preset_small import MergeCostBenchConfig, bench_merge_small
from .metrics import command_line, write_metrics
from .simulator import SimBenchConfig, bench_sim

BenchConfig = (
    Annotated[SimBenchConfig, tyro.conf.subcommand("sim")]
    | Annotated[DemonstratorBenchConfig, tyro.conf.subcommand("demonstrator")]
    | Annotated[LatencyBenchConfig, tyro.conf.subcommand("latency")]
    | Annotated[KernelBenchConfig, tyro.conf.subcommand("kernels")]
    | Annotated[EvaluationBenchConfig, tyro.conf.subcommand("evaluation")]
    | Annotated[MergeBenchConfig, tyro.conf.subcommand("merge")]
    | Annotated[MergeCostBenchConfig, tyro.conf.subcommand("merge-small")]
    | Annotated[ArmBenchConfig, tyro.conf.subcommand("arm")]
)
"""Options of the measurements; each is a subcommand."""


def run(config: Any) -> int:
    """Run one measurement of `BenchConfig`, print the metrics, write them to --out, and return the exit code."""
    if isinstance(config, KernelBenchConfig):
        return run_kernel_bench(config)
    if isinstance(config, ArmBenchConfig):
        return run_arm_bench(config)
    if isinstance(config, SimBenchConfig):
        command, (metrics, lines) = "bench sim", bench_sim(config)
    elif isinstance(config, DemonstratorBenchConfig):
        command, (metrics, lines) = "bench demonstrator", bench_demonstrator(config)
    elif isinstance(config, LatencyBenchConfig):
        command, (metrics, lines) = "bench latency", bench_latency(config)
    elif isinstance(config, MergeBenchConfig):
        command, (metrics, lines) = "bench merge", bench_merge(config)
    elif isinstance(config, MergeCostBenchConfig):
        command, (metrics, lines) = "bench merge-small", bench_merge_small(config)
    elif isinstance(config, EvaluationBenchConfig):
        command, (metrics, lines) = "bench evaluation", bench_evaluation(config)
    else:
        raise TypeError(f"not the options of a measurement: {config!r}")
    print("\n".join(lines))
    if config.out is not None:
        write_metrics(config.out, metrics, command_line(command, config))
        print(f"Metrics: {config.out}")
    return 0
