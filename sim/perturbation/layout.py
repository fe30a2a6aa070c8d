"""Layout: the objects on the table are moved together, 1 cm per level, and one object is added per level.

Moved together, objects keep their spatial relations, so the instruction stays true. Objects in or on a fixture (a
drawer, a stove) stay where they are.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from ...errors import WorldError
from .edits import ModelEdits
from .world import PerturbableWorld

REQUIRED_MEMBERS = ("model", "data", "movable_objects", "add_object", "settle_and_start", "observe", "is_layout_valid")

METRES_PER_LEVEL = 0.01
"""Displacement per level."""

TRIES = 48
SHRINK_FACTOR = 0.75
"""Directions that are tried at each length, and the factor by which the length then shrinks."""

SAME_SURFACE_TOLERANCE = 0.008
"""Objects whose heights differ by less than this, in metres, stand on the same surface."""


def perturb(world: PerturbableWorld, edits: ModelEdits, level: int, generator: np.random.Generator) -> dict[str, Any]:
    """Displace the objects of a world and add others; return the displacement and the added bodies.

    Raises WorldError if no object can be moved.
    """
    model, data = world.model, world.data
    # Some worlds enable an added object through these arrays.
    for name in ("geom_contype", "geom_conaffinity", "body_gravcomp"):
        edits.array(name)
    moved = _movable_bodies(world)
    before, mocaps = data.qpos.copy(), data.mocap_pos.copy()
    touching = _contact_pairs(world, moved)
    length = level * METRES_PER_LEVEL
    for attempt in range(4 * TRIES):
        if attempt and attempt % TRIES == 0:
            length *= SHRINK_FACTOR
        angle = generator.uniform(0.0, 2.0 * np.pi)
        shift = length * np.array([np.cos(angle), np.sin(angle)])
        data.qpos[:], data.mocap_pos[:] = before, mocaps
        for body in moved:
            set_xy(model, data, body, position_view(data, model, body)[:2] + shift)
        mujoco.mj_forward(model, data)
        if _contact_pairs(world, moved) <= touching and world.is_layout_valid():
            break
    else:
        raise WorldError(f"layout: got no free place for {len(moved)} objects within {length:.3f} m, expected one.")
    data.qvel[:] = 0.0
    world.settle_and_start()
    added = [body for body in (world.add_object(generator) for _ in range(level)) if body is not None]
    if added:
        world.settle_and_start()
    return {
        "moved": sorted(model.body(body).name for body in moved),
        "metres": [round(float(part), 4) for part in shift],
        "added": added,
    }


def position_view(data: Any, model: Any, body: int) -> np.ndarray:
    """Return the position [3] of a free or mocap body as a writable view."""
    mocap = int(model.body_mocapid[body])
    if mocap >= 0:
        return data.mocap_pos[mocap]
    address = int(model.jnt_qposadr[model.body_jntadr[body]])
    return data.qpos[address : address + 3]


def set_xy(model: Any, data: Any, body: int, at: np.ndarray) -> None:
    """Move a body to x and y, at its present height."""
    position_view(data, model, body)[:2] = at


def standing_on_fixtures(world: PerturbableWorld) -> set[int]:
    """Return the bodies of objects that stand on a fixture: on something fixed that is higher than the table."""
    model, data = world.model, world.data
    movable_objects = {model.body(name).id for name in world.movable_objects()}
    touches: list[tuple[int, int, float]] = []
    for contact in data.contact:
        first, second = (_root_body(model, int(geom)) for geom in contact.geom)
        touches += [(first, second, float(contact.pos[2])), (second, first, float(contact.pos[2]))]
    fixed = [
        (thing, other, height)
        for thing, other, height in touches
        if thing in movable_objects and other not in movable_objects
    ]
    loose = set(_jointless_mocap_bodies(model))
    fixed = [each for each in fixed if each[1] not in loose]
    table = min((height for *_, height in fixed), default=0.0)
    on_fixtures = {thing for thing, _, height in fixed if height > table + SAME_SURFACE_TOLERANCE}
    while (
        more := {thing for thing, other, _ in touches if thing in movable_objects and other in on_fixtures}
        - on_fixtures
    ):
        on_fixtures |= more
    return on_fixtures


def _movable_bodies(world: PerturbableWorld) -> list[int]:
    """Return the bodies that can be moved over the table: objects and landmarks."""
    model = world.model
    movable_objects = {model.body(name).id for name in world.movable_objects()} - standing_on_fixtures(world)
    if not movable_objects:
        raise WorldError("layout: got nothing that stands on the table, expected objects to move.")
    return sorted(movable_objects) + _jointless_mocap_bodies(model)


def _jointless_mocap_bodies(model: Any) -> list[int]:
    """Return the mocap bodies without joints: a bowl, not a cabinet with a drawer."""
    jointed = {int(model.body_rootid[body]) for body in model.jnt_bodyid}
    return [body for body in range(model.nbody) if model.body_mocapid[body] >= 0 and body not in jointed]


def _contact_pairs(world: PerturbableWorld, moved: list[int]) -> set[tuple[int, int]]:
    """Return the pairs of bodies in contact of which at least one is moved; the table is a body, too."""
    pairs = set()
    for contact in world.data.contact:
        first, second = sorted(_root_body(world.model, int(geom)) for geom in contact.geom)
        if first in moved or second in moved:
            pairs.add((first, second))
    return pairs


def _root_body(model: Any, geom: int) -> int:
    """Return the root body of a geom; 0 is the world."""
    return int(model.body_rootid[model.geom_bodyid[geom]])
