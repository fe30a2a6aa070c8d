"""`saccade bench latency`: the cost of a decision of our policies, dense baselines and LeRobot's policies.

FLOPs are counted for every contestant without running it. Time is measured if the weights fit on the device. No time is
reported unless the correctness checks pass.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ....errors import InputError, WorldError, unknown_name
from ....ranges import require_above
from ..device import DEVICES, find_device
from ..metrics import Metrics
from .rows import LatencyRow, collect_metrics, plot_parts, table

if TYPE_CHECKING:
    from ....policy.network.architecture import Architecture
    from ....policy.network.model import SaccadeModel
    from .contestants import Contestant, SaccadeContestant

CPU_MEMORY_GIB = 6.0
MIN_RUNS = 3
LORA_RANK, TRAINING_BATCH = 32, 8


@dataclass(frozen=True)
class LatencyBenchConfig:
    """Measure the cost of one decision with random weights: parameters, FLOPs, memory and latency.

    Our presets are compared with dense policies of the same widths (OpenVLA-OFT's design, in the same code) and with
    LeRobot's policies. FLOPs are counted exactly, without a GPU and without running anything. A policy that does not
    fit on the device, or is too slow for it, is not timed. No time is printed if a correctness check fails.
    """

    presets: tuple[str, ...] = ("tiny", "small", "large")
    """Presets to measure. Presets with pretrained towers are compared with a dense policy."""
    lerobot: bool = True
    """Also measure LeRobot's policies; --no-lerobot leaves them out."""
    device: str = "auto"
    """Device: cuda (bfloat16, captured in a CUDA graph), cpu (float32), or auto (a GPU if there is one)."""
    kernels: str = "torch"
    """Attention and gather kernels of our policies: torch, or saccade (our Triton kernels)."""
    runs: int = 100
    """Timed decisions of each policy. The table shows their median (p50) and p99."""
    seconds: float = 120.0
    """Time limit for the timed decisions of one policy, in seconds. With fewer than 3 decisions no time is reported."""
    memory: float | None = None
    """Maximum size of the weights of a timed policy, in GiB. Default: the free GPU memory, or 6 without a GPU."""
    training: bool = True
    """Also compute the cost of a LoRA training step, which takes minutes; --no-training leaves it out."""
    out: Path | None = None
    """JSON file for the metrics."""
    plot: Path | None = None
    """Image file for a plot of the FLOPs of a decision by part of the policy."""

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise unknown_name("device", self.device, DEVICES)
        if self.runs < MIN_RUNS:
            fix = "Raise --runs; use 100 for a reliable p99."
            raise InputError("runs", got=self.runs, expected=f"{MIN_RUNS} or more", fix=fix)
        require_above(self, 0, "seconds", "memory", option=True)
        if not self.presets:
            raise InputError("presets", got="none", expected="at least one", fix="Set --presets, e.g. to tiny.")
        # This import brings torch: keep it out of --help.
        from ....policy.network.presets import find_preset

        for preset in self.presets:
            replace(find_preset(preset), kernels=self.kernels)


def bench_latency(config: LatencyBenchConfig) -> tuple[Metrics, list[str]]:
    """Measure the cost of decisions.

    Args:
        config: The options.

    Returns:
        The metrics, and the lines to print.

    Raises:
        InputError: The device is not available.
        WorldError: A correctness check fails.
    """
    from tqdm import tqdm

    device = find_device(config.device)
    contestants = make_contestants(config)
    rows = []
    with tqdm(total=len(contestants), desc="measuring", unit="policy") as bar:
        for contestant in contestants:
            bar.set_postfix_str(contestant.name)
            rows.append(measure(contestant, config, device))
            bar.update()
    metrics = dict(collect_metrics(rows, device))
    lines = [
        *table(rows),
        "",
        f"weights in bfloat16; times: {describe_timing(device)}, batch 1, up to {config.runs} decisions",
        "checked: an encoded instruction changes no action, FLOPs are those of the pruning schedule, no host sync"
        + (", a captured decision equals the uncaptured one" if device == "cuda" else ""),
    ]
    if config.training:
        extra_metrics, extra_lines = training_metrics(config, device)
        metrics.update(extra_metrics)
        lines += extra_lines
    if config.plot is not None:
        plot_parts(config.plot, rows)
        lines.append(f"Plot: {config.plot}")
    return metrics, lines


def describe_timing(device: str) -> str:
    """Return the device and the number types of the times, for the notes."""
    import torch

    from ....sim.fingerprint import processor_name

    if device == "cuda":
        kinds = "ours and the dense ones in bfloat16 and CUDA graphs, LeRobot's with their default types, uncaptured"
        return f"{torch.cuda.get_device_name()}, {kinds}"
    return f"{processor_name()}, {torch.get_num_threads()} threads, float32"


def make_contestants(config: LatencyBenchConfig) -> list[Contestant]:
    """Return the policies to measure."""
    from ....policy.network.presets import find_preset
    from .contestants import (
        LEROBOT,
        InputSizes,
        LerobotContestant,
        SaccadeContestant,
        dense_variant,
        make_saccade_contestant,
    )

    contestants: list[Contestant] = []
    for preset in config.presets:
        architecture = replace(find_preset(preset), kernels=config.kernels)
        contestants.append(make_saccade_contestant(preset, architecture))
        if architecture.towers:
            contestants.append(SaccadeContestant(f"dense {preset}", dense_variant(architecture), InputSizes()))
    if config.lerobot:
        contestants += [LerobotContestant(name, InputSizes(), changes) for name, changes in LEROBOT.items()]
    return contestants


def measure(contestant: Contestant, config: LatencyBenchConfig, device: str) -> LatencyRow:
    """Count, check and time one contestant.

    Args:
        contestant: The policy.
        config: The options.
        device: "cpu" or "cuda".

    Returns:
        Its row. If a policy of LeRobot cannot run, `remark` says why.

    Raises:
        WorldError: A check of a policy of ours fails.
    """
    from ..device import short_error
    from .checks import check_decisions
    from .contestants import SaccadeContestant

    row = LatencyRow(contestant.name, contestant.sizes.chunk)
    if isinstance(contestant, SaccadeContestant):
        count_saccade_cost(contestant, row)
        check_decisions(contestant, row.parts["trunk"])
    else:
        try:
            count_lerobot_cost(contestant, row)
        # Another project's policy may fail with any error, e.g. a missing package or no network: the table shows it.
        except Exception as error:
            row.remark = short_error(error)
            return row
    time_decisions(contestant, config, device, row)
    return row


def count_saccade_cost(contestant: SaccadeContestant, row: LatencyRow) -> None:
    """Fill in parameters, FLOPs, memory and synchronisations of a policy of ours.

    Args:
        contestant: The policy.
        row: Its row, filled in.

    Raises:
        WorldError: A decision makes the host wait for the device.
    """
    from ....policy.profiling.cost import FakeNetwork, decision_cost
    from ....policy.profiling.synchronisation import find_synchronisations

    cost = decision_cost(contestant.architecture, contestant.sizes)
    row.parameters, row.flops, row.parts = cost.parameters, cost.decide.total, cost.decide.parts
    row.instruct_flops, row.peak_bytes, row.stored_bytes = (
        cost.encode_instruction.total,
        cost.peak_bytes,
        4 * cost.parameters,
    )
    fake_network = FakeNetwork(contestant.build, device="cuda")
    with fake_network.fake_mode():
        decide = contestant.prepare(fake_network.network, device="cuda", capture=False)
        sync_points = find_synchronisations(decide)
    row.synchronisations = len(sync_points)
    if sync_points:
        raise WorldError(
            f"a decision of {contestant.name} makes the host wait for the device {len(sync_points)} times, first in "
            f"{sync_points[0].operation} at {sync_points[0].where}: no speed is given"
        )


def count_lerobot_cost(contestant: Contestant, row: LatencyRow) -> None:
    """Fill in parameters and FLOPs of a policy of LeRobot."""
    from ....policy.profiling.cost import FakeNetwork, count_flops

    fake_network = FakeNetwork(contestant.build)
    weights = list(fake_network.network.parameters())
    row.parameters, row.stored_bytes = sum(each.numel() for each in weights), sum(each.nbytes for each in weights)
    with fake_network.fake_mode():
        decide = contestant.prepare(fake_network.network, device="cpu", capture=False)
        row.flops = count_flops(decide).total
        row.steps = decide().shape[1]


def time_decisions(contestant: Contestant, config: LatencyBenchConfig, device: str, row: LatencyRow) -> None:
    """Fill in the seconds of each decision, or in `remark` why there are none.

    Args:
        contestant: The policy.
        config: The options; `memory` limits the weights, `runs` and `seconds` the decisions.
        device: "cpu" or "cuda".
        row: Its row, filled in.

    Raises:
        WorldError: A captured decision of ours differs from the uncaptured one.
    """
    import torch

    from ..device import short_error
    from .checks import BF16_TOLERANCE, require_equal
    from .contestants import SaccadeContestant

    on_gpu = device == "cuda"
    is_ours = isinstance(contestant, SaccadeContestant)
    needed = (row.stored_bytes // 2 if on_gpu and is_ours else row.stored_bytes) / 2**30
    memory_limit = config.memory or (torch.cuda.mem_get_info()[0] / 2**30 if on_gpu else CPU_MEMORY_GIB)
    if needed > memory_limit:
        row.remark = f"not timed: {needed:.1f} GiB of weights, the limit is {memory_limit:.0f} GiB"
        return
    try:
        with torch.inference_mode(), torch.device(device):
            network = contestant.build()
            if on_gpu and is_ours:
                network = network.to(torch.bfloat16)
                cast("SaccadeModel", network).trunk.restore_rotation()  # rotary frequencies stay in float32
            decide = contestant.prepare(network, device=device, capture=on_gpu and is_ours)
            if on_gpu and is_ours:
                uncaptured = contestant.prepare(network, device=device, capture=False)
                require_equal(f"a captured decision of {row.name}", decide(), uncaptured(), BF16_TOLERANCE)
            row.seconds = measure_seconds(decide, config, device)
    except Exception as error:
        if is_ours:
            raise
        row.remark = f"not timed: {short_error(error)}"
        return
    if not row.seconds:
        row.remark = f"not timed: {MIN_RUNS} decisions take over {config.seconds:g} s"


def measure_seconds(decide: Callable[[], Any], config: LatencyBenchConfig, device: str) -> list[float]:
    """Return the seconds of each timed call, after one to warm up.

    Args:
        decide: The function to time.
        config: The options `runs` and `seconds`.
        device: "cpu" or "cuda".

    Returns:
        Up to `runs` times, as many as fit in `seconds`; empty if fewer than MIN_RUNS fit.
    """
    import torch

    def timed() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        decide()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    # Estimate from the second call: the first also allocates memory.
    first = timed()
    if first * MIN_RUNS > 2 * config.seconds:
        return []
    allowed = int(config.seconds / max(timed(), 1e-9))
    return [timed() for _ in range(min(config.runs, allowed))] if allowed >= MIN_RUNS else []


def training_metrics(config: LatencyBenchConfig, device: str) -> tuple[Metrics, list[str]]:
    """Measure training steps with LoRA at batch 8: the memory of `small`, and `large` against its dense baseline.

    Args:
        config: The options.
        device: "cpu" or "cuda"; steps are timed on a GPU only.

    Returns:
        The metrics, and the lines to print.
    """
    from ....policy.network.presets import find_preset
    from ....policy.profiling.cost import InputSizes, training_flops, training_peak_bytes
    from .contestants import dense_variant

    sizes, metrics, lines = replace(InputSizes(), batch=TRAINING_BATCH), {}, []
    setup = f"with LoRA of rank {LORA_RANK} at batch {sizes.batch}"
    if "small" in config.presets:
        small = replace(find_preset("small"), kernels=config.kernels)
        peak_gib, checkpointed_peak_gib = (
            training_peak_bytes(lambda: build_lora_model(small, sizes), sizes, checkpointing=checkpointing) / 2**30
            for checkpointing in (False, True)
        )
        metrics["small_train_lora_peak_gib"] = round(peak_gib, 2)
        metrics["small_train_lora_checkpointed_peak_gib"] = round(checkpointed_peak_gib, 2)
        lines.append(
            f"training small {setup} in bfloat16: {peak_gib:.1f} GiB, {checkpointed_peak_gib:.1f} with checkpointing "
            "(derived)"
        )
    if "large" in config.presets:
        large = replace(find_preset("large"), kernels=config.kernels)
        sides = [large, dense_variant(large)]
        saccade_tflop, dense_tflop = (
            training_flops(lambda side=side: build_lora_model(side, sizes), sizes, checkpointing=True).total / 1e12
            for side in sides
        )
        times = [time_training(side, sizes, config) for side in sides] if device == "cuda" else None
        metrics["large_train_flop_ratio"] = round(dense_tflop / saccade_tflop, 3)
        metrics["large_train_tflop"] = round(saccade_tflop, 2)
        metrics["large_train_speedup_over_dense"] = times and times[1] / times[0]
        lines.append(
            f"training large {setup}, checkpointed: {saccade_tflop:.1f} TFLOP a step, its dense baseline "
            f"{dense_tflop:.1f}, {dense_tflop / saccade_tflop:.2f} times as many"
        )
    return metrics, lines


def build_lora_model(architecture: Architecture, sizes: Any) -> SaccadeModel:
    """Return a network of which LoRA adapters and the parts without pretrained weights are trained."""
    from ....policy.pretrained.adaptation import LoraAdaptation, add_lora

    network = sizes.build(architecture)
    add_lora(network, LoraAdaptation(rank=LORA_RANK, alpha=LORA_RANK))
    return network


def time_training(architecture: Architecture, sizes: Any, config: LatencyBenchConfig) -> float:
    """Return the median seconds of a training step on the GPU, in bfloat16 and checkpointed, optimizer included."""
    import torch

    from ....policy.profiling.cost import training_step

    with torch.device("cuda"):
        network = build_lora_model(architecture, sizes).to(torch.bfloat16).train()
        step = training_step(network, sizes, device="cuda", checkpointing=True)
    optimizer = torch.optim.AdamW([each for each in network.parameters() if each.requires_grad], lr=1e-5)

    def optimizer_step() -> None:
        step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return statistics.median(measure_seconds(optimizer_step, replace(config, runs=20), "cuda"))
