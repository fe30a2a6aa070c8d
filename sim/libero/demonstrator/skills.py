"""The skills of the demonstrator, one for each kind of plan step."""

from __future__ import annotations

from typing import Protocol

from .fixtures import CloseDoorSkill, CloseDrawerSkill, OpenDrawerSkill, TurnKnobSkill
from .motion import HandTarget
from .placing import PickAndPlaceSkill
from .plans import PlanStep
from .privileged_state import PrivilegedState


class DemonstratorSkill(Protocol):
    """A skill that carries out one plan step.

    A skill decides from the present state and not from a clock, so it recovers from slips and pushes.
    """

    def is_satisfied(self) -> bool:
        """Tell whether the step's goal holds now."""
        ...

    def is_finished(self) -> bool:
        """Tell whether the step is done and the hand is free for the next one."""
        ...

    def next_hand_target(self) -> HandTarget:
        """Return where the hand should go now."""
        ...


def make_skill(state: PrivilegedState, step: PlanStep, home_yaw: float) -> DemonstratorSkill:
    """Return the skill for a plan step; `home_yaw` is the hand's yaw at rest, in radians."""
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
