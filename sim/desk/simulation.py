"""The MuJoCo simulation of a desk task's scene: its model, the poses of what is on it, and what can be measured."""

from __future__ import annotations

from collections.abc import Mapping

import mujoco
import numpy as np

from ...errors import WorldError
from . import arm
from .fixtures import Button
from .scene import scene_xml
from .tasks.arrangement import Pose
from .tasks.cue import HALO
from .tasks.task import Task

STORAGE_HEIGHT = -1.0
"""Objects that are not in play are stored below the desk, at this height in metres."""


class DeskSimulation:
    """The scene of one task: model and state.

    Positions are in the arm's base frame, which is the world frame: metres, with the z axis up. Joint positions are in
    radians, those of a fixture's slide in metres.

    Args:
        task: The task; its arrangement names the objects and fixtures.

    Attributes:
        model: The mujoco.MjModel; resets keep it.
        data: Its mujoco.MjData.
        task_spec: The task.
        present_bodies: Bodies of the objects in play.
        pressed_buttons: Bodies of the buttons that were pressed since the start of the episode.
    """

    def __init__(self, task: Task) -> None:
        self.task_spec = task
        self.present_bodies: tuple[str, ...] = ()
        self.pressed_buttons: set[str] = set()
        arrangement = task.arrangement
        self._objects = {each.body: each for each in arrangement.objects}
        self._buttons = [fixture for fixture in arrangement.fixtures if isinstance(fixture, Button)]
        cue = (task.cue,) if task.cue else ()
        self.model = mujoco.MjModel.from_xml_string(
            scene_xml(arrangement.objects, (*arrangement.fixtures, *cue), has_bin=arrangement.has_bin)
        )
        self.data = mujoco.MjData(self.model)
        self._collision_masks = self.model.geom_contype.copy(), self.model.geom_conaffinity.copy()
        self._joint_addresses = np.array([self.model.joint(name).qposadr[0] for name in arm.JOINTS])
        self._finger_geoms = {self.model.geom(name).id for name in ("fixed_finger", "moving_finger")}
        self._body_geoms = {
            self.model.body(body).name: set(range(first, first + count))
            for body, (first, count) in enumerate(zip(self.model.body_geomadr, self.model.body_geomnum, strict=True))
        }

    def place_all(self, poses: Mapping[str, Pose]) -> None:
        """Reset the simulation, and place the objects in play and the fixtures at their poses.

        Args:
            poses: By body: x, y, z in metres and yaw in radians; by a fixture's joint: its position alone. Objects
                without a pose are stored out of play.
        """
        self.present_bodies = tuple(body for body in poses if body in self._objects)
        mujoco.mj_resetData(self.model, self.data)
        self.model.geom_contype[:], self.model.geom_conaffinity[:] = self._collision_masks
        self.model.body_gravcomp[:] = 0.0
        for index, body in enumerate(self._objects):
            if body in poses:
                self.place_object(body, poses[body])
            else:
                self._store_object(body, index)
        for fixture in self.task_spec.arrangement.fixtures:
            mocap = self.model.body(fixture.body).mocapid[0]
            *self.data.mocap_pos[mocap], yaw = poses[fixture.body]
            self.data.mocap_quat[mocap] = np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)
        for joint_name, pose in poses.items():
            if len(pose) == 1:
                self.data.joint(joint_name).qpos[0] = pose[0]
        if self.task_spec.cue:
            self.data.mocap_pos[self.model.body(HALO).mocapid[0], :2] = poses[self.task_spec.cue.lit_object.body][:2]

    def place_object(self, body: str, pose: Pose) -> None:
        """Place an object at a pose, with its weight and its collisions."""
        x, y, z, yaw = pose
        self.data.joint(body).qpos[:] = (x, y, z, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2))
        self.model.body_gravcomp[self.model.body(body).id] = 0.0
        geom = self.model.geom(body).id
        contype, conaffinity = self._collision_masks
        self.model.geom_contype[geom], self.model.geom_conaffinity[geom] = contype[geom], conaffinity[geom]

    def _store_object(self, body: str, index: int) -> None:
        """Store an object out of play: below the desk, weightless and without collisions."""
        self.data.joint(body).qpos[:3] = (0.3 + 0.1 * index, 0.0, STORAGE_HEIGHT)
        self.model.body_gravcomp[self.model.body(body).id] = 1.0
        geom = self.model.geom(body).id
        self.model.geom_contype[geom] = self.model.geom_conaffinity[geom] = 0

    def advance(self, physics_steps: int) -> None:
        """Make physics steps with the present commands; `PHYSICS_STEPS` of them are a control step.

        Raises:
            WorldError: The physics diverged.
        """
        mujoco.mj_step(self.model, self.data, nstep=physics_steps)
        if not np.isfinite(self.data.qpos).all():
            raise WorldError("the desk's physics diverged: got non-finite positions; please report the seed and task")

    def record_pressed_buttons(self) -> None:
        """Add the buttons that are down now to `pressed_buttons`."""
        self.pressed_buttons |= {button.moving_body for button in self._buttons if button.is_pressed(self)}

    def update_lamps(self, steps: int) -> None:
        """Colour the lamps of the task's cue and of the buttons as after a number of control steps."""
        colours = self.task_spec.cue.colours(steps) if self.task_spec.cue else {}
        for button in self._buttons:
            colours |= button.colours(pressed=button.moving_body in self.pressed_buttons)
        for lamp, colour in colours.items():
            self.model.geom(lamp).rgba = colour

    def position(self, body: str) -> np.ndarray:
        """Return the centre [3] of a body, in metres."""
        return self.data.body(body).xpos.copy()

    def rotation(self, body: str) -> np.ndarray:
        """Return the rotation matrix [3, 3] of a body; its columns are the body's axes."""
        return self.data.body(body).xmat.reshape(3, 3).copy()

    def tool_position(self) -> np.ndarray:
        """Return the tool's position [3], in metres."""
        return self.data.site("tool").xpos.copy()

    def joint_position(self, name: str) -> float:
        """Return the position of a fixture's joint, in metres or radians."""
        return float(self.data.joint(name).qpos[0])

    def joint_range(self, name: str) -> tuple[float, float]:
        """Return the range of a fixture's joint, in metres or radians."""
        low, high = self.model.joint(name).range
        return low, high

    def joints(self) -> np.ndarray:
        """Return the measured positions [6] of the arm's joints, in radians."""
        return self.data.qpos[self._joint_addresses].copy()

    def finger_contacts(self, body: str) -> int:
        """Return how many of the two fingers touch a body."""
        geoms, touching = self._body_geoms[body], set()
        for first, second in self.data.contact.geom:
            if first in geoms or second in geoms:
                touching |= {int(first), int(second)} & self._finger_geoms
        return len(touching)
