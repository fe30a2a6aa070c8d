"""The contract: the conventions and statistics of a policy, checked against every environment and robot.

It needs the standard library and numpy only: an environment or a robot reads a contract without torch.
"""

from .contract import NORMALIZATION_METHODS, Contract, Normalization
from .mismatch import ContractMismatch, Difference
from .offer import (
    ACTION_FRAMES,
    ACTION_KINDS,
    QUARTER_TURNS,
    ROTATIONS,
    UNITS,
    ActionSpec,
    CameraSpec,
    GripperSpec,
    Offer,
    StateSpec,
    VectorSpec,
)
from .specification import Specification

__all__ = [
    "ACTION_FRAMES",
    "ACTION_KINDS",
    "NORMALIZATION_METHODS",
    "QUARTER_TURNS",
    "ROTATIONS",
    "UNITS",
    "ActionSpec",
    "CameraSpec",
    "Contract",
    "ContractMismatch",
    "Difference",
    "GripperSpec",
    "Normalization",
    "Offer",
    "Specification",
    "StateSpec",
    "VectorSpec",
]
