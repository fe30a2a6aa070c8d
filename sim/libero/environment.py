"""LIBERO as a gymnasium environment: two cameras and the arm's state out, relative poses of the hand in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from ...errors import InputError
from ..projection import POINT_NOT_VISIBLE, project_point
from ..reset import EVALUATION_STATES, ResetOptions
from .assets import Assets, find_assets
from .conventions import CAMERAS, CONTROL_HZ, NO_OPERATION, Conventions, axis_angle
from .perturbation_mixin import PerturbationMixin
from .protocols import LEROBOT, EvaluationProtocol
from .simulation import Simulation
from .tasks import find_task
from .visuals import Visuals

FILM_SIZE = 384
STATE_LOW = np.float32([-3.0] * 3 + [-7.0] * 3 + [-0.1] * 2)


class LiberoEnv(PerturbationMixin, gymnasium.Env):
    """One task of a LIBERO suite.

    Observations: `pixels` (uint8 [H, W, 3] for each camera) and `agent_pos` (float32 [8]: position of the hand in
    metres, its axis-angle in radians, both fingers in metres); actions: float32 [7], see `Conventions`. `reset` takes
    `options={"initial_state": int, "instruction": str | None}`; without a state one of the benchmark's 50 is drawn from
    the seed. It lets the scene settle, so the first observation is the one that published policies act on first. While
    `rendering_enabled` is False, observations lack `pixels`: for steps that nobody looks at.

    `assets` is a folder, assets that were found already, or None for the hub's. Raises InputError for an unknown suite
    or task, missing packages or assets, and actions of another shape; WorldError when the scene cannot be built.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}

    def __init__(
        self,
        suite: str,
        task: str,
        *,
        conventions: Conventions | None = None,
        protocol: EvaluationProtocol = LEROBOT,
        visuals: Visuals = "stock",
        assets: Assets | str | Path | None = None,
        render_mode: str = "rgb_array",
    ) -> None:
        self.task_spec = find_task(suite, task)
        self.task = self.task_spec.name
        self.task_description = self.task_spec.instruction
        self.conventions = conventions or Conventions()
        self.protocol = protocol
        self.render_mode = render_mode
        self.offer = self.conventions.offer()
        self.rendering_enabled = True
        self._max_episode_steps = protocol.steps(self.task_spec.suite)
        found = assets if isinstance(assets, Assets) else find_assets(assets)
        self.simulation = Simulation(self.task_spec, found, size=self.conventions.rendered_size, visuals=visuals)

        low, high = self.conventions.action_bounds()
        size = self.conventions.image_size
        image = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "pixels": gymnasium.spaces.Dict(dict.fromkeys(CAMERAS, image)),
                "agent_pos": gymnasium.spaces.Box(STATE_LOW, -STATE_LOW, dtype=np.float32),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        reset_options = ResetOptions.from_options(options)
        state = reset_options.initial_state
        self.initial_state = int(self.np_random.integers(EVALUATION_STATES)) if state is None else int(state)
        self.instruction = reset_options.instruction or self.task_spec.instruction
        self.task_description = self.instruction
        settling = self.protocol.settle_steps
        self.simulation.rendering_enabled = self.rendering_enabled and not settling
        self._start_episode(self.initial_state)
        for step in range(settling):
            self.simulation.rendering_enabled = self.rendering_enabled and step == settling - 1
            self.simulation.step(NO_OPERATION)
        self.steps = 0
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise InputError(
                "action", got=f"{action!r}", expected="7 finite numbers", fix="Check the policy's output and contract."
            )
        self.simulation.rendering_enabled = self.rendering_enabled
        self.simulation.step(self.conventions.to_robosuite_action(action))
        self.steps += 1
        success = self.simulation.success
        return self._observation(), float(success), success, self.steps >= self._max_episode_steps, self._info()

    def render(self) -> np.ndarray:
        """Return the agent's view, 384 pixels square, right way up and not mirrored, for people."""
        return self.simulation.render_camera("agentview", FILM_SIZE)[::-1].copy()

    def close(self) -> None:
        self.simulation.close()

    def grounding(self) -> np.ndarray:
        """Return what the instruction points at, from privileged state: float32 [14].

        The centres of the thing to move next and of its goal in the world's frame, in metres, then where each camera's
        picture has them, as fractions from its upper left corner; outside 0 to 1 where they are out of view. What is
        opened or turned on is both.
        """
        _, *things = self.simulation.next_goal
        points = (self.simulation.position(things[0]), self.simulation.position(things[-1]))
        to_image_point = (self._project(camera, point) for camera in CAMERAS for point in points)
        return np.concatenate([*points, *to_image_point]).astype(np.float32)

    def _start_episode(self, initial_state: int) -> None:
        self.simulation.reset(initial_state)

    def _project(self, camera: str, point: np.ndarray) -> np.ndarray:
        to_image_point = project_point(self.simulation.model, self.simulation.data, CAMERAS[camera], point)
        return (
            POINT_NOT_VISIBLE
            if to_image_point is None
            else np.clip(self.conventions.to_image_point(to_image_point), -1.0, 2.0)
        )

    def _observation(self) -> dict[str, Any]:
        observed = self.simulation.observation
        state = np.concatenate(
            [
                observed["robot0_eef_pos"],
                axis_angle(observed["robot0_eef_quat"]),
                observed["robot0_gripper_qpos"],
            ]
        )
        measured = {"agent_pos": state.astype(np.float32)}
        if not self.rendering_enabled:
            return measured
        pixels = {
            name: self.conventions.to_policy_image(observed[f"{camera}_image"]) for name, camera in CAMERAS.items()
        }
        return {"pixels": pixels, **measured}

    def _info(self) -> dict[str, Any]:
        return {
            "is_success": self.steps > 0 and self.simulation.success,
            "instruction": self.instruction,
            "target": None,
            "picked": None,
            "initial_state": self.initial_state,
        }
