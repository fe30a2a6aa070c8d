"""Rendering of the desk's cameras."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from .scene import CAMERAS

VIDEO_SIZE = 384
"""Height and width of images for people, in pixels."""


class DeskRenderer:
    """Renders the cameras of a desk; renderers are created when they are first needed.

    Args:
        model: The mujoco.MjModel.
        image_size: Height and width of a policy's images, in pixels.
    """

    def __init__(self, model: Any, image_size: int) -> None:
        self._model = model
        self._image_size = image_size
        self._policy_renderer: mujoco.Renderer | None = None
        self._video_renderer: mujoco.Renderer | None = None

    def camera_images(self, data: Any) -> dict[str, np.ndarray]:
        """Return the image of each camera, uint8 [H, W, 3], for a mujoco.MjData."""
        if self._policy_renderer is None:
            self._policy_renderer = mujoco.Renderer(self._model, self._image_size, self._image_size)
        return {camera: _render(self._policy_renderer, data, camera) for camera in CAMERAS}

    def video_frame(self, data: Any) -> np.ndarray:
        """Return the front camera's image for people, uint8 [384, 384, 3], for a mujoco.MjData."""
        if self._video_renderer is None:
            self._video_renderer = mujoco.Renderer(self._model, VIDEO_SIZE, VIDEO_SIZE)
        return _render(self._video_renderer, data, "front")

    def close(self) -> None:
        """Free the renderers; the next image creates them again, with the model's present lights and textures."""
        for renderer in (self._policy_renderer, self._video_renderer):
            if renderer is not None:
                renderer.close()
        self._policy_renderer = self._video_renderer = None


def _render(renderer: mujoco.Renderer, data: Any, camera: str) -> np.ndarray:
    renderer.update_scene(data, camera)
    return renderer.render().copy()
