"""The cameras: every frame with its capture time, and no frame that is old, frozen or blank."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...errors import InputError, SaccadeError, WorldError
from ...policy.contract import CameraSpec

READ_TIMEOUT_MS = 200
FIRST_FRAME_SECONDS = 10.0


class ObservationRefused(WorldError):
    """The observation must not be used for a decision; `reason` is one word, as "camera_age"."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple:
        return type(self), (self.reason, str(self))


@dataclass(frozen=True)
class FrameCheckSettings:
    """When a frame may be used.

    Attributes:
        age_limit: Largest age in seconds.
        identical_limit: So many identical images in a row are frozen, if the arm moved meanwhile.
        min_joint_motion: How far a joint must have moved for that, in its unit; images of an arm at rest may be equal.
        min_contrast: An image is blank if its values span fewer levels than this; 0 allows blank images.
        latency: Seconds from exposure to arrival of a frame, if known, by camera.
    """

    age_limit: float = 0.1
    identical_limit: int = 5
    min_joint_motion: float = 3.0
    min_contrast: int = 4
    latency: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 < self.age_limit <= 0.5:
            raise InputError(
                "age_limit", got=self.age_limit, expected="above 0, at most 0.5 s", fix="Set age_limit to 0.1."
            )
        if self.identical_limit < 2:
            raise InputError(
                "identical_limit", got=self.identical_limit, expected="2 or more", fix="Set identical_limit to 5."
            )


@dataclass(frozen=True, eq=False)
class TimestampedFrame:
    """An image, uint8 [H, W, 3], its capture time in steady seconds, and how many came before it."""

    image: np.ndarray
    captured: float
    number: int


class FrameChecker:
    """Checks the frames of one camera; time and joints are passed in.

    Attributes:
        frame: The newest frame, checked or not.
        fault: Reason and detail if the newest frame has the wrong size or dtype.
    """

    def __init__(self, spec: CameraSpec, settings: FrameCheckSettings) -> None:
        self.spec, self._settings = spec, settings
        self.frame: TimestampedFrame | None = None
        self._identical_count, self._first_identical_time, self._blank = 1, math.inf, False
        self._poses: deque[tuple[float, np.ndarray]] = deque()
        self.fault: tuple[str, str] | None = None

    def add(self, frame: TimestampedFrame) -> None:
        """Add a new frame; one with the wrong size or dtype is a fault, one older than the last is ignored."""
        wanted = (self.spec.height, self.spec.width, 3)
        image = frame.image
        if not isinstance(image, np.ndarray) or image.shape != wanted or image.dtype != np.uint8:
            got = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}"
            self.fault = "camera_size", f"camera {self.spec.name} gave {got}, expected uint8 {wanted}"
            return
        before = self.frame
        if before is not None and frame.captured < before.captured:
            return
        self.fault = None
        if before is not None and np.array_equal(before.image, image):
            self._identical_count += 1
        else:
            self._identical_count, self._first_identical_time = 1, frame.captured
            self._blank = int(image.max()) - int(image.min()) < self._settings.min_contrast
        self.frame = frame

    def check(self, now: float, joints: np.ndarray | None = None) -> TimestampedFrame:
        """Return the newest frame.

        Args:
            now: Steady seconds.
            joints: The joints [A] now; the more often they are given, the sooner a frozen image is noticed.

        Raises:
            ObservationRefused: There is no frame, or it must not be used.
        """
        name, settings, frame = self.spec.name, self._settings, self.frame
        if self.fault is not None:
            raise ObservationRefused(*self.fault)
        if frame is None:
            raise ObservationRefused("camera_missing", f"camera {name} has given no frame yet")
        age = now - frame.captured
        if age > settings.age_limit:
            detail = f"the newest frame of camera {name} is {age:.3f} s old, limit {settings.age_limit:g} s"
            raise ObservationRefused("camera_age", detail)
        if joints is not None:
            self._poses.append((now, np.array(joints)))
        joint_motion = self._joint_motion(frame)
        if self._identical_count >= settings.identical_limit and joint_motion > settings.min_joint_motion:
            frames = f"{self._identical_count} frames while the arm moved {joint_motion:.1f}"
            detail = f"camera {name} shows the same image for {frames}"
            raise ObservationRefused("camera_frozen", detail)
        if settings.min_contrast and self._blank:
            raise ObservationRefused("camera_blank", f"camera {name} shows nothing")
        return frame

    def _joint_motion(self, frame: TimestampedFrame) -> float:
        """Return how far the joints moved between the first and the last of the identical images.

        Only poses from before the last image count: the arm may have started to move since.
        """
        while len(self._poses) > 1 and self._poses[1][0] <= self._first_identical_time:
            self._poses.popleft()
        poses = [pose for when, pose in self._poses if when <= frame.captured]
        return float(np.abs(poses[-1] - poses[0]).max()) if len(poses) > 1 else 0.0


class Camera(Protocol):
    """The interface of LeRobot's cameras; a camera with `next_frame` also gives the capture time of its frames."""

    def connect(self, warmup: bool = True) -> None: ...  # noqa: FBT001, FBT002 (as in LeRobot)

    def async_read(self, timeout_ms: float = ...) -> np.ndarray: ...

    def disconnect(self) -> None: ...


class CameraReader:
    """Reads each camera in its own thread, and returns the newest frames if they may be used.

    Call `connect` first and `close` at the end.

    Args:
        cameras: The cameras by name; those that the contract does not name are not read.
        specs: The cameras of the contract.
        settings: When a frame may be used.
        found: Names of all cameras of the arm, for the error about a missing one. Default: those of `cameras`.

    Raises:
        InputError: A camera of the contract is missing.
    """

    def __init__(
        self,
        cameras: Mapping[str, Camera],
        specs: tuple[CameraSpec, ...],
        settings: FrameCheckSettings | None = None,
        *,
        found: tuple[str, ...] = (),
    ) -> None:
        self._settings = settings or FrameCheckSettings()
        missing = [spec.name for spec in specs if spec.name not in cameras]
        if missing:
            raise InputError(
                f"camera {', '.join(missing)}",
                got=f"only {', '.join(found or cameras) or 'no cameras'}",
                expected="the cameras of the policy's contract",
                fix="Name the arm's cameras as the policy knows them.",
            )
        self._cameras = {spec.name: cameras[spec.name] for spec in specs}
        self._checkers = {spec.name: FrameChecker(spec, self._settings) for spec in specs}
        self._latency = dict(self._settings.latency)
        self._lock = threading.Lock()
        self._stop_event = threading.Event()
        self._threads: list[threading.Thread] = []
        self._connected: list[Camera] = []
        self._errors: dict[str, str] = {}

    @classmethod
    def from_configs(
        cls, configs: Mapping[str, Any], specs: tuple[CameraSpec, ...], settings: FrameCheckSettings | None = None
    ) -> CameraReader:
        """Build the cameras of the contract from LeRobot's configurations; InputError if LeRobot cannot."""
        from lerobot.cameras.utils import make_cameras_from_configs

        wanted = {spec.name: configs[spec.name] for spec in specs if spec.name in configs}
        try:
            cameras = make_cameras_from_configs(wanted)
        except (ValueError, ImportError) as error:
            raise InputError(
                "cameras",
                got=error,
                expected="configurations that LeRobot can build",
                fix="Check the type and the fields of each camera.",
            ) from None
        return cls(cameras, specs, settings, found=tuple(configs))

    def connect(self) -> None:
        """Open all cameras and wait for a first frame of each; InputError if one does not open or has another size."""
        try:
            for name, camera in self._cameras.items():
                self._open(name, camera)
        except BaseException:
            self.close()
            raise
        for name, camera in self._cameras.items():
            thread = threading.Thread(target=self._read_loop, args=(name, camera), name=f"camera {name}", daemon=True)
            thread.start()
            self._threads.append(thread)
        ends = time.monotonic() + FIRST_FRAME_SECONDS
        for name, checker in self._checkers.items():
            while checker.frame is None and checker.fault is None and time.monotonic() < ends:
                time.sleep(0.01)
            if checker.frame is None:
                got = checker.fault[1] if checker.fault else self._errors.get(name, "no frame")
                self.close()
                raise InputError(f"camera {name}", got=got, expected="images", fix="Check its cable and its settings.")

    def latest(self, joints: np.ndarray | None = None, now: float | None = None) -> dict[str, TimestampedFrame]:
        """Return the newest frame of each camera.

        Args:
            joints: The joints [A] now.
            now: Steady seconds. Default: the present time.

        Raises:
            ObservationRefused: A frame must not be used.
        """
        with self._lock:
            now = time.monotonic() if now is None else now
            return {name: checker.check(now, joints) for name, checker in self._checkers.items()}

    def close(self) -> None:
        """End the threads and close the cameras."""
        self._stop_event.set()
        for thread in self._threads:
            thread.join(timeout=2.0)
        for camera in self._connected:
            with contextlib.suppress(Exception):
                # A camera that was unplugged cannot be closed in order.
                camera.disconnect()
        self._connected = []

    def _open(self, name: str, camera: Camera) -> None:
        spec = self._checkers[name].spec
        for side in ("height", "width"):
            size = getattr(camera, side, None)
            if size is not None and size != getattr(spec, side):
                got = f"{getattr(camera, 'height', '?')}x{getattr(camera, 'width', '?')}"
                raise self._size_error(spec, got)
        try:
            camera.connect()
        except SaccadeError:
            raise
        except Exception as error:
            # Any error of a camera's library means that the camera does not open.
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise InputError(
                f"camera {name}", got=lines[0], expected="a camera that opens", fix="`lerobot-find-cameras` lists them."
            ) from None
        self._connected.append(camera)
        try:
            shape = camera.async_read(timeout_ms=1000 * FIRST_FRAME_SECONDS).shape
        except Exception as error:
            raise InputError(
                f"camera {name}", got=f"no image ({error})", expected="images", fix="Check its cable."
            ) from None
        if shape != (spec.height, spec.width, 3):
            raise self._size_error(spec, "x".join(map(str, shape[:2])))

    @staticmethod
    def _size_error(spec: CameraSpec, got: str) -> InputError:
        return InputError(
            f"camera {spec.name}",
            got=f"images of {got} pixels (height x width)",
            expected=f"{spec.height}x{spec.width}",
            fix="Set the camera to the size that the policy was trained with.",
        )

    def _read_loop(self, name: str, camera: Camera) -> None:
        number = 0
        latency = self._latency.get(name, 0.0)
        next_frame = getattr(camera, "next_frame", None)
        while not self._stop_event.is_set():
            try:
                if next_frame is not None:
                    frame = next_frame(READ_TIMEOUT_MS)
                    image, captured = frame.image, frame.captured
                else:
                    image, captured = camera.async_read(timeout_ms=READ_TIMEOUT_MS), time.monotonic()
            except Exception as error:
                # The age of the last frame will tell. Do not read an unplugged camera in a tight loop.
                self._errors[name] = str(error)
                self._stop_event.wait(0.01)
                continue
            number += 1
            with self._lock:
                self._checkers[name].add(TimestampedFrame(image, captured - latency, number))


def oldest_capture_time(frames: Mapping[str, TimestampedFrame]) -> float:
    """Return the oldest capture time of some frames in steady seconds, infinity if there are none."""
    return min((frame.captured for frame in frames.values()), default=math.inf)
