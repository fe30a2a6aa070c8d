"""Layout: what stands on the table is moved together, 1 cm for each level, and one more thing is added for each.

Moved together, things keep their relations, so the instruction stays true. What stands in or on a fixture that is part
of the scenery (a drawer, a stove) stays where it is.
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
"""How far one level moves the things."""

TRIES = 48
SHRINK_FACTOR = 0.75
"""How many directions are tried, and by how much the way is shortened when none of them does."""

SAME_SURFACE_TOLERANCE = 0.008
"""How much higher than the lowest thing another may stand to stand on the same surface, in metres."""


def perturb(world: PerturbableWorld, edits: ModelEdits, level: int, generator: np.random.Generator) -> dict[str, Any]:
    """Displace the things of a world and add others; return the displacement and what was added.

    Raises WorldError when there is nothing that could be moved anywhere.
    """
    model, data = world.model, world.data
    # A thing that is brought in is taken out of the model's waiting room, which some worlds keep in these.
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
        raise WorldError(f"layout: got no free place for {len(moved)} things within {length:.3f} m, expected one.")
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
    """Return where a free or a mocap body is set to, [3], as a view to be written to."""
    mocap = int(model.body_mocapid[body])
    if mocap >= 0:
        return data.mocap_pos[mocap]
    address = int(model.jnt_qposadr[model.body_jntadr[body]])
    return data.qpos[address : address + 3]


def set_xy(model: Any, data: Any, body: int, at: np.ndarray) -> None:
    """Set a body down at x and y, at the height at which it is."""
    position_view(data, model, body)[:2] = at


def standing_on_fixtures(world: PerturbableWorld) -> set[int]:
    """Return the bodies of things that stand on something which does not move and is higher than the table."""
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
    """Return the bodies that can be moved over the table: things, and the landmarks among them."""
    model = world.model
    movable_objects = {model.body(name).id for name in world.movable_objects()} - standing_on_fixtures(world)
    if not movable_objects:
        raise WorldError("layout: got nothing that stands on the table, expected things to move.")
    return sorted(movable_objects) + _jointless_mocap_bodies(model)


def _jointless_mocap_bodies(model: Any) -> list[int]:
    """Return the mocap bodies that nothing hangs on by a joint: a bowl, not a cabinet with its drawer."""
    jointed = {int(model.body_rootid[body]) for body in model.jnt_bodyid}
    return [body for body in range(model.nbody) if model.body_mocapid[body] >= 0 and body not in jointed]


def _contact_pairs(world: PerturbableWorld, moved: list[int]) -> set[tuple[int, int]]:
    """Return the pairs of bodies, one of them a moved one, that touch; a table is a body as well."""
    pairs = set()
    for contact in world.data.contact:
        first, second = sorted(_root_body(world.model, int(geom)) for geom in contact.geom)
        if first in moved or second in moved:
            pairs.add((first, second))
    return pairs


def _root_body(model: Any, geom: int) -> int:
    """Return the outermost body that a geometry is part of; 0 is the world itself."""
    return int(model.body_rootid[model.geom_bodyid[geom]])
