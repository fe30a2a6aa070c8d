"""From the goal of a problem file to a sequence of skills."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ....errors import InputError

Kind = Literal["open", "turn_on", "place", "close"]

ORDER: tuple[Kind, ...] = ("open", "turn_on", "place", "close")
"""What must come first: a drawer is open before something goes in, and closed after."""


@dataclass(frozen=True)
class PlanStep:
    """One skill: do `kind` with `target_name`, at `receptacle` if that is where something goes.

    `goal` is the predicate of the problem that holds when it is done; empty for a step that only makes way, like
    opening the drawer that something is to be put in. It is the `number`-th of `count` things that go to one place.
    """

    kind: Kind
    target_name: str
    receptacle: str = ""
    goal: tuple[str, ...] = ()
    number: int = 0
    count: int = 1


def plan(goals: tuple[tuple[str, ...], ...], *, drawers: tuple[str, ...] = ()) -> tuple[PlanStep, ...]:
    """Return the steps that make all predicates of a goal hold.

    `drawers` names the regions that move with a joint. Raises InputError for a predicate that no skill brings about.
    """
    steps: list[PlanStep] = []
    shared: dict[str, list[tuple[str, ...]]] = {}
    for goal in goals:
        shared.setdefault(goal[-1], []).append(goal)
    for goal in goals:
        match goal:
            case ("in" | "on", object_name, receptacle):
                if receptacle in drawers and not any(
                    step.kind == "open" and step.target_name == receptacle for step in steps
                ):
                    steps.append(PlanStep("open", receptacle))
                steps.append(
                    PlanStep(
                        "place", object_name, receptacle, goal, shared[receptacle].index(goal), len(shared[receptacle])
                    )
                )
            case ("open", object_name):
                steps.append(PlanStep("open", object_name, goal=goal))
            case ("close", object_name):
                steps.append(PlanStep("close", object_name, goal=goal))
            case ("turnon", object_name):
                steps.append(PlanStep("turn_on", object_name, goal=goal))
            case _:
                raise InputError(
                    "goal",
                    got=" ".join(goal),
                    expected="in, on, open, close or turnon",
                    fix="The demonstrator has no skill for others.",
                )
    return tuple(sorted(steps, key=lambda step: ORDER.index(step.kind)))
