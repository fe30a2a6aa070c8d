"""What the demonstrator can do: each skill tells whether it is done and where the hand should go now."""

from __future__ import annotations

from typing import Protocol

from .fixtures import CloseDoorSkill, CloseDrawerSkill, OpenDrawerSkill, TurnKnobSkill
from .motion import HandTarget
from .placing import PickAndPlaceSkill
from .plans import PlanStep
from .privileged_state import PrivilegedState


class DemonstratorSkill(Protocol):
    """One step of a plan, under way.

    `is_finished` tells whether it is finished and the hand free for the next one, `is_satisfied` whether what it brought about still
    is so.
    """

    def is_satisfied(self) -> bool: ...

    def is_finished(self) -> bool: ...

    def next_hand_target(self) -> HandTarget: ...


def make_skill(state: PrivilegedState, step: PlanStep, home_yaw: float) -> DemonstratorSkill:
    """Return the skill that does a step of a plan; `home_yaw` is the hand's yaw at rest, in radians."""
    match step.kind:
        case "place":
            return PickAndPlaceSkill(state, step, home_yaw)
        case "open":
            return OpenDrawerSkill(state, step)
        case "turn_on":
            return TurnKnobSkill(state, step, home_yaw)
        case "close":
            return (
                CloseDrawerSkill(state, step)
                if state.is_region(step.target_name)
                else CloseDoorSkill(state, step, home_yaw)
            )
