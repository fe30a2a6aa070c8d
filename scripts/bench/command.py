"""`saccade bench`: how fast simulator, policies and kernels are, how reliable demonstrator and arm, behind checks."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from typing import Annotated, Any

import tyro

from ...errors import WorldError
from .arm.command import ArmBenchConfig, run_arm_bench
from .demonstrator import DemonstratorConfig, bench_demonstrator
from .evaluation.command import EvaluationConfig, bench_evaluation
from .figures import Figures, command_line, write_figures
from .kernels.command import KernelsConfig, run_kernels
from .latency.command import LatencyConfig, bench_latency
from .merging.command import MergeBenchConfig, bench_merge
from .merging.preset_small import MergeSmallConfig, bench_merge_small
from .simulator import SimConfig, bench_sim

BenchConfig = (
    Annotated[SimConfig, tyro.conf.subcommand("sim")]
    | Annotated[DemonstratorConfig, tyro.conf.subcommand("demonstrator")]
    | Annotated[LatencyConfig, tyro.conf.subcommand("latency")]
    | Annotated[KernelsConfig, tyro.conf.subcommand("kernels")]
    | Annotated[EvaluationConfig, tyro.conf.subcommand("evaluation")]
    | Annotated[MergeBenchConfig, tyro.conf.subcommand("merge")]
    | Annotated[MergeSmallConfig, tyro.conf.subcommand("merge-small")]
    | Annotated[ArmBenchConfig, tyro.conf.subcommand("arm")]
)
"""What to measure; each measurement has options of its own."""


def run(config: Any) -> int:
    """Measure what a `BenchConfig` says, print the figures, write them where asked, and return the exit code."""
    if isinstance(config, KernelsConfig):
        return run_kernels(config)
    if isinstance(config, ArmBenchConfig):
        return run_arm_bench(config)
    if isinstance(config, LatencyConfig):
        command, (figures, lines) = "bench latency", bench_latency(config)
    elif isinstance(config, MergeBenchConfig):
        command, (figures, lines) = "bench merge", bench_merge(config)
    elif isinstance(config, MergeSmallConfig):
        command, (figures, lines) = "bench merge-small", bench_merge_small(config)
    elif isinstance(config, EvaluationConfig):
        command, (figures, lines) = "bench evaluation", bench_evaluation(config)
    else:
        command, (figures, lines) = _run_world(config)
    print("\n".join(lines))
    if config.out is not None:
        write_figures(config.out, figures, command_line(command, config))
        print(f"Figures: {config.out}")
    return 0


def _run_world(config: SimConfig | DemonstratorConfig) -> tuple[str, tuple[Figures, list[str]]]:
    """Measure what needs the simulator and worker processes."""
    from ...sim.rendering import choose_backend

    choose_backend()
    try:
        if isinstance(config, SimConfig):
            return "bench sim", bench_sim(config)
        return "bench demonstrator", bench_demonstrator(config)
    except BrokenProcessPool as error:
        raise WorldError("a worker process died (out of memory, or killed): try again with fewer --workers") from error
