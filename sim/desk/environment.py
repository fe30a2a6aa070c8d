"""The desk as a gymnasium environment: LeRobot's SO-101 names and units in, two cameras and the joints out."""

from __future__ import annotations

from typing import Any

import gymnasium
import mujoco
import numpy as np

from ...errors import InputError, WorldError
from ...policy.contract import ActionSpec, CameraSpec, GripperSpec, Offer, StateSpec
from ..projection import POINT_NOT_VISIBLE, project_point
from ..reset import ResetOptions
from . import arm
from .arrangement import Pose, free_position, is_pickable, standing_pose
from .cue import HALO
from .fixtures import Button
from .goals import Goal, all_goals_achieved, first_unachieved_goal, involved_bodies
from .kitchen import KitchenArrangement
from .receptacles import Bin
from .scene import CAMERAS, PHYSICS_STEPS, scene_xml
from .task import Task
from .tasks import INSTRUCTION_TEMPLATES, find_suite, find_task

PICKED_HEIGHT = 0.03
"""How far above its start an object counts as picked, in metres."""

PICKED_SHIFT, OPERATED_FRACTION = 0.05, 0.3
"""Where there are fixtures, also an object that was shoved so far counts as picked, in metres, and a fixture whose
joint was moved by such a part of its way."""

IDENTIFYING_DISTANCE = 0.045
"""How near the tool is to a thing when it shows which one is meant, in metres; things stand farther apart."""

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
    absolute joint targets; degrees, and 0 to 100 for the gripper. While `rendering_enabled` is False, observations lack `pixels`
    and cost a ninth: for steps that nobody looks at. `reset` takes `options={"initial_state": int, "instruction": str |
    None}`; without them a state is drawn from the seed. An episode ends when the task's goals are achieved: in most
    tasks, when the instructed object, and no other, lies released in the bin.

    Raises InputError for an unknown suite or task, a bad image size, and actions of another shape.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": arm.CONTROL_HZ}
    arm_joints = arm.JOINTS[:5]
    """Names in the model of the arm's joints, without the gripper's."""

    def __init__(self, suite: str, task: str, *, image_size: int = 128, render_mode: str = "rgb_array") -> None:
        if not 16 <= image_size <= 640:
            raise InputError("image_size", got=image_size, expected="16 to 640", fix="The default is 128.")
        self.task_spec: Task = find_task(suite, task)
        self.task = task
        self.task_description = self.task_spec.instruction
        self.render_mode = render_mode
        self.image_size = image_size
        self.offer = desk_offer(image_size)
        self.rendering_enabled = True
        self._max_episode_steps = self.task_spec.max_steps

        arrangement = self.task_spec.arrangement
        self._things = {thing.body: thing for thing in arrangement.objects}
        cue = (self.task_spec.cue,) if self.task_spec.cue else ()
        fixtures = (*arrangement.fixtures, *cue)
        self.model = mujoco.MjModel.from_xml_string(
            scene_xml(arrangement.objects, fixtures, has_bin=arrangement.has_bin)
        )
        self.data = mujoco.MjData(self.model)
        self._collision = self.model.geom_contype.copy(), self.model.geom_conaffinity.copy()
        self._joint_addresses = np.array([self.model.joint(name).qposadr[0] for name in arm.JOINTS])
        self._fingers = {self.model.geom(name).id for name in ("fixed_finger", "moving_finger")}
        self._geometries = {
            self.model.body(body).name: set(range(first, first + count))
            for body, (first, count) in enumerate(zip(self.model.body_geomadr, self.model.body_geomnum, strict=True))
        }
        self._buttons = tuple(fixture for fixture in arrangement.fixtures if isinstance(fixture, Button))
        self._renderer: mujoco.Renderer | None = None
        self._large_renderer: mujoco.Renderer | None = None

        low, high = arm.joint_limits()
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
        reset_options = ResetOptions.from_options(options)
        initial_state = reset_options.initial_state
        if initial_state is None:
            initial_state = int(self.np_random.integers(0, 2**31))
        generator = self.task_spec.generator(initial_state)
        poses = self.task_spec.arrangement.sample(generator)
        self.initial_state = initial_state
        self.present_bodies = tuple(body for body in poses if body in self._things)
        self.instruction = reset_options.instruction or self.task_spec.instruction
        self.task_description = self.instruction
        self._apply_poses(poses)
        self.data.qpos[self._joint_addresses] = arm.HOME + generator.uniform(-1, 1, 6) * START_NOISE
        self.settle_and_start()
        return self._observation(), self._info()

    def settle_and_start(self) -> None:
        """Let everything come to rest, the arm held where it is, and count the episode from there."""
        self.data.ctrl[:] = self.joints()
        mujoco.mj_step(self.model, self.data, nstep=5 * PHYSICS_STEPS)
        self.start_episode()

    def start_episode(self) -> None:
        """Count the episode from the present state; nothing moves."""
        self._start_positions = {body: self.position(body) for body in self.present_bodies}
        fixtures = (each for each in self.task_spec.arrangement.fixtures if hasattr(each, "joint_name"))
        self._start_joint_positions = {fixture: self.joint_position(fixture.joint_name) for fixture in fixtures}
        self.picked: str | None = None
        self.pressed_buttons: set[str] = set()
        self._achieved_order: list[int] = []
        self.steps = 0
        self._update_lamps()

    @property
    def background(self) -> tuple[int, ...]:
        """The numbers in the model of the geometries that are scenery."""
        return (self.model.geom("desk").id,)

    def observe(self) -> dict[str, Any]:
        """Return the observation of the present state, drawn anew; nothing moves."""
        return self._observation()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (6,) or not np.isfinite(action).all():
            raise InputError(
                "action", got=f"{action!r}", expected="6 finite numbers", fix="Check the policy's output and contract."
            )
        command = arm.to_radians(np.clip(action, self.action_space.low, self.action_space.high).astype(np.float64))
        self.data.ctrl[:] = command
        self.advance(PHYSICS_STEPS)
        self.update_progress()
        success = self.success()
        return self._observation(), float(success), success, self.steps >= self._max_episode_steps, self._info()

    def advance(self, physics_steps: int) -> None:
        """Let time pass, commands held; `step` is `PHYSICS_STEPS` of these and then `update_progress`.

        Raises WorldError when the physics diverge.
        """
        mujoco.mj_step(self.model, self.data, nstep=physics_steps)
        if not np.isfinite(self.data.qpos).all():
            raise WorldError("the desk's physics diverged: got non-finite positions; please report the seed and task")

    def update_progress(self) -> None:
        """Count a control step, and note what was pressed, handled and achieved by its end."""
        self.steps += 1
        self.pressed_buttons |= {button.moving_body for button in self._buttons if button.is_pressed(self)}
        self._update_lamps()
        if self.picked is None:
            self.picked = self._first_handled_body()
        for number, goal in enumerate(self.task_spec.goals):
            if number not in self._achieved_order and goal.is_achieved(self):
                self._achieved_order.append(number)

    def render(self) -> np.ndarray:
        """Return the front view, 384 pixels square, for people."""
        if self._large_renderer is None:
            self._large_renderer = mujoco.Renderer(self.model, 384, 384)
        self._large_renderer.update_scene(self.data, "front")
        return self._large_renderer.render().copy()

    def close(self) -> None:
        self.recreate_renderers()

    def recreate_renderers(self) -> None:
        """Let go of what draws; the next picture takes lights and textures from the model again."""
        for renderer in (self._renderer, self._large_renderer):
            if renderer is not None:
                renderer.close()
        self._renderer = self._large_renderer = None

    def position(self, body: str) -> np.ndarray:
        """Return the centre [3] of a thing in the arm's base frame, in metres."""
        return self.data.body(body).xpos.copy()

    def rotation(self, body: str) -> np.ndarray:
        """Return a body's axes as columns [3, 3] in the arm's base frame."""
        return self.data.body(body).xmat.reshape(3, 3).copy()

    def joint_position(self, name: str) -> float:
        """Return the position of a fixture's joint, in metres or radians."""
        return float(self.data.joint(name).qpos[0])

    def joints(self) -> np.ndarray:
        """Return the measured joint positions [6] in radians."""
        return self.data.qpos[self._joint_addresses].copy()

    def finger_contacts(self, body: str) -> int:
        """Return how many of the two fingers touch a thing."""
        geometries, touching = self._geometries[body], set()
        for first, second in self.data.contact.geom:
            if first in geometries or second in geometries:
                touching |= {int(first), int(second)} & self._fingers
        return len(touching)

    def is_waiting(self) -> bool:
        """Tell whether the arm is to keep still, because the go lamp of the task's cue is dark."""
        return self.task_spec.cue is not None and self.steps < self.task_spec.cue.go_step

    def current_goal(self) -> Goal:
        """Return the first of the task's goals that is still to be achieved."""
        return first_unachieved_goal(self.task_spec.goals, self)

    def success(self) -> bool:
        """Tell whether all goals are achieved, in their order where it matters, and nothing else was put there."""
        in_order = not self.task_spec.in_order or self._achieved_order == sorted(self._achieved_order)
        return in_order and all_goals_achieved(self.task_spec.goals, self)

    def grounding(self) -> np.ndarray:
        """Return what the instruction points at now, from privileged state: float32 [14].

        What has to be acted on and where it has to go, in the arm's base frame, in metres; then where each camera sees
        the two, as fractions of the image from its upper left corner; outside 0 to 1 where they are out of view, or
        where nothing in view says which thing is meant: pointing there could only be guessed.
        """
        grounding_points = self.current_goal().grounding_points(self)
        seen = np.array([[self._project(camera, point) for point in grounding_points] for camera in CAMERAS])
        if not self._target_is_identifiable():
            seen[:, 0] = POINT_NOT_VISIBLE
        return np.concatenate([*grounding_points, seen.reshape(-1)]).astype(np.float32)

    def _target_is_identifiable(self) -> bool:
        """Tell whether the picture says which thing is meant: by a lit cue, or by what the arm is at or has picked."""
        cue, target = self.task_spec.cue, self.task_spec.target
        if cue is None or self.steps < cue.lit_steps:
            return True
        near = np.linalg.norm(self.data.site("tool").xpos - self.position(target)) < IDENTIFYING_DISTANCE
        return bool(near or self.finger_contacts(target) or self.picked == target)

    def _project(self, camera: str, point: np.ndarray) -> np.ndarray:
        seen = project_point(self.model, self.data, camera, point)
        return POINT_NOT_VISIBLE if seen is None else np.clip(seen, -1.0, 2.0)

    def other_instructions(self) -> dict[str, str]:
        """Return instructions that ask for something else in this very scene, and the body that each is about."""
        nouns, target = self.task_spec.other_nouns, self.task_spec.target
        if isinstance(self.task_spec.arrangement, KitchenArrangement):
            tasks = (task for task in find_suite(self.task_spec.suite) if task.target != target)
            return {task.instruction: task.target for task in tasks if self._is_feasible(task)}
        others = [body for body in self.present_bodies if body != target]
        if nouns is None:
            nouns = tuple(self._things[body].name for body in others)
        return {INSTRUCTION_TEMPLATES[0].format(noun): body for noun, body in zip(nouns, others, strict=False)}

    def _is_feasible(self, task: Task) -> bool:
        """Tell whether another task of the suite has all that it needs in this scene, and is not done already."""
        arrangement = self.task_spec.arrangement
        here = {each.body for each in (*arrangement.objects, *arrangement.fixtures)}
        if arrangement.has_bin:
            here.add(Bin.body)
        return involved_bodies(task.goals) <= here and not any(goal.is_achieved(self) for goal in task.goals)

    def movable_objects(self) -> dict[str, str]:
        """Return, for the body of each thing in play, what it is; those that look alike are the same."""
        return {body: self._things[body].name for body in self.present_bodies}

    def add_object(self, generator: np.random.Generator) -> str | None:
        """Stand one more thing among those in play; return its body, None when all are or there is no room."""
        is_waiting = [body for body in self._things if body not in self.present_bodies]
        standing = [self.position(body)[:2] for body in self.present_bodies]
        landmarks = [self.position(fixture.body)[:2] for fixture in self.task_spec.arrangement.fixtures]
        free = free_position(standing, landmarks, generator)
        if not is_waiting or free is None:
            return None
        body = is_waiting[int(generator.integers(len(is_waiting)))]
        self.present_bodies = (*self.present_bodies, body)
        self._place_object(body, standing_pose(self._things[body], free, generator))
        mujoco.mj_forward(self.model, self.data)
        return body

    def is_layout_valid(self) -> bool:
        """Tell whether, as things stand now, the instruction is true and everything within the arm's reach."""
        positions = {body: self.position(body)[:2] for body in self.present_bodies}
        landmarks = {each.body: self.position(each.body)[:2] for each in self.task_spec.arrangement.fixtures}
        return all(map(is_pickable, positions.values())) and self.task_spec.arrangement.is_valid(positions | landmarks)

    def _apply_poses(self, poses: dict[str, Pose]) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.model.geom_contype[:], self.model.geom_conaffinity[:] = self._collision
        self.model.body_gravcomp[:] = 0.0
        for index, body in enumerate(self._things):
            if body in poses:
                self._place_object(body, poses[body])
                continue
            # What is not in play waits below the desk, weightless and touching nothing.
            self.data.joint(body).qpos[:3] = (0.3 + 0.1 * index, 0.0, -1.0)
            self.model.body_gravcomp[self.model.body(body).id] = 1.0
            geom = self.model.geom(body).id
            self.model.geom_contype[geom] = self.model.geom_conaffinity[geom] = 0
        for fixture in self.task_spec.arrangement.fixtures:
            mocap = self.model.body(fixture.body).mocapid[0]
            *self.data.mocap_pos[mocap], yaw = poses[fixture.body]
            self.data.mocap_quat[mocap] = np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)
        for joint_name, position in ((name, pose[0]) for name, pose in poses.items() if len(pose) == 1):
            self.data.joint(joint_name).qpos[0] = position
        if self.task_spec.cue:
            self.data.mocap_pos[self.model.body(HALO).mocapid[0], :2] = poses[self.task_spec.cue.lit_object.body][:2]

    def _place_object(self, body: str, pose: Pose) -> None:
        """Set a thing down at a pose, with its weight and touching what it meets."""
        x, y, z, yaw = pose
        self.data.joint(body).qpos[:] = (x, y, z, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2))
        number, geom = self.model.body(body).id, self.model.geom(body).id
        self.model.body_gravcomp[number] = 0.0
        contype, conaffinity = self._collision
        self.model.geom_contype[geom], self.model.geom_conaffinity[geom] = contype[geom], conaffinity[geom]

    def _update_lamps(self) -> None:
        """Give the lamps of the task's cue and of the buttons the colours of this step."""
        colours = self.task_spec.cue.colours(self.steps) if self.task_spec.cue else {}
        for button in self._buttons:
            colours |= button.colours(pressed=button.moving_body in self.pressed_buttons)
        for lamp, colour in colours.items():
            self.model.geom(lamp).rgba = colour

    def _first_handled_body(self) -> str | None:
        """Return the first body that was picked, shoved or operated since the start."""
        for body, start in self._start_positions.items():
            x, y, z = self.position(body) - start
            if z > PICKED_HEIGHT or (self._start_joint_positions and np.hypot(x, y) > PICKED_SHIFT):
                return body
        for fixture, start in self._start_joint_positions.items():
            low, high = self.model.joint(fixture.joint_name).range
            if abs(self.joint_position(fixture.joint_name) - start) > OPERATED_FRACTION * (high - low):
                return fixture.moving_body
        return None

    def _observation(self) -> dict[str, Any]:
        joints = {"agent_pos": arm.to_units(self.joints()).astype(np.float32)}
        if not self.rendering_enabled:
            return joints
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self.model, self.image_size, self.image_size)
        pixels = {}
        for camera in CAMERAS:
            self._renderer.update_scene(self.data, camera)
            pixels[camera] = self._renderer.render().copy()
        return {"pixels": pixels, **joints}

    def _info(self) -> dict[str, Any]:
        return {
            "is_success": self.steps > 0 and self.success(),
            "instruction": self.instruction,
            "target": self.task_spec.target,
            "picked": self.picked,
            "initial_state": self.initial_state,
        }
