"""One episode in a disturbed world: a wrapper that changes the world after its reset, and takes every change back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import gymnasium

from ..job import Job
from .edits import Edits
from .language import MEANINGS, rephrase
from .sensor import Sensor
from .swap import other_thing, senseless_words
from .world import require


@contextmanager
def disturbed(env: Any, job: Job) -> Iterator[Any]:
    """Give the world of a job for one episode, and put it back as it was, whatever happened.

    A job without perturbation and swap gets `env` itself.
    """
    if job.perturbation is None and job.swap is None:
        yield env
        return
    world = DisturbedEnv(env, job)
    try:
        yield world
    finally:
        world.restore()


class DisturbedEnv(gymnasium.Wrapper):
    """A world that is disturbed as a job says, at every reset anew and alike.

    `info["instruction"]` holds the words that the actor is to hear. With a swap, `info["is_success"]` is the swap's own
    judgement, and one that asks for another object ends the episode at the first that is lifted. `drawn` says what was
    drawn, in plain JSON values, and `other` names the swap's second thing.

    `reset` raises InputError when the world cannot be disturbed in this way, WorldError when there is no room to.
    """

    def __init__(self, env: Any, job: Job) -> None:
        super().__init__(env)
        self._job = job
        self._edits: Edits | None = None
        self._sensor: Sensor | None = None
        self._words: str | None = None
        self.drawn: dict[str, Any] = {}
        self.other: str | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        self.restore()
        observation, info = self.env.reset(seed=seed, options=options)
        self._words, self._sensor, self.other, self.drawn = None, None, None, {}
        if self._job.swap is not None:
            observation = self._swap(observation, info)
        if self._job.perturbation is not None:
            observation = self._perturb(observation, info)
        return self._measured(observation), self._judged(info)

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        info = self._judged(info)
        terminated = terminated or (self._job.swap == "object" and info.get("picked") is not None)
        return self._measured(observation), float(reward), terminated, truncated, info

    @property
    def draws(self) -> bool:
        """Whether observations hold pixels, for worlds that can leave them out; there is no such attribute else."""
        return self.unwrapped.draws

    @draws.setter
    def draws(self, draws: bool) -> None:
        self.unwrapped.draws = draws

    def restore(self) -> None:
        """Put the model back as it was before the last reset; its state is the next reset's business."""
        if self._edits is None:
            return
        uploaded = self._edits.uploaded
        self._edits.undo()
        self._edits = None
        if uploaded:
            self.unwrapped.renew_renderers()

    def _perturb(self, observation: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
        job, perturbation = self._job, self._job.perturbation
        generator = perturbation.generator(job.suite, job.task, job.initial_state, job.seed)
        if perturbation.axis == "language":
            self._words = rephrase(self._words or str(info["instruction"]), perturbation.level, generator)
            self.drawn |= {"words": MEANINGS[perturbation.level]}
            return observation
        if perturbation.axis == "sensor":
            offer = require(self.unwrapped, ("offer",), "sensor noise").offer
            self._sensor = Sensor(perturbation.level, generator, offer.state.units)
            self.drawn |= self._sensor.drawn
            return observation
        axis = _model_axis(perturbation.axis)
        world = require(self.unwrapped, axis.NEEDS, f"perturbation {perturbation.axis}")
        self._edits = Edits(world.model)
        self.drawn |= axis.disturb(world, self._edits, perturbation.level, generator)
        return world.observe()

    def _swap(self, observation: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
        world, job = self.unwrapped, self._job
        if hasattr(world, "things"):
            # What guessing would come to follows from how many there are to choose from.
            self.drawn |= {"things": len(world.things())}
        match job.swap:
            case "object":
                self._words, self.other = other_thing(world, job.seed)
            case "position":
                from .exchange import exchange

                self.other = exchange(world, info.get("target"), job.seed)
                return world.observe()
            case "instruction":
                words, kind = senseless_words(world, str(info["instruction"]), job.foreign, job.seed)
                self._words = words
                self.drawn |= {"words": kind}
        return observation

    def _measured(self, observation: dict[str, Any]) -> dict[str, Any]:
        return observation if self._sensor is None else self._sensor(observation)

    def _judged(self, info: dict[str, Any]) -> dict[str, Any]:
        info = dict(info)
        if self._words is not None:
            info["instruction"] = self._words
        if self._job.swap == "object":
            info["is_success"] = info.get("picked") is not None and info.get("picked") == self.other
        return info


def _model_axis(name: str) -> ModuleType:
    """Return the module of an axis that changes a world's model or state, with its `NEEDS` and `disturb`."""
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
