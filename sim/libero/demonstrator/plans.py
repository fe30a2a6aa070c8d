"""Plans: the goal of a problem file as a sequence of skills."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ....errors import InputError

SkillKind = Literal["open", "turn_on", "place", "close"]

SKILL_ORDER: tuple[SkillKind, ...] = ("open", "turn_on", "place", "close")
"""Order of the steps: a drawer opens before an object goes in, and closes afterwards."""


@dataclass(frozen=True)
class PlanStep:
    """One step of a plan, done by one skill.

    Attributes:
        kind: What to do.
        target_name: The object, fixture or region to do it with.
        receptacle: The region or object that a `place` step puts the target on or into.
        goal: The predicate that holds afterwards; empty for a step that only prepares another one, such as opening the
            drawer that an object goes into.
        number: Index of this step among the `count` steps with the same receptacle.
        count: Number of objects that go to the receptacle.
    """

    kind: SkillKind
    target_name: str
    receptacle: str = ""
    goal: tuple[str, ...] = ()
    number: int = 0
    count: int = 1


def plan(goals: tuple[tuple[str, ...], ...], *, drawers: tuple[str, ...] = ()) -> tuple[PlanStep, ...]:
    """Return the steps after which all predicates of a goal hold.

    Args:
        goals: The predicates, such as ("on", "akita_black_bowl_1", "plate_1").
        drawers: Names of the regions that move with a joint.

    Raises:
        InputError: No skill achieves a predicate.
    """
    steps: list[PlanStep] = []
    goals_of_receptacle: dict[str, list[tuple[str, ...]]] = {}
    for goal in goals:
        goals_of_receptacle.setdefault(goal[-1], []).append(goal)
    for goal in goals:
        match goal:
            case ("in" | "on", object_name, receptacle):
                is_opened = any(step.kind == "open" and step.target_name == receptacle for step in steps)
                if receptacle in drawers and not is_opened:
                    steps.append(PlanStep("open", receptacle))
                siblings = goals_of_receptacle[receptacle]
                steps.append(PlanStep("place", object_name, receptacle, goal, siblings.index(goal), len(siblings)))
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
                    fix="Choose another task: the demonstrator cannot solve this one.",
                )
    return tuple(sorted(steps, key=lambda step: SKILL_ORDER.index(step.kind)))
