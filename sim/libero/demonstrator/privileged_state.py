"""Privileged state of a LIBERO simulation: poses, boxes, joints and contacts, for the scripted demonstrator."""

from __future__ import annotations

from typing import Any

import numpy as np

ROBOT, ARENA = "robot", "arena"
"""Owners of geometries of neither objects nor fixtures; those have the name in the problem file as their owner."""

CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)
"""Corners [8, 3] of a box with half extents of 1."""

COLLISION_GROUP, PLANE = 0, 0
"""The group of collision geometries in robosuite's models, and MuJoCo's number of the plane geometry type."""

FIRM_GRASP_FORCE, STILL_FINGER_SPEED = 8.0, 0.003
"""Limits of a firm grasp: the mean force of the finger motors in newtons, and the finger speed in m/s."""


class PrivilegedState:
    """Reads the state of one simulation.

    Positions [3] are in metres in the world frame. Rotations [3, 3] map from the frame of a body to the world frame.
    A name is that of an object, a fixture or a region of either in the problem file.

    Args:
        simulation: LIBERO's own environment (`Simulation.environment`), a robosuite environment.
    """

    def __init__(self, simulation: Any) -> None:
        self._simulation = simulation
        self.model = simulation.sim.model._model
        self.data = simulation.sim.data._data
        self.goals = tuple(tuple(goal) for goal in simulation.parsed_problem["goal_state"])
        self._bodies: dict[str, int] = dict(simulation.obj_body_id)
        self._sites = dict(simulation.object_sites_dict)
        model = self.model
        solid = (model.geom_contype | model.geom_conaffinity).astype(bool) & (model.geom_group == COLLISION_GROUP)
        solid &= model.geom_type != PLANE
        self._solid = np.flatnonzero(solid)
        names = {body: name for name, body in self._bodies.items()}
        self._owner = np.array([self._find_owner(model.geom_bodyid[geom], names) for geom in range(model.ngeom)])
        self._solid_owner = self._owner[self._solid]
        self._fingers = tuple(
            {model.geom(f"gripper0_finger{finger}_{part}").id for part in ("collision", "pad_collision")}
            for finger in (1, 2)
        )
        self._tool = model.site("gripper0_grip_site").id
        self._hand = model.body("robot0_right_hand").id
        self._finger_joints = [model.joint(f"gripper0_finger_joint{finger}").qposadr[0] for finger in (1, 2)]
        self._finger_speeds = [model.joint(f"gripper0_finger_joint{finger}").dofadr[0] for finger in (1, 2)]
        self._finger_motors = [model.actuator(f"gripper0_gripper_finger_joint{finger}").id for finger in (1, 2)]

    def _find_owner(self, body: int, names: dict[int, str]) -> str:
        while body > 0:
            if body in names:
                return names[body]
            if self.model.body(body).name.startswith(("robot", "gripper", "mount")):
                return ROBOT
            body = self.model.body_parentid[body]
        return ARENA

    def is_satisfied(self, predicate: tuple[str, ...]) -> bool:
        """Tell whether a LIBERO predicate, such as ("on", "milk_1", "plate_1"), holds now."""
        return bool(self._simulation._eval_predicate(list(predicate)))

    def tool_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the tool point [3] (between the fingertips) and the hand's rotation [3, 3]."""
        return self.data.site_xpos[self._tool].copy(), self.data.xmat[self._hand].reshape(3, 3).copy()

    def gripper_width(self) -> float:
        """Return the gap between the fingers in metres, 0 to 0.08."""
        return float(self.data.qpos[self._finger_joints[0]] - self.data.qpos[self._finger_joints[1]])

    def is_grasp_firm(self) -> bool:
        """Tell whether the fingers press on an object: the motors push hard, or push while the fingers do not move."""
        force = np.abs(self.data.actuator_force[self._finger_motors]).mean()
        return bool(force > FIRM_GRASP_FORCE or (force > 1.0 and self.are_fingers_still()))

    def are_fingers_still(self) -> bool:
        """Tell whether both fingers are still."""
        return bool(np.abs(self.data.qvel[self._finger_speeds]).max() < STILL_FINGER_SPEED)

    def is_region(self, name: str) -> bool:
        """Tell whether a name is a region, and not an object or fixture."""
        return name in self._sites

    def owner_of(self, name: str) -> str:
        """Return the object or fixture that a region is part of, `ARENA` for a table's region, or the name itself."""
        if name not in self._sites:
            return name
        return self._sites[name].parent_name if self._sites[name].parent_name in self._bodies else ARENA

    def position(self, name: str) -> np.ndarray:
        """Return the origin [3] of an object, or the centre of a region: LIBERO's predicates compare these."""
        if name in self._sites:
            return self.data.site(name).xpos.copy()
        return self.data.xpos[self._bodies[name]].copy()

    def rotation(self, name: str) -> np.ndarray:
        """Return the rotation [3, 3] of an object, a fixture or a region."""
        if name in self._sites:
            return self.data.site(name).xmat.reshape(3, 3).copy()
        return self.data.xmat[self._bodies[name]].reshape(3, 3).copy()

    def half_size(self, region: str) -> np.ndarray:
        """Return a region's half extents [3] in metres along the axes of the world frame."""
        return np.abs(self.rotation(region) @ np.asarray(self._sites[region].size, dtype=float))

    def boxes(self, owner: str) -> np.ndarray:
        """Return the corners [n, 8, 3] of the boxes around the collision geometries of an object or fixture."""
        return self._corners(self._solid[self._solid_owner == owner])

    def part_boxes(self, body: str) -> np.ndarray:
        """Return the corners [n, 8, 3] of the boxes around the collision geometries of one MuJoCo body."""
        inside = self.model.geom_bodyid[self._solid] == self.model.body(body).id
        return self._corners(self._solid[inside])

    def obstacles(self, *ignored: str) -> np.ndarray:
        """Return the corners [n, 8, 3] of all boxes except those of the robot, the arena and the ignored owners."""
        return self._corners(self._solid[~np.isin(self._solid_owner, (ROBOT, ARENA, *ignored))])

    def _corners(self, geoms: np.ndarray) -> np.ndarray:
        rotations = self.data.geom_xmat[geoms].reshape(-1, 3, 3)  # [n, 3, 3]
        centre, half = self.model.geom_aabb[geoms, :3], self.model.geom_aabb[geoms, 3:]  # [n, 3] each
        local = centre[:, None] + CORNERS * half[:, None]  # [n, 8, 3]
        return self.data.geom_xpos[geoms][:, None] + np.einsum("nij,nkj->nki", rotations, local)

    def finger_contacts(self, owner: str) -> int:
        """Return how many of the two fingers touch an object or fixture."""
        touching = set()
        for pair in self.data.contact.geom:
            for finger, other in (pair, pair[::-1]):
                if self._owner[other] == owner:
                    touching |= {side for side, geoms in enumerate(self._fingers) if int(finger) in geoms}
        return len(touching)

    def are_in_contact(self, first: str, second: str) -> bool:
        """Tell whether two owners' geometries touch."""
        pairs = self._owner[self.data.contact.geom]
        return any({first, second} == set(pair) for pair in pairs)

    def joint_of(self, name: str) -> int:
        """Return MuJoCo's id of the first joint of a fixture, or of the drawer that a region is in."""
        joints = (self._sites[name] if name in self._sites else self._simulation.get_object(name)).joints
        return self.model.joint(joints[0]).id

    def drawers(self) -> tuple[str, ...]:
        """Return the regions that move with a joint."""
        return tuple(name for name, site in self._sites.items() if site.joints)

    def pull_direction(self, drawer: str) -> np.ndarray:
        """Return the unit vector [3] along which a drawer opens: its joint position decreases."""
        return -self.joint_axis(self.joint_of(drawer))

    def handle(self, drawer: str) -> np.ndarray:
        """Return the centre [3] of a drawer's handle, its outermost part."""
        body = self.model.body(self.model.jnt_bodyid[self.joint_of(drawer)]).name
        centres = self.part_boxes(body).mean(1)
        return centres[np.argmax(centres @ self.pull_direction(drawer))]

    def joint_angle(self, joint: int) -> float:
        """Return a joint's position in radians (hinge) or metres (slide)."""
        return float(self.data.qpos[self.model.jnt_qposadr[joint]])

    def joint_anchor(self, joint: int) -> np.ndarray:
        """Return a point [3] on a joint's axis."""
        return self.data.xanchor[joint].copy()

    def base(self) -> np.ndarray:
        """Return the position [3] of the arm's base."""
        return self.data.body("robot0_base").xpos.copy()

    def joint_axis(self, joint: int) -> np.ndarray:
        """Return the axis [3], a unit vector, along or about which a joint moves."""
        return self.data.xaxis[joint].copy()
