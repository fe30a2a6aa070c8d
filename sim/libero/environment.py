"""LIBERO as a gymnasium environment: two cameras and the arm's state as observation, pose deltas as action."""

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
"""Height and width in pixels of the images of `render`."""

STATE_LOW = np.array([-3.0] * 3 + [-7.0] * 3 + [-0.1] * 2, dtype=np.float32)
"""Lower bound [8] of the state; the upper one is its negative."""


class LiberoEnv(PerturbationMixin, gymnasium.Env):
    """One task of a LIBERO suite (Liu et al., 2023, arXiv 2306.03310).

    Observations: `pixels` (uint8 [H, W, 3] for each camera) and `agent_pos` (float32 [8]: position of the hand in
    metres, its axis-angle in radians, both fingers in metres). Actions: float32 [7], see `Conventions`. While
    `rendering_enabled` is False, observations lack `pixels`: for steps whose images nobody uses.

    `reset` takes `options={"initial_state": int, "instruction": str | None}`; without a state, one of the benchmark's
    50 is sampled with the seed. The scene settles during `reset`, so the first observation is the one from which
    published policies start to act.

    Args:
        suite: Name of the suite.
        task: Name of the task, or its number in the benchmark's order.
        conventions: Conventions of images and actions; None for the defaults.
        protocol: Limits of an episode's steps, and the steps to settle.
        visuals: `stock` or `fast`.
        assets: A folder, assets that were found before, or None for `SACCADE_LIBERO_ASSETS` or the hub's.
        render_mode: Only `rgb_array`.

    Raises:
        InputError: The suite or task is unknown; packages or assets are missing; an action has a wrong shape.
        WorldError: The scene cannot be built.
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
        """Reset to an initial state, let the scene settle, and return the first observation and the info."""
        super().reset(seed=seed)
        reset_options = ResetOptions.from_options(options)
        state = reset_options.initial_state
        self.initial_state = int(self.np_random.integers(EVALUATION_STATES)) if state is None else int(state)
        self.instruction = reset_options.instruction or self.task_spec.instruction
        self.task_description = self.instruction
        settle_steps = self.protocol.settle_steps
        self.simulation.rendering_enabled = self.rendering_enabled and not settle_steps
        self._start_episode(self.initial_state)
        for step in range(settle_steps):
            self.simulation.rendering_enabled = self.rendering_enabled and step == settle_steps - 1
            self.simulation.step(NO_OPERATION)
        self.steps = 0
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Execute an action [7]; return observation, reward (1 for success), terminated, truncated and info."""
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
        """Return the view of the camera `agentview`, uint8 [384, 384, 3], upright and not mirrored."""
        return self.simulation.render_camera("agentview", FILM_SIZE)[::-1].copy()

    def close(self) -> None:
        """Free the simulation and its renderer."""
        self.simulation.close()

    def grounding(self) -> np.ndarray:
        """Return the grounding of the instruction from privileged state.

        Returns:
            float32 [14]: the positions [3] of the object to move next and of its goal, in metres in the world frame;
            then, for each camera, both points [2] as fractions from the upper left corner of the policy's image,
            outside 0 to 1 where they are out of view. A fixture to open or turn on is both object and goal.
        """
        _, *names = self.simulation.next_goal
        points = (self.simulation.position(names[0]), self.simulation.position(names[-1]))
        image_points = (self._project(camera, point) for camera in CAMERAS for point in points)
        return np.concatenate([*points, *image_points]).astype(np.float32)

    def _start_episode(self, initial_state: int) -> None:
        """Bring the simulation to an initial state; recordings replace this."""
        self.simulation.reset(initial_state)

    def _project(self, camera: str, point: np.ndarray) -> np.ndarray:
        """Return where a point [3] of the world frame is in a camera's image for the policy, clipped to [-1, 2]."""
        upright_point = project_point(self.simulation.model, self.simulation.data, CAMERAS[camera], point)
        if upright_point is None:
            return POINT_NOT_VISIBLE
        return np.clip(self.conventions.to_image_point(upright_point), -1.0, 2.0)

    def _observation(self) -> dict[str, Any]:
        raw = self.simulation.observation
        state = np.concatenate(
            [raw["robot0_eef_pos"], axis_angle(raw["robot0_eef_quat"]), raw["robot0_gripper_qpos"]]
        )  # [8]
        agent_pos = state.astype(np.float32)
        if not self.rendering_enabled:
            return {"agent_pos": agent_pos}
        pixels = {name: self.conventions.to_policy_image(raw[f"{camera}_image"]) for name, camera in CAMERAS.items()}
        return {"pixels": pixels, "agent_pos": agent_pos}

    def _info(self) -> dict[str, Any]:
        return {
            "is_success": self.steps > 0 and self.simulation.success,
            "instruction": self.instruction,
            "target": None,
            "picked": None,
            "initial_state": self.initial_state,
        }
