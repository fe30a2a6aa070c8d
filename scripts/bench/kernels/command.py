"""`saccade bench kernels`: compare our kernels with what a torch user would call.

A contestant is timed only after it agrees with a float64 reference. Without a GPU, metrics that need one are null.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import InputError, WorldError, unknown_name
from ....ranges import require_at_least
from ..device import find_device
from ..metrics import Metrics, collect_run_metadata, command_line, write_metrics
from .checks import CHECKS, run_check
from .rows import KernelRow, Roofline, collect_metrics, table
from .shapes import FAMILIES, Shape, shapes

if TYPE_CHECKING:
    import torch

    from .problem import PreparedContestant, Problem
    from .timing import KernelTimer

DEVICES, SIZES = ("auto", "cpu", "cuda"), ("auto", "small", "full")
REPEATS = {"cuda": 50, "cpu": 7}
H200_TFLOPS = 790.0
"""TFLOP/s that an H200 reaches in dense bfloat16 matrix products."""

COMMAND = "bench kernels"
UNCAPTURED = "timed without a CUDA graph, because it cannot be captured"


@dataclass(frozen=True)
class KernelBenchConfig:
    """Measure our kernels, PyTorch's attention, FlexAttention and public code, forward and backward.

    On a GPU times are medians of CUDA graph replays in bfloat16, with the L2 cache flushed before each. Without a GPU,
    small cases run through the torch path in float32, and a time is the CPU time of the fastest run. It shows that
    everything works and how the contestants compare on a CPU; it is not written to the metrics. The time of our kernels
    includes the plan where it depends on the input; the masks of the others are built before and are not timed. An
    implementation that disagrees with the float64 reference is not timed, and the exit code is 3.
    """

    families: tuple[str, ...] = tuple(FAMILIES)
    """Families to measure: trunk, prefix, ragged, history, cross, bias, plan, linear, gather."""
    checks: tuple[str, ...] = tuple(CHECKS)
    """Checks to run: plans (seconds), errors (half a minute), suite and gate (one or several minutes each)."""
    sizes: str = "auto"
    """Problem sizes. full: of real policies, for a GPU; small: for any machine; auto: full on a GPU, else small."""
    device: str = "auto"
    """Device: cuda, cpu, or auto (a GPU if there is one)."""
    repeats: int | None = None
    """Timed runs of each implementation. Default: 50 on a GPU, 7 on a CPU."""
    compiled: bool = True
    """Also measure FlexAttention and other compiled code, on a GPU; --no-compiled saves the time of compilation."""
    public_code: str | None = None
    """Folder with clones of public code (flash-sparse-attn, VMoBA). Installed packages are found without it."""
    peak_tflops: float | None = None
    """Peak TFLOP/s for the roofline. Default: 790 (H200) on a GPU; measured with a large matrix product on a CPU."""
    bandwidth: float | None = None
    """Memory bandwidth for the roofline in TB/s (H200: 4.3). Default: measured with a large copy."""
    out: Path | None = None
    """Folder for the report: kernels.json with every row, README.md, plots."""
    figures: Path | None = None
    """JSON file for the metrics."""

    def __post_init__(self) -> None:
        _require_names("families", self.families, FAMILIES)
        _require_names("checks", self.checks, CHECKS)
        if not self.families and not self.checks:
            raise InputError("families", got="none", expected="something to do", fix="Set --families or --checks.")
        if self.sizes not in SIZES:
            raise unknown_name("sizes", self.sizes, SIZES)
        if self.device not in DEVICES:
            raise unknown_name("device", self.device, DEVICES)
        require_at_least(self, 1, "repeats", option=True)
        for name in ("peak_tflops", "bandwidth"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                option = f"--{name.replace('_', '-')}"
                raise InputError(name, got=value, expected="above 0", fix=f"Set {option} above 0, or omit it.")
        if self.public_code is not None and not Path(self.public_code).is_dir():
            fix = "Set --public-code to a folder with clones of public code, or omit it."
            raise InputError("public_code", got=self.public_code, expected="an existing folder", fix=fix)
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise InputError(
                "out", got=f"{self.out}, a file", expected="a folder", fix="Set --out to a new or existing folder."
            )


@dataclass
class KernelReport:
    """All results of a run.

    Attributes:
        rows: The contestants of all cases.
        metrics: The metrics.
        notes: Lines to print: how times were taken, and results of the checks.
        checks: Results of the checks by name.
        wrong: Errors that make the command fail at the end.
    """

    rows: list[KernelRow] = field(default_factory=list)
    metrics: Metrics = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    checks: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def run_kernel_bench(config: KernelBenchConfig) -> int:
    """Measure, print, and write the report and the metrics if asked for.

    Args:
        config: The options.

    Returns:
        The exit code, 0.

    Raises:
        InputError: The device is not available.
        WorldError: A contestant is wrong or a check fails; everything has been written by then.
    """
    device = find_device(config.device)
    report = bench_kernels(config, device)
    if report.rows:
        print("\n".join(table(report.rows, on_gpu=device == "cuda")), end="\n\n")
    print("\n".join(report.notes))
    command = command_line(COMMAND, config)
    if config.out is not None:
        write_report(config.out, report, device, command)
        print(f"Report: {config.out / 'README.md'}")
    if config.figures is not None:
        write_metrics(config.figures, report.metrics, command)
        print(f"Metrics: {config.figures}")
    if report.wrong:
        more = f" (and {len(report.wrong) - 1} more)" if len(report.wrong) > 1 else ""
        raise WorldError(f"{report.wrong[0]}{more}: no speed is given for what is wrong")
    return 0


def bench_kernels(config: KernelBenchConfig, device: str) -> KernelReport:
    """Measure the cases and run the checks.

    Args:
        config: The options.
        device: "cpu" or "cuda".

    Returns:
        The results; wrong contestants are included without times.
    """
    from tqdm import tqdm

    from .timing import KernelTimer

    size = config.sizes if config.sizes != "auto" else "full" if device == "cuda" else "small"
    timer = KernelTimer(device, config.repeats or REPEATS[device])
    roofline = find_roofline(config, timer)
    report, check_metrics = KernelReport(), {}
    cases = [shape for shape in shapes(size) if shape.family in config.families]
    with tqdm(total=len(cases) + len(config.checks), desc="measuring", unit="case") as bar:
        for shape in cases:
            bar.set_postfix_str(shape.title)
            report.rows += measure_case(shape, config, timer, roofline)
            bar.update()
        for name in config.checks:
            bar.set_postfix_str(CHECKS[name])
            checked = run_check(name, on_gpu=device == "cuda")
            check_metrics.update(checked.metrics)
            report.checks[name] = checked.content
            report.notes += checked.lines
            report.wrong += [checked.wrong] if checked.wrong else []
            bar.update()
    wrong = [f"{row.contestant} in {row.shape.title}: {row.wrong}" for row in report.rows if row.wrong]
    report.wrong = wrong + report.wrong
    report.metrics = collect_metrics(
        report.rows, roofline.bytes, check_metrics, timed=device == "cuda" and size == "full"
    )
    report.notes = describe_timing(config, device, size, roofline, timer.repeats) + report.notes
    return report


def find_roofline(config: KernelBenchConfig, timer: KernelTimer) -> Roofline:
    """Return the limits of the device: from the options, of an H200, or measured."""
    flops = 1e12 * (config.peak_tflops or H200_TFLOPS)
    if config.peak_tflops is None and timer.device == "cpu":
        flops = timer.measure_peak_flops()
    return Roofline(flops, 1e12 * config.bandwidth if config.bandwidth else timer.bandwidth())


def describe_timing(config: KernelBenchConfig, device: str, size: str, roofline: Roofline, repeats: int) -> list[str]:
    """Return the notes that say how times were taken."""
    import torch

    from ....sim.fingerprint import processor_name

    limits = f"roofline: {roofline.flops / 1e12:.3g} TFLOP/s, {roofline.bytes / 1e12:.3g} TB/s, "
    limits += "over the 64 x 64 tiles needed"
    rules = "our times include the plan unless it is kept; masks of the others are built before and not timed; x ours: "
    rules += "time relative to the first line"
    if device == "cuda":
        kind = f"{torch.cuda.get_device_name()}, bfloat16, {size} sizes, medians of {repeats} CUDA graph replays"
        return [f"times: {kind}, cold L2 cache; * {UNCAPTURED}", limits, rules]
    kind = f"{processor_name()}, {torch.get_num_threads()} threads, float32, {size} sizes"
    times = f"times: CPU torch path, not the Triton kernels; {kind}, CPU time of the fastest of {repeats} runs"
    return [times, limits, rules]


def measure_case(shape: Shape, config: KernelBenchConfig, timer: KernelTimer, roofline: Roofline) -> list[KernelRow]:
    """Measure all contestants of a case."""
    import torch

    from .families import make_problem

    dtype = torch.bfloat16 if timer.device == "cuda" else torch.float32
    problem = make_problem(shape, timer.device, dtype, config.public_code, compiled=config.compiled)
    rows = [measure(name, build, problem, timer, roofline, dtype) for name, build in problem.contestants.items()]
    if timer.device == "cuda":
        torch.cuda.empty_cache()
    return rows


def measure(
    name: str,
    build: Callable[[], PreparedContestant],
    problem: Problem,
    timer: KernelTimer,
    roofline: Roofline,
    dtype: torch.dtype,
) -> KernelRow:
    """Check one contestant and time it if it is correct.

    Args:
        name: Name of the contestant.
        build: Prepares it.
        problem: The case.
        timer: Measures times on the device.
        roofline: Limits of the device.
        dtype: Type of the inputs.

    Returns:
        Its row. An error of ours is in `wrong`, an error of another project in `remark`.
    """
    from ..device import short_error
    from .correctness import check_correctness
    from .problem import Unavailable
    from .timing import sdpa_backend

    minimum_cost = problem.minimum_cost
    floor = tuple(
        roofline.min_seconds(flops, moved) for flops, moved in zip(minimum_cost.flops, minimum_cost.bytes, strict=True)
    )
    row = KernelRow(
        problem.shape,
        name,
        minimum_cost.density,
        minimum_cost.tile_density,
        minimum_cost.useful,
        minimum_cost.bytes[0],
        (floor[0], floor[1]),
    )
    try:
        entry = build()
        result = check_correctness(entry, problem, dtype)
        row.forward_error, row.backward_error, row.wrong = result.forward, result.backward, result.wrong
        if name.startswith("SDPA"):
            row.backend = sdpa_backend(entry.call)
        if not row.wrong:
            row.seconds = timer.measure(entry)
            row.remark = "" if timer.captured else UNCAPTURED
    except Unavailable as reason:
        row.remark = str(reason)
    # Other projects may fail with any error, e.g. out of memory or a missing build: the table shows it. Ours must not.
    except Exception as error:
        reason = short_error(error)
        if name.startswith("ours"):
            return replace(row, seconds={}, wrong=f"fails: {reason}")
        return replace(row, remark=reason)
    return row


def write_report(folder: Path, report: KernelReport, device: str, command: str) -> None:
    """Write kernels.json, README.md and the plots.

    Args:
        folder: The folder, created if needed.
        report: The results.
        device: "cpu" or "cuda".
        command: The command line that measured them.
    """
    from ....sim.json_files import write_json, write_text
    from .page import render_page
    from .plots import plot_sweep

    folder.mkdir(parents=True, exist_ok=True)
    where = "GPU, bfloat16" if device == "cuda" else "CPU torch path, float32, not the Triton kernels"
    plots = [f"time_over_{sweep}.png" for sweep in ("length", "density")]
    plot_files = [
        plot
        for plot, sweep in zip(plots, ("length", "density"), strict=True)
        if plot_sweep(folder / plot, report.rows, sweep, where)
    ]
    content = {
        "notes": report.notes,
        "figures": dict(report.metrics),
        "rows": [row.to_json() for row in report.rows],
        "checks": report.checks,
        "wrong": report.wrong,
        **collect_run_metadata(command),
    }
    write_json(folder / "kernels.json", content)
    page = render_page(report.rows, report.metrics, report.notes, report.checks, plot_files, on_gpu=device == "cuda")
    write_text(folder / "README.md", page)


def _require_names(option: str, names: tuple[str, ...], known: dict[str, str]) -> None:
    for name in names:
        if name not in known:
            raise unknown_name(option, name, known)
