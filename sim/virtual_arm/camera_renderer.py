"""The cameras of the twin: a thread renders them at a steady rate and shares the frames with other processes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import mujoco
import numpy as np

from ...errors import WorldError
from ..desk.scene import CAMERAS
from .faults import FaultInjector
from .frames import FrameWriter, frame_path
from .twin import Twin

NOISY_PIXELS = 24
"""How many values of an image are changed by one: a real sensor never delivers the same image twice, and a check for
repeated images must not take an arm at rest for a frozen camera."""

POLL_SECONDS = 0.002

RENDERED_FIELDS = (
    *("qpos", "mocap_pos", "mocap_quat", "xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat"),
    *("site_xpos", "site_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
)
"""Fields of mujoco.MjData that rendering needs."""


class CameraRenderer:
    """Renders every camera of the twin, in its own thread; `failure` is the error that stopped it.

    Args:
        twin: The simulated desk.
        folder: Folder of the shared frames.
        image_size: Height and width of the images in pixels.
        rate: Frames per second of the twin's time.
        faults: Faults to apply.
    """

    def __init__(self, twin: Twin, folder: Path, image_size: int, rate: float, faults: FaultInjector) -> None:
        self.failure = ""
        self.rendered_frames = 0
        self._twin, self._faults = twin, faults
        self._size, self._rate = image_size, rate
        self._writers = {camera: FrameWriter(frame_path(folder, camera), image_size, image_size) for camera in CAMERAS}
        self._last: dict[str, np.ndarray] = {}
        self._last_capture_times: dict[str, float] = {}
        self._delayed_frames: list[tuple[float, str, np.ndarray, float]] = []
        self._generator = np.random.default_rng(0)
        self._model: mujoco.MjModel | None = None
        self._data: mujoco.MjData | None = None
        self._renderer: mujoco.Renderer | None = None
        self._stopping = False
        self._requested_passes, self._completed_passes = 1, 0
        self._thread = threading.Thread(target=self._run, name="cameras", daemon=True)
        self._thread.start()

    def wait_for_new_frames(self, seconds: float) -> None:
        """Wait until every camera has rendered the present state.

        Args:
            seconds: Time limit.

        Raises:
            WorldError: Rendering failed or took longer.
        """
        self._requested_passes += 1
        requested, deadline = self._requested_passes, time.monotonic() + seconds
        while self._completed_passes < requested:
            if self.failure or time.monotonic() > deadline:
                raise WorldError(f"the virtual arm's cameras: got {self.failure or f'no image within {seconds:g} s'}")
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """End the thread."""
        self._stopping = True
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        try:
            self._render_loop()
        except Exception as error:  # Reported to the parent by the next request.
            self.failure = f"{type(error).__name__}: {error}"
        if self._renderer is not None:
            self._renderer.close()

    def _render_loop(self) -> None:
        period = 1.0 / self._rate / self._twin.speed
        due = time.monotonic()
        while not self._stopping:
            self._write_delayed_frames()
            wait = due - time.monotonic()
            if wait > 0:
                time.sleep(min(wait, 0.01))
                continue
            requested = self._requested_passes
            captured = self._copy_twin_state()
            for camera in CAMERAS:
                self._capture(camera, captured)
            self._completed_passes = requested
            # Skip frames that are late, as a slow camera does.
            due += period * max(1.0, np.ceil((time.monotonic() - due) / period))

    def _copy_twin_state(self) -> float:
        """Copy the twin's state; return the time of the copy."""
        while True:
            model = self._twin.env.model
            if model is not self._model:
                # Creating a renderer takes time: do it without the lock, so that the arm keeps moving.
                if self._renderer is not None:
                    self._renderer.close()
                self._renderer = mujoco.Renderer(model, self._size, self._size)
                self._model, self._data = model, mujoco.MjData(model)
            with self._twin.lock:
                if self._twin.env.model is self._model:
                    for name in RENDERED_FIELDS:
                        getattr(self._data, name)[:] = getattr(self._twin.env.data, name)
                    return time.monotonic()

    def _capture(self, camera: str, captured: float) -> None:
        if self._faults.trigger("camera_dropped", camera):
            return
        if self._renderer is None:
            return
        if self._faults.trigger("camera_frozen", camera) and camera in self._last:
            image = self._last[camera]
        elif self._faults.trigger("camera_black", camera):
            image = np.zeros((self._size, self._size, 3), np.uint8)
        else:
            self._renderer.update_scene(self._data, camera)
            image = self._with_noise(self._renderer.render())
            self.rendered_frames += 1
        self._last[camera] = image
        late = self._faults.trigger("camera_delayed", camera)
        if late:
            self._delayed_frames.append((captured + (late.value or 0.0), camera, image, captured))
        else:
            self._write_frame(camera, image, captured)

    def _write_delayed_frames(self) -> None:
        now = time.monotonic()
        while self._delayed_frames and self._delayed_frames[0][0] <= now:
            _, camera, image, captured = self._delayed_frames.pop(0)
            # If the delay has ended, newer frames may have been written already.
            if captured > self._last_capture_times.get(camera, 0.0):
                self._write_frame(camera, image, captured)

    def _write_frame(self, camera: str, image: np.ndarray, captured: float) -> None:
        self._last_capture_times[camera] = captured
        self._writers[camera].write(image, captured)

    def _with_noise(self, image: np.ndarray) -> np.ndarray:
        noisy = image.copy()
        values = noisy.reshape(-1)
        places = self._generator.integers(0, values.size, NOISY_PIXELS)
        values[places] ^= 1
        return noisy
