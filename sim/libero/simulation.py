"""One LIBERO task's simulation: built once, and brought to any initial state as if it had just been built."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, WorldError
from ..reset import EVALUATION_STATES
from . import visuals as looks
from .assets import Assets
from .conventions import CAMERAS, CONTROL_HZ
from .initial_states import problem_file, read_initial_states
from .installation import import_libero, package_folder
from .tasks import LiberoTask, check_initial_state

PLACEMENT_ATTEMPTS = 100
"""How often the placement of the things in a scene is drawn before it is given up."""

RESTORED_MODEL_FIELDS = ("body_pos", "body_quat", "geom_rgba", "site_rgba")
"""What the library changes of a model while an episode runs or begins: fixtures that it places, lights of a stove."""


class Simulation:
    """LIBERO's own environment for one task, robosuite's numbers in and out.

    `size` is that of the pictures, None draws nothing. While `rendering_enabled` is False, pictures are black and cost nothing: for
    steps that nobody looks at. Raises InputError where the packages or the task's files are
    missing or changed, and WorldError when the scene cannot be built.
    """

    def __init__(
        self, task: LiberoTask, assets: Assets, *, size: int | None = None, visuals: looks.Visuals = "stock"
    ) -> None:
        self.task, self.assets, self.size, self.rendering_enabled = task, assets, size, True
        package = package_folder()
        problem = problem_file(package, task)
        self.initial_states = read_initial_states(package, task)
        self._library = import_libero()
        self._environment = self._build(problem, looks.check_visuals(visuals))
        for ours, theirs in CAMERAS.items() if size is not None else ():
            self._environment.modify_observable(f"{theirs}_image", "sensor", self._camera_sensor(ours))
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
        """LIBERO's own environment, for who asks for its predicates, regions and joints."""
        return self._environment

    @property
    def goal(self) -> tuple[tuple[str, ...], ...]:
        """The predicates that must all hold, such as ("on", "akita_black_bowl_1", "plate_1")."""
        return tuple(tuple(state) for state in self._environment.parsed_problem["goal_state"])

    @property
    def objects_of_interest(self) -> tuple[str, ...]:
        """What the instruction speaks of: first what to move, last where to."""
        return tuple(self._environment.obj_of_interest)

    @property
    def next_goal(self) -> tuple[str, ...]:
        """The first predicate that does not hold yet; the last one when all do."""
        unmet = (state for state in self.goal if not self._environment._eval_predicate(list(state)))
        return next(unmet, self.goal[-1])

    def position(self, object_name: str) -> np.ndarray:
        """Return where an object, a fixture or a region of either is, float64 [3] in metres."""
        if object_name in self._environment.obj_body_id:
            return self.data.xpos[self._environment.obj_body_id[object_name]].copy()
        return self.data.site(object_name).xpos.copy()

    def reset(self, initial_state: int) -> None:
        """Bring the scene to an initial state; which one it is follows from the task and the number alone.

        States 0 to 49 are the benchmark's; those from 1000 on are drawn from the task's regions.
        """
        state = check_initial_state(initial_state)
        self._restore_model(state)
        self._start_episode(self.initial_states[state] if state < EVALUATION_STATES else None)

    def restore(self, start: np.ndarray, bodies: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Bring the scene to a recorded start [D], with its fixtures where they stood: their bodies' poses by name.

        Raises InputError for a start of another scene.
        """
        expected = self.initial_states.shape[1]
        if start.shape != (expected,):
            raise InputError(
                f"recorded start of {self.task.suite}/{self.task.name}",
                got=f"{list(start.shape)} numbers",
                expected=f"[{expected}]: time, positions and velocities",
                fix="The recording was made in another scene, or by another version of robosuite.",
            )
        self._restore_model(0)
        for fixture in self._environment.fixtures_dict.values():
            if fixture.root_body in bodies:
                body = self.model.body(fixture.root_body)
                body.pos[:], body.quat[:] = bodies[fixture.root_body]
        self._start_episode(start)

    def _restore_model(self, initial_state: int) -> None:
        """Put everything back that an episode may have changed, and place all anew."""
        for name, values in self._initial_model_fields.items():
            getattr(self.model, name)[:] = values
        for robot in self._environment.robots:
            # The gripper keeps the last episode's command across the library's own reset.
            robot.gripper.current_action = np.zeros_like(robot.gripper.current_action)
        with _seeded_global_generators(self.task.start_seed(initial_state)), _translated_errors(self.task):
            self.observation = self._reset_until_placed()

    def _start_episode(self, start: np.ndarray | None) -> None:
        """Start an episode from a state [D], or from where everything was placed."""
        environment = self._environment
        if start is not None:
            environment.sim.set_state_from_flattened(start)
            environment.sim.forward()
            environment._check_success()
            environment._post_process()
        # robosuite looks at a scene once in a control step, and when follows from how often it looked at the start.
        environment._update_observables(force=True)
        self.observation = environment._get_observations()
        self.success = False

    def step(self, command: np.ndarray) -> None:
        """Advance by one control step under robosuite's action float64 [7]."""
        with _translated_errors(self.task):
            self.observation, _, done, _ = self._environment.step(command)
        if not np.isfinite(self.data.qpos).all():
            raise WorldError(f"the physics of {self.task.suite}/{self.task.name} diverged: positions are not finite")
        self.success = bool(done)

    def refresh_observation(self) -> None:
        """Take the observation anew, of the state as it is; nothing moves."""
        self._environment._update_observables(force=True)
        self.observation = self._environment._get_observations()

    def hold_current_pose(self) -> None:
        """Make the pose that the arm has now the one that its controller holds."""
        robot = self._environment.robots[0]
        robot.controller.update_initial_joints(self.data.qpos[robot._ref_joint_pos_indexes])

    def is_goal_satisfied(self) -> bool:
        """Tell whether all of the goal's predicates hold in the state as it is."""
        return all(self._environment._eval_predicate(list(state)) for state in self.goal)

    def upload_textures(self) -> None:
        """Hand the model's textures to the renderer again, where there is one."""
        import mujoco

        context = self._make_current()
        if context is not None:
            for texture in range(self.model.ntex):
                mujoco.mjr_uploadTexture(self.model, context.con, texture)

    def render_camera(self, camera: str, size: int) -> np.ndarray:
        """Return a camera's picture uint8 [size, size, 3] as robosuite hands it over, its lowest row first."""
        self._make_current()
        return self._environment.sim.render(camera_name=CAMERAS[camera], width=size, height=size)

    def close(self) -> None:
        self._make_current()
        self._environment.close()

    def _make_current(self) -> Any:
        """Make this scene's renderer the one that draws, and is freed, next; return it, None where there is none.

        robosuite does so once, when a scene is built: in a process with several, all would draw with the last one's.
        """
        context = self._environment.sim._render_context_offscreen
        if context is not None:
            context.gl_ctx.make_current()
        return context

    def _camera_sensor(self, camera: str) -> Any:
        """Return robosuite's sensor for a camera, which looks only while `rendering_enabled` holds; its times stay the same."""
        from robosuite.utils.observables import sensor

        unseen = np.zeros((self.size, self.size, 3), np.uint8)

        @sensor(modality="image")
        def refresh_observation(_: Any) -> np.ndarray:
            return self.render_camera(camera, self.size) if self.rendering_enabled else unseen

        return refresh_observation

    def _reset_until_placed(self) -> Mapping[str, Any]:
        """Reset the library's environment; where things overlap it gives up, and the next draw may fit."""
        from robosuite.utils.errors import RandomizationError

        for _ in range(PLACEMENT_ATTEMPTS):
            try:
                return self._environment.reset()
            except RandomizationError:
                continue
        raise WorldError(
            f"{self.task.suite}/{self.task.name}: no placement without overlaps in {PLACEMENT_ATTEMPTS} draws"
        )

    def _build(self, problem: Path, visuals: looks.Visuals) -> Any:
        from libero.libero.envs import TASK_MAPPING
        from libero.libero.envs.bddl_utils import get_problem_info
        from robosuite import load_controller_config

        # The library looks here before it looks into the user's cache and asks the hub; its settings file has no say.
        self._library.root._assets_path_cache = str(self.assets.folder)
        drawing = self.size is not None
        with _seeded_global_generators(0), _translated_errors(self.task), contextlib.redirect_stdout(io.StringIO()):
            environment = TASK_MAPPING[get_problem_info(str(problem))["problem_name"]](
                str(problem),
                robots=["Panda"],
                controller_configs=load_controller_config(default_controller="OSC_POSE"),
                initialization_noise=None,
                use_camera_obs=drawing,
                has_offscreen_renderer=drawing,
                control_freq=CONTROL_HZ,
                ignore_done=True,
                camera_names=list(CAMERAS.values()),
                camera_heights=self.size or 128,
                camera_widths=self.size or 128,
            )
            if visuals == "fast":
                folder = looks.cache_folder()
                environment.set_xml_processor(lambda scene: looks.simplify_scene(scene, folder))
                # The processor takes effect when the scene is read again. The library would add what it draws of
                # drawers and knobs to the list of the first reading, and draw everything twice ever after.
                environment.object_property_initializers.clear()
                environment.reset()
        # From now on a reset keeps the compiled scene: ten times faster, and the same once `reset` has put back what
        # the library leaves changed.
        environment.hard_reset = False
        return environment


@contextlib.contextmanager
def _seeded_global_generators(seed: int) -> Iterator[None]:
    """Seed the global generators, which the library draws from, and put them back as they were."""
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
    """Turn what the libraries throw into one line that says where it happened."""
    try:
        yield
    except (InputError, WorldError):
        raise
    except Exception as error:
        where = f"{task.suite}/{task.name}"
        raise WorldError(f"LIBERO failed at {where}: {type(error).__name__}: {error}") from error
