"""The frame file and the camera of the virtual arm, under LeRobot's camera interface."""

import threading
import time

import numpy as np
import pytest
from lerobot.cameras.configs import CameraConfig
from lerobot.cameras.utils import make_cameras_from_configs
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from saccade.errors import InputError
from saccade.sim.virtual_arm.camera import VirtualCamera
from saccade.sim.virtual_arm.config_camera import VirtualCameraConfig
from saccade.sim.virtual_arm.frames import FrameReader, FrameWriter

pytestmark = pytest.mark.real_time


def image(value):
    return np.full((16, 24, 3), value, np.uint8)


@pytest.fixture
def writer(tmp_path):
    return FrameWriter(tmp_path / "front.frames", 16, 24)


@pytest.fixture
def camera(writer):
    return VirtualCamera(VirtualCameraConfig(fps=30, width=24, height=16, source=str(writer.path)))


def test_frames_keep_time_and_number(writer):
    with FrameReader(writer.path) as reader:
        assert reader.latest() is None and (reader.height, reader.width) == (16, 24)
        for number in range(1, 20):
            writer.write(image(number), 100.0 + number)
            frame = reader.latest()
            assert (frame.number, frame.captured) == (number, 100.0 + number)
            assert (frame.image == number).all() and frame.image.shape == (16, 24, 3)


def test_frames_are_never_torn(tmp_path):
    writer = FrameWriter(tmp_path / "front.frames", 128, 128)
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            number += 1
            writer.write(np.full((128, 128, 3), number % 256, np.uint8), float(number))
            time.sleep(0.0005)

    thread = threading.Thread(target=write)
    thread.start()
    with FrameReader(writer.path) as reader:
        for _ in range(300):
            frame = reader.latest()
            if frame is not None:
                assert (frame.image == frame.number % 256).all() and frame.captured == frame.number
    stop.set()
    thread.join()


def test_invalid_frame_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="camera source"):
        FrameReader(tmp_path / "none")
    for content in (b"", b"x", bytes(1000)):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(InputError, match="camera source"):
            FrameReader(tmp_path / "other")


def test_lerobot_builds_the_camera_from_its_configuration(writer):
    assert CameraConfig.get_choice_class("saccade_virtual") is VirtualCameraConfig
    config = VirtualCameraConfig(fps=30, width=24, height=16, source=str(writer.path))
    cameras = make_cameras_from_configs({"front": config})
    assert isinstance(cameras["front"], VirtualCamera)
    assert (cameras["front"].height, cameras["front"].width, cameras["front"].fps) == (16, 24, 30)


def test_async_read_gives_each_frame_once_and_read_latest_repeats(writer, camera):
    writer.write(image(1), time.monotonic())
    camera.connect()
    assert camera.is_connected
    assert (camera.async_read() == 1).all()
    with pytest.raises(TimeoutError, match="no new frame"):
        camera.async_read(timeout_ms=20)
    assert (camera.read_latest() == 1).all() and (camera.read_latest() == 1).all()
    now = time.monotonic()
    writer.write(image(2), now)
    assert camera.next_frame().captured == now
    assert camera.latest_frame().number == 2
    threading.Timer(0.1, writer.write, (image(3), time.monotonic())).start()
    assert (camera.read() == 3).all()
    camera.disconnect()
    assert not camera.is_connected


def test_old_frame_is_refused(writer, camera):
    writer.write(image(1), time.monotonic() - 1.0)
    camera.connect()
    with pytest.raises(TimeoutError, match="old"):
        camera.read_latest(max_age_ms=500)
    assert (camera.read_latest(max_age_ms=60_000) == 1).all()


def test_camera_must_be_connected_once(writer, camera):
    for call in (camera.read, camera.async_read, camera.read_latest, camera.disconnect):
        with pytest.raises(DeviceNotConnectedError):
            call()
    camera.connect(warmup=False)
    with pytest.raises(TimeoutError, match="no frame yet"):
        camera.read_latest()
    with pytest.raises(DeviceAlreadyConnectedError):
        camera.connect()


def test_wrong_size_and_missing_source_are_refused(writer, tmp_path):
    with pytest.raises(InputError, match="16 x 24"):
        VirtualCamera(VirtualCameraConfig(fps=30, width=640, height=480, source=str(writer.path))).connect()
    with pytest.raises(InputError, match="Start the virtual arm"):
        VirtualCamera(VirtualCameraConfig(fps=30, width=24, height=16, source=str(tmp_path / "none"))).connect()


def test_default_size_is_that_of_the_world(writer):
    camera = VirtualCamera(VirtualCameraConfig(source=str(writer.path)))
    camera.connect(warmup=False)
    assert (camera.height, camera.width) == (16, 24)
