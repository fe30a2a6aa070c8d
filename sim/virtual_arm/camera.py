"""A camera of the virtual arm as LeRobot reads it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.cameras.camera import Camera
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from ...errors import InputError
from .config_camera import VirtualCameraConfig
from .frames import FrameReader, SharedFrame

FIRST_FRAME_MS = 5000.0
POLL_SECONDS = 0.001


class VirtualCamera(Camera):
    """Reads the RGB frames of the virtual arm's simulation.

    `latest_frame` and `next_frame` also return when a frame was taken. Reads raise DeviceNotConnectedError before
    `connect`, and TimeoutError without a recent frame. `connect` raises InputError if the source is missing, or has
    frames of another size.
    """

    def __init__(self, config: VirtualCameraConfig) -> None:
        super().__init__(config)
        self.config = config
        self._reader: FrameReader | None = None
        self._consumed = 0

    @property
    def is_connected(self) -> bool:
        return self._reader is not None

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        """Return an empty list: virtual cameras cannot be searched for."""
        return []

    def connect(self, warmup: bool = True) -> None:  # noqa: FBT001, FBT002 (as in LeRobot)
        if self._reader is not None:
            raise DeviceAlreadyConnectedError(f"{self.config.source} is already connected.")
        reader = FrameReader(Path(self.config.source))
        size = self.height or reader.height, self.width or reader.width
        if size != (reader.height, reader.width):
            reader.close()
            raise InputError(
                f"camera {self.config.source}",
                got=f"frames of {reader.height} x {reader.width}",
                expected=f"{size[0]} x {size[1]} (height x width)",
                fix="Use the image size that the virtual arm was started with.",
            )
        self.height, self.width = size
        self._reader, self._consumed = reader, 0
        if warmup:
            self.next_frame(FIRST_FRAME_MS)
            self._consumed = 0

    def read(self) -> np.ndarray:
        """Return the next new frame, uint8 [H, W, 3]."""
        return self.next_frame(FIRST_FRAME_MS).image

    def async_read(self, timeout_ms: float = 200) -> np.ndarray:
        """Return the newest frame that was not returned before; wait for it if necessary."""
        return self.next_frame(timeout_ms).image

    def read_latest(self, max_age_ms: int = 500) -> np.ndarray:
        """Return the newest frame at once, if it is recent enough."""
        return self.latest_frame(max_age_ms).image

    def next_frame(self, timeout_ms: float = 200.0) -> SharedFrame:
        """Return the newest frame that `next_frame`, `read` or `async_read` did not return before."""
        reader = self._connected()
        deadline = time.monotonic() + timeout_ms / 1000
        while reader.latest_number <= self._consumed:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"camera {self.config.source}: no new frame within {timeout_ms:g} ms")
            time.sleep(POLL_SECONDS)
        frame = reader.latest()
        if frame is None:
            raise TimeoutError(f"camera {self.config.source}: no frame yet")
        self._consumed = frame.number
        return frame

    def latest_frame(self, max_age_ms: float = 500.0) -> SharedFrame:
        """Return the newest frame at once; raises TimeoutError if it is older than `max_age_ms`."""
        frame = self._connected().latest()
        if frame is None:
            raise TimeoutError(f"camera {self.config.source}: no frame yet")
        age = (time.monotonic() - frame.captured) * 1000
        if age > max_age_ms:
            raise TimeoutError(f"camera {self.config.source}: newest frame is {age:.0f} ms old, over {max_age_ms:g} ms")
        return frame

    def disconnect(self) -> None:
        reader, self._reader = self._connected(), None
        reader.close()

    def _connected(self) -> FrameReader:
        if self._reader is None:
            raise DeviceNotConnectedError(f"camera {self.config.source} is not connected.")
        return self._reader
