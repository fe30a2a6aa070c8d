"""What the demonstrator can do: each skill tells whether it is done and where the hand should go now."""

from __future__ import annotations

from typing import Protocol

from .fixtures import Pull, Shut, ShutDoor, TurnKnob
from .motion import Motion
from .placing import Place
from .plans import Step
from .truth import Truth


class Skill(Protocol):
    """One step of a plan, under way.

    `done` tells whether it is finished and the hand free for the next one, `holds` whether what it brought about still
    is so.
    """

    def holds(self) -> bool: ...

    def done(self) -> bool: ...

    def act(self) -> Motion: ...


def start(truth: Truth, step: Step, home: float) -> Skill:
    """Return the skill that does a step of a plan; `home` is the hand's yaw at rest, in radians."""
    match step.kind:
        case "place":
            return Place(truth, step, home)
        case "open":
            return Pull(truth, step)
        case "turn_on":
            return TurnKnob(truth, step, home)
        case "close":
            return Shut(truth, step) if truth.is_region(step.subject) else ShutDoor(truth, step, home)
