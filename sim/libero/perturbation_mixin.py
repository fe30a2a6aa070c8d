"""What LIBERO's scenes let a perturbation do (see `sim/perturbation/world.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .conventions import NO_OPERATION
from .protocols import EvaluationProtocol
from .simulation import Simulation


class PerturbationMixin:
    """The part of a LIBERO environment by which its scene is disturbed between a reset and the first step."""

    simulation: Simulation
    protocol: EvaluationProtocol
    steps: int

    @property
    def model(self) -> Any:
        return self.simulation.model

    @property
    def data(self) -> Any:
        return self.simulation.data

    @property
    def arm_joints(self) -> Sequence[str]:
        """Names in the model of the arm's seven joints."""
        return tuple(self.simulation.environment.robots[0].robot_model.joints)

    @property
    def background(self) -> Sequence[int]:
        """Numbers of the geometries that are scenery: what does not move and is neither robot nor fixture."""
        model, environment = self.simulation.model, self.simulation.environment
        fixtures = tuple(environment.fixtures_dict)
        return tuple(
            geom
            for geom in range(model.ngeom)
            if model.body_weldid[model.geom_bodyid[geom]] == 0
            and model.geom_matid[geom] >= 0
            and not _is_part(model, geom, ("robot0", "mount0", *fixtures))
        )

    def observe(self) -> dict[str, Any]:
        """Return the observation of the present state, drawn anew; nothing moves."""
        self.simulation.refresh_observation()
        return self._observation()

    def recreate_renderers(self) -> None:
        """Hand the model's textures to the renderer again."""
        self.simulation.upload_textures()

    def settle_and_start(self) -> None:
        """Let everything come to rest, the arm held where it is, and count the episode from there."""
        self.simulation.hold_current_pose()
        for _ in range(self.protocol.settle_steps):
            self.simulation.step(NO_OPERATION)
        self.steps = 0

    def movable_objects(self) -> dict[str, str]:
        """Return, for the body of each thing that can be moved, what it is: its name without its number."""
        return {f"{name}_main": name.rpartition("_")[0] for name in self.simulation.environment.objects_dict}

    def add_object(self, generator: np.random.Generator) -> None:
        """Add nothing: a scene holds no thing that is not in it."""

    def is_layout_valid(self) -> bool:
        """Tell whether there is still something to do: whatever is moved together keeps its relations."""
        return not self.simulation.is_goal_satisfied()

    def other_instructions(self) -> dict[str, str | None]:
        """Return none: LIBERO's scenes do not say what else could be asked for."""
        return {}


def _is_part(model: Any, geom: int, owners: Sequence[str]) -> bool:
    """Tell whether a geometry belongs to a body of one of these names, or to a part of it."""
    body = int(model.geom_bodyid[geom])
    while body:
        if model.body(body).name.startswith(tuple(owners)):
            return True
        body = int(model.body_parentid[body])
    return False
