"""The desk as an environment of LeRobot's commands: `--env.type=saccade_desk`."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, cast

import gymnasium
from draccus.utils import ParsingError
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import NEW_ROLLOUT_OPTION, FreezeAfterEpisodeEnd, _LazyAsyncVectorEnv

from ...errors import InputError
from ..rendering import choose_backend
from ..reset import EVALUATION_STATES
from .arm import CONTROL_HZ, JOINTS
from .scene import CAMERAS
from .tasks.catalogue import find_suite, find_task


class DeskRollouts(gymnasium.Wrapper):
    """One of several desks that share the evaluation of a task: rollout k of desk i starts in state k * env_count + i.

    Only a reset that LeRobot marks as a new rollout advances the state; other resets repeat it. After the last
    evaluation state, the first one follows.

    Args:
        env: The desk.
        env_index: Number of this desk.
        env_count: Number of desks.
    """

    def __init__(self, env: gymnasium.Env, env_index: int, env_count: int) -> None:
        super().__init__(env)
        self._env_index, self._env_count, self._rollout = env_index, env_count, -1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        options = dict(options or {})
        if options.pop(NEW_ROLLOUT_OPTION, False) or self._rollout < 0:
            self._rollout += 1
        state = (self._rollout * self._env_count + self._env_index) % EVALUATION_STATES
        return self.env.reset(seed=seed, options={"initial_state": state, **options})


def make_desk(suite: str, task: str, image_size: int, env_index: int, env_count: int) -> gymnasium.Env:
    """Build one desk for LeRobot's rollouts, in this process or in a worker process."""
    choose_backend()
    from .environment import DeskEnv

    return DeskRollouts(DeskEnv(suite, task, image_size=image_size), env_index, env_count)


@EnvConfig.register_subclass("saccade_desk")
@dataclass
class SaccadeDeskEnvConfig(EnvConfig):
    """Tasks of a desk suite; episode k of a task starts in its initial state k.

    Raises:
        ParsingError: Unknown suite or task, or an option out of range. It is draccus' error.
    """

    task: str | None = "desk_object"
    """The suite."""
    tasks: list[str] | None = None
    """Names of its tasks, as in --env.tasks='[red_cube]'; all if left out."""
    fps: int = CONTROL_HZ
    image_size: int = 128
    """Height and width of both cameras' images, in pixels."""
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self._check()
        except InputError as error:
            # draccus, which parses LeRobot's command lines, shows a constructor's message only from this class.
            raise ParsingError(str(error)) from error
        image = PolicyFeature(FeatureType.VISUAL, (self.image_size, self.image_size, 3))
        vector = {
            "action": PolicyFeature(FeatureType.ACTION, (len(JOINTS),)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (len(JOINTS),)),
        }
        self.features = vector | {f"pixels/{camera}": image for camera in CAMERAS}
        self.features_map = {"action": "action", "agent_pos": "observation.state"}
        self.features_map |= {f"pixels/{camera}": f"observation.images.{camera}" for camera in CAMERAS}

    def _check(self) -> None:
        find_suite(self._suite)
        for name in self.tasks or ():
            find_task(self._suite, name)
        if self.tasks is not None and not self.tasks:
            raise InputError("env.tasks", got="none", expected="one or more", fix="Leave out env.tasks for all tasks.")
        if self.fps != CONTROL_HZ:
            fix = "Leave out env.fps: the desk has a fixed rate."
            raise InputError("env.fps", got=self.fps, expected=CONTROL_HZ, fix=fix)

    @property
    def _suite(self) -> str:
        return self.task or ""

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"image_size": self.image_size}

    def create_envs(
        self,
        n_envs: int,
        use_async_envs: bool = False,  # noqa: FBT001, FBT002 (as in LeRobot)
    ) -> dict[str, dict[int, gymnasium.vector.VectorEnv]]:
        """Build the vector environments of all chosen tasks.

        Args:
            n_envs: Number of desks for each task.
            use_async_envs: Whether each desk runs in a process.

        Returns:
            {suite: {number of the task: vector environment}}.
        """
        choose_backend()
        environments = {}
        for number, task in enumerate(find_suite(self._suite)):
            if self.tasks and task.name not in self.tasks:
                continue
            desks = [
                functools.partial(make_desk, self._suite, task.name, self.image_size, env_index, n_envs)
                for env_index in range(n_envs)
            ]
            environments[number] = _vector_env(desks, processes=use_async_envs and n_envs > 1)
        return {self._suite: environments}


def _vector_env(desks: list[functools.partial], *, processes: bool) -> gymnasium.vector.VectorEnv:
    if processes:
        # LeRobot's class has the methods of a VectorEnv but does not derive from it.
        return cast(gymnasium.vector.VectorEnv, _LazyAsyncVectorEnv(desks))
    # A desk whose episode is over waits for the others: further steps would start an episode that is not counted.
    frozen = [functools.partial(_freeze_after_episode, desk) for desk in desks]
    return gymnasium.vector.SyncVectorEnv(frozen, autoreset_mode=gymnasium.vector.AutoresetMode.NEXT_STEP)


def _freeze_after_episode(desk: functools.partial) -> gymnasium.Env:
    return FreezeAfterEpisodeEnd(desk())
