"""`saccade bench`: how fast simulator, policies and kernels are, how reliable demonstrator and arm, behind checks."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from typing import Annotated, Any

import tyro

from ...errors import WorldError
from .arm.command import ArmBenchConfig, run_arm_bench
from .demonstrator import DemonstratorBenchConfig, bench_demonstrator
from .evaluation.command import EvaluationBenchConfig, bench_evaluation
from .kernels.command import KernelBenchConfig, run_kernel_bench
from .latency.command import LatencyBenchConfig, bench_latency
from .merging.command import MergeBenchConfig, bench_merge
from .merging.preset_small import MergeCostBenchConfig, bench_merge_small
from .metrics import Metrics, command_line, write_metrics
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
"""What to measure; each measurement has options of its own."""


def run(config: Any) -> int:
    """Measure what a `BenchConfig` says, print the figures, write them where asked, and return the exit code."""
    if isinstance(config, KernelBenchConfig):
        return run_kernel_bench(config)
    if isinstance(config, ArmBenchConfig):
        return run_arm_bench(config)
    if isinstance(config, LatencyBenchConfig):
        command, (figures, lines) = "bench latency", bench_latency(config)
    elif isinstance(config, MergeBenchConfig):
        command, (figures, lines) = "bench merge", bench_merge(config)
    elif isinstance(config, MergeCostBenchConfig):
        command, (figures, lines) = "bench merge-small", bench_merge_small(config)
    elif isinstance(config, EvaluationBenchConfig):
        command, (figures, lines) = "bench evaluation", bench_evaluation(config)
    else:
        command, (figures, lines) = _run_simulator_bench(config)
    print("\n".join(lines))
    if config.out is not None:
        write_metrics(config.out, figures, command_line(command, config))
        print(f"Figures: {config.out}")
    return 0


def _run_simulator_bench(config: SimBenchConfig | DemonstratorBenchConfig) -> tuple[str, tuple[Metrics, list[str]]]:
    """Measure what needs the simulator and worker processes."""
    from ...sim.rendering import choose_backend

    choose_backend()
    try:
        if isinstance(config, SimBenchConfig):
            return "bench sim", bench_sim(config)
        return "bench demonstrator", bench_demonstrator(config)
    except BrokenProcessPool as error:
        raise WorldError("a worker process died (out of memory, or killed): try again with fewer --workers") from error
