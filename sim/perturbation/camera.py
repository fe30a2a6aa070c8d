"""Camera: every camera that is fixed to the world goes around what it looks at, nearer or farther, and is turned.

A camera on the arm keeps its place: it would move with the arm's start pose.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from .edits import ModelEdits
from .world import PerturbableWorld

REQUIRED_MEMBERS = ("model", "data", "movable_objects", "observe")

ORBIT_DEGREES, ELEVATION_DEGREES, DISTANCE, TURN_DEGREES, ZOOM = 4.0, 2.0, 0.03, 0.8, 0.02
"""How far one level goes, at most: around the scene, up or down, nearer or farther, turned aside, zoomed (shares)."""


def perturb(world: PerturbableWorld, edits: ModelEdits, level: int, generator: np.random.Generator) -> dict[str, Any]:
    """Move the fixed cameras of a world; return where each of them went, in degrees, metres and shares."""
    positions, quaternions, fields = (edits.array(name) for name in ("cam_pos", "cam_quat", "cam_fovy"))
    centre = np.mean([world.data.body(body).xpos for body in world.movable_objects()], axis=0)
    drawn = {}
    for camera in range(world.model.ncam):
        body = int(world.model.cam_bodyid[camera])
        # Drawn for every camera, so that what one camera does is the same whichever others there are.
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
    # Where cameras are follows from where bodies are; nothing else is computed anew, so the physics stays as it was.
    mujoco.mj_camlight(world.model, world.data)
    return drawn


def _orbit(
    position: np.ndarray, frame: np.ndarray, centre: np.ndarray, around: float, up: float, stretch: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return position [3] and frame [3, 3] of a camera that went around `centre` and kept it at the same spot."""
    vertical = _rotation(np.array([0.0, 0.0, around]))
    # Up and down about the camera's own horizontal axis; not beyond straight above, nor below the table.
    away = position - centre
    height = np.arcsin(np.clip(away[2] / np.linalg.norm(away), -1.0, 1.0))
    up = np.clip(height + up, np.deg2rad(15.0), np.deg2rad(85.0)) - height if height > 0 else up
    turn = vertical @ _rotation(-frame[:, 0] * up)
    return centre + stretch * (turn @ away), turn @ frame


def _rotation(vector: np.ndarray) -> np.ndarray:
    """Return the matrix [3, 3] of a rotation vector [3], in radians."""
    quaternion, matrix = np.zeros(4), np.zeros(9)
    angle = float(np.linalg.norm(vector))
    mujoco.mju_axisAngle2Quat(quaternion, vector / max(angle, 1e-12), angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)
