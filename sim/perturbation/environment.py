"""Perturb or swap one episode: a wrapper that changes the world after its reset and restores it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import gymnasium

from .axes import Perturbation
from .edits import ModelEdits
from .job import Job
from .language import LEVEL_DESCRIPTIONS, rephrase
from .sensor import SensorCorruption
from .swap import other_object_instruction, unrelated_instruction
from .world import require_members


@contextmanager
def perturbed_environment(env: Any, job: Job) -> Iterator[Any]:
    """Yield the environment of a job for one episode, and restore it afterwards, also after an exception.

    Args:
        env: The unchanged environment.
        job: The episode; without perturbation and swap `env` itself is yielded.
    """
    if job.perturbation is None and job.swap is None:
        yield env
        return
    world = PerturbedEnv(env, job)
    try:
        yield world
    finally:
        world.restore()


class PerturbedEnv(gymnasium.Wrapper):
    """Applies a job's perturbation or swap at every reset, each time in the same way.

    `info["instruction"]` is the instruction for the actor. With the swap "object", `info["is_success"]` tells whether
    the requested object was picked, and the episode ends when the first object is lifted. `reset` raises InputError if
    the world does not support the change, and WorldError if there is no room for it.

    Attributes:
        drawn: The random choices of this episode, as plain JSON values.
        other: Body of the swap's second object.
    """

    def __init__(self, env: Any, job: Job) -> None:
        super().__init__(env)
        self._job = job
        self._edits: ModelEdits | None = None
        self._sensor_corruption: SensorCorruption | None = None
        self._instruction: str | None = None
        self.drawn: dict[str, Any] = {}
        self.other: str | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        self.restore()
        observation, info = self.env.reset(seed=seed, options=options)
        self._instruction, self._sensor_corruption, self.other, self.drawn = None, None, None, {}
        if self._job.swap is not None:
            observation = self._swap(observation, info)
        if self._job.perturbation is not None:
            observation = self._perturb(self._job.perturbation, observation, info)
        return self._with_sensor_corruption(observation), self._with_swap_outcome(info)

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        info = self._with_swap_outcome(info)
        terminated = terminated or (self._job.swap == "object" and info.get("picked") is not None)
        return self._with_sensor_corruption(observation), float(reward), terminated, truncated, info

    @property
    def rendering_enabled(self) -> bool:
        """Whether observations hold pixels; the attribute is missing if the world cannot leave them out."""
        return self._world.rendering_enabled

    @rendering_enabled.setter
    def rendering_enabled(self, rendering_enabled: bool) -> None:
        self._world.rendering_enabled = rendering_enabled

    def restore(self) -> None:
        """Restore the model as it was before the last reset; the next reset restores its state."""
        if self._edits is None:
            return
        needs_new_renderer = self._edits.needs_new_renderer
        self._edits.undo()
        self._edits = None
        if needs_new_renderer:
            self._world.recreate_renderers()

    @property
    def _world(self) -> Any:
        """The innermost environment, whose further members gymnasium's type does not know."""
        return self.unwrapped

    def _perturb(self, perturbation: Perturbation, observation: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
        job = self._job
        generator = perturbation.generator(job.suite, job.task, job.initial_state, job.seed)
        if perturbation.axis == "language":
            self._instruction = rephrase(self._instruction or str(info["instruction"]), perturbation.level, generator)
            self.drawn |= {"words": LEVEL_DESCRIPTIONS[perturbation.level]}
            return observation
        if perturbation.axis == "sensor":
            offer = require_members(self._world, ("offer",), "sensor noise").offer
            self._sensor_corruption = SensorCorruption(perturbation.level, generator, offer.state.units)
            self.drawn |= self._sensor_corruption.drawn
            return observation
        axis = _model_axis(perturbation.axis)
        world = require_members(self._world, axis.REQUIRED_MEMBERS, f"perturbation {perturbation.axis}")
        self._edits = ModelEdits(world.model)
        self.drawn |= axis.perturb(world, self._edits, perturbation.level, generator)
        return world.observe()

    def _swap(self, observation: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
        world, job = self._world, self._job
        if hasattr(world, "movable_objects"):
            # The number of objects gives the success rate by chance.
            self.drawn |= {"things": len(world.movable_objects())}
        match job.swap:
            case "object":
                self._instruction, self.other = other_object_instruction(world, job.seed)
            case "position":
                from .swap_positions import swap_positions

                self.other = swap_positions(world, info.get("target"), job.seed)
                return world.observe()
            case "instruction":
                self._instruction, kind = unrelated_instruction(
                    world, str(info["instruction"]), job.other_task_instructions, job.seed
                )
                self.drawn |= {"words": kind}
        return observation

    def _with_sensor_corruption(self, observation: dict[str, Any]) -> dict[str, Any]:
        return observation if self._sensor_corruption is None else self._sensor_corruption(observation)

    def _with_swap_outcome(self, info: dict[str, Any]) -> dict[str, Any]:
        info = dict(info)
        if self._instruction is not None:
            info["instruction"] = self._instruction
        if self._job.swap == "object":
            info["is_success"] = info.get("picked") is not None and info.get("picked") == self.other
        return info


def _model_axis(name: str) -> ModuleType:
    """Return the module of an axis that changes the model or its state: it has `REQUIRED_MEMBERS` and `perturb`."""
    # These modules import MuJoCo, which must not happen before a world has chosen a rendering backend.
    from . import background, camera, layout, lighting, start_pose

    modules = {
        "camera": camera,
        "lighting": lighting,
        "background": background,
        "start_pose": start_pose,
        "layout": layout,
    }
    return modules[name]
