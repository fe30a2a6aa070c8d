"""The swap of positions: what is asked for and another thing exchange places."""

from __future__ import annotations

from typing import Any

import mujoco

from ...errors import InputError
from .layout import place, position, standing_on_fixtures
from .world import require


def exchange(world: Any, target: str | None, seed: int) -> str:
    """Exchange the places of the target and of another thing that looks different; return that thing's body.

    Raises InputError when the scene has no such thing.
    """
    world = require(world, ("model", "data", "things", "begin", "observe"), "swap position")
    kinds, model, data = world.things(), world.model, world.data
    stuck = {model.body(body).name for body in standing_on_fixtures(world)}
    others = [body for body, kind in kinds.items() if target in kinds and kind != kinds[target] and body not in stuck]
    if target is None or target in stuck or not others:
        raise InputError(
            "swap position",
            got="a scene in which nothing that looks different could exchange places with what is asked for",
            expected="a target and another kind of thing, both standing on the table",
            fix="Leave this task out: equal things that exchange places look as before.",
        )
    other = others[seed % len(others)]
    bodies = [model.body(name).id for name in (target, other)]
    places = [position(data, model, body)[:2].copy() for body in bodies]
    for body, at in zip(bodies, reversed(places), strict=True):
        place(model, data, body, at)
    data.qvel[:] = 0.0
    mujoco.mj_forward(model, data)
    world.begin()
    return other
