"""The desk as a gymnasium environment with LeRobot's SO-101 names and units: two cameras, joints and joint targets."""

from __future__ import annotations

from typing import Any

import gymnasium
import mujoco
import numpy as np

from ...errors import InputError
from ...policy.contract import ActionSpec, CameraSpec, GripperSpec, Offer, StateSpec
from ..reset import ResetOptions
from . import arm
from .grounding import grounding_label
from .perturbable import PerturbableDesk
from .progress import EpisodeProgress
from .renderer import DeskRenderer
from .scene import CAMERAS, IMAGE_SIZES, PHYSICS_STEPS
from .tasks.catalogue import find_task
from .tasks.goals import Goal

START_NOISE = np.array([0.10, 0.08, 0.08, 0.08, 0.05, 0.15])
"""Half range of the uniform noise [6] on the start pose `arm.HOME`, in radians."""

SETTLE_CONTROL_STEPS = 5
"""How long objects settle before an episode starts, in control steps."""

UNITS = ("degrees",) * 5 + ("percent",)

STATE_MARGIN = 30
"""Widening of the observation space in the contract's units: contacts and the servo's compliance can push a joint a
little beyond its range."""


def desk_offer(image_size: int) -> Offer:
    """Return the observations and actions that the desk offers to a policy.

    Args:
        image_size: Height and width of both cameras' images, in pixels.
    """
    gripper = GripperSpec(name=arm.FEATURE_NAMES[5], closed=0.0, open=100.0)
    return Offer(
        cameras=tuple(CameraSpec(name=name, height=image_size, width=image_size) for name in CAMERAS),
        state=StateSpec(names=arm.FEATURE_NAMES, units=UNITS),
        action=ActionSpec(names=arm.FEATURE_NAMES, units=UNITS, kind="absolute", frame="joint", gripper=gripper),
        control_hz=float(arm.CONTROL_HZ),
    )


class DeskEnv(PerturbableDesk, gymnasium.Env):
    """One task of a desk suite as an environment.

    Observations are `pixels`, uint8 [H, W, 3] for each camera, and `agent_pos`, float32 [6]. Actions are absolute joint
    targets, float32 [6]. Both are in degrees, and 0 to 100 for the gripper. An episode ends when the task's goals are
    achieved: in most tasks, when the target object, and no other, lies released in the bin.

    `reset` takes `options={"initial_state": int, "instruction": str | None}`; without an initial state it draws one
    from the seed.

    Args:
        suite: Name of the suite.
        task: Name of the task.
        image_size: Height and width of both cameras' images, in pixels.
        render_mode: "rgb_array", the only one.

    Attributes:
        rendering_enabled: While it is False, observations lack `pixels`, and a step takes a ninth of the time.
        progress: What the episode has achieved so far.
        instruction: The episode's instruction.
        initial_state: Number of the episode's initial state.

    Raises:
        InputError: Unknown suite or task, or an image size out of range.

    Example:
        >>> env = DeskEnv("desk_object", "red_cube")
        >>> observation, info = env.reset(options={"initial_state": 0})
        >>> observation, reward, terminated, truncated, info = env.step(observation["agent_pos"])
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": arm.CONTROL_HZ}

    def __init__(self, suite: str, task: str, *, image_size: int = 128, render_mode: str = "rgb_array") -> None:
        least, most = IMAGE_SIZES
        if not least <= image_size <= most:
            raise InputError("image_size", got=image_size, expected=f"{least} to {most}", fix="Use 128, the default.")
        super().__init__(find_task(suite, task))
        self.task = task
        self.task_description = self.task_spec.instruction
        self.render_mode = render_mode
        self.image_size = image_size
        self.offer = desk_offer(image_size)
        self.rendering_enabled = True
        self._max_episode_steps = self.task_spec.max_steps  # LeRobot reads it by this name.
        self._renderer = DeskRenderer(self.model, image_size)

        low, high = arm.joint_limits()
        self.action_space: gymnasium.spaces.Box = gymnasium.spaces.Box(
            low.astype(np.float32), high.astype(np.float32), dtype=np.float32
        )
        image = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "pixels": gymnasium.spaces.Dict(dict.fromkeys(CAMERAS, image)),
                "agent_pos": gymnasium.spaces.Box(
                    (low - STATE_MARGIN).astype(np.float32), (high + STATE_MARGIN).astype(np.float32), dtype=np.float32
                ),
            }
        )

    @property
    def steps(self) -> int:
        """Number of control steps since the start of the episode."""
        return self.progress.steps

    @property
    def picked(self) -> str | None:
        """Body of the object or fixture that was handled first; None so far."""
        return self.progress.picked

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        reset_options = ResetOptions.from_options(options)
        initial_state = reset_options.initial_state
        if initial_state is None:
            initial_state = int(self.np_random.integers(0, 2**31))
        self.initial_state = initial_state
        self.instruction = reset_options.instruction or self.task_spec.instruction
        self.task_description = self.instruction
        generator = self.task_spec.generator(initial_state)
        self.place_all(self.task_spec.arrangement.sample(generator))
        self.data.qpos[self._joint_addresses] = arm.HOME + generator.uniform(-1, 1, 6) * START_NOISE
        self.settle_and_start()
        return self.observe(), self._info()

    def settle_and_start(self) -> None:
        """Let objects settle while the arm is held where it is, and start the episode from there."""
        self.data.ctrl[:] = self.joints()
        mujoco.mj_step(self.model, self.data, nstep=SETTLE_CONTROL_STEPS * PHYSICS_STEPS)
        self.start_episode()

    def start_episode(self) -> None:
        """Start counting the episode from the present state, without a physics step."""
        self.pressed_buttons = set()
        self.progress = EpisodeProgress(self.task_spec, self)
        self.update_lamps(self.steps)

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (6,) or not np.isfinite(action).all():
            raise InputError(
                "action", got=f"{action!r}", expected="6 finite numbers", fix="Check the policy's output and contract."
            )
        targets = np.clip(action, self.action_space.low, self.action_space.high).astype(np.float64)
        self.data.ctrl[:] = arm.to_radians(targets)
        self.advance(PHYSICS_STEPS)
        self.update_progress()
        success = self.success()
        return self.observe(), float(success), success, self.steps >= self._max_episode_steps, self._info()

    def update_progress(self) -> None:
        """Count a control step, and record what was pressed, handled and achieved by its end."""
        self.record_pressed_buttons()
        self.progress.update(self)
        self.update_lamps(self.steps)

    def observe(self) -> dict[str, Any]:
        """Render and return the observation of the present state, without a physics step."""
        joints = {"agent_pos": arm.to_units(self.joints()).astype(np.float32)}
        return {"pixels": self._renderer.camera_images(self.data), **joints} if self.rendering_enabled else joints

    def render(self) -> np.ndarray:
        """Return the front camera's image for people, uint8 [384, 384, 3]."""
        return self._renderer.video_frame(self.data)

    def recreate_renderers(self) -> None:
        """Create the renderers again, with the model's present lights and textures."""
        self._renderer.close()

    def close(self) -> None:
        self._renderer.close()

    def is_waiting(self) -> bool:
        """Tell whether the arm has to keep still, because the go lamp of the task's cue is still dark."""
        return self.task_spec.cue is not None and self.steps < self.task_spec.cue.go_step

    def current_goal(self) -> Goal:
        """Return the first of the task's goals that is not achieved; the last one if all are."""
        return self.progress.current_goal(self)

    def success(self) -> bool:
        """Tell whether all goals are achieved, in order if the task asks for it, and nothing else was placed there."""
        return self.progress.success(self)

    def grounding(self) -> np.ndarray:
        """Return the grounding label of the present state: float32 [14], see `grounding_label`."""
        return grounding_label(self, self.progress)

    def _info(self) -> dict[str, Any]:
        return {
            "is_success": self.steps > 0 and self.success(),
            "instruction": self.instruction,
            "target": self.task_spec.target,
            "picked": self.picked,
            "initial_state": self.initial_state,
        }
