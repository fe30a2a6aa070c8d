"""The calibration of the virtual arm matches its encoders and LeRobot's units."""

import json

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.sim.desk.arm import JOINT_RANGES, JOINTS, to_units
from saccade.sim.virtual_arm.calibration import calibration, encoders, write_calibration

ONE_TICK = 360 / 4095


def lerobot_units(ticks, identifier="virtual", folder=None):
    """Return the positions that LeRobot's driver computes from ticks {id: ticks} with its calibration file."""
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

    robot = SO101Follower(SO101FollowerConfig(port="none", id=identifier, calibration_dir=folder))
    return robot.bus._normalize(ticks)


def test_lerobot_units_match_the_desk_to_one_tick(tmp_path):
    write_calibration(tmp_path, "virtual")
    for part in np.linspace(0, 1, 23):
        radians = JOINT_RANGES[:, 0] + part * (JOINT_RANGES[:, 1] - JOINT_RANGES[:, 0])
        counted = zip(encoders().values(), radians, strict=True)
        ticks = {each.identifier: round(each.ticks(angle)) for each, angle in counted}
        read = np.array(list(lerobot_units(ticks, folder=tmp_path).values()))
        assert np.abs(read - to_units(radians)).max() <= ONE_TICK


def test_calibrated_ranges_cover_the_joint_ranges():
    for encoder, (low, high) in zip(encoders().values(), JOINT_RANGES, strict=True):
        assert encoder.range_min <= round(encoder.ticks(low)) < round(encoder.ticks(high)) <= encoder.range_max
        assert encoder.radians(encoder.ticks(0.3)) == pytest.approx(0.3)


def test_homing_offsets_are_distinct():
    offsets = [each["homing_offset"] for each in calibration().values()]
    assert len(set(offsets)) == len(JOINTS) and all(abs(offset) < 2048 for offset in offsets)


def test_file_matches_the_calibration_of_the_arm(tmp_path):
    path = write_calibration(tmp_path / "made", "left arm")
    assert path.name == "left arm.json"
    assert json.loads(path.read_text()) == calibration()


def test_invalid_identifier_is_refused(tmp_path):
    with pytest.raises(InputError, match="identifier"):
        write_calibration(tmp_path, "../virtual")
    assert not list(tmp_path.iterdir())
