"""What `saccade bench latency` found out, as rows: a table for people, figures for the JSON, a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..metrics import Metrics

PARTS = ("towers", "fusion", "trunk", "expert", "other")


@dataclass
class LatencyRow:
    """What was found out about one contestant; None stands for what was not.

    `flops`: of a decision; `parts`: of them, by part of the policy; `instruct_flops`: once for an instruction;
    `stored_bytes`: of the weights as they are built; `seconds`: of each timed decision; `remark`: why something is
    missing.
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
        """Return the time in seconds below which a share of the decisions stayed, None where none was timed."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] if ordered else None


def table(rows: list[LatencyRow]) -> list[str]:
    """Return the rows as aligned text."""
    headings = [
        "policy",
        "parameters",
        "weights",
        "decision",
        "per step",
        "instruction",
        "waits",
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
    """Return the figures of all rows; those of a GPU are null without one."""
    found = {row.name: row for row in rows}
    metrics: dict[str, float | None] = {
        # The importer's own test compares with the released weights.
        "parity_max_relative_error": None,
        "host_syncs_per_forward": max((row.synchronisations or 0 for row in rows), default=None),
    }
    for preset in ("large", "small"):
        row, dense_row = found.get(preset), found.get(f"dense {preset}")
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
    if "tiny" in found:
        median_seconds = found["tiny"].percentile(0.5)
        metrics |= {
            "tiny_gflop": _ratio(found["tiny"].flops, 1e9),
            "tiny_decisions_per_second": _ratio(1.0, median_seconds),
        }
    for name in ("act", "pi0", "pi05"):
        if name in found and found[name].flops is not None:
            metrics[f"lerobot_{name}_tflop"] = _ratio(found[name].flops, 1e12)
    return {name: value if value is None else float(f"{value:.5g}") for name, value in metrics.items()}


def _ratio(value: float | None, unit: float | None) -> float | None:
    """Return value / unit, None if either was not measured."""
    return None if value is None or not unit else value / unit


def plot_parts(path: Path, rows: list[LatencyRow]) -> None:
    """Draw the operations of a decision, a bar for each of our policies and its dense opponent, part by part."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.parts and row.flops >= 1e11] or [row for row in rows if row.parts]
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(shown)), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(shown)
    for part in PARTS:
        widths = [row.parts.get(part, 0) / 1e12 for row in shown]
        if max(widths, default=0) > 0.005 * max(row.flops / 1e12 for row in shown):
            axes.barh([row.name for row in shown], widths, left=left, label=part)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    for number, total in enumerate(left):
        axes.annotate(f"{total:.3g}", (total, number), xytext=(4, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("operations of a decision (TFLOP)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
