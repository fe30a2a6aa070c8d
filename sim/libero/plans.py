"""From the goal of a problem file to a sequence of skills."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import InputError

Kind = Literal["open", "turn_on", "place", "push", "close"]

ORDER: tuple[Kind, ...] = ("open", "turn_on", "place", "push", "close")
"""What must come first: a drawer is open before something goes in, and closed after."""

PUSHED = ("plate",)
"""Kinds of objects that are pushed and not lifted when they only go elsewhere on the table."""


@dataclass(frozen=True)
class Step:
    """One skill: do `kind` with `subject`, at `place` if that is where something goes.

    `goal` is the predicate of the problem that holds when it is done; None for a step that only makes way, like opening
    the drawer that something is to be put in.
    """

    kind: Kind
    subject: str
    place: str | None = None
    goal: tuple[str, ...] | None = None


def plan(
    goals: tuple[tuple[str, ...], ...], *, drawers: tuple[str, ...] = (), tables: tuple[str, ...] = ()
) -> tuple[Step, ...]:
    """Return the steps that make all predicates of a goal hold.

    `drawers` names the regions that move with a joint, `tables` those of a table's top. Raises InputError for a predicate
    that no skill brings about.
    """
    steps: list[Step] = []
    for goal in goals:
        match goal:
            case ("in" | "on", thing, place):
                if place in drawers and not any(step.kind == "open" and step.subject == place for step in steps):
                    steps.append(Step("open", place))
                pushed = place in tables and thing.rsplit("_", 1)[0] in PUSHED
                steps.append(Step("push" if pushed else "place", thing, place, goal))
            case ("open", thing):
                steps.append(Step("open", thing, goal=goal))
            case ("close", thing):
                steps.append(Step("close", thing, goal=goal))
            case ("turnon", thing):
                steps.append(Step("turn_on", thing, goal=goal))
            case _:
                raise InputError(
                    "goal",
                    got=" ".join(goal),
                    expected="in, on, open, close or turnon",
                    fix="The demonstrator has no skill for others.",
                )
    return tuple(sorted(steps, key=lambda step: ORDER.index(step.kind)))
