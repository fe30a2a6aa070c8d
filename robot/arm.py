"""The interface of an arm, and how an arm describes itself before anything moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import WorldError
from ..policy.contract import ActionSpec, CameraSpec, Contract, GripperSpec, Offer, Specification, StateSpec
from .limits import JointRange


class BusError(WorldError):
    """The arm's bus gave no whole answer within its tries."""


@dataclass(frozen=True)
class ArmDescription(Specification):
    """An arm as it was when it was connected: its name, and its joints in the driver's order."""

    name: str
    joints: tuple[JointRange, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(joint.name for joint in self.joints)


class Arm(Protocol):
    """An arm as the control process drives it; poses are float64 [A] in the units and the order of its description.

    Every call but `connect` and `close` ends within 50 ms or raises BusError.

    Attributes:
        retries: Number of reads that succeeded only at a later try.
    """

    retries: int

    def connect(self) -> ArmDescription:
        """Open the arm and check it, with its torque off; InputError for what does not fit, and nothing has moved."""
        ...

    def measure(self) -> np.ndarray:
        """Return the measured joints."""
        ...

    def command(self, target: np.ndarray) -> None:
        """Make a pose the motors' goal."""
        ...

    def hold(self) -> np.ndarray:
        """Make the present pose the motors' goal and return it."""
        ...

    def set_torque(self, *, on: bool) -> None:
        """Switch the motors' torque. Call `hold` before switching it on, so that nothing moves."""
        ...

    def has_torque(self) -> bool:
        """Return whether all motors have torque; a motor that lost its power for a moment has none."""
        ...

    def motors_in_protection(self) -> str:
        """Return which motors give no torque to protect themselves although it is on; empty if none."""
        ...

    def close(self) -> None:
        """Close the bus; the torque stays as it is."""
        ...


def offer_from_arm(arm: ArmDescription, cameras: tuple[CameraSpec, ...], contract: Contract) -> Offer:
    """Return what an arm and its cameras offer, for the contract's check.

    Args:
        arm: The connected arm.
        cameras: Its cameras.
        contract: The policy's contract. Joints are in its order if the arm has exactly these, else in the arm's order,
            which shows what is missing and what is too much.
    """
    joints = {joint.name: joint for joint in arm.joints}
    names = arm.names
    if set(names) == set(contract.action.names) and contract.action.names == contract.state.names:
        names = contract.action.names
    units = tuple(joints[name].unit for name in names)
    grippers = [joint for joint in arm.joints if joint.gripper]
    wanted = contract.action.gripper.name if contract.action.gripper else ""
    chosen = next((joint for joint in grippers if joint.name == wanted), grippers[0] if grippers else None)
    gripper = None
    if chosen is not None:
        # LeRobot's grippers are 0 closed and 100 open; other units also run from closed to open.
        closed, opened = (0.0, 100.0) if chosen.unit == "percent" else (chosen.low, chosen.high)
        gripper = GripperSpec(chosen.name, closed=closed, open=opened)
    if contract.action.gripper is None:
        # Without a gripper in the contract there is no convention to compare.
        gripper = None
    return Offer(
        cameras=cameras,
        state=StateSpec(names, units),
        action=ActionSpec(names, units, kind="absolute", frame="joint", gripper=gripper),
        control_hz=contract.control_hz,
    )
