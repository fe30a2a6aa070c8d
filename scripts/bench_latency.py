"""`saccade bench latency`: what a decision costs, ours beside dense ones and LeRobot's, all in one run.

Operations are counted for every contestant without running it; time is measured where the device can hold it. No figure
is given unless what is timed computes what it should.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, WorldError, unknown_name
from .figures import Figures

if TYPE_CHECKING:
    import torch

    from ..policy.architecture import Architecture
    from .contestants import Contestant, Ours

PLAIN, MIXED = 1e-5, 2e-2
"""How far two ways to decide may be apart, relative to the largest action: in float32 and in bfloat16."""

PROCESSOR_MEMORY = 8.0
LEAST_RUNS = 3
LORA_RANK = 32
DEVICES = ("auto", "cpu", "cuda")


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
    """Where to measure time: cuda (bfloat16, captured in a CUDA graph), cpu (float32), or auto, a GPU if there is one."""
    runs: int = 100
    """Decisions to time of each contestant; the median counts."""
    seconds: float = 120.0
    """At most this long for the timed decisions of one contestant; fewer than 3 in it count as not measured."""
    memory: float | None = None
    """GiB that the weights of a timed contestant may take; default: what the GPU has free, 8 without one."""
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
        from ..policy.architecture import find_preset

        for preset in self.presets:
            find_preset(preset)


@dataclass
class Row:
    """What was found out about one contestant; None stands for what was not.

    `flops`: of a decision; `parts`: of them, by part of the policy; `instruct_flops`: once for an instruction;
    `seconds`: of each timed decision; `remark`: why something is missing.
    """

    name: str
    steps: int
    parameters: int | None = None
    flops: int | None = None
    parts: dict[str, int] = field(default_factory=dict)
    instruct_flops: int = 0
    peak_bytes: int | None = None
    synchronisations: int | None = None
    seconds: list[float] = field(default_factory=list)
    remark: str = ""

    def percentile(self, share: float) -> float | None:
        """Return the time in seconds below which a share of the decisions stayed, None where none was timed."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


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
        f"times: {describe(device)}, batch 1, median and 99th percentile of up to {config.runs} decisions",
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


def find_device(name: str) -> str:
    """Return cpu or cuda; raises InputError for a GPU that is not there."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        fix = "Leave --device away: operations are counted without one."
        raise InputError("device", got="cuda", expected="a CUDA device on this machine", fix=fix)
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def describe(device: str) -> str:
    """Return on what times are measured."""
    import torch

    from ..sim.fingerprint import processor_name

    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, bfloat16, ours and the dense ones in CUDA graphs"
    return f"{processor_name()}, {torch.get_num_threads()} threads, float32"


def line_up(config: LatencyConfig) -> list[Contestant]:
    """Return who takes part."""
    from ..policy.architecture import find_preset
    from .contestants import LEROBOT, Ours, Sizes, Theirs, dense, ours

    found: list[Contestant] = []
    for preset in config.presets:
        architecture = find_preset(preset)
        found.append(ours(preset, architecture))
        if architecture.towers:
            found.append(Ours(f"dense {preset}", dense(architecture), Sizes()))
    if config.lerobot:
        found += [Theirs(name, Sizes(), changes) for name, changes in LEROBOT.items()]
    return found


def measure(contestant: Contestant, config: LatencyConfig, device: str) -> Row:
    """Return what one contestant costs; raises WorldError when one of ours does not compute what it should."""
    from .contestants import Ours, refusal

    row = Row(contestant.name, contestant.sizes.chunk)
    if isinstance(contestant, Ours):
        count_ours(contestant, row)
        check(contestant, row)
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
    from ..policy.measure import Imagined, decision_cost
    from ..policy.synchronisation import find_synchronisations

    cost = decision_cost(contestant.architecture, contestant.sizes)
    row.parameters, row.flops, row.parts = cost.parameters, cost.decide.total, cost.decide.parts
    row.instruct_flops, row.peak_bytes = cost.instruct.total, cost.peak_bytes
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
    from ..policy.measure import Imagined, count_flops

    imagined = Imagined(contestant.build)
    row.parameters = sum(each.numel() for each in imagined.network.parameters())
    with imagined.running():
        decide = contestant.prepare(imagined.network, device="cpu", capture=False)
        row.flops = count_flops(decide).total
        row.steps = decide().shape[1]


def check(contestant: Ours, row: Row) -> None:
    """Raise WorldError unless a small twin decides the same with a prepared instruction, and operations add up."""
    import torch

    from .contestants import TWIN_SIZES, twin

    torch.manual_seed(0)
    architecture = twin(contestant.architecture)
    network = TWIN_SIZES.build(architecture).eval()
    with torch.inference_mode():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        tokens, state = TWIN_SIZES.tokens(architecture), TWIN_SIZES.states()
        instructed = network.instruct(tokens)
        for _ in range(2):
            images = TWIN_SIZES.images()
            whole, prepared = network(images, tokens, state), network.decide(images, instructed, state)
            require_equal(f"a prepared decision of {row.name}", prepared.actions, whole.actions, PLAIN)
    wanted = scheduled_flops(contestant)
    if abs(row.parts["trunk"] - wanted) > 1e-3 * wanted:
        raise WorldError(
            f"the trunk of {row.name} computes {row.parts['trunk']:.4g} operations where its schedule of pruning asks "
            f"for {wanted:.4g}: no speed is given"
        )


def scheduled_flops(contestant: Ours) -> int:
    """Return by formula what a decision's trunk computes: in each layer the kept tokens, the state and the slots."""
    import torch

    with torch.device("meta"):
        network = contestant.build()
    trunk, layout, shape = network.trunk, network.layout, contestant.architecture
    configuration = trunk.decoder.config
    head = shape.trunk_head_size or shape.trunk_width // shape.trunk_heads
    total = 0
    for number, (layer, kept) in enumerate(zip(trunk.decoder.layers, trunk.keep, strict=True)):
        working = layout.length - layout.visual + kept * trunk.groups
        weights = sum(each.numel() for each in layer.parameters() if each.ndim == 2)
        seen = working + layout.remembered
        total += 2 * working * weights + 4 * configuration.num_attention_heads * working * seen * head
        total += 2 * layout.visual * shape.trunk_width if str(number) in trunk.routers else 0
    return total * contestant.sizes.batch


def require_equal(what: str, got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    """Raise WorldError unless two tensors are equal to a tolerance, relative to the largest number of the wanted."""
    error = float((got.float() - wanted.float()).abs().max() / wanted.float().abs().max().clamp(min=1e-12))
    if not error <= tolerance:
        raise WorldError(f"{what} is off by {error:.1e} of the largest action, over {tolerance:g}: no speed is given")


def time_decisions(contestant: Contestant, config: LatencyConfig, device: str, row: Row) -> None:
    """Fill in the seconds of each decision, as many as fit, or why there are none."""
    import torch

    from .contestants import Ours, refusal

    on_gpu = device == "cuda"
    needed = (2 if on_gpu else 4) * (row.parameters or 0) / 2**30
    room = config.memory or (torch.cuda.mem_get_info()[0] / 2**30 if on_gpu else PROCESSOR_MEMORY)
    if needed > room:
        row.remark = f"not timed: its weights are {needed:.0f} GiB, {room:.0f} are to be used"
        return
    is_ours = isinstance(contestant, Ours)
    try:
        with torch.inference_mode(), torch.device(device):
            network = contestant.build()
            if on_gpu:
                network = network.to(torch.bfloat16)
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


def table(rows: list[Row]) -> list[str]:
    """Return the rows as aligned text."""
    heads = ["policy", "parameters", "weights", "decision", "per step", "instruction", "waits", "p50", "p99", "rate", ""]
    cells = [heads]
    for row in rows:
        middle, late = row.percentile(0.5), row.percentile(0.99)
        cells.append(
            [
                row.name,
                _shown(row.parameters, 1e6, "M"),
                _shown(row.parameters and 2 * row.parameters, 2**30, "GiB", 2),
                _shown(row.flops, 1e9, "GFLOP"),
                _shown(row.flops and row.flops / row.steps, 1e9, "GFLOP", 2),
                _shown(row.instruct_flops or None, 1e9, "GFLOP", 2),
                _shown(row.synchronisations, 1, "", 0),
                _shown(middle and 1e3 * middle, 1, "ms"),
                _shown(late and 1e3 * late, 1, "ms"),
                _shown(middle and 1 / middle, 1, "/s"),
                row.remark,
            ]
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]

    def aligned(line: list[str]) -> str:
        first, *numbers, last = line
        shown = [first.ljust(widths[0]), *(text.rjust(width) for text, width in zip(numbers, widths[1:-1], strict=True))]
        return "  ".join([*shown, last]).rstrip()

    return [aligned(line) for line in cells]


def _shown(value: float | None, unit: float, name: str, places: int = 1) -> str:
    return "-" if value is None else f"{value / unit:.{places}f} {name}".rstrip()


def collect_figures(rows: list[Row], device: str) -> Figures:
    """Return the figures of all rows; those of a GPU are null without one."""
    found = {row.name: row for row in rows}
    figures: dict[str, float | None] = {
        # The importer's own test compares with the released weights.
        "parity_max_relative_error": None,
        "host_syncs_per_forward": max((row.synchronisations or 0 for row in rows), default=None),
    }
    for preset in ("large", "small"):
        row, opponent = found.get(preset), found.get(f"dense {preset}")
        if row is None or opponent is None:
            continue
        timed = device == "cuda" and row.seconds and opponent.seconds
        middle, late, other = row.percentile(0.5), row.percentile(0.99), opponent.percentile(0.5)
        figures |= {
            f"{preset}_speedup_over_dense": other / middle if timed else None,
            f"{preset}_p50_ms": 1e3 * middle if timed else None,
            f"{preset}_p99_ms": 1e3 * late if timed else None,
            f"{preset}_tflop": row.flops / 1e12,
            f"{preset}_instruction_tflop": row.instruct_flops / 1e12,
            f"{preset}_parameters_billion": row.parameters / 1e9,
            f"{preset}_inference_peak_gib": row.peak_bytes / 2**30,
            f"{preset}_flop_ratio": opponent.flops / row.flops,
            f"{'' if preset == 'large' else 'small_'}dense_tflop": opponent.flops / 1e12,
            f"{'' if preset == 'large' else 'small_'}dense_parameters_billion": opponent.parameters / 1e9,
        }
        figures |= {f"{preset}_{part}_tflop": count / 1e12 for part, count in row.parts.items() if part != "other"}
    if "tiny" in found:
        middle = found["tiny"].percentile(0.5)
        figures |= {"tiny_gflop": found["tiny"].flops / 1e9, "tiny_decisions_per_second": 1 / middle if middle else None}
    for name in ("act", "pi0", "pi05"):
        if name in found and found[name].flops is not None:
            figures[f"lerobot_{name}_tflop"] = found[name].flops / 1e12
    return {name: value if value is None else float(f"{value:.5g}") for name, value in figures.items()}
