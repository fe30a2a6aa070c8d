"""Start pose: the arm starts with displaced joints, 0.1 rad per level (norm over all joints)."""

from __future__ import annotations

import itertools
from typing import Any

import mujoco
import numpy as np

from ...errors import WorldError
from .edits import ModelEdits
from .world import PerturbableWorld

REQUIRED_MEMBERS = ("model", "data", "arm_joints", "background", "movable_objects", "settle_and_start", "observe")

RADIANS_PER_LEVEL = 0.1
"""Norm of the displacement over all joints, per level."""

LIMIT_MARGIN = 0.03
"""Distance of a joint from the ends of its range, in radians."""

CLEARANCE = 0.01
"""Distance of the arm from objects and background that it did not touch before, in metres."""

TRIES = 200


def perturb(world: PerturbableWorld, edits: ModelEdits, level: int, generator: np.random.Generator) -> dict[str, Any]:
    """Displace the arm of a world without collision; return each joint's displacement in degrees.

    Raises WorldError if no displacement of this norm is free of collisions.
    """
    model, data = world.model, world.data
    joints = [model.joint(name) for name in world.arm_joints]
    addresses = np.array([joint.qposadr[0] for joint in joints])
    low, high = np.array([joint.range for joint in joints]).T
    unlimited = ~np.array([bool(model.jnt_limited[joint.id]) for joint in joints])
    low, high = np.where(unlimited, -np.inf, low + LIMIT_MARGIN), np.where(unlimited, np.inf, high - LIMIT_MARGIN)
    before = data.qpos.copy()
    pairs = _clear_geom_pairs(world, joints[0].id)
    for _ in range(TRIES):
        direction = generator.normal(size=len(joints))
        offset = level * RADIANS_PER_LEVEL * direction / np.linalg.norm(direction)
        pose = before[addresses] + offset
        if np.any(pose < low) or np.any(pose > high):
            continue
        data.qpos[addresses] = pose
        mujoco.mj_kinematics(model, data)
        if all(_distance(model, data, *pair) > CLEARANCE for pair in pairs):
            data.qvel[:] = 0.0
            mujoco.mj_forward(model, data)
            world.settle_and_start()
            return {
                f"{name}_degrees": round(float(part), 2)
                for name, part in zip(world.arm_joints, np.rad2deg(offset), strict=True)
            }
    data.qpos[:] = before
    raise WorldError(
        f"start pose: got no free pose {level * RADIANS_PER_LEVEL:.1f} rad away in {TRIES} tries, expected one."
    )


def _clear_geom_pairs(world: PerturbableWorld, first_joint: int) -> list[tuple[int, int]]:
    """Return the pairs of a geom of the arm and one of an object or the background that do not touch now."""
    model, data = world.model, world.data
    root = int(model.jnt_bodyid[first_joint])
    arm = {root}
    for body in range(root + 1, model.nbody):
        if int(model.body_parentid[body]) in arm:
            arm.add(body)
    movable_objects = {model.body(name).id for name in world.movable_objects()}
    others = [geom for geom in range(model.ngeom) if int(model.geom_bodyid[geom]) in movable_objects]
    others += world.background
    mujoco.mj_kinematics(model, data)
    return [
        (geom, other)
        for geom in itertools.chain.from_iterable(_collision_geoms(model, body) for body in arm)
        for other in others
        if _distance(model, data, geom, other) > CLEARANCE
    ]


def _collision_geoms(model: Any, body: int) -> list[int]:
    """Return the geoms of a body that collide, or all of them if none does."""
    first = int(model.body_geomadr[body])
    geoms = list(range(first, first + int(model.body_geomnum[body])))
    return [geom for geom in geoms if model.geom_contype[geom] or model.geom_conaffinity[geom]] or geoms


def _distance(model: Any, data: Any, first: int, second: int) -> float:
    if model.geom_type[first] > model.geom_type[second]:
        first, second = second, first
    if model.geom_type[first] == mujoco.mjtGeom.mjGEOM_PLANE:
        # Distance to the plane by the smaller of bounding sphere and bounding box: never more than the true distance.
        frame = data.geom_xmat[first].reshape(3, 3)
        height = frame[:, 2] @ (data.geom_xpos[second] - data.geom_xpos[first])
        return float(height - min(model.geom_rbound[second], _extent_along(model, data, second, frame[:, 2])))
    return float(mujoco.mj_geomDistance(model, data, first, second, 2 * CLEARANCE, None))


def _extent_along(model: Any, data: Any, geom: int, direction: np.ndarray) -> float:
    """Return the extent of a geom's bounding box from its centre along a direction."""
    centre, half = model.geom_aabb[geom][:3], model.geom_aabb[geom][3:]
    local = data.geom_xmat[geom].reshape(3, 3).T @ direction
    return float(np.abs(local) @ (half + np.abs(centre)))
