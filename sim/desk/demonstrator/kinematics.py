"""Forward and inverse kinematics of the twin's arm, on a model of the arm alone."""

from __future__ import annotations

import mujoco
import numpy as np

from .. import arm
from ..arm import PAN_AXIS_POSITION

ARM_JOINT_COUNT = 5
"""Joints that move the tool; the sixth is the gripper."""


class Kinematics:
    """Where the tool is for given joints, and the joints that bring it somewhere.

    Angles in radians, lengths in metres, in the arm's base frame. Inverse kinematics is damped least squares on the
    tool's position, its pitch (how far the fingers lean outward from straight down) and the jaws' direction.
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
        """Return the tool's position [3] for joints [>=5]."""
        self._forward(joints)
        return self._data.site_xpos[self._site].copy()

    def pitch(self, joints: np.ndarray) -> float:
        """Return how far the fingers lean outward from straight down for joints [>=5], in radians."""
        self._forward(joints)
        up = self._data.xmat[self._body].reshape(3, 3)[:, 2]
        outward = _outward(self._data.site_xpos[self._site])
        return float(np.arctan2(-up @ outward, up[2]))

    def solve(self, position: np.ndarray, joints: np.ndarray, *, pitch: float, iterations: int = 8) -> np.ndarray:
        """Return arm joints [5] that bring the tool to `position` [3], starting from `joints` [>=5].

        `pitch` is the outward tilt of the fingers in radians; the jaws close along the tangent around the base.
        """
        current = np.array(joints[:ARM_JOINT_COUNT], dtype=np.float64)
        jacobian, rotation = np.zeros((3, self._model.nv)), np.zeros((3, self._model.nv))
        low, high = arm.JOINT_RANGES[:ARM_JOINT_COUNT].T
        outward = _outward(position)
        tangent = np.array([-outward[1], outward[0], 0.0])
        up = np.cos(pitch) * np.array([0.0, 0.0, 1.0]) - np.sin(pitch) * outward
        for _ in range(iterations):
            self._forward(current)
            matrix = self._data.xmat[self._body].reshape(3, 3)
            error = position - self._data.site_xpos[self._site]
            turn = (
                np.cross(matrix[:, 2], up)
                + 0.5 * np.dot(np.cross(matrix[:, 0], tangent), matrix[:, 2]) * (matrix[:, 2])
            )
            if np.linalg.norm(error) < 2e-4 and np.linalg.norm(turn) < 5e-3:
                break
            mujoco.mj_jacSite(self._model, self._data, jacobian, rotation, self._site)
            stacked = np.vstack([jacobian[:, :ARM_JOINT_COUNT], 0.05 * rotation[:, :ARM_JOINT_COUNT]])
            target = np.concatenate([error, 0.05 * turn])
            step = stacked.T @ np.linalg.solve(stacked @ stacked.T + 1e-6 * np.eye(6), target)
            current = np.clip(current + np.clip(step, -0.25, 0.25), low, high)
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
