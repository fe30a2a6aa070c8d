"""Results of `saccade bench kernels`: a row for each contestant of a case, the printed table, and the metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from ..metrics import Metrics
from .shapes import Shape

TIMED_PARTS = ("forward", "backward", "both", "plan")

OURS, OURS_PLAN_KEPT, OURS_UNSPLIT, OURS_GATHERED = (
    "ours",
    "ours, plan kept",
    "ours, keys not split",
    "ours, keys gathered",
)
OURS_BLOCKS_GIVEN, SDPA_UNMASKED, SDPA_MASKED, SDPA_TWO_CALLS = (
    "ours, blocks chosen before",
    "SDPA, no mask",
    "SDPA, mask",
    "SDPA, two calls",
)
VARLEN, FLEX, DYNAMIC_MASK_ATTENTION, VMOBA = "varlen_attn", "FlexAttention {}", "flash-sparse-attn", "VMoBA"
SDPA_CAUSAL, TORCH_EAGER, TORCH_COMPILED = "SDPA, causal", "torch, eager", "torch, compiled"
"""Names of the contestants."""

METRIC_NAMES = (
    "ragged_over_padded_sdpa",
    "ragged_over_varlen",
    "history_forward_over_cudnn",
    "history_both_over_cudnn",
    "history_over_vmoba",
    "key_bias_over_sdpa",
    "cross_attention_us",
    "plan_us",
    "gather_norm_film_bandwidth_fraction",
    "worst_forward_error_fp32",
    "worst_gradient_error_fp32",
    "interpreter_suite_seconds",
    "spilled_configurations",
)


@dataclass(frozen=True)
class Roofline:
    """The limits of the device.

    Attributes:
        flops: Peak FLOP per second.
        bytes: Memory bandwidth in bytes per second.
    """

    flops: float
    bytes: float

    def min_seconds(self, flops: float, moved: float) -> float:
        """Return the least seconds for `flops` operations and `moved` bytes."""
        return max(flops / self.flops, moved / self.bytes)


@dataclass
class KernelRow:
    """The result of one contestant in one case.

    Attributes:
        shape: The case.
        contestant: Its name.
        density: Fraction of all pairs that are visible.
        tile_density: Fraction of all pairs that lie in visited tiles.
        useful: FLOPs of the visible pairs, forward.
        moved: Bytes of a forward pass.
        floor: Least seconds of forward and of backward by the roofline, over the tiles that hold a visible pair.
        seconds: Measured seconds by part (TIMED_PARTS); empty if not timed.
        forward_error: Largest error of the outputs, relative to the largest element of the reference.
        backward_error: The same for the gradients.
        backend: Backend of torch's SDPA.
        wrong: Where it disagrees with the reference; empty if it is correct.
        remark: Why it was not measured, or what is unusual about its timing.
    """

    shape: Shape
    contestant: str
    density: float
    tile_density: float
    useful: float
    moved: float
    floor: tuple[float, float]
    seconds: dict[str, float] = field(default_factory=dict)
    forward_error: float | None = None
    backward_error: float | None = None
    backend: str = ""
    wrong: str = ""
    remark: str = ""

    @property
    def sparsity(self) -> str:
        """Visible fraction of pairs as text; empty for dense cases and for gather."""
        if self.density == 1 or self.shape.family == "gather":
            return ""
        return f"{self.density:.3f} of pairs, {self.tile_density:.3f} in tiles"

    @property
    def total_seconds(self) -> float | None:
        """Seconds of forward and backward in one go, or of forward if there are no gradients; None if not timed."""
        return self.seconds.get("both", self.seconds.get("forward"))

    @property
    def roofline_seconds(self) -> float:
        """Least seconds of `total_seconds` by the roofline."""
        return sum(self.floor) if "both" in self.seconds else self.floor[0]

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values; an infinite error becomes null."""
        content = asdict(self) | {"case": self.shape.title, "lengths": list(self.shape.lengths)}
        for name in ("forward_error", "backward_error"):
            value = content[name]
            content[name] = value if value is not None and value < float("inf") else None
        return content


def group_by_case(rows: list[KernelRow]) -> Iterator[tuple[Shape, list[KernelRow]]]:
    """Yield the rows of each case."""
    for shape, group in groupby(rows, key=lambda row: row.shape):
        yield shape, list(group)


def table(rows: list[KernelRow], *, on_gpu: bool) -> list[str]:
    """Return the rows as text of at most 100 columns, a heading for each case; times in microseconds or milliseconds.

    The last three columns: how many times as long as ours all takes, the share of the roofline's floor, the error.
    """
    unit, scale = ("us", 1e6) if on_gpu else ("ms", 1e3)
    headings = ["forward", "backward", "both", "plan", "x ours", "roof", "error"]
    lines = [f"{'times in ' + unit:<32}" + "".join(f"{head:>9}" for head in headings)]
    for shape, group in group_by_case(rows):
        lines += ["", shape.title + (f" ({group[0].sparsity})" if group[0].sparsity else "")]
        own = next(
            (row.total_seconds for row in group if row.contestant in (OURS_GATHERED, OURS) and row.total_seconds), None
        )
        for row in group:
            name = (
                f"  {row.contestant}"
                + (f" [{row.backend}]" if row.backend else "")
                + (" *" if row.seconds and row.remark else "")
            )
            total = row.total_seconds
            if row.wrong or total is None:
                lines.append(
                    f"{name:<32} {'WRONG: ' + row.wrong if row.wrong else 'not available: ' + row.remark}"[:100]
                )
                continue
            cells = [f"{scale * row.seconds[kind]:.4g}" if kind in row.seconds else "-" for kind in TIMED_PARTS]
            cells += [
                f"{total / own:.2f}" if own else "-",
                _format_percent(row.roofline_seconds, total),
            ]
            cells.append(f"{max(row.forward_error or 0.0, row.backward_error or 0.0):.0e}")
            lines.append(f"{name:<32}" + "".join(f"{cell:>9}" for cell in cells))
    return lines


def _format_percent(least: float, seconds: float) -> str:
    return f"{100 * least / seconds:.3g} %" if least else "-"


def collect_metrics(rows: list[KernelRow], bandwidth: float, checks: Metrics, *, timed: bool) -> Metrics:
    """Return all metrics.

    Args:
        rows: The contestants of all cases.
        timed: Whether times count, i.e. whether they were taken on a GPU at full size; otherwise they are None.
        bandwidth: Memory bandwidth of the device in bytes per second.
        checks: Metrics of the checks.
    """
    metrics: dict[str, float | int | None] = dict.fromkeys(METRIC_NAMES)
    if timed:
        metrics |= {
            "ragged_over_padded_sdpa": time_ratio(rows, "ragged", SDPA_MASKED, OURS, "both"),
            "ragged_over_varlen": time_ratio(rows, "ragged", VARLEN, OURS, "both"),
            "history_forward_over_cudnn": time_ratio(rows, "history", SDPA_UNMASKED, OURS, "forward"),
            "history_both_over_cudnn": time_ratio(rows, "history", SDPA_UNMASKED, OURS, "both"),
            "history_over_vmoba": time_ratio(rows, "history", VMOBA, OURS, "both"),
            "key_bias_over_sdpa": time_ratio(rows, "bias", SDPA_MASKED, OURS_GATHERED, "both"),
            "cross_attention_us": _microseconds(rows, "cross", OURS_PLAN_KEPT),
            "plan_us": _microseconds(rows, "plan", OURS),
        }
        row = headline_row(rows, "gather", OURS)
        if row is not None and row.seconds:
            metrics["gather_norm_film_bandwidth_fraction"] = row.moved / row.seconds["forward"] / bandwidth
    metrics |= {name: checks[name] for name in METRIC_NAMES if name in checks}
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in metrics.items()}


def headline_row(rows: list[KernelRow], family: str, contestant: str) -> KernelRow | None:
    """Return a contestant's row in the headline case of a family, None if there is none."""
    for row in rows:
        if row.shape.family == family and row.shape.headline and row.contestant == contestant:
            return row
    return None


def time_ratio(rows: list[KernelRow], family: str, other: str, own: str, kind: str) -> float | None:
    """Return the time of another contestant relative to ours in the headline case of a family.

    Args:
        rows: The contestants of all cases.
        family: The family.
        other: Name of the other contestant.
        own: Name of our contestant.
        kind: Timed part, one of TIMED_PARTS.

    Returns:
        The ratio; None if either was not timed.
    """
    sides = [headline_row(rows, family, name) for name in (other, own)]
    times = [None if row is None else row.seconds.get(kind) for row in sides]
    return times[0] / times[1] if times[0] and times[1] else None


def _microseconds(rows: list[KernelRow], family: str, contestant: str) -> float | None:
    row = headline_row(rows, family, contestant)
    return 1e6 * row.seconds["forward"] if row is not None and row.seconds else None
