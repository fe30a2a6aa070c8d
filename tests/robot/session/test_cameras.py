"""The camera reader with toy cameras: faults, refusals on connect, latency and threads."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.policy.contract import CameraSpec
from saccade.robot.session.cameras import (
    CameraReader,
    FrameCheckSettings,
    ObservationRefused,
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
            raise ConnectionError("no such camera\nmore text")

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
def reader(camera):
    # A long age limit, as test machines are busy; the rules are tested without a clock.
    reader = CameraReader({"front": camera}, (SPEC,), FrameCheckSettings(age_limit=0.5))
    reader.connect()
    yield reader
    reader.close()


def wait_for_refusal(reader: CameraReader, joints: np.ndarray | None = None) -> str:
    ends = time.monotonic() + 10.0
    while time.monotonic() < ends:
        try:
            reader.latest(joints)
        except ObservationRefused as refusal:
            return refusal.reason
        time.sleep(0.01)
    return "never"


@pytest.mark.parametrize(
    ("mode", "reason"),
    [("frozen", "camera_frozen"), ("dropped", "camera_age"), ("black", "camera_blank"), ("other", "camera_size")],
)
def test_reader_reports_a_camera_fault_and_recovers(reader, camera, mode, reason):
    joints = np.zeros(3)
    assert reader.latest(joints)["front"].image.shape == (4, 6, 3)
    camera.mode = mode
    ends = time.monotonic() + 10.0
    got = "never"
    while got == "never" and time.monotonic() < ends:
        joints = joints + 0.2
        try:
            reader.latest(joints)
        except ObservationRefused as refusal:
            got = refusal.reason
        time.sleep(0.01)
    assert got == reason
    camera.mode = "live"
    ends = time.monotonic() + 10.0
    while time.monotonic() < ends:
        try:
            assert oldest_capture_time(reader.latest(joints)) > 0
            break
        except ObservationRefused:
            time.sleep(0.01)
    else:
        raise TimeoutError


def test_missing_cameras_and_wrong_sizes_are_refused_on_connect(camera):
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


def test_latency_is_added_to_the_age_of_frames(camera):
    reader = CameraReader({"front": camera}, (SPEC,), FrameCheckSettings(age_limit=0.5, latency=(("front", 100.0),)))
    reader.connect()
    assert wait_for_refusal(reader) == "camera_age"
    reader.close()


def test_close_ends_the_threads(camera):
    reader = CameraReader({"front": camera}, (SPEC,))
    reader.connect()
    reader.close()
    assert camera.closed
    assert not any(thread.name == "camera front" for thread in threading.enumerate())


def test_lerobot_configurations_build_cameras(tmp_path):
    from lerobot.cameras.opencv import OpenCVCameraConfig

    configs = {"front": OpenCVCameraConfig(index_or_path=tmp_path / "nothing", fps=30, width=6, height=4)}
    reader = CameraReader.from_configs(configs, (SPEC,))
    with pytest.raises(InputError, match="camera front"):
        reader.connect()
    with pytest.raises(InputError, match="camera wrist: got only front"):
        CameraReader.from_configs(configs, (CameraSpec("wrist", 4, 6),))
