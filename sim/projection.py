"""Projection of points into the image of a MuJoCo camera."""

from __future__ import annotations

from typing import Any

import numpy as np

POINT_NOT_VISIBLE = np.array([-1.0, -1.0])
"""Label of a point that is outside the image: the grounding loss ignores it."""


def project_point(model: Any, data: Any, camera: str, point: np.ndarray) -> np.ndarray | None:
    """Project a point into a camera's square image.

    Args:
        model: The mujoco.MjModel.
        data: Its mujoco.MjData.
        camera: Name of the camera.
        point: Point [3] in world coordinates, in metres.

    Returns:
        Image coordinates [2] as fractions from the upper left corner, outside 0 to 1 beyond the edges; None if the
        point is behind the camera.
    """
    pose = data.camera(camera)
    right, up, back = pose.xmat.reshape(3, 3).T @ (point - pose.xpos)  # the camera looks along -z
    if back > -1e-3:
        return None
    half_size = -back * np.tan(np.deg2rad(model.camera(camera).fovy[0]) / 2)
    return 0.5 + 0.5 * np.array([right, -up]) / half_size
