"""The desk under LeRobot's own commands, `--env.type=saccade_desk`."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

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
from .tasks import find_suite, find_task


class DeskRollouts(gymnasium.Wrapper):
    """One of `env_count` desks that share the evaluation of a task: rollout k of desk i begins in state k * count + i.

    Only a reset that LeRobot marks as a new rollout moves on; a repeated one begins where the last did. States count
    anew after the last one that is meant for evaluation.
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
    """Return one desk for LeRobot's rollouts, in this process or in a worker's."""
    choose_backend()
    from .environment import DeskEnv

    return DeskRollouts(DeskEnv(suite, task, image_size=image_size), env_index, env_count)


@EnvConfig.register_subclass("saccade_desk")
@dataclass
class SaccadeDeskEnvConfig(EnvConfig):
    """Tasks of a desk suite; episode k of a task begins in its initial state k.

    Raises draccus' ParsingError for an unknown suite or task, with the nearest name.
    """

    task: str | None = "desk_object"
    """The suite."""
    tasks: list[str] | None = None
    """Names of its tasks, all of them when left out: --env.tasks='[red_cube]'."""
    fps: int = CONTROL_HZ
    image_size: int = 128
    """Height and width of both cameras' images, in pixels."""
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self._check()
        except InputError as error:
            # draccus, which reads LeRobot's command lines, hides what a constructor says unless it is of this kind.
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
        find_suite(self.task or "")
        for name in self.tasks or ():
            find_task(self.task, name)
        if self.tasks is not None and not self.tasks:
            raise InputError("env.tasks", got="none", expected="one or more", fix="Leave it out for all tasks.")
        if self.fps != CONTROL_HZ:
            fix = "That is the desk's rate: leave it out."
            raise InputError("env.fps", got=self.fps, expected=CONTROL_HZ, fix=fix)

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"image_size": self.image_size}

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gymnasium.vector.VectorEnv]]:
        """Return {suite: {task's number: `n_envs` desks}}."""
        choose_backend()
        environments = {}
        for number, task in enumerate(find_suite(self.task)):
            if self.tasks and task.name not in self.tasks:
                continue
            desks = [
                functools.partial(make_desk, self.task, task.name, self.image_size, env_index, n_envs)
                for env_index in range(n_envs)
            ]
            environments[number] = _together(desks, use_async_envs and n_envs > 1)
        return {self.task: environments}


def _together(desks: list[functools.partial], processes: bool) -> gymnasium.vector.VectorEnv:
    if processes:
        return _LazyAsyncVectorEnv(desks)
    # A desk whose episode is over waits for the others: stepped on, it would start an episode that nobody counts.
    frozen = [functools.partial(_frozen, desk) for desk in desks]
    return gymnasium.vector.SyncVectorEnv(frozen, autoreset_mode=gymnasium.vector.AutoresetMode.NEXT_STEP)


def _frozen(desk: functools.partial) -> gymnasium.Env:
    return FreezeAfterEpisodeEnd(desk())
