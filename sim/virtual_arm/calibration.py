"""Calibration of the virtual arm: encoder ticks for joint angles, and LeRobot's calibration file.

LeRobot reads (ticks - middle) * 360 / 4095 degrees, where middle is the centre of the calibrated range, and 0 to 100
over the gripper's range. The ranges are chosen so that this gives the desk's units, except for the rounding to ticks.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from ...disk import write_atomically
from ...errors import InputError
from ..desk.arm import JOINT_RANGES, JOINTS

RESOLUTION = 4096
MIDDLE = (RESOLUTION - 1) / 2
"""Reported position of all joints except the gripper at zero degrees, in ticks."""

TICKS_PER_RADIAN = (RESOLUTION - 1) / math.tau

HOMING_OFFSETS = (-412, 963, -1187, 655, 38, -1504)
"""Offset of each servo's horn from the middle, in ticks; every real arm has its own."""

GRIPPER_RANGE = (1422, 2673)
"""Range of the gripper in ticks."""


@dataclass(frozen=True)
class Encoder:
    """Converts between one joint's angle and its servo's ticks.

    Attributes:
        identifier: Id of the servo.
        homing_offset: Offset of the horn in ticks.
        range_min: Smallest reported position in ticks.
        range_max: Largest reported position in ticks.
        zero_ticks: Reported position at zero radians, in ticks.
        ticks_per_radian: Ticks for one radian.
    """

    identifier: int
    homing_offset: int
    range_min: int
    range_max: int
    zero_ticks: float
    ticks_per_radian: float

    def ticks(self, radians: float) -> float:
        """Return the reported position at an angle, not rounded."""
        return self.zero_ticks + radians * self.ticks_per_radian

    def radians(self, ticks: float) -> float:
        """Return the angle of a reported position."""
        return (ticks - self.zero_ticks) / self.ticks_per_radian


def encoders() -> dict[str, Encoder]:
    """Return the encoder of each joint, in the order of `JOINTS`."""
    made = {}
    for number, (joint, (low, high), offset) in enumerate(zip(JOINTS, JOINT_RANGES, HOMING_OFFSETS, strict=True)):
        if joint == "gripper":
            first, last = GRIPPER_RANGE
            density = (last - first) / (high - low)
            made[joint] = Encoder(number + 1, offset, first, last, first - low * density, density)
        elif joint == "wrist_roll":
            # LeRobot's calibration uses the full turn: an asymmetric range would shift its middle.
            made[joint] = Encoder(number + 1, offset, 0, RESOLUTION - 1, MIDDLE, TICKS_PER_RADIAN)
        else:
            half_range = math.ceil(high * TICKS_PER_RADIAN - 0.5) + 0.5
            first, last = int(MIDDLE - half_range), int(MIDDLE + half_range)
            made[joint] = Encoder(number + 1, offset, first, last, MIDDLE, TICKS_PER_RADIAN)
    return made


def calibration() -> dict[str, dict[str, int]]:
    """Return the content of LeRobot's calibration file: {joint: {id, drive_mode, homing_offset, ...}}."""
    return {
        joint: {
            "id": encoder.identifier,
            "drive_mode": 0,
            "homing_offset": encoder.homing_offset,
            "range_min": encoder.range_min,
            "range_max": encoder.range_max,
        }
        for joint, encoder in encoders().items()
    }


def write_calibration(folder: Path, identifier: str) -> Path:
    """Write LeRobot's calibration file.

    Args:
        folder: The folder to give as the robot's `calibration_dir`.
        identifier: Id of the arm, the file's name without suffix.

    Returns:
        Path of the file.

    Raises:
        InputError: The id is not a file name.
    """
    if not identifier or Path(identifier).name != identifier:
        raise InputError(
            "the arm's identifier",
            got=repr(identifier),
            expected="a name without folders",
            fix="Use a plain name such as 'virtual'.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{identifier}.json"
    write_atomically(path, json.dumps(calibration(), indent=4))
    return path
