"""The checks of a frame before a decision: age, identical images, contrast, size and dtype."""

from __future__ import annotations

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.policy.contract import CameraSpec
from saccade.robot.session.cameras import FrameChecker, FrameCheckSettings, ObservationRefused, TimestampedFrame

SPEC = CameraSpec("front", 4, 6)


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def test_only_fresh_frames_are_returned():
    checker = FrameChecker(SPEC, FrameCheckSettings())
    with pytest.raises(ObservationRefused, match="no frame yet"):
        checker.check(10.0)
    checker.add(TimestampedFrame(image(0), 10.0, 0))
    assert checker.check(10.05).captured == 10.0
    with pytest.raises(ObservationRefused, match="0.150 s old, limit 0.1 s") as refusal:
        checker.check(10.15)
    assert refusal.value.reason == "camera_age"
    checker.add(TimestampedFrame(image(1), 9.0, 1))
    assert checker.check(10.05).number == 0, "an older frame does not replace a newer one"


def test_identical_images_are_refused_only_if_the_arm_moves():
    checker = FrameChecker(SPEC, FrameCheckSettings())
    still, moved = np.zeros(3), np.array([0.0, 4.0, 0.0])
    for number in range(50):
        checker.add(TimestampedFrame(image(0), 10.0 + 0.03 * number, number))
        checker.check(10.0 + 0.03 * number, still)
    checker.check(10.0 + 0.03 * 49 + 0.02, moved)  # the arm moved after the image was captured
    checker.add(TimestampedFrame(image(0), 10.0 + 0.03 * 50, 50))
    with pytest.raises(ObservationRefused, match="the same image for 51 frames") as refusal:
        checker.check(10.0 + 0.03 * 50, moved)
    assert refusal.value.reason == "camera_frozen"
    checker.add(TimestampedFrame(image(1), 12.0, 51))
    checker.check(12.0, moved)


def test_few_identical_images_are_accepted():
    checker = FrameChecker(SPEC, FrameCheckSettings())
    for number in range(4):
        checker.add(TimestampedFrame(image(0), 10.0 + 0.03 * number, number))
        checker.check(10.1, np.full(3, 10.0 * number))


def test_blank_image_is_refused_unless_allowed():
    blank = TimestampedFrame(np.full((4, 6, 3), 17, np.uint8), 10.0, 0)
    checker = FrameChecker(SPEC, FrameCheckSettings())
    checker.add(blank)
    with pytest.raises(ObservationRefused, match="shows nothing"):
        checker.check(10.0)
    checker = FrameChecker(SPEC, FrameCheckSettings(min_contrast=0))
    checker.add(blank)
    assert checker.check(10.0) is blank


@pytest.mark.parametrize("wrong_image", [np.zeros((6, 4, 3), np.uint8), np.zeros((4, 6, 3), np.float32), None])
def test_wrong_image_size_or_dtype_is_refused(wrong_image):
    checker = FrameChecker(SPEC, FrameCheckSettings())
    checker.add(TimestampedFrame(image(0), 10.0, 0))
    checker.add(TimestampedFrame(wrong_image, 10.01, 1))
    with pytest.raises(ObservationRefused, match=r"expected uint8 \(4, 6, 3\)"):
        checker.check(10.02)
    checker.add(TimestampedFrame(image(1), 10.03, 2))
    assert checker.check(10.04).number == 2


def test_invalid_settings_are_refused():
    with pytest.raises(InputError, match="age_limit"):
        FrameCheckSettings(age_limit=0.7)
    with pytest.raises(InputError, match="identical_limit"):
        FrameCheckSettings(identical_limit=1)
