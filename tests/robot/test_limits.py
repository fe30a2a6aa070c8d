"""Joint limits: derived from servo, calibration and contract, and refused if these do not match."""

import dataclasses

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.robot.limits import JointLimits, JointRange
from saccade_testing.stand_in import RANGES, make_contract, make_limits


def test_limits_follow_from_calibration_servo_and_demonstrations():
    limits = make_limits()
    assert limits.low == (-110.0, -97.0, 0.0)
    assert limits.high == (110.0, 97.0, 100.0)
    assert limits.speed == pytest.approx((270.0, 270.0, 2 * 270.0 * 100 / 110))
    assert limits.start_tolerance[0] == pytest.approx(18.0)


def test_demonstrations_narrow_the_range():
    contract = make_contract()
    statistics = dataclasses.replace(contract.normalization, state_low=(-20, -10, 0), state_high=(20, 30, 100))
    limits = JointLimits.derive(dataclasses.replace(contract, normalization=statistics), RANGES)
    assert (limits.low[0], limits.high[0]) == (-40.0, 40.0)
    assert (limits.low[1], limits.high[1]) == (-30.0, 50.0)


def test_speed_share_scales_the_speed():
    assert make_limits(share=0.5).speed[0] == pytest.approx(135.0)
    with pytest.raises(InputError, match="share of the servo's speed"):
        make_limits(share=1.5)


def test_radians_get_limits_in_radians():
    contract = make_contract()
    units = ("radians", "degrees", "percent")
    contract = dataclasses.replace(
        contract,
        state=dataclasses.replace(contract.state, units=units),
        action=dataclasses.replace(contract.action, units=units),
    )
    ranges = (JointRange("shoulder_pan.pos", "radians", -1.92, 1.92, 220.0), *RANGES[1:])
    assert JointLimits.derive(contract, ranges).speed[0] == pytest.approx(np.deg2rad(270.0), rel=1e-2)


def test_missing_joint_or_other_unit_is_refused():
    with pytest.raises(InputError, match="calibrated range of gripper.pos: got none"):
        JointLimits.derive(make_contract(), RANGES[:2])
    other = JointRange("gripper.pos", "degrees", 0.0, 100.0, 100.0)
    with pytest.raises(InputError, match="got one in degrees, expected one in percent"):
        JointLimits.derive(make_contract(), (*RANGES[:2], other))


def test_calibrated_range_outside_the_demonstrations_is_refused():
    contract = make_contract()
    statistics = dataclasses.replace(contract.normalization, state_low=(120, -90, 0), state_high=(130, 90, 100))
    with pytest.raises(InputError, match="range of shoulder_pan.pos"):
        JointLimits.derive(dataclasses.replace(contract, normalization=statistics), RANGES)


def test_invalid_limits_are_refused_and_valid_ones_survive_json():
    limits = make_limits()
    assert JointLimits.from_json(limits.to_json()) == limits
    with pytest.raises(InputError, match="speed of elbow_flex.pos"):
        dataclasses.replace(limits, speed=(1.0, 0.0, 1.0))
    with pytest.raises(InputError, match="Limits.low"):
        dataclasses.replace(limits, low=(0.0,))
    with pytest.raises(InputError, match="high of gripper.pos"):
        dataclasses.replace(limits, low=(0.0, 0.0, 100.0))


def test_violations_are_described_joint_by_joint():
    limits = make_limits()
    assert limits.describe_violations(np.array([112.0, 0.0, 50.0])) == []
    assert limits.describe_violations(np.array([0.0, 120.0, 50.0])) == ["elbow_flex.pos at 120.0, range -97.0 to 97.0"]
    assert len(limits.describe_violations(np.array([np.nan, 0.0, 50.0]))) == 1
