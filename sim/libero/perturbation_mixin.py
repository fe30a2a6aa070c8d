"""LIBERO's implementation of `PerturbableWorld` (see `sim/perturbation/world.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .conventions import NO_OPERATION
from .protocols import EvaluationProtocol
from .simulation import Simulation


class PerturbationMixin:
    """The part of a LIBERO environment that perturbs its scene between a reset and the first step."""

    simulation: Simulation
    protocol: EvaluationProtocol
    steps: int

    def _observation(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def model(self) -> Any:
        """The scene's `mujoco.MjModel`."""
        return self.simulation.model

    @property
    def data(self) -> Any:
        """The scene's `mujoco.MjData`."""
        return self.simulation.data

    @property
    def arm_joints(self) -> Sequence[str]:
        """Names of the arm's seven joints in the model."""
        return tuple(self.simulation.environment.robots[0].robot_model.joints)

    @property
    def background(self) -> Sequence[int]:
        """Ids of the geometries of the background: they do not move and belong to neither robot nor fixtures."""
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
        """Render and return the observation of the present state, without a physics step."""
        self.simulation.refresh_observation()
        return self._observation()

    def recreate_renderers(self) -> None:
        """Upload the model's textures to the renderer again."""
        self.simulation.upload_textures()

    def settle_and_start(self) -> None:
        """Let displaced objects settle while the arm is held, and start the episode from there."""
        self.simulation.hold_current_pose()
        for _ in range(self.protocol.settle_steps):
            self.simulation.step(NO_OPERATION)
        self.steps = 0

    def movable_objects(self) -> dict[str, str]:
        """Return the kind of each movable object (its name without the number) by its body."""
        return {f"{name}_main": name.rpartition("_")[0] for name in self.simulation.environment.objects_dict}

    def add_object(self, generator: np.random.Generator) -> None:
        """Add nothing: LIBERO's scenes have no spare objects."""

    def is_layout_valid(self) -> bool:
        """Tell whether the goal is not achieved yet; objects that are moved together keep their relations."""
        return not self.simulation.is_goal_satisfied()

    def other_instructions(self) -> dict[str, str | None]:
        """Return none: LIBERO's scenes do not list instructions for other objects."""
        return {}


def _is_part(model: Any, geom: int, owners: Sequence[str]) -> bool:
    """Tell whether a geometry is part of a body whose name starts with one of `owners`."""
    body = int(model.geom_bodyid[geom])
    while body:
        if model.body(body).name.startswith(tuple(owners)):
            return True
        body = int(model.body_parentid[body])
    return False
