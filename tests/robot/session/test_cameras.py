"""Frames that may be used for a decision, and those that may not: old, frozen, blank, of another size, missing."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.policy.contract import CameraSpec
from saccade.robot.session.cameras import (
    CameraReader,
    FrameChecker,
    FrameCheckSettings,
    ObservationRefused,
    TimestampedFrame,
    oldest_capture_time,
)

pytestmark = pytest.mark.real_time

SPEC = CameraSpec("front", 4, 6)


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)


class ToyCamera:
    """Shows 100 images of noise a second; `mode` is "live", "frozen", "dropped", "black" or "other" (size)."""

    def __init__(self, height: int | None = None, width: int | None = None) -> None:
        self.height, self.width = height, width
        self.mode, self.reads, self.closed = "live", 0, False
        self.opens = True

    def connect(self, warmup: bool = True) -> None:
        if not self.opens:
            raise ConnectionError("no such camera\nmore words")

    def async_read(self, timeout_ms: float = 200) -> np.ndarray:
        time.sleep(0.01)
        if self.mode == "dropped":
            raise TimeoutError("no frame")
        if self.mode == "black":
            return np.zeros((4, 6, 3), np.uint8)
        if self.mode == "other":
            return np.zeros((8, 6, 3), np.uint8)
        self.reads += self.mode == "live"
        return image(self.reads)

    def disconnect(self) -> None:
        self.closed = True


@pytest.fixture
def camera():
    return ToyCamera()


@pytest.fixture
def watch(camera):
    # Generous to a busy machine; the rules themselves are tested without a clock.
    watch = CameraReader({"front": camera}, (SPEC,), FrameCheckSettings(age_limit=0.5))
    watch.connect()
    yield watch
    watch.close()


def wait_for_refusal(watch: CameraReader, joints: np.ndarray | None = None) -> str:
    ends = time.monotonic() + 10.0
    while time.monotonic() < ends:
        try:
            watch.latest(joints)
        except ObservationRefused as refusal:
            return refusal.reason
        time.sleep(0.01)
    return "never"


def test_a_fresh_frame_is_given_with_its_time():
    watch = FrameChecker(SPEC, FrameCheckSettings())
    with pytest.raises(ObservationRefused, match="no frame yet"):
        watch.check(10.0)
    watch.add(TimestampedFrame(image(0), 10.0, 0))
    assert watch.check(10.05).captured == 10.0
    with pytest.raises(ObservationRefused, match="0.150 s old, limit 0.1 s") as refusal:
        watch.check(10.15)
    assert refusal.value.reason == "camera_age"
    watch.add(TimestampedFrame(image(1), 9.0, 1))
    assert watch.check(10.05).number == 0, "what comes late counts as nothing"


def test_identical_images_are_a_fault_only_if_the_arm_moves():
    watch = FrameChecker(SPEC, FrameCheckSettings())
    still, moved = np.zeros(3), np.array([0.0, 4.0, 0.0])
    for number in range(50):
        watch.add(TimestampedFrame(image(0), 10.0 + 0.03 * number, number))
        watch.check(10.0 + 0.03 * number, still)
    watch.check(10.0 + 0.03 * 49 + 0.02, moved)  # it moved after the picture was taken
    watch.add(TimestampedFrame(image(0), 10.0 + 0.03 * 50, 50))
    with pytest.raises(ObservationRefused, match="the same image for 51 frames") as refusal:
        watch.check(10.0 + 0.03 * 50, moved)
    assert refusal.value.reason == "camera_frozen"
    watch.add(TimestampedFrame(image(1), 12.0, 51))
    watch.check(12.0, moved)


def test_a_few_identical_images_are_no_fault():
    watch = FrameChecker(SPEC, FrameCheckSettings())
    for number in range(4):
        watch.add(TimestampedFrame(image(0), 10.0 + 0.03 * number, number))
        watch.check(10.1, np.full(3, 10.0 * number))


def test_a_blank_image_is_refused_unless_allowed():
    blank = TimestampedFrame(np.full((4, 6, 3), 17, np.uint8), 10.0, 0)
    watch = FrameChecker(SPEC, FrameCheckSettings())
    watch.add(blank)
    with pytest.raises(ObservationRefused, match="shows nothing"):
        watch.check(10.0)
    watch = FrameChecker(SPEC, FrameCheckSettings(min_contrast=0))
    watch.add(blank)
    assert watch.check(10.0) is blank


@pytest.mark.parametrize("wrong", [np.zeros((6, 4, 3), np.uint8), np.zeros((4, 6, 3), np.float32), None])
def test_an_image_of_another_size_or_dtype_is_refused(wrong):
    watch = FrameChecker(SPEC, FrameCheckSettings())
    watch.add(TimestampedFrame(image(0), 10.0, 0))
    watch.add(TimestampedFrame(wrong, 10.01, 1))
    with pytest.raises(ObservationRefused, match=r"expected uint8 \(4, 6, 3\)"):
        watch.check(10.02)
    watch.add(TimestampedFrame(image(1), 10.03, 2))
    assert watch.check(10.04).number == 2


@pytest.mark.parametrize(
    ("mode", "reason"),
    [("frozen", "camera_frozen"), ("dropped", "camera_age"), ("black", "camera_blank"), ("other", "camera_size")],
)
def test_a_camera_fault_is_noticed_and_so_is_its_end(watch, camera, mode, reason):
    joints = np.zeros(3)
    assert watch.latest(joints)["front"].image.shape == (4, 6, 3)
    camera.mode = mode
    ends = time.monotonic() + 10.0
    got = "never"
    while got == "never" and time.monotonic() < ends:
        joints = joints + 0.2
        try:
            watch.latest(joints)
        except ObservationRefused as refusal:
            got = refusal.reason
        time.sleep(0.01)
    assert got == reason
    camera.mode = "live"
    ends = time.monotonic() + 10.0
    while time.monotonic() < ends:
        try:
            assert oldest_capture_time(watch.latest(joints)) > 0
            break
        except ObservationRefused:
            time.sleep(0.01)
    else:
        raise TimeoutError


def test_missing_cameras_and_other_sizes_are_refused_before_anything(camera):
    with pytest.raises(InputError, match="camera wrist: got only front"):
        CameraReader({"front": camera}, (SPEC, CameraSpec("wrist", 4, 6)))
    with pytest.raises(InputError, match="images of 8x6 pixels .* expected 4x6"):
        CameraReader({"front": ToyCamera(8, 6)}, (SPEC,)).connect()
    camera.mode = "other"
    with pytest.raises(InputError, match="images of 8x6 pixels"):
        CameraReader({"front": camera}, (SPEC,)).connect()
    assert camera.closed
    camera = ToyCamera()
    camera.opens = False
    with pytest.raises(InputError, match="got no such camera, expected a camera that opens"):
        CameraReader({"front": camera}, (SPEC,)).connect()


def test_a_known_latency_makes_frames_older(camera):
    watch = CameraReader({"front": camera}, (SPEC,), FrameCheckSettings(age_limit=0.5, latency=(("front", 100.0),)))
    watch.connect()
    assert wait_for_refusal(watch) == "camera_age"
    watch.close()


def test_closing_ends_the_threads(camera):
    watch = CameraReader({"front": camera}, (SPEC,))
    watch.connect()
    watch.close()
    assert camera.closed
    assert not any(thread.name == "camera front" for thread in threading.enumerate())


def test_lerobots_configurations_make_cameras(tmp_path):
    from lerobot.cameras.opencv import OpenCVCameraConfig

    configs = {"front": OpenCVCameraConfig(index_or_path=tmp_path / "nothing", fps=30, width=6, height=4)}
    watch = CameraReader.from_configs(configs, (SPEC,))
    with pytest.raises(InputError, match="camera front"):
        watch.connect()
    with pytest.raises(InputError, match="camera wrist: got only front"):
        CameraReader.from_configs(configs, (CameraSpec("wrist", 4, 6),))


def test_invalid_settings_are_refused():
    with pytest.raises(InputError, match="age_limit"):
        FrameCheckSettings(age_limit=0.7)
    with pytest.raises(InputError, match="identical_limit"):
        FrameCheckSettings(identical_limit=1)
