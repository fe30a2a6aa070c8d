"""The fault table of `docs/arm.md`, from the outcomes of `saccade bench arm`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HEADER = "| fault | injected | required | observed | found ms | software ms | device ms |"
RULE = "|---|---|---|---|---:|---:|---:|"


def fault_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a Markdown table: a line for each row of the catalogue, with its variants below."""
    lines = [HEADER, RULE]
    for row in dict.fromkeys(each["row"] for each in rows):
        lines.append(f"| **{row}** | | | | | | |")
        lines += [_line(each) for each in rows if each["row"] == row]
    return lines


def sort_rows(rows: Sequence[dict[str, Any]], order: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows in the catalogue's order."""
    return sorted(rows, key=lambda each: order.index(each["row"]))


def _line(row: dict[str, Any]) -> str:
    # Counts of refused chunks and messages follow a semicolon; they differ between runs.
    observed = row["observed"].split("; ")[0]
    observed = "refused" if observed.startswith("refused: /") else observed
    if row["problems"]:
        observed = f"**not passed**: {'; '.join(row['problems'])}"
    times = [row[name] for name in ("detection_ms", "software_ms", "device_ms")]
    shown = ["" if each is None else f"{each:.0f}" for each in times]
    return f"| {row['name']} | {row['injected']} | {row['required']} | {observed} | {' | '.join(shown)} |"
