"""The page of `saccade bench kernels`: what was measured and how, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..metrics import Metrics
from .checks import gate_table
from .rows import TIMED_PARTS, KernelRow, group_by_case
from .shapes import FAMILIES


def render_page(
    rows: list[KernelRow], metrics: Metrics, notes: list[str], checks: dict[str, Any], plots: list[str], on_gpu: bool
) -> str:
    """Return the page: notes, figures, pictures, a table of every family, and what the checks found."""
    lines = ["# Kernels", "", *(f"- {note}" for note in notes), "", "## Figures", "", "| figure | value |", "|---|---|"]
    lines += [f"| {name} | {'not measured' if value is None else value} |" for name, value in metrics.items()]
    for picture in plots:
        lines += ["", f"![{picture.removesuffix('.png')}]({picture})"]
    for family, words in FAMILIES.items():
        chosen = [row for row in rows if row.shape.family == family]
        if chosen:
            lines += ["", f"## {family}", "", words[0].upper() + words[1:] + ".", *_tables(chosen, on_gpu)]
    if checks.get("plans"):
        lines += [
            "",
            "## Plans at full size",
            "",
            "Of one pattern of attention, which serves all layers that share it.",
            "",
        ]
        lines += ["| case | tiles visited | plan, MiB | mask written out, MiB |", "|---|---:|---:|---:|"]
        for each in checks["plans"]:
            sizes = (f"{each[part] / 2**20:.3g}" for part in ("plan_bytes", "mask_bytes"))
            lines.append(f"| {each['case']} | {100 * each['tile_density']:.1f} % | {' | '.join(sizes)} |")
    if checks.get("errors"):
        lines += ["", "## Errors in float32", "", "Relative to the largest number of the float64 answer.", ""]
        lines += ["| way | case | outputs | gradients |", "|---|---|---:|---:|"]
        for way, found in checks["errors"].items():
            for each in found:
                errors = ("" if each[part] is None else f"{each[part]:.1e}" for part in ("forward", "backward"))
                lines.append(f"| {way} | {each['case']} | {' | '.join(errors)} |")
    if checks.get("gate"):
        lines += ["", "## What the kernels need on sm_90", "", *gate_table(checks["gate"])]
    return "\n".join(lines) + "\n"


def _tables(rows: list[KernelRow], on_gpu: bool) -> Iterator[str]:
    unit, scale = ("us", 1e6) if on_gpu else ("ms", 1e3)
    for shape, group in group_by_case(rows):
        yield ""
        yield f"### {shape.title}"
        yield ""
        if group[0].sparsity:
            yield f"Seen: {group[0].sparsity}."
            yield ""
        times = " | ".join(f"{kind}, {unit}" for kind in TIMED_PARTS)
        yield f"| who | {times} | TFLOP/s | GB/s | of roofline | errors | |"
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
            said = "; ".join(part for part in (row.wrong and f"**wrong**: {row.wrong}", remark, row.backend) if part)
            yield f"| {row.contestant} | {' | '.join(cells)} | {said} |"
