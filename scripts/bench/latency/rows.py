"""Results of `saccade bench latency`: a row for each policy, the printed table, the metrics, and the plot."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..metrics import Metrics

PARTS = ("towers", "fusion", "trunk", "expert", "other")
"""Parts of a policy, in the order of the plot."""


@dataclass
class LatencyRow:
    """The result of one contestant; None for what was not measured.

    Attributes:
        name: Name of the policy.
        steps: Steps of the chunk that a decision returns.
        parameters: Number of parameters.
        flops: FLOPs of a decision.
        parts: FLOPs of a decision by part of the policy.
        instruct_flops: FLOPs of encoding an instruction, once.
        peak_bytes: Peak memory of inference.
        stored_bytes: Bytes of the weights as built.
        synchronisations: How often the host waits for the device in a decision.
        seconds: Time of each timed decision.
        remark: Why something was not measured.
    """

    name: str
    steps: int
    parameters: int | None = None
    flops: int | None = None
    parts: dict[str, int] = field(default_factory=dict)
    instruct_flops: int = 0
    peak_bytes: int | None = None
    stored_bytes: int = 0
    synchronisations: int | None = None
    seconds: list[float] = field(default_factory=list)
    remark: str = ""

    def percentile(self, fraction: float) -> float | None:
        """Return a percentile of the seconds, None if no decision was timed; `fraction`: from 0 to 1."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] if ordered else None


def table(rows: list[LatencyRow]) -> list[str]:
    """Return the rows as lines of an aligned table."""
    headings = [
        "policy",
        "parameters",
        "weights",
        "decision",
        "per step",
        "instruction",
        "syncs",
        "p50",
        "p99",
        "rate",
        "",
    ]
    cells = [headings]
    for row in rows:
        median_seconds, p99_seconds = row.percentile(0.5), row.percentile(0.99)
        cells.append(
            [
                row.name,
                _format_value(row.parameters, 1e6, "M"),
                _format_value(row.parameters and 2 * row.parameters, 2**30, "GiB", 2),
                _format_value(row.flops, 1e9, "GFLOP"),
                _format_value(row.flops and row.flops / row.steps, 1e9, "GFLOP", 2),
                _format_value(row.instruct_flops or None, 1e9, "GFLOP", 2),
                _format_value(row.synchronisations, 1, "", 0),
                _format_value(median_seconds and 1e3 * median_seconds, 1, "ms"),
                _format_value(p99_seconds and 1e3 * p99_seconds, 1, "ms"),
                _format_value(median_seconds and 1 / median_seconds, 1, "/s"),
                row.remark,
            ]
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(headings))]

    def aligned(line: list[str]) -> str:
        first, *numbers, last = line
        shown = [
            first.ljust(widths[0]),
            *(text.rjust(width) for text, width in zip(numbers, widths[1:-1], strict=True)),
        ]
        return "  ".join([*shown, last]).rstrip()

    return [aligned(line) for line in cells]


def _format_value(value: float | None, unit: float, name: str, decimals: int = 1) -> str:
    return "-" if value is None else f"{value / unit:.{decimals}f} {name}".rstrip()


def collect_metrics(rows: list[LatencyRow], device: str) -> Metrics:
    """Return all metrics.

    Args:
        rows: The contestants.
        device: "cpu" or "cuda"; on a CPU the times of presets with pretrained towers are None.
    """
    by_name = {row.name: row for row in rows}
    metrics: dict[str, float | None] = {
        # Not measured here: the test of the importer compares with the released weights.
        "parity_max_relative_error": None,
        "host_syncs_per_forward": max((row.synchronisations or 0 for row in rows), default=None),
    }
    for preset in ("large", "small"):
        row, dense_row = by_name.get(preset), by_name.get(f"dense {preset}")
        if row is None or dense_row is None:
            continue
        timed = device == "cuda" and row.seconds and dense_row.seconds
        timed_row, timed_dense_row = (row, dense_row) if timed else (None, None)
        median_seconds = timed_row.percentile(0.5) if timed_row else None
        p99_seconds = timed_row.percentile(0.99) if timed_row else None
        dense_seconds = timed_dense_row.percentile(0.5) if timed_dense_row else None
        dense_prefix = "" if preset == "large" else "small_"
        metrics |= {
            f"{preset}_speedup_over_dense": _ratio(dense_seconds, median_seconds),
            f"{preset}_p50_ms": _ratio(median_seconds, 1e-3),
            f"{preset}_p99_ms": _ratio(p99_seconds, 1e-3),
            f"{preset}_tflop": _ratio(row.flops, 1e12),
            f"{preset}_instruction_tflop": row.instruct_flops / 1e12,
            f"{preset}_parameters_billion": _ratio(row.parameters, 1e9),
            f"{preset}_inference_peak_gib": _ratio(row.peak_bytes, 2**30),
            f"{preset}_flop_ratio": _ratio(dense_row.flops, row.flops),
            f"{dense_prefix}dense_tflop": _ratio(dense_row.flops, 1e12),
            f"{dense_prefix}dense_parameters_billion": _ratio(dense_row.parameters, 1e9),
        }
        metrics |= {f"{preset}_{part}_tflop": count / 1e12 for part, count in row.parts.items() if part != "other"}
    if "tiny" in by_name:
        median_seconds = by_name["tiny"].percentile(0.5)
        metrics |= {
            "tiny_gflop": _ratio(by_name["tiny"].flops, 1e9),
            "tiny_decisions_per_second": _ratio(1.0, median_seconds),
        }
    for name in ("act", "pi0", "pi05"):
        if name in by_name and by_name[name].flops is not None:
            metrics[f"lerobot_{name}_tflop"] = _ratio(by_name[name].flops, 1e12)
    return {name: value if value is None else float(f"{value:.5g}") for name, value in metrics.items()}


def _ratio(value: float | None, unit: float | None) -> float | None:
    """Return value / unit, None if either was not measured."""
    return None if value is None or not unit else value / unit


def plot_parts(path: Path, rows: list[LatencyRow]) -> None:
    """Plot the FLOPs of a decision by part: a bar for each of our policies and its dense baseline.

    Args:
        path: The image file to write.
        rows: The contestants; those without parts are left out.
    """
    from matplotlib.figure import Figure

    shown = [(row, row.flops) for row in rows if row.parts and row.flops is not None]
    # Small policies would be invisible beside large ones.
    shown = [(row, flops) for row, flops in shown if flops >= 1e11] or shown
    names = [row.name for row, _ in shown]
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(shown)), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(shown)
    for part in PARTS:
        widths = [row.parts.get(part, 0) / 1e12 for row, _ in shown]
        if max(widths, default=0) > 0.005 * max(flops / 1e12 for _, flops in shown):
            axes.barh(names, widths, left=left, label=part)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    for number, total in enumerate(left):
        axes.annotate(f"{total:.3g}", (total, number), xytext=(4, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("cost of a decision (TFLOP)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
