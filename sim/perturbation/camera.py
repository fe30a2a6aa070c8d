"""Camera: every fixed camera orbits the scene, moves nearer or farther, is rotated and zoomed.

A camera on the arm stays: it moves with the arm.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from .edits import ModelEdits
from .world import PerturbableWorld

REQUIRED_MEMBERS = ("model", "data", "movable_objects", "observe")

ORBIT_DEGREES, ELEVATION_DEGREES, DISTANCE, TURN_DEGREES, ZOOM = 4.0, 2.0, 0.03, 0.8, 0.02
"""Largest change per level: orbit, elevation, distance (fraction), rotation, zoom (fraction)."""


def perturb(world: PerturbableWorld, edits: ModelEdits, level: int, generator: np.random.Generator) -> dict[str, Any]:
    """Move the fixed cameras of a world; return each camera's motion, in degrees and metres."""
    positions, quaternions, fields = (edits.array(name) for name in ("cam_pos", "cam_quat", "cam_fovy"))
    centre = np.mean([world.data.body(body).xpos for body in world.movable_objects()], axis=0)
    drawn = {}
    for camera in range(world.model.ncam):
        body = int(world.model.cam_bodyid[camera])
        # Draw for every camera, so that a camera's motion does not depend on which others exist.
        around, up, stretch, zoom = generator.choice((-1.0, 1.0), 4) * generator.uniform(0.6, 1.0, 4) * level
        turn = generator.normal(0.0, 0.4, 3) * level * TURN_DEGREES
        if world.model.body_weldid[body] != 0:
            continue
        place, frame = _orbit(
            world.data.cam_xpos[camera],
            world.data.cam_xmat[camera].reshape(3, 3),
            centre,
            np.deg2rad(around * ORBIT_DEGREES),
            np.deg2rad(up * ELEVATION_DEGREES),
            1.0 + stretch * DISTANCE,
        )
        moved = float(np.linalg.norm(place - world.data.cam_xpos[camera]))
        frame = frame @ _rotation(np.deg2rad(turn))
        to_body = world.data.xmat[body].reshape(3, 3).T
        positions[camera] = to_body @ (place - world.data.xpos[body])
        mujoco.mju_mat2Quat(quaternions[camera], np.ascontiguousarray(to_body @ frame).reshape(-1))
        fields[camera] *= 1.0 + zoom * ZOOM
        name = world.model.camera(camera).name or str(camera)
        drawn[name] = {
            "around_degrees": round(float(around) * ORBIT_DEGREES, 2),
            "up_degrees": round(float(up) * ELEVATION_DEGREES, 2),
            "turned_degrees": round(float(np.linalg.norm(turn)), 2),
            "moved_metres": round(moved, 4),
            "field_of_view_degrees": round(float(fields[camera]), 2),
        }
    # Recompute camera poses only: the physics stays as it was.
    mujoco.mj_camlight(world.model, world.data)
    return drawn


def _orbit(
    position: np.ndarray, frame: np.ndarray, centre: np.ndarray, around: float, up: float, stretch: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return position [3] and rotation [3, 3] of a camera after an orbit around `centre`, seen at the same point."""
    vertical = _rotation(np.array([0.0, 0.0, around]))
    # Elevation about the camera's horizontal axis, between 15 and 85 degrees: above the table, below the zenith.
    away = position - centre
    height = np.arcsin(np.clip(away[2] / np.linalg.norm(away), -1.0, 1.0))
    up = np.clip(height + up, np.deg2rad(15.0), np.deg2rad(85.0)) - height if height > 0 else up
    turn = vertical @ _rotation(-frame[:, 0] * up)
    return centre + stretch * (turn @ away), turn @ frame


def _rotation(vector: np.ndarray) -> np.ndarray:
    """Return the rotation matrix [3, 3] of a rotation vector [3] in radians."""
    quaternion, matrix = np.zeros(4), np.zeros(9)
    angle = float(np.linalg.norm(vector))
    mujoco.mju_axisAngle2Quat(quaternion, vector / max(angle, 1e-12), angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)
