"""The report page of `saccade bench kernels` in Markdown: what was measured and how."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..metrics import Metrics
from .checks import gate_table
from .rows import TIMED_PARTS, KernelRow, group_by_case
from .shapes import FAMILIES


def render_page(
    rows: list[KernelRow], metrics: Metrics, notes: list[str], checks: dict[str, Any], plots: list[str], *, on_gpu: bool
) -> str:
    """Return the page in Markdown.

    Args:
        rows: The contestants of all cases.
        metrics: The metrics of the run.
        notes: How the times were taken, and results of the checks.
        checks: Results of the checks by name, as in kernels.json.
        plots: File names of the plots, relative to the page.
        on_gpu: Whether times are from a GPU; they are then given in us, else in ms.
    """
    lines = ["# Kernels", "", *(f"- {note}" for note in notes), "", "## Metrics", "", "| metric | value |", "|---|---|"]
    lines += [f"| {name} | {'not measured' if value is None else value} |" for name, value in metrics.items()]
    for plot in plots:
        lines += ["", f"![{plot.removesuffix('.png')}]({plot})"]
    for family, description in FAMILIES.items():
        family_rows = [row for row in rows if row.shape.family == family]
        if family_rows:
            lines += [
                "",
                f"## {family}",
                "",
                description[0].upper() + description[1:] + ".",
                *_tables(family_rows, on_gpu=on_gpu),
            ]
    if checks.get("plans"):
        lines += [
            "",
            "## Plans at full size",
            "",
            "The plan of one attention pattern. All layers with this pattern share it.",
            "",
        ]
        lines += ["| case | tiles visited | plan, MiB | dense mask, MiB |", "|---|---:|---:|---:|"]
        for each in checks["plans"]:
            sizes = (f"{each[part] / 2**20:.3g}" for part in ("plan_bytes", "mask_bytes"))
            lines.append(f"| {each['case']} | {100 * each['tile_density']:.1f} % | {' | '.join(sizes)} |")
    if checks.get("errors"):
        lines += ["", "## Errors in float32", "", "Relative to the largest element of the float64 reference.", ""]
        lines += ["| mode | case | outputs | gradients |", "|---|---|---:|---:|"]
        for mode, errors_of_mode in checks["errors"].items():
            for each in errors_of_mode:
                cells = ("" if each[part] is None else f"{each[part]:.1e}" for part in ("forward", "backward"))
                lines.append(f"| {mode} | {each['case']} | {' | '.join(cells)} |")
    if checks.get("gate"):
        lines += ["", "## Registers and shared memory on sm_90", "", *gate_table(checks["gate"])]
    return "\n".join(lines) + "\n"


def _tables(rows: list[KernelRow], *, on_gpu: bool) -> Iterator[str]:
    unit, scale = ("us", 1e6) if on_gpu else ("ms", 1e3)
    for shape, group in group_by_case(rows):
        yield ""
        yield f"### {shape.title}"
        yield ""
        if group[0].sparsity:
            yield f"Visible: {group[0].sparsity}."
            yield ""
        times = " | ".join(f"{kind}, {unit}" for kind in TIMED_PARTS)
        yield f"| contestant | {times} | TFLOP/s | GB/s | of roofline | errors | |"
        yield "|---|" + "---:|" * (len(TIMED_PARTS) + 4) + "---|"
        for row in group:
            forward = row.seconds.get("forward")
            cells = [f"{scale * row.seconds[kind]:.4g}" if kind in row.seconds else "" for kind in TIMED_PARTS]
            cells += [
                f"{row.useful / forward / 1e12:.4g}" if forward and row.useful else "",
                f"{row.moved / forward / 1e9:.4g}" if forward else "",
                f"{100 * row.roofline_seconds / row.total_seconds:.3g} %"
                if row.total_seconds and row.roofline_seconds
                else "",
                ", ".join(f"{each:.1e}" for each in (row.forward_error, row.backward_error) if each is not None),
            ]
            remark = row.remark if row.seconds or not row.remark else f"not available: {row.remark}"
            remarks = "; ".join(part for part in (row.wrong and f"**wrong**: {row.wrong}", remark, row.backend) if part)
            yield f"| {row.contestant} | {' | '.join(cells)} | {remarks} |"
