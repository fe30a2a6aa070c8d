"""Forward and inverse kinematics of the desk's arm, on a MuJoCo model of the arm alone."""

from __future__ import annotations

import mujoco
import numpy as np

from .. import arm
from ..arm import PAN_AXIS_POSITION

ARM_JOINT_COUNT = 5
"""Number of joints that move the tool; the sixth is the gripper."""

ROTATION_WEIGHT = 0.05
"""Weight of rotation against position in the least squares, in metres per radian."""

ROLL_WEIGHT = 0.5
"""Weight of the jaws' direction against the fingers' tilt."""

DAMPING = 1e-6
"""Damping of the least squares."""

MAX_JOINT_STEP = 0.25
"""Largest change of a joint in one iteration, in radians."""

POSITION_TOLERANCE, ROTATION_TOLERANCE = 2e-4, 5e-3
"""Errors at which the iteration ends, in metres and radians."""


class Kinematics:
    """Forward kinematics of the tool, and inverse kinematics by damped least squares.

    Angles are in radians and lengths in metres, in the arm's base frame. The inverse solves for the tool's position,
    its pitch (outward tilt of the fingers from straight down) and the direction in which the jaws close.
    """

    def __init__(self) -> None:
        self._model = mujoco.MjModel.from_xml_string(
            f'<mujoco><compiler angle="radian" autolimits="true"/>{arm.DEFAULTS}<worldbody>{arm.body_xml()}'
            f"</worldbody>{arm.actuator_xml()}</mujoco>"
        )
        self._data = mujoco.MjData(self._model)
        self._site = self._model.site("tool").id
        self._body = self._model.body("gripper").id

    def tool_position(self, joints: np.ndarray) -> np.ndarray:
        """Return the tool's position [3] in metres for joints [>=5] in radians."""
        self._forward(joints)
        return self._data.site_xpos[self._site].copy()

    def pitch(self, joints: np.ndarray) -> float:
        """Return the outward tilt of the fingers from straight down, in radians, for joints [>=5] in radians."""
        self._forward(joints)
        up = self._data.xmat[self._body].reshape(3, 3)[:, 2]  # [3], against the fingers' direction
        outward = _outward(self._data.site_xpos[self._site])  # [3]
        return float(np.arctan2(-up @ outward, up[2]))

    def solve(self, position: np.ndarray, joints: np.ndarray, *, pitch: float, iterations: int = 8) -> np.ndarray:
        """Solve for joints that bring the tool to a position, with the jaws closing tangentially around the base.

        Args:
            position: Position [3] of the tool, in metres.
            joints: Joints [>=5] from which the iteration starts, in radians.
            pitch: Outward tilt of the fingers, in radians.
            iterations: Largest number of iterations.

        Returns:
            The arm's joints [5] in radians, within their ranges; the last iterate if it does not converge.
        """
        current = np.array(joints[:ARM_JOINT_COUNT], dtype=np.float64)  # [5]
        translation_jacobian, rotation_jacobian = np.zeros((3, self._model.nv)), np.zeros((3, self._model.nv))
        low, high = arm.JOINT_RANGES[:ARM_JOINT_COUNT].T  # [5] each
        outward = _outward(position)  # [3]
        tangent = np.array([-outward[1], outward[0], 0.0])
        up = np.cos(pitch) * np.array([0.0, 0.0, 1.0]) - np.sin(pitch) * outward
        for _ in range(iterations):
            self._forward(current)
            axes = self._data.xmat[self._body].reshape(3, 3)  # columns: the gripper's axes
            error = position - self._data.site_xpos[self._site]  # [3], metres
            tilt = np.cross(axes[:, 2], up)  # [3], radians
            roll = ROLL_WEIGHT * np.dot(np.cross(axes[:, 0], tangent), axes[:, 2]) * axes[:, 2]  # [3], radians
            rotation_error = tilt + roll
            if np.linalg.norm(error) < POSITION_TOLERANCE and np.linalg.norm(rotation_error) < ROTATION_TOLERANCE:
                break
            mujoco.mj_jacSite(self._model, self._data, translation_jacobian, rotation_jacobian, self._site)
            jacobian = np.vstack(
                [
                    translation_jacobian[:, :ARM_JOINT_COUNT],
                    ROTATION_WEIGHT * rotation_jacobian[:, :ARM_JOINT_COUNT],
                ]
            )  # [6, 5]
            residual = np.concatenate([error, ROTATION_WEIGHT * rotation_error])  # [6]
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + DAMPING * np.eye(6), residual)  # [5]
            current = np.clip(current + np.clip(step, -MAX_JOINT_STEP, MAX_JOINT_STEP), low, high)
        return current

    def _forward(self, joints: np.ndarray) -> None:
        self._data.qpos[:ARM_JOINT_COUNT] = joints[:ARM_JOINT_COUNT]
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)


def _outward(position: np.ndarray) -> np.ndarray:
    """Return the horizontal unit vector [3] from the pan axis to a position."""
    outward = np.array([*position[:2], 0.0]) - [*PAN_AXIS_POSITION, 0.0]
    outward /= max(np.linalg.norm(outward), 1e-6)
    return outward
