"""The simulation of one LIBERO task: built once, then reset to any initial state as if it were new."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...errors import InputError, WorldError
from ..reset import EVALUATION_STATES
from .assets import Assets
from .conventions import CAMERAS, CONTROL_HZ
from .initial_states import problem_file, read_initial_states
from .installation import import_libero, package_folder
from .tasks import LiberoTask, check_initial_state
from .visuals import Visuals, cache_folder, check_visuals, simplify_scene

PLACEMENT_ATTEMPTS = 100
"""How often a placement of the objects is sampled before the reset fails."""

RESTORED_MODEL_FIELDS = ("body_pos", "body_quat", "geom_rgba", "site_rgba")
"""Model fields that LIBERO changes at a reset or in an episode: poses of fixtures, the lights of a stove."""


class Simulation:
    """LIBERO's own environment for one task, with robosuite's observations and actions.

    While `rendering_enabled` is False, images are black and cost nothing: for steps whose images nobody uses.

    Args:
        task: The task.
        assets: LIBERO's assets.
        size: Height and width of the images in pixels; None renders nothing.
        visuals: `stock` or `fast`.

    Attributes:
        initial_states: The benchmark's initial states float64 [50, D]: time, then MuJoCo's qpos and qvel.
        observation: robosuite's last observation.
        success: Whether the last step achieved the goal.

    Raises:
        InputError: Packages or the task's files are missing or changed.
        WorldError: The scene cannot be built.
    """

    def __init__(
        self, task: LiberoTask, assets: Assets, *, size: int | None = None, visuals: Visuals = "stock"
    ) -> None:
        self.task, self.assets, self.size, self.rendering_enabled = task, assets, size, True
        package = package_folder()
        problem = problem_file(package, task)
        self.initial_states = read_initial_states(package, task)
        self._library = import_libero()
        self._environment = self._build(problem, check_visuals(visuals))
        if size is not None:
            for name, camera in CAMERAS.items():
                self._environment.modify_observable(f"{camera}_image", "sensor", self._camera_sensor(name, size))
        self._initial_model_fields = {name: getattr(self.model, name).copy() for name in RESTORED_MODEL_FIELDS}
        self.observation: Mapping[str, Any] = {}
        self.success = False

    @property
    def model(self) -> Any:
        """The scene's `mujoco.MjModel`."""
        return self._environment.sim.model._model

    @property
    def data(self) -> Any:
        """The scene's `mujoco.MjData`."""
        return self._environment.sim.data._data

    @property
    def environment(self) -> Any:
        """LIBERO's own environment, for its predicates, regions and joints."""
        return self._environment

    @property
    def goal(self) -> tuple[tuple[str, ...], ...]:
        """The predicates that must all hold, such as ("on", "akita_black_bowl_1", "plate_1")."""
        return tuple(tuple(state) for state in self._environment.parsed_problem["goal_state"])

    @property
    def next_goal(self) -> tuple[str, ...]:
        """The first predicate that does not hold yet; the last one when all do."""
        unmet = (state for state in self.goal if not self._environment._eval_predicate(list(state)))
        return next(unmet, self.goal[-1])

    def position(self, object_name: str) -> np.ndarray:
        """Return the position float64 [3], in metres in the world frame, of an object, a fixture or a region."""
        if object_name in self._environment.obj_body_id:
            return self.data.xpos[self._environment.obj_body_id[object_name]].copy()
        return self.data.site(object_name).xpos.copy()

    def reset(self, initial_state: int) -> None:
        """Reset the scene to an initial state, which depends only on the task and the number.

        Args:
            initial_state: 0 to 49 for the benchmark's states; 1000 or more for states sampled from the task's regions.

        Raises:
            InputError: There is no such initial state.
            WorldError: No placement without collisions was found.
        """
        state = check_initial_state(initial_state)
        self._restore_model(state)
        self._start_episode(self.initial_states[state] if state < EVALUATION_STATES else None)

    def restore(self, start: np.ndarray, bodies: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Reset the scene to the start of a recorded demonstration.

        Args:
            start: float64 [D]: time, then MuJoCo's qpos and qvel.
            bodies: Poses of the recorded scene's bodies by name, each in its parent's frame: position [3] in metres and
                quaternion [4] in the order wxyz. Fixtures are moved there.

        Raises:
            InputError: The start is of another scene.
        """
        expected = self.initial_states.shape[1]
        if start.shape != (expected,):
            raise InputError(
                f"recorded start of {self.task.suite}/{self.task.name}",
                got=f"{list(start.shape)} numbers",
                expected=f"[{expected}]: time, positions and velocities",
                fix="Use robosuite 1.4.0 and the recordings of the LIBERO release.",
            )
        self._restore_model(0)
        for fixture in self._environment.fixtures_dict.values():
            if fixture.root_body in bodies:
                body = self.model.body(fixture.root_body)
                body.pos[:], body.quat[:] = bodies[fixture.root_body]
        self._start_episode(start)

    def _restore_model(self, initial_state: int) -> None:
        """Undo the changes of earlier episodes, and sample the placement of all objects with the state's seed."""
        for name, values in self._initial_model_fields.items():
            getattr(self.model, name)[:] = values
        for robot in self._environment.robots:
            # LIBERO's own reset keeps the gripper's last command.
            robot.gripper.current_action = np.zeros_like(robot.gripper.current_action)
        with _seeded_global_generators(self.task.start_seed(initial_state)), _translated_errors(self.task):
            self.observation = self._reset_until_placed()

    def _start_episode(self, start: np.ndarray | None) -> None:
        """Start an episode from a state [D], or from the sampled placement if `start` is None."""
        environment = self._environment
        if start is not None:
            environment.sim.set_state_from_flattened(start)
            environment.sim.forward()
            environment._check_success()
            environment._post_process()
        # robosuite samples its sensors once in a control step; the forced update here decides at which substep.
        environment._update_observables(force=True)
        self.observation = environment._get_observations()
        self.success = False

    def step(self, action: np.ndarray) -> None:
        """Advance by one control step.

        Args:
            action: robosuite's action float64 [7].

        Raises:
            WorldError: The library failed, or the physics diverged.
        """
        with _translated_errors(self.task):
            self.observation, _, done, _ = self._environment.step(action)
        if not np.isfinite(self.data.qpos).all():
            raise WorldError(f"the physics of {self.task.suite}/{self.task.name} diverged: positions are not finite")
        self.success = bool(done)

    def refresh_observation(self) -> None:
        """Update `observation` from the present state, without a physics step."""
        self._environment._update_observables(force=True)
        self.observation = self._environment._get_observations()

    def hold_current_pose(self) -> None:
        """Set the arm's present pose as the pose that its controller holds."""
        robot = self._environment.robots[0]
        robot.controller.update_initial_joints(self.data.qpos[robot._ref_joint_pos_indexes])

    def is_goal_satisfied(self) -> bool:
        """Tell whether all predicates of the goal hold now."""
        return all(self._environment._eval_predicate(list(state)) for state in self.goal)

    def upload_textures(self) -> None:
        """Upload the model's textures to the renderer again, if there is one."""
        import mujoco

        context = self._make_current()
        if context is not None:
            for texture in range(self.model.ntex):
                # pyright cannot see the names of MuJoCo's extension modules.
                cast(Any, mujoco).mjr_uploadTexture(self.model, context.con, texture)

    def render_camera(self, camera: str, size: int) -> np.ndarray:
        """Return a camera's image uint8 [size, size, 3] as robosuite renders it, lowest row first."""
        self._make_current()
        return self._environment.sim.render(camera_name=CAMERAS[camera], width=size, height=size)

    def close(self) -> None:
        """Free the simulation and its renderer."""
        self._make_current()
        self._environment.close()

    def _make_current(self) -> Any:
        """Make this scene's OpenGL context current and return its renderer; None if there is none.

        robosuite does so only when a scene is built: of several scenes in a process, all would use the last context.
        """
        context = self._environment.sim._render_context_offscreen
        if context is not None:
            context.gl_ctx.make_current()
        return context

    def _camera_sensor(self, camera: str, size: int) -> Any:
        """Return robosuite's sensor for a camera, which renders only while `rendering_enabled` is True."""
        from robosuite.utils.observables import sensor

        black = np.zeros((size, size, 3), np.uint8)

        @sensor(modality="image")
        def read_image(_: Any) -> np.ndarray:
            return self.render_camera(camera, size) if self.rendering_enabled else black

        return read_image

    def _reset_until_placed(self) -> Mapping[str, Any]:
        """Reset LIBERO's environment; sample again when it fails to place all objects without collisions."""
        from robosuite.utils.errors import RandomizationError

        for _ in range(PLACEMENT_ATTEMPTS):
            try:
                return self._environment.reset()
            except RandomizationError:
                continue
        raise WorldError(
            f"{self.task.suite}/{self.task.name}: no placement without collisions in {PLACEMENT_ATTEMPTS} samples"
        )

    def _build(self, problem: Path, visuals: Visuals) -> Any:
        """Build LIBERO's environment for a problem file."""
        from libero.libero.envs import TASK_MAPPING
        from libero.libero.envs.bddl_utils import get_problem_info
        from robosuite import load_controller_config

        # LIBERO reads this variable before the user's cache and the hub, and ignores the assets of its settings file.
        self._library.root._assets_path_cache = str(self.assets.folder)
        renders = self.size is not None
        with _seeded_global_generators(0), _translated_errors(self.task), contextlib.redirect_stdout(io.StringIO()):
            environment = TASK_MAPPING[get_problem_info(str(problem))["problem_name"]](
                str(problem),
                robots=["Panda"],
                controller_configs=load_controller_config(default_controller="OSC_POSE"),
                initialization_noise=None,
                use_camera_obs=renders,
                has_offscreen_renderer=renders,
                control_freq=CONTROL_HZ,
                ignore_done=True,
                camera_names=list(CAMERAS.values()),
                camera_heights=self.size or 128,
                camera_widths=self.size or 128,
            )
            if visuals == "fast":
                folder = cache_folder()
                environment.set_xml_processor(lambda scene: simplify_scene(scene, folder))
                # The processor takes effect at the next reset. LIBERO would append the initial positions of drawers and
                # knobs to the list of the first reset, and sample each twice from then on.
                environment.object_property_initializers.clear()
                environment.reset()
        # From now on a reset keeps the compiled scene. This is ten times faster, with the same result, as
        # `_restore_model` undoes what LIBERO leaves changed.
        environment.hard_reset = False
        return environment


@contextlib.contextmanager
def _seeded_global_generators(seed: int) -> Iterator[None]:
    """Seed the global random generators, which LIBERO samples from, and restore their state afterwards."""
    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


@contextlib.contextmanager
def _translated_errors(task: LiberoTask) -> Iterator[None]:
    """Turn an exception of the libraries into a WorldError that names the task."""
    try:
        yield
    except (InputError, WorldError):
        raise
    except Exception as error:
        where = f"{task.suite}/{task.name}"
        raise WorldError(f"LIBERO failed at {where}: {type(error).__name__}: {error}") from error
