"""The desk as a gymnasium environment: LeRobot's SO-101 names and units in, two cameras and the joints out."""

from __future__ import annotations

from typing import Any

import gymnasium
import mujoco
import numpy as np

from ...errors import InputError, WorldError
from ...policy.contract import ActionSpec, CameraSpec, GripperSpec, Offer, StateSpec
from . import arm
from .arrangement import Pose, Related, Scattered
from .scene import BIN_CENTRE, BIN_HALF, BIN_WALL, CAMERAS, PHYSICS_STEPS, scene_xml
from .tasks import FRAMES, MAX_STEPS, RELATIONS, Task, find_task

LIFTED = 0.03
"""How far above its start an object counts as picked, in metres."""

OPPOSITE = {
    "left": "right",
    "front": "behind",
    "next_to": "far_from",
    "on_plate": "off_plate",
    "near_bin": "far_bin",
}

START_NOISE = np.array([0.10, 0.08, 0.08, 0.08, 0.05, 0.15])
"""Half range of the start pose around `arm.HOME`, in radians."""

UNITS = ("degrees",) * 5 + ("percent",)


def desk_offer(image_size: int) -> Offer:
    """Return what the desk offers to a policy, for the contract's check."""
    gripper = GripperSpec(name=arm.FEATURE_NAMES[5], closed=0.0, open=100.0)
    return Offer(
        cameras=tuple(CameraSpec(name=name, height=image_size, width=image_size) for name in CAMERAS),
        state=StateSpec(names=arm.FEATURE_NAMES, units=UNITS),
        action=ActionSpec(names=arm.FEATURE_NAMES, units=UNITS, kind="absolute", frame="joint", gripper=gripper),
        control_hz=float(arm.CONTROL_HZ),
    )


class DeskEnv(gymnasium.Env):
    """One task of a desk suite.

    Observations: `pixels` (uint8 [H, W, 3] for each camera) and `agent_pos` (float32 [6]); actions: float32 [6]
    absolute joint targets; degrees, and 0 to 100 for the gripper. `reset` takes `options={"initial_state": int,
    "instruction": str | None}`; without them a state is drawn from the seed. An episode ends when the instructed
    object, and no other, lies released in the bin.

    Raises InputError for an unknown suite or task, a bad image size, and actions of another shape.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": arm.CONTROL_HZ}

    def __init__(self, suite: str, task: str, *, image_size: int = 128, render_mode: str = "rgb_array") -> None:
        if not 16 <= image_size <= 640:
            raise InputError("image_size", got=image_size, expected="16 to 640", fix="The default is 128.")
        self.spec_task: Task = find_task(suite, task)
        self.task = task
        self.task_description = self.spec_task.instruction
        self.render_mode = render_mode
        self.image_size = image_size
        self.offer = desk_offer(image_size)
        self._max_episode_steps = MAX_STEPS

        arrangement = self.spec_task.arrangement
        self._things = {thing.body: thing for thing in arrangement.things}
        self.model = mujoco.MjModel.from_xml_string(scene_xml(arrangement.things, arrangement.fixtures))
        self.data = mujoco.MjData(self.model)
        self._collision = self.model.geom_contype.copy(), self.model.geom_conaffinity.copy()
        self._joint_addresses = np.array([self.model.joint(name).qposadr[0] for name in arm.JOINTS])
        self._fingers = {self.model.geom(name).id for name in ("fixed_finger", "moving_finger")}
        self._renderer: mujoco.Renderer | None = None
        self._large_renderer: mujoco.Renderer | None = None

        low, high = arm.unit_limits()
        self.action_space = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        image = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "pixels": gymnasium.spaces.Dict(dict.fromkeys(CAMERAS, image)),
                # Contacts and the servo's spring can carry a joint a little beyond its range.
                "agent_pos": gymnasium.spaces.Box(
                    (low - 30).astype(np.float32), (high + 30).astype(np.float32), dtype=np.float32
                ),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        options = options or {}
        unknown = set(options) - {"initial_state", "instruction"}
        if unknown:
            raise InputError(
                "reset options", got=sorted(unknown), expected="initial_state, instruction", fix="Remove the others."
            )
        initial_state = options.get("initial_state")
        if initial_state is None:
            initial_state = int(self.np_random.integers(0, 2**31))
        elif initial_state < 0:
            raise InputError("initial_state", got=initial_state, expected="0 or more", fix="States count from 0.")
        generator = self.spec_task.generator(initial_state)
        poses = self.spec_task.arrangement.sample(generator)
        self.initial_state = initial_state
        self.in_play = tuple(body for body in poses if body in self._things)
        self.instruction = options.get("instruction") or self.spec_task.instruction
        self.task_description = self.instruction
        self._place(poses)
        start = arm.HOME + generator.uniform(-1, 1, 6) * START_NOISE
        self.data.qpos[self._joint_addresses] = start
        self.data.ctrl[:] = start
        mujoco.mj_step(self.model, self.data, nstep=5 * PHYSICS_STEPS)
        self._start_heights = {body: self.position(body)[2] for body in self.in_play}
        self.picked: str | None = None
        self.steps = 0
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (6,) or not np.isfinite(action).all():
            raise InputError(
                "action", got=f"{action!r}", expected="6 finite numbers", fix="Check the policy's output and contract."
            )
        command = arm.to_radians(np.clip(action, self.action_space.low, self.action_space.high).astype(np.float64))
        self.data.ctrl[:] = command
        mujoco.mj_step(self.model, self.data, nstep=PHYSICS_STEPS)
        if not np.isfinite(self.data.qpos).all():
            raise WorldError("the desk's physics diverged: got non-finite positions; please report the seed and task")
        self.steps += 1
        if self.picked is None:
            self.picked = next((body for body in self.in_play if self._lifted(body)), None)
        success = self.success()
        return self._observation(), float(success), success, self.steps >= MAX_STEPS, self._info()

    def render(self) -> np.ndarray:
        """Return the front view, 384 pixels square, for people."""
        if self._large_renderer is None:
            self._large_renderer = mujoco.Renderer(self.model, 384, 384)
        self._large_renderer.update_scene(self.data, "front")
        return self._large_renderer.render().copy()

    def close(self) -> None:
        for renderer in (self._renderer, self._large_renderer):
            if renderer is not None:
                renderer.close()
        self._renderer = self._large_renderer = None

    def position(self, body: str) -> np.ndarray:
        """Return the centre [3] of a thing in the arm's base frame, in metres."""
        return self.data.body(body).xpos.copy()

    def joints(self) -> np.ndarray:
        """Return the measured joint positions [6] in radians."""
        return self.data.qpos[self._joint_addresses].copy()

    def finger_contacts(self, body: str) -> int:
        """Return how many of the two fingers touch a thing."""
        geom = self.model.geom(body).id
        touching = set()
        for first, second in self.data.contact.geom:
            if first == geom or second == geom:
                touching |= {int(first), int(second)} & self._fingers
        return len(touching)

    def in_bin(self, body: str) -> bool:
        """Tell whether a thing lies inside the bin's walls."""
        x, y, z = self.position(body)
        return bool(abs(x - BIN_CENTRE[0]) < BIN_HALF and abs(y - BIN_CENTRE[1]) < BIN_HALF and z < BIN_WALL + 0.01)

    def success(self) -> bool:
        """Tell whether the target, and nothing else, lies released in the bin."""
        target = self.spec_task.target.body
        others = (body for body in self.in_play if body != target)
        return self.in_bin(target) and self.finger_contacts(target) == 0 and not any(map(self.in_bin, others))

    def grounding(self) -> np.ndarray:
        """Return what the instruction points at, from privileged state: float32 [14].

        The centres of target and goal in the arm's base frame, in metres, then where each camera sees them, as
        fractions of the image from its upper left corner; outside 0 to 1 where they are out of view.
        """
        points = (self.position(self.spec_task.target.body), np.array([*BIN_CENTRE, 0.0]))
        seen = (self._project(camera, point) for camera in CAMERAS for point in points)
        return np.concatenate([*points, *seen]).astype(np.float32)

    def _project(self, camera: str, point: np.ndarray) -> np.ndarray:
        pose = self.data.camera(camera)
        right, up, back = pose.xmat.reshape(3, 3).T @ (point - pose.xpos)
        if back > -1e-3:
            return np.array([-1.0, -1.0])
        reach = -back * np.tan(np.deg2rad(self.model.camera(camera).fovy[0]) / 2)
        return np.clip(0.5 + 0.5 * np.array([right, -up]) / reach, -1.0, 2.0)

    def other_instructions(self) -> tuple[str, ...]:
        """Return the instructions that would ask for another object of this very scene."""
        match self.spec_task.arrangement:
            case Scattered(target=target):
                names = [self._things[body].name for body in self.in_play if body != target.body]
            case Related(relation=relation):
                opposite = {**OPPOSITE, **{second: first for first, second in OPPOSITE.items()}}
                names = [RELATIONS[opposite[relation]]]
        return tuple(FRAMES[0].format(name) for name in names)

    def _place(self, poses: dict[str, Pose]) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.model.geom_contype[:], self.model.geom_conaffinity[:] = self._collision
        self.model.body_gravcomp[:] = 0.0
        for index, body in enumerate(self._things):
            joint = self.data.joint(body)
            if body in poses:
                x, y, z, yaw = poses[body]
                joint.qpos[:] = (x, y, z, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2))
                continue
            # What is not in play waits below the desk, weightless and touching nothing.
            joint.qpos[:3] = (0.3 + 0.1 * index, 0.0, -1.0)
            self.model.body_gravcomp[self.model.body(body).id] = 1.0
            geom = self.model.geom(body).id
            self.model.geom_contype[geom] = self.model.geom_conaffinity[geom] = 0
        for fixture in self.spec_task.arrangement.fixtures:
            mocap = self.model.body(fixture.body).mocapid[0]
            self.data.mocap_pos[mocap] = poses[fixture.body][:3]

    def _lifted(self, body: str) -> bool:
        return self.position(body)[2] > self._start_heights[body] + LIFTED

    def _observation(self) -> dict[str, Any]:
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self.model, self.image_size, self.image_size)
        pixels = {}
        for camera in CAMERAS:
            self._renderer.update_scene(self.data, camera)
            pixels[camera] = self._renderer.render().copy()
        return {"pixels": pixels, "agent_pos": arm.to_units(self.joints()).astype(np.float32)}

    def _info(self) -> dict[str, Any]:
        return {
            "is_success": self.steps > 0 and self.success(),
            "instruction": self.instruction,
            "target": self.spec_task.target.body,
            "picked": self.picked,
            "initial_state": self.initial_state,
        }
