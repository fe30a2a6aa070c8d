"""What `saccade bench kernels` found out, as rows: a table for people, figures for the JSON."""

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
"""The names of those who take part."""

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
    """What the device can do at best: operations and bytes per second."""

    flops: float
    bytes: float

    def floor(self, flops: float, moved: float) -> float:
        """Return the seconds below which nobody gets."""
        return max(flops / self.flops, moved / self.bytes)


@dataclass
class KernelRow:
    """What was found out about one contestant in one case; `seconds` is empty where it was not timed.

    `floor`: seconds by the roofline of forward and of backward, over the tiles that hold any pair; `useful`: operations
    of a forward pass; `moved`: bytes of one; `forward_error`, `backward_error`: relative to the largest number of the
    exact answer; `wrong`: in what it does not compute what it should; `remark`: why it takes no part, or what is
    unusual about how it was timed.
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
        """Return in words which share of all pairs is seen; nothing where that is no question."""
        if self.density == 1 or self.shape.family == "gather":
            return ""
        return f"{self.density:.3f} of pairs, {self.tile_density:.3f} in tiles"

    @property
    def total_seconds(self) -> float | None:
        """Return the seconds of forward and backward in one go, or of forward where there are no gradients."""
        return self.seconds.get("both", self.seconds.get("forward"))

    @property
    def roofline_seconds(self) -> float:
        """Return the floor of what `total_seconds` measures."""
        return sum(self.floor) if "both" in self.seconds else self.floor[0]

    def to_json(self) -> dict[str, Any]:
        """Return everything as what JSON can hold; an error that is no number is null."""
        content = asdict(self) | {"case": self.shape.title, "lengths": list(self.shape.lengths)}
        for name in ("forward_error", "backward_error"):
            value = content[name]
            content[name] = value if value is not None and value < float("inf") else None
        return content


def group_by_case(rows: list[KernelRow]) -> Iterator[tuple[Shape, list[KernelRow]]]:
    """Yield the rows of each case."""
    for shape, group in groupby(rows, key=lambda row: row.shape):
        yield shape, list(group)


def table(rows: list[KernelRow], on_gpu: bool) -> list[str]:
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
            if row.wrong or not row.seconds:
                lines.append(
                    f"{name:<32} {'WRONG: ' + row.wrong if row.wrong else 'not available: ' + row.remark}"[:100]
                )
                continue
            cells = [f"{scale * row.seconds[kind]:.4g}" if kind in row.seconds else "-" for kind in TIMED_PARTS]
            cells += [
                f"{row.total_seconds / own:.2f}" if own else "-",
                _format_percent(row.roofline_seconds, row.total_seconds),
            ]
            cells.append(f"{max(row.forward_error or 0.0, row.backward_error or 0.0):.0e}")
            lines.append(f"{name:<32}" + "".join(f"{cell:>9}" for cell in cells))
    return lines


def _format_percent(floor: float, seconds: float) -> str:
    return f"{100 * floor / seconds:.3g} %" if floor else "-"


def collect_metrics(rows: list[KernelRow], timed: bool, bandwidth: float, checks: Metrics) -> Metrics:
    """Return all figures; those that are times are null unless `timed`: on a GPU and at full size.

    `bandwidth`: bytes per second that the device reaches; `checks`: figures that come from elsewhere.
    """
    found: dict[str, float | int | None] = dict.fromkeys(METRIC_NAMES)
    if timed:
        found |= {
            "ragged_over_padded_sdpa": time_ratio(rows, "ragged", SDPA_MASKED, OURS, "both"),
            "ragged_over_varlen": time_ratio(rows, "ragged", VARLEN, OURS, "both"),
            "history_forward_over_cudnn": time_ratio(rows, "history", SDPA_UNMASKED, OURS, "forward"),
            "history_both_over_cudnn": time_ratio(rows, "history", SDPA_UNMASKED, OURS, "both"),
            "history_over_vmoba": time_ratio(rows, "history", VMOBA, OURS, "both"),
            "key_bias_over_sdpa": time_ratio(rows, "bias", SDPA_MASKED, OURS_GATHERED, "both"),
            "cross_attention_us": _microseconds(rows, "cross", OURS_PLAN_KEPT),
            "plan_us": _microseconds(rows, "plan", OURS),
        }
        row = headline(rows, "gather", OURS)
        if row is not None and row.seconds:
            found["gather_norm_film_bandwidth_fraction"] = row.moved / row.seconds["forward"] / bandwidth
    found |= {name: checks[name] for name in METRIC_NAMES if name in checks}
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in found.items()}


def headline(rows: list[KernelRow], family: str, contestant: str) -> KernelRow | None:
    """Return the row of a family that a target is stated for."""
    for row in rows:
        if row.shape.family == family and row.shape.headline and row.contestant == contestant:
            return row
    return None


def time_ratio(rows: list[KernelRow], family: str, other: str, own: str, kind: str) -> float | None:
    """Return how many times as long as ours another one takes, None where either was not timed."""
    sides = [headline(rows, family, name) for name in (other, own)]
    times = [None if row is None else row.seconds.get(kind) for row in sides]
    return times[0] / times[1] if times[0] and times[1] else None


def _microseconds(rows: list[KernelRow], family: str, contestant: str) -> float | None:
    row = headline(rows, family, contestant)
    return 1e6 * row.seconds["forward"] if row is not None and row.seconds else None
