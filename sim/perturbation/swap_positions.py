"""The swap of positions: the requested object and another one exchange positions."""

from __future__ import annotations

from typing import Any

import mujoco

from ...errors import InputError
from .layout import position_view, set_xy, standing_on_fixtures
from .world import require_members


def swap_positions(world: Any, target: str | None, seed: int) -> str:
    """Exchange the positions of the target and of another object that looks different.

    Args:
        world: The world.
        target: Body of the requested object.
        seed: Chooses the other object.

    Returns:
        Body of the other object.

    Raises:
        InputError: The scene has no such object, or the world does not support this swap.
    """
    world = require_members(world, ("model", "data", "movable_objects", "settle_and_start", "observe"), "swap position")
    kinds, model, data = world.movable_objects(), world.model, world.data
    on_fixtures = {model.body(body).name for body in standing_on_fixtures(world)}
    others = [
        body for body, kind in kinds.items() if target in kinds and kind != kinds[target] and body not in on_fixtures
    ]
    if target is None or target in on_fixtures or not others:
        raise InputError(
            "swap position",
            got="a scene without another kind of object to exchange",
            expected="a target and another kind of object, both standing on the table",
            fix="Choose tasks with two kinds of objects: exchanging equal ones changes nothing.",
        )
    other = others[seed % len(others)]
    bodies = [model.body(name).id for name in (target, other)]
    places = [position_view(data, model, body)[:2].copy() for body in bodies]
    for body, at in zip(bodies, reversed(places), strict=True):
        set_xy(model, data, body, at)
    data.qvel[:] = 0.0
    mujoco.mj_forward(model, data)
    world.settle_and_start()
    return other
