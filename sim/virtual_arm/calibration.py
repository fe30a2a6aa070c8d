"""How the virtual arm's servos count: encoder ticks for the joints' angles, and the calibration that LeRobot keeps.

LeRobot reads (ticks - middle) * 360 / 4095 degrees, the middle being that of the calibrated range, and 0 to 100 over
the gripper's range. The ranges are chosen such that this gives the desk's own units, but for the rounding to ticks.
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
"""The reported position of the arm's joints, but the gripper, at zero degrees, in ticks."""

TICKS_PER_RADIAN = (RESOLUTION - 1) / math.tau

HOMING_OFFSETS = (-412, 963, -1187, 655, 38, -1504)
"""By how many ticks each servo's horn was mounted away from the middle; every real arm has other ones."""

GRIPPER_RANGE = (1422, 2673)
"""As many ticks as the gripper's angle takes."""


@dataclass(frozen=True)
class Encoder:
    """One servo's count of its joint: `zero_ticks` is the reported position at zero radians, in ticks."""

    identifier: int
    homing_offset: int
    range_min: int
    range_max: int
    zero_ticks: float
    ticks_per_radian: float

    def ticks(self, radians: float) -> float:
        """Return the reported position at an angle, not rounded, for a servo calibrated like this."""
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
            # It turns all around for LeRobot's calibration, whose middle a range that is not symmetric would shift.
            made[joint] = Encoder(number + 1, offset, 0, RESOLUTION - 1, MIDDLE, TICKS_PER_RADIAN)
        else:
            half_range = math.ceil(high * TICKS_PER_RADIAN - 0.5) + 0.5
            first, last = int(MIDDLE - half_range), int(MIDDLE + half_range)
            made[joint] = Encoder(number + 1, offset, first, last, MIDDLE, TICKS_PER_RADIAN)
    return made


def calibration() -> dict[str, dict[str, int]]:
    """Return what LeRobot's calibration file says about this arm: {joint: {id, drive_mode, homing_offset, ...}}."""
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
    """Write LeRobot's calibration file of the arm `identifier` into `folder` and return its path.

    Give the same folder as the robot's `calibration_dir`. Raises InputError for an identifier that is no file name.
    """
    if not identifier or Path(identifier).name != identifier:
        raise InputError(
            "the arm's identifier", got=repr(identifier), expected="a name", fix="Leave out folders, as in 'virtual'."
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{identifier}.json"
    write_atomically(path, json.dumps(calibration(), indent=4))
    return path
