"""The contract: the conventions and statistics that a policy was trained under, checked against every world and arm.

The standard library and numpy are all that it needs: a world or a robot reads a contract on a machine without torch.
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
