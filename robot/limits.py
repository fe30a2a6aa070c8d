"""Limits of position, speed and acceleration of each joint, derived from servo, calibration and contract."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..policy.contract import Contract, Specification

SERVO_MAX_SPEED = 270.0
"""Degrees per second of an STS3215 without load (45 rpm): a target need not move faster than the servo can."""

SERVO_MAX_ACCELERATION = 6016.0
"""Degrees per second squared: the servo's largest torque, 2.94 N m, over its own inertia, 0.028 kg m^2, no load."""

GRIPPER_SPEED_FACTOR = 2.0
"""A gripper presses with a target that runs ahead of it, so its target may move faster than it can; LeRobot halves its
torque."""

POSITION_TOLERANCE = 5.0
"""Degrees outside the range up to which a target is clamped without a hold."""

START_TOLERANCE_PERIODS = 2.0
"""How far a first command may be from the measured pose, in steps at full speed."""

MAX_LAG_SECONDS = 0.15
"""How far a joint may stay behind its target before it counts as stuck, in seconds at full speed."""

RANGE_MARGIN = 0.5
"""Fraction of its span by which the range of the demonstrations is widened to each side."""


@dataclass(frozen=True)
class JointRange(Specification):
    """The calibrated range of a joint, `low` to `high` in `unit`, and its span in degrees."""

    name: str
    unit: str
    low: float
    high: float
    degrees: float
    gripper: bool = False

    def _validate(self) -> None:
        if not self.low < self.high:
            raise self._field_error(
                "high",
                got=self.high,
                expected=f"above low ({self.low:g})",
                fix="Calibrate the arm with lerobot-calibrate.",
            )
        if self.degrees <= 0:
            raise self._field_error(
                "degrees", got=self.degrees, expected="above 0", fix="Calibrate the arm with lerobot-calibrate."
            )


@dataclass(frozen=True)
class JointLimits(Specification):
    """The limits of each joint, in the units of the contract and seconds; all tuples [A].

    Attributes:
        names: The joints, in the contract's order.
        low: Lower bounds of the positions.
        high: Upper bounds of the positions.
        speed: Largest speed of the target.
        acceleration: Largest acceleration of the target.
        position_tolerance: How far outside the range a target is clamped without a hold.
        start_tolerance: How far from the measured pose a first command may be.
        lead: How far a joint may stay behind its target before it counts as stuck.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    speed: tuple[float, ...]
    acceleration: tuple[float, ...]
    position_tolerance: tuple[float, ...]
    start_tolerance: tuple[float, ...]
    lead: tuple[float, ...]

    def _validate(self) -> None:
        if not self.names:
            raise self._field_error("names", got="no names", expected="at least one joint")
        for field in ("low", "high", "speed", "acceleration", "position_tolerance", "start_tolerance", "lead"):
            values = getattr(self, field)
            if len(values) != len(self.names):
                raise self._field_error(
                    field, got=f"{len(values)} numbers", expected=f"one for each of {len(self.names)}"
                )
            for name, value in zip(self.names, values, strict=True):
                if field not in ("low", "high") and value <= 0:
                    raise self._field_error(f"{field} of {name}", got=value, expected="above 0")
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if not low < high:
                raise self._field_error(f"high of {name}", got=high, expected=f"above low ({low:g})")

    @classmethod
    def derive(cls, contract: Contract, ranges: Sequence[JointRange], *, share: float = 1.0) -> JointLimits:
        """Return the default limits of an arm under a contract.

        Positions: the calibrated range, cut to the range of the demonstrations widened by half. Speed and acceleration:
        the servo's own, converted to the joint's unit by its calibrated range.

        Args:
            contract: The policy's contract.
            ranges: The calibrated ranges of the arm's joints.
            share: Fraction of the servo's speed, above 0 and at most 1.

        Raises:
            InputError: A joint of the contract is missing or has another unit, or the two ranges do not overlap.
        """
        if not 0.0 < share <= 1.0:
            raise InputError(
                "share of the servo's speed", got=share, expected="above 0, at most 1", fix="Set share to 1.0."
            )
        period = 1.0 / contract.control_hz
        known = {each.name: each for each in ranges}
        rows = []
        for index, (name, unit) in enumerate(zip(contract.action.names, contract.action.units, strict=True)):
            joint = known.get(name)
            if joint is None or joint.unit != unit:
                raise InputError(
                    f"calibrated range of {name}",
                    got="none" if joint is None else f"one in {joint.unit}",
                    expected=f"one in {unit}",
                    fix="Choose the arm and the units that the policy was trained with.",
                )
            low, high = _demonstrated_range(contract, index)
            low, high = max(low, joint.low), min(high, joint.high)
            if not low < high:
                raise InputError(
                    f"range of {name}",
                    got=f"{joint.low:g} to {joint.high:g} {unit} by the arm's calibration",
                    expected="a range that overlaps that of the demonstrations",
                    fix="Calibrate the arm as the demonstrations' arm was, or choose another policy.",
                )
            units_per_degree = (joint.high - joint.low) / joint.degrees
            speed = share * SERVO_MAX_SPEED * units_per_degree * (GRIPPER_SPEED_FACTOR if joint.gripper else 1.0)
            acceleration = SERVO_MAX_ACCELERATION * units_per_degree * (GRIPPER_SPEED_FACTOR if joint.gripper else 1.0)
            tolerance = POSITION_TOLERANCE * units_per_degree
            rows.append((low, high, speed, acceleration, tolerance, START_TOLERANCE_PERIODS * speed * period))
        low, high, speed, acceleration, tolerance, start = zip(*rows, strict=True)
        lead = tuple(MAX_LAG_SECONDS * each / share for each in speed)
        return cls(contract.action.names, low, high, speed, acceleration, tolerance, start, lead)

    def describe_violations(self, pose: np.ndarray) -> list[str]:
        """Return a text for each joint of a pose [A] that is outside its range by more than the tolerance."""
        rows = zip(self.names, pose, self.low, self.high, self.position_tolerance, strict=True)
        return [
            f"{name} at {value:.1f}, range {low:.1f} to {high:.1f}"
            for name, value, low, high, tolerance in rows
            if not (low - tolerance <= value <= high + tolerance)
        ]


def _demonstrated_range(contract: Contract, index: int) -> tuple[float, float]:
    """Return the range of an absolute target in the statistics, widened; infinite for a relative action.

    An element that is relative to the state has no absolute range in the statistics: the state's range is used.
    """
    if contract.action.kind != "absolute":
        return -math.inf, math.inf
    statistics = contract.normalization
    if statistics.relative[index]:
        low, high = statistics.state_low[index], statistics.state_high[index]
    else:
        low = min(row[index] for row in statistics.action_low)
        high = max(row[index] for row in statistics.action_high)
    margin = RANGE_MARGIN * (high - low)
    return low - margin, high + margin
