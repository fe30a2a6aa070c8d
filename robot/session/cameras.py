"""Cameras as a policy's eyes: every frame with the time it was taken at, and none that is old, frozen or blank."""

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
    """What the cameras show is not to be decided from; `reason` is one word."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple:
        return type(self), (self.reason, str(self))


@dataclass(frozen=True)
class FrameCheckSettings:
    """What frames have to be.

    `age_limit`: seconds. A picture is frozen when it came `identical_limit` times the same while the arm moved by more
    than `moved` units; a still arm may be shown by equal pictures. It is blank when its values span less than `blank`
    levels; 0 allows that. `latency`: seconds from light to arrival, where it is known, by camera.
    """

    age_limit: float = 0.1
    identical_limit: int = 5
    moved: float = 3.0
    blank: int = 4
    latency: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 < self.age_limit <= 0.5:
            raise InputError("age_limit", got=self.age_limit, expected="above 0, at most 0.5 s", fix="Use 0.1.")
        if self.identical_limit < 2:
            raise InputError("identical_limit", got=self.identical_limit, expected="2 or more", fix="Use 5.")


@dataclass(frozen=True, eq=False)
class TimestampedFrame:
    """A picture, uint8 [H, W, 3], when it was taken in steady seconds, and how many came before it."""

    image: np.ndarray
    captured: float
    number: int


class FrameChecker:
    """Judge the frames of one camera; time and joints are passed in.

    `frame`: the newest, whatever it is worth. `fault`: reason and detail where the newest was of a wrong form.
    """

    def __init__(self, spec: CameraSpec, settings: FrameCheckSettings) -> None:
        self.spec, self._settings = spec, settings
        self.frame: TimestampedFrame | None = None
        self._identical_count, self._first_identical_time, self._blank = 1, math.inf, False
        self._poses: deque[tuple[float, np.ndarray]] = deque()
        self.fault: tuple[str, str] | None = None

    def add(self, frame: TimestampedFrame) -> None:
        """Take a new frame; one of a wrong form, or older than the last, counts as none."""
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
            self._blank = int(image.max()) - int(image.min()) < self._settings.blank
        self.frame = frame

    def check(self, now: float, joints: np.ndarray | None = None) -> TimestampedFrame:
        """Return the newest frame; ObservationRefused where there is none that may be decided from.

        `joints`: where the arm is now; the oftener it is told, the sooner a frozen picture is noticed.
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
        moved = self._joint_motion(frame)
        if self._identical_count >= settings.identical_limit and moved > settings.moved:
            frames = f"{self._identical_count} frames while the arm moved {moved:.1f}"
            detail = f"camera {name} shows the same image for {frames}"
            raise ObservationRefused("camera_frozen", detail)
        if settings.blank and self._blank:
            raise ObservationRefused("camera_blank", f"camera {name} shows nothing")
        return frame

    def _joint_motion(self, frame: TimestampedFrame) -> float:
        """Return how far the joints moved between the first and the last of the equal pictures.

        Where they were when a picture was taken, that is: the arm may have set off since.
        """
        while len(self._poses) > 1 and self._poses[1][0] <= self._first_identical_time:
            self._poses.popleft()
        poses = [pose for when, pose in self._poses if when <= frame.captured]
        return float(np.abs(poses[-1] - poses[0]).max()) if len(poses) > 1 else 0.0


class Camera(Protocol):
    """What a camera of LeRobot has to do; one with `next_frame` also says when its frames were taken."""

    def connect(self, warmup: bool = True) -> None: ...

    def async_read(self, timeout_ms: float = ...) -> np.ndarray: ...

    def disconnect(self) -> None: ...


class CameraReader:
    """Read cameras, each in a thread of its own, and give what they show when it may be decided from.

    `cameras` by name; those that the contract does not name are not read. Use `connect` before and `close` after.
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
        """Make the cameras from LeRobot's configurations; those that no contract names are left alone."""
        from lerobot.cameras.utils import make_cameras_from_configs

        wanted = {spec.name: configs[spec.name] for spec in specs if spec.name in configs}
        try:
            cameras = make_cameras_from_configs(wanted)
        except (ValueError, ImportError) as error:
            raise InputError(
                "cameras", got=error, expected="configurations that LeRobot can build", fix="See their type and fields."
            ) from None
        return cls(cameras, specs, settings, found=tuple(configs))

    def connect(self) -> None:
        """Open all cameras and see a first frame of each; InputError for one that is missing or of another size."""
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
                raise InputError(
                    f"camera {name}", got=got, expected="pictures", fix="Check its cable and its settings."
                )

    def latest(self, joints: np.ndarray | None = None, now: float | None = None) -> dict[str, TimestampedFrame]:
        """Return the newest frame of each camera; ObservationRefused where one may not be decided from."""
        with self._lock:
            now = time.monotonic() if now is None else now
            return {name: checker.check(now, joints) for name, checker in self._checkers.items()}

    def close(self) -> None:
        """End the threads and let go of the cameras."""
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
            # Whatever a camera's library raises, there is no camera to see with.
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise InputError(
                f"camera {name}", got=lines[0], expected="a camera that opens", fix="`lerobot-find-cameras` lists them."
            ) from None
        self._connected.append(camera)
        try:
            shape = camera.async_read(timeout_ms=1000 * FIRST_FRAME_SECONDS).shape
        except Exception as error:
            raise InputError(
                f"camera {name}", got=f"no picture ({error})", expected="pictures", fix="Check its cable."
            ) from None
        if shape != (spec.height, spec.width, 3):
            raise self._size_error(spec, "x".join(map(str, shape[:2])))

    @staticmethod
    def _size_error(spec: CameraSpec, got: str) -> InputError:
        return InputError(
            f"camera {spec.name}",
            got=f"pictures of {got} pixels (height x width)",
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
                # No frame: its age will tell. A camera that was unplugged must not be asked in a tight loop.
                self._errors[name] = str(error)
                self._stop_event.wait(0.01)
                continue
            number += 1
            with self._lock:
                self._checkers[name].add(TimestampedFrame(image, captured - latency, number))


def oldest_capture_time(frames: Mapping[str, TimestampedFrame]) -> float:
    """Return when the oldest of some frames was taken; infinity where there are none."""
    return min((frame.captured for frame in frames.values()), default=math.inf)
