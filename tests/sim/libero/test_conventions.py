"""Test the published conventions: images rotated by 180 degrees, axis-angle states, the sign of the gripper."""

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.policy.contract import Contract, ContractMismatch
from saccade.policy.importing.platforms import find_platform, released_contract
from saccade.sim.libero.conventions import Conventions, axis_angle, crop_centre


@pytest.fixture
def published() -> Contract:
    bounds = {"q01": [-1.0] * 7, "q99": [0.9] * 7}
    state = {"q01": [-1.0] * 8, "q99": [0.9] * 8}
    statistics = {"libero": {"action": bounds, "proprio": state}}
    return released_contract(find_platform("libero"), statistics, None, image_size=224, state=8, action=7)


def test_offer_fits_the_contract_of_a_released_policy(published):
    conventions = Conventions.from_contract(published)
    published.check(conventions.offer())
    assert (conventions.crop, conventions.image_size, conventions.rendered_size) == (0.9, 224, 256)
    with pytest.raises(ContractMismatch) as refused:
        published.check(Conventions().offer())
    fields = {difference.field for difference in refused.value.differences}
    assert {"cameras.agentview.size", "cameras.wrist.crop", "action.gripper"} <= fields


def test_gripper_opens_and_closes_under_both_conventions():
    own, openvla = Conventions(), Conventions(gripper_closed=0, gripper_open=1)
    for open_, closed, conventions in ((-1, 1, own), (1, 0, openvla)):
        assert conventions.to_robosuite_action(np.array([0.0] * 6 + [open_]))[6] == -1
        assert conventions.to_robosuite_action(np.array([0.0] * 6 + [closed]))[6] == 1
    np.testing.assert_array_equal(openvla.action_bounds()[0][6:], [0])
    np.testing.assert_array_equal(own.to_robosuite_action(np.full(7, 2.5)), np.ones(7))


@pytest.mark.parametrize("conventions", [Conventions(), Conventions(gripper_closed=0, gripper_open=1)])
def test_action_conversions_are_inverse(conventions):
    low, high = conventions.action_bounds()
    action = np.random.default_rng(0).uniform(low, high).astype(np.float32)
    restored = conventions.from_robosuite_action(conventions.to_robosuite_action(action))
    np.testing.assert_allclose(restored, action, atol=1e-6)


def test_image_is_rotated_once():
    rendered = np.zeros((16, 16, 3), np.uint8)
    rendered[0, 0] = 255  # robosuite's first row is the lowest one
    rotated = Conventions(image_size=16).to_policy_image(rendered)
    assert rotated[15, 15, 0] == 255 and rotated.sum() == 3 * 255
    assert Conventions(image_size=16, rotation_degrees=0).to_policy_image(rendered)[0, 0, 0] == 255


def test_crop_keeps_the_centre_and_the_size():
    across = np.tile(np.arange(100, dtype=np.uint8)[None, :, None], (100, 1, 3))
    cropped = crop_centre(across, 0.81)
    assert cropped.shape == across.shape
    np.testing.assert_allclose(cropped[0, [0, 99], 0], [0.05 * 99, 0.95 * 99], atol=0.6)
    np.testing.assert_array_equal(crop_centre(across, 1.0), across)
    rendered = np.full((256, 256, 3), 77, np.uint8)
    np.testing.assert_array_equal(Conventions(image_size=224, crop=0.9).to_policy_image(rendered), 77)


def test_point_is_converted_into_the_policy_image():
    point = np.array([0.25, 0.8])
    np.testing.assert_allclose(Conventions().to_image_point(point), [0.75, 0.8])
    np.testing.assert_allclose(Conventions(rotation_degrees=0).to_image_point(point), [0.25, 0.2])
    np.testing.assert_allclose(Conventions(crop=0.25).to_image_point(point), [1.0, 1.1])


def test_axis_angle_keeps_the_sign_of_the_quaternion(installed):
    from robosuite.utils.transform_utils import quat2axisangle

    generator = np.random.default_rng(1)
    for quaternion in [*generator.normal(size=(50, 4)), [0, 0, 0, 1.0], [1.0, 0, 0, 0], [1e-9, 0, 0, 1.0]]:
        unit = np.asarray(quaternion) / np.linalg.norm(quaternion)
        np.testing.assert_allclose(axis_angle(unit), quat2axisangle(unit.copy()), atol=1e-7)
    hand_down = np.array([np.cos(0.01), 0, 0, -np.sin(0.01)])
    assert axis_angle(hand_down)[0] > np.pi > axis_angle(-hand_down * [-1, 1, 1, 1])[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 8}, "image_size: got 8, expected 16 to 1024"),
        ({"rotation_degrees": 90}, "rotation_degrees: got 90, expected 0 or 180"),
        ({"crop": 0.0}, "crop: got 0.0"),
        ({"gripper_open": 1.0}, "two values"),
    ],
)
def test_invalid_conventions_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Conventions(**options)
