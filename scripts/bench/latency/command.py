"""`saccade bench latency`: what a decision costs, ours beside dense ones and LeRobot's, all in one run.

Operations are counted for every contestant without running it; time is measured where the device can hold it. No figure
is given unless what is timed computes what it should.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import InputError, WorldError, unknown_name
from ..device import DEVICES, find_device
from ..figures import Figures
from .rows import Row, collect_figures, plot_parts, table

if TYPE_CHECKING:
    from ....policy.network.architecture import Architecture
    from ....policy.network.model import SaccadeModel
    from .contestants import Contestant, Ours

PROCESSOR_MEMORY = 6.0
LEAST_RUNS = 3
LORA_RANK, TRAINING_BATCH = 32, 8


@dataclass(frozen=True)
class LatencyConfig:
    """Measure what a decision costs: parameters, operations, bytes and time, of random weights.

    Our presets stand beside dense policies of the same widths (OpenVLA-OFT's shape, in the same code) and LeRobot's own
    policies. Operations are counted exactly, without a GPU and without running anything; what does not fit on the
    device, or is too slow for it, gets no time. No speed is printed when a check of correctness fails.
    """

    presets: tuple[str, ...] = ("tiny", "small", "large")
    """Presets to measure; those with pretrained towers also get a dense opponent."""
    lerobot: bool = True
    """Whether LeRobot's policies take part."""
    device: str = "auto"
    """Where to measure time: cuda (bfloat16, captured in a CUDA graph), cpu (float32), or auto: a GPU if there is."""
    kernels: str = "torch"
    """What computes our policies' attention and gathers what pruning keeps: torch, or saccade, our own operators."""
    runs: int = 100
    """Decisions to time of each contestant; the median counts."""
    seconds: float = 120.0
    """At most this long for the timed decisions of one contestant; fewer than 3 in it count as not measured."""
    memory: float | None = None
    """GiB that the weights of a timed contestant may take; default: what the GPU has free, 6 without one."""
    training: bool = True
    """Whether to count what a step of training with LoRA costs, too; needs a few minutes on one core."""
    out: Path | None = None
    """JSON file for the figures."""
    plot: Path | None = None
    """Picture of the operations of a decision, part by part."""

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise unknown_name("device", self.device, DEVICES)
        if self.runs < LEAST_RUNS:
            fix = "Raise --runs; 100 give a p99 worth its name."
            raise InputError("runs", got=self.runs, expected=f"{LEAST_RUNS} or more", fix=fix)
        if not self.seconds > 0:
            raise InputError("seconds", got=self.seconds, expected="above 0", fix="Raise --seconds.")
        if self.memory is not None and not self.memory > 0:
            raise InputError("memory", got=self.memory, expected="above 0 GiB", fix="Raise --memory.")
        if not self.presets:
            raise InputError("presets", got="none", expected="at least one", fix="Give --presets tiny.")
        # Torch comes with it, so that only who measures waits for it.
        from ....policy.network.architecture import find_preset

        for preset in self.presets:
            replace(find_preset(preset), kernels=self.kernels)


def bench_latency(config: LatencyConfig) -> tuple[Figures, list[str]]:
    """Return what decisions cost as figures and as lines for people.

    Raises WorldError when a check of correctness fails, InputError for a device that is not there.
    """
    from tqdm import tqdm

    device = find_device(config.device)
    contestants = line_up(config)
    rows = []
    with tqdm(total=len(contestants), desc="measuring", unit="policy") as bar:
        for contestant in contestants:
            bar.set_postfix_str(contestant.name)
            rows.append(measure(contestant, config, device))
            bar.update()
    figures = dict(collect_figures(rows, device))
    lines = [
        *table(rows),
        "",
        f"weights in bfloat16; times: {describe(device)}, batch 1, up to {config.runs} decisions",
        "checked: a prepared instruction changes no action, operations are those of the schedule, the host never waits"
        + (", a captured decision is the uncaptured one" if device == "cuda" else ""),
    ]
    if config.training:
        trained, said = training_figures(config, device)
        figures.update(trained)
        lines += said
    if config.plot is not None:
        plot_parts(config.plot, rows)
        lines.append(f"Picture: {config.plot}")
    return figures, lines


def describe(device: str) -> str:
    """Return on what times are measured."""
    import torch

    from ....sim.fingerprint import processor_name

    if device == "cuda":
        kinds = "ours and the dense ones in bfloat16 and CUDA graphs, LeRobot's as they come"
        return f"{torch.cuda.get_device_name()}, {kinds}"
    return f"{processor_name()}, {torch.get_num_threads()} threads, float32"


def line_up(config: LatencyConfig) -> list[Contestant]:
    """Return who takes part."""
    from ....policy.network.architecture import find_preset
    from .contestants import LEROBOT, Ours, Sizes, Theirs, dense, ours

    found: list[Contestant] = []
    for preset in config.presets:
        architecture = replace(find_preset(preset), kernels=config.kernels)
        found.append(ours(preset, architecture))
        if architecture.towers:
            found.append(Ours(f"dense {preset}", dense(architecture), Sizes()))
    if config.lerobot:
        found += [Theirs(name, Sizes(), changes) for name, changes in LEROBOT.items()]
    return found


def measure(contestant: Contestant, config: LatencyConfig, device: str) -> Row:
    """Return what one contestant costs; raises WorldError when one of ours does not compute what it should."""
    from ..device import refusal
    from .checks import check_decisions
    from .contestants import Ours

    row = Row(contestant.name, contestant.sizes.chunk)
    if isinstance(contestant, Ours):
        count_ours(contestant, row)
        check_decisions(contestant, row.parts["trunk"])
    else:
        try:
            count_theirs(contestant, row)
        # Another project's policy may fail at anything, for want of a package or of the hub; the table says so.
        except Exception as error:
            row.remark = refusal(error)
            return row
    time_decisions(contestant, config, device, row)
    return row


def count_ours(contestant: Ours, row: Row) -> None:
    """Fill in what a decision of ours costs, and where the host waits for the device."""
    from ....policy.profiling.cost import Imagined, decision_cost
    from ....policy.profiling.synchronisation import find_synchronisations

    cost = decision_cost(contestant.architecture, contestant.sizes)
    row.parameters, row.flops, row.parts = cost.parameters, cost.decide.total, cost.decide.parts
    row.instruct_flops, row.peak_bytes, row.stored_bytes = cost.instruct.total, cost.peak_bytes, 4 * cost.parameters
    imagined = Imagined(contestant.build, device="cuda")
    with imagined.running():
        decide = contestant.prepare(imagined.network, device="cuda", capture=False)
        waits = find_synchronisations(decide)
    row.synchronisations = len(waits)
    if waits:
        raise WorldError(
            f"a decision of {contestant.name} makes the host wait for the device {len(waits)} times, first in "
            f"{waits[0].operation} at {waits[0].where}: no speed is given"
        )


def count_theirs(contestant: Contestant, row: Row) -> None:
    """Fill in what a decision of LeRobot's costs."""
    from ....policy.profiling.cost import Imagined, count_flops

    imagined = Imagined(contestant.build)
    weights = list(imagined.network.parameters())
    row.parameters, row.stored_bytes = sum(each.numel() for each in weights), sum(each.nbytes for each in weights)
    with imagined.running():
        decide = contestant.prepare(imagined.network, device="cpu", capture=False)
        row.flops = count_flops(decide).total
        row.steps = decide().shape[1]


def time_decisions(contestant: Contestant, config: LatencyConfig, device: str, row: Row) -> None:
    """Fill in the seconds of each decision, as many as fit, or why there are none."""
    import torch

    from ..device import refusal
    from .checks import MIXED, require_equal
    from .contestants import Ours

    on_gpu = device == "cuda"
    is_ours = isinstance(contestant, Ours)
    needed = (row.stored_bytes // 2 if on_gpu and is_ours else row.stored_bytes) / 2**30
    room = config.memory or (torch.cuda.mem_get_info()[0] / 2**30 if on_gpu else PROCESSOR_MEMORY)
    if needed > room:
        row.remark = f"not timed: {needed:.1f} GiB of weights, {room:.0f} are to be used"
        return
    try:
        with torch.inference_mode(), torch.device(device):
            network = contestant.build()
            if on_gpu and is_ours:
                network = network.to(torch.bfloat16)
                network.trunk.restore_rotation()  # its frequencies stay exact
            decide = contestant.prepare(network, device=device, capture=on_gpu and is_ours)
            if on_gpu and is_ours:
                plain = contestant.prepare(network, device=device, capture=False)
                require_equal(f"a captured decision of {row.name}", decide(), plain(), MIXED)
            row.seconds = repeat(decide, config, device)
    except Exception as error:
        if is_ours:
            raise
        row.remark = f"not timed: {refusal(error)}"
        return
    if not row.seconds:
        row.remark = f"not timed: {LEAST_RUNS} decisions take over {config.seconds:g} s"


def repeat(decide: Callable[[], Any], config: LatencyConfig, device: str) -> list[float]:
    """Return the seconds of each of `runs` decisions after one to warm up, or none where too few fit in the time."""
    import torch

    def timed() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        decide()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    # The second tells how long one takes: the first also pays for memory that is touched for the first time.
    first = timed()
    if first * LEAST_RUNS > 2 * config.seconds:
        return []
    allowed = int(config.seconds / max(timed(), 1e-9))
    return [timed() for _ in range(min(config.runs, allowed))] if allowed >= LEAST_RUNS else []


def training_figures(config: LatencyConfig, device: str) -> tuple[Figures, list[str]]:
    """Return what training steps with LoRA at batch 8 cost, as figures and as lines for people.

    `large` against its dense opponent in operations, and in time on a GPU; the memory of `small`.
    """
    from ....policy.network.architecture import find_preset
    from ....policy.profiling.cost import Sizes, training_flops, training_peak
    from .contestants import dense

    sizes, figures, lines = replace(Sizes(), batch=TRAINING_BATCH), {}, []
    said = f"with LoRA of rank {LORA_RANK} at batch {sizes.batch}"
    if "small" in config.presets:
        small = replace(find_preset("small"), kernels=config.kernels)
        kept, again = (
            training_peak(lambda: adapted(small, sizes), sizes, checkpointing=checkpointing) / 2**30
            for checkpointing in (False, True)
        )
        figures["small_train_lora_peak_gib"] = round(kept, 2)
        figures["small_train_lora_checkpointed_peak_gib"] = round(again, 2)
        lines.append(f"training small {said} in bfloat16: {kept:.1f} GiB, {again:.1f} with checkpointing (derived)")
    if "large" in config.presets:
        large = replace(find_preset("large"), kernels=config.kernels)
        sides = [large, dense(large)]
        ours, theirs = (
            training_flops(lambda side=side: adapted(side, sizes), sizes, checkpointing=True).total / 1e12
            for side in sides
        )
        times = [time_training(side, sizes, config) for side in sides] if device == "cuda" else None
        figures["large_train_flop_ratio"] = round(theirs / ours, 3)
        figures["large_train_tflop"] = round(ours, 2)
        figures["large_train_speedup_over_dense"] = times and times[1] / times[0]
        lines.append(
            f"training large {said}, checkpointed: {ours:.1f} TFLOP a step, the dense one {theirs:.1f}, "
            f"{theirs / ours:.2f} times as many"
        )
    return figures, lines


def adapted(architecture: Architecture, sizes: Any) -> SaccadeModel:
    """Return a network of which LoRA and the parts without pretrained weights learn."""
    from ....policy.pretrained.adaptation import Adaptation, adapt

    network = sizes.build(architecture)
    adapt(network, Adaptation(rank=LORA_RANK, alpha=LORA_RANK))
    return network


def time_training(architecture: Architecture, sizes: Any, config: LatencyConfig) -> float:
    """Return the median seconds of a training step on the GPU, in bfloat16 and checkpointed, optimizer included."""
    import torch

    from ....policy.profiling.cost import training_step

    with torch.device("cuda"):
        network = adapted(architecture, sizes).to(torch.bfloat16).train()
        step = training_step(network, sizes, device="cuda", checkpointing=True)
    optimizer = torch.optim.AdamW([each for each in network.parameters() if each.requires_grad], lr=1e-5)

    def learn() -> None:
        step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return statistics.median(repeat(learn, replace(config, runs=20), "cuda"))
