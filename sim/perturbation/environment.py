"""One episode in a disturbed world: a wrapper that changes the world after its reset, and takes every change back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import gymnasium

from .edits import ModelEdits
from .job import Job
from .language import LEVEL_DESCRIPTIONS, rephrase
from .sensor import SensorCorruption
from .swap import other_object_instruction, unrelated_instruction
from .world import require_members


@contextmanager
def perturbed_environment(env: Any, job: Job) -> Iterator[Any]:
    """Give the world of a job for one episode, and put it back as it was, whatever happened.

    A job without perturbation and swap gets `env` itself.
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
    """A world that is disturbed as a job says, at every reset anew and alike.

    `info["instruction"]` holds the words that the actor is to hear. With a swap, `info["is_success"]` is the swap's own
    judgement, and one that asks for another object ends the episode at the first that is lifted. `drawn` says what was
    drawn, in plain JSON values, and `other` names the swap's second thing.

    `reset` raises InputError when the world cannot be disturbed in this way, WorldError when there is no room to.
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
            observation = self._perturb(observation, info)
        return self._with_sensor_corruption(observation), self._with_swap_outcome(info)

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        info = self._with_swap_outcome(info)
        terminated = terminated or (self._job.swap == "object" and info.get("picked") is not None)
        return self._with_sensor_corruption(observation), float(reward), terminated, truncated, info

    @property
    def rendering_enabled(self) -> bool:
        """Whether observations hold pixels, for worlds that can leave them out; there is no such attribute else."""
        return self.unwrapped.rendering_enabled

    @rendering_enabled.setter
    def rendering_enabled(self, rendering_enabled: bool) -> None:
        self.unwrapped.rendering_enabled = rendering_enabled

    def restore(self) -> None:
        """Put the model back as it was before the last reset; its state is the next reset's business."""
        if self._edits is None:
            return
        needs_new_renderer = self._edits.needs_new_renderer
        self._edits.undo()
        self._edits = None
        if needs_new_renderer:
            self.unwrapped.recreate_renderers()

    def _perturb(self, observation: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
        job, perturbation = self._job, self._job.perturbation
        generator = perturbation.generator(job.suite, job.task, job.initial_state, job.seed)
        if perturbation.axis == "language":
            self._instruction = rephrase(self._instruction or str(info["instruction"]), perturbation.level, generator)
            self.drawn |= {"words": LEVEL_DESCRIPTIONS[perturbation.level]}
            return observation
        if perturbation.axis == "sensor":
            offer = require_members(self.unwrapped, ("offer",), "sensor noise").offer
            self._sensor_corruption = SensorCorruption(perturbation.level, generator, offer.state.units)
            self.drawn |= self._sensor_corruption.drawn
            return observation
        axis = _model_axis(perturbation.axis)
        world = require_members(self.unwrapped, axis.REQUIRED_MEMBERS, f"perturbation {perturbation.axis}")
        self._edits = ModelEdits(world.model)
        self.drawn |= axis.perturb(world, self._edits, perturbation.level, generator)
        return world.observe()

    def _swap(self, observation: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
        world, job = self.unwrapped, self._job
        if hasattr(world, "movable_objects"):
            # What guessing would come to follows from how many there are to choose from.
            self.drawn |= {"things": len(world.movable_objects())}
        match job.swap:
            case "object":
                self._instruction, self.other = other_object_instruction(world, job.seed)
            case "position":
                from .swap_positions import swap_positions

                self.other = swap_positions(world, info.get("target"), job.seed)
                return world.observe()
            case "instruction":
                words, kind = unrelated_instruction(
                    world, str(info["instruction"]), job.other_task_instructions, job.seed
                )
                self._instruction = words
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
    """Return the module of an axis that changes a world's model or state, with its `REQUIRED_MEMBERS` and `perturb`."""
    # They import MuJoCo, which must not happen before a world has chosen how to draw.
    from . import background, camera, layout, lighting, start_pose

    modules = {
        "camera": camera,
        "lighting": lighting,
        "background": background,
        "start_pose": start_pose,
        "layout": layout,
    }
    return modules[name]
