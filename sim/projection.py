"""Where a MuJoCo camera sees a point."""

from __future__ import annotations

from typing import Any

import numpy as np

POINT_NOT_VISIBLE = np.array([-1.0, -1.0])
"""The label of a point that is not to be found in a picture: the pointing loss passes it by."""


def project_point(model: Any, data: Any, camera: str, point: np.ndarray) -> np.ndarray | None:
    """Return where in a camera's picture a point [3] of the world is: fractions [2] from the upper left corner.

    Of a square picture, right way up; outside 0 to 1 beyond its edges, None behind the camera.
    """
    pose = data.camera(camera)
    right, up, back = pose.xmat.reshape(3, 3).T @ (point - pose.xpos)
    if back > -1e-3:
        return None
    reach = -back * np.tan(np.deg2rad(model.camera(camera).fovy[0]) / 2)
    return 0.5 + 0.5 * np.array([right, -up]) / reach
