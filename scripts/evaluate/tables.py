"""Print the results of an evaluation as tables."""

from __future__ import annotations

from typing import Any


def results_table(results: dict[str, Any]) -> str:
    """Return the content of `results.json` as text: a row per task and one for all, then perturbations and swaps."""
    from ...sim.evaluation.robustness import robustness_table, swap_table

    # Perturbed and swapped episodes have no common success rate with unchanged ones.
    parts = [task_table(results)] if results["protocol"].get("unchanged", True) else []
    if results.get("robustness"):
        parts.append(robustness_table(results["robustness"]))
    if results.get("swaps"):
        parts.append(swap_table(results["swaps"]))
    return "\n\n".join("\n".join(part) for part in parts)


def task_table(results: dict[str, Any]) -> list[str]:
    """Return the success rate of every task and of all tasks, with 95 % intervals, as lines."""
    rows = [(f"{task['suite']}/{task['task']}", task) for task in results["tasks"]] + [("all", results)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'task':<{width}}  {'success':>13}  95 % interval  episodes"]
    for name, metrics in rows:
        if metrics["rate"] is None:
            lines.append(f"{name:<{width}}  {'none could be run':>28}  {0:8d}")
            continue
        interval = f"{100 * metrics['low']:5.1f} to {100 * metrics['high']:5.1f}"
        lines.append(f"{name:<{width}}  {100 * metrics['rate']:11.1f} %  {interval:>13}  {metrics['episodes']:8d}")
    return lines
