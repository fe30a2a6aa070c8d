"""From the episodes of an evaluation to the same episodes disturbed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import InputError

if TYPE_CHECKING:
    from ..job import Job
    from .axes import Perturbation
    from .swap import Swap


def changed_jobs(
    jobs: Sequence[Job], perturbations: Sequence[Perturbation], swaps: Sequence[Swap], *, unchanged: bool
) -> list[Job]:
    """Return each job as it is (with `unchanged`), then under every perturbation, then with every swap.

    Task, initial state and seed stay, so that every change is seen on the same starts.
    """
    changed = []
    for job in jobs:
        changed += [job] * unchanged
        changed += [replace(job, perturbation=perturbation) for perturbation in perturbations]
        changed += [replace(job, swap=swap) for swap in swaps]
    return changed


def require_swaps(wanted: Sequence[Swap], offered: Sequence[Sequence[Swap]]) -> None:
    """Raise InputError for a swap that makes sense in none of the tasks; `offered` are the swaps of each task."""
    for swap in wanted:
        if not any(swap in swaps for swaps in offered):
            raise InputError(
                f"swap {swap}",
                got=f"{len(offered)} tasks in which it makes no sense",
                expected="a task with another object to ask for, or with one that looks different to exchange",
                fix="Leave it out, or choose other tasks: desk_object has all swaps.",
            )
