"""A minimal world and actor that worker processes can import: the arm is a number that must reach 1."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np

from saccade.errors import InputError

TARGETS = {"reach": "cube", "lift": "can"}


class FakeEnv(gymnasium.Env):
    """Counts up by the action; even initial states succeed, odd ones pick another object and fail."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}
    _max_episode_steps = 12

    def __init__(self, task: str) -> None:
        self.task = task
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.initial_state = options["initial_state"]
        self.instruction = options["instruction"] or f"{self.task} the {TARGETS[self.task]}"
        self.position, self.picked = 0.0, None
        self.noise = float(np.random.random())
        return self._observation(), self._info(False)

    def step(self, action):
        self.position += float(action[0])
        good = self.initial_state % 2 == 0
        if self.position > 0.5 and self.picked is None:
            self.picked = TARGETS[self.task] if good else "ball"
        success = self.position >= 1.0 and good
        return self._observation(), float(success), success, False, self._info(success)

    def other_instructions(self):
        return {f"{self.task} the ball": "ball", f"{self.task} the plate": "plate"}

    def _observation(self):
        image = np.full((16, 16, 3), int(200 * min(self.position, 1.0)), np.uint8)
        image[:, : self.initial_state % 16] //= 2
        return {
            "pixels": {"front": image, "wrist": 255 - image},
            "agent_pos": np.array([self.position, self.noise], np.float32),
        }

    def _info(self, success):
        return {
            "is_success": success,
            "instruction": self.instruction,
            "target": TARGETS[self.task],
            "picked": self.picked,
        }


class FakeActor:
    """Moves by a seeded amount, decides at every second step, and has four visual tokens."""

    def reset(self, instruction: str, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.calls, self.decision_seconds = 0, []

    def act(self, observation):
        if self.calls % 2 == 0:
            self.decision_seconds.append(0.001 * (self.calls + 1))
        self.calls += 1
        return np.array([self.generator.uniform(0.1, 0.3), observation["agent_pos"][1]], np.float32)

    def overlay(self):
        tokens = np.array([[0.2, 0.3, 0.9, 1], [0.7, 0.6, 0.4, 1], [0.5, 0.5, 0.1, 0], [0.9, 0.1, 0.1, 0]])
        return {"front": tokens, "wrist": tokens}


def make_env(suite: str, task: str) -> FakeEnv:
    return FakeEnv(task)


def make_actor() -> FakeActor:
    return FakeActor()


def refuse_actor() -> FakeActor:
    raise InputError("contract", got="wrist", expected="front", fix="Rename the camera.")


def break_actor() -> FakeActor:
    raise RuntimeError("no weights here")


@dataclass(frozen=True)
class Mishap:
    """Builds worlds that fail at one initial state; with `once`, only until the marker file exists."""

    kind: str
    marker: Path
    once: bool = False
    initial_state: int | None = 2

    def __call__(self, suite: str, task: str) -> FakeEnv:
        return _FailingEnv(task, self)


class _FailingEnv(FakeEnv):
    def __init__(self, task: str, mishap: Mishap) -> None:
        super().__init__(task)
        self.mishap = mishap

    def step(self, action):
        mishap = self.mishap
        if mishap.initial_state in (None, self.initial_state) and not (mishap.once and mishap.marker.exists()):
            mishap.marker.touch()
            if mishap.kind == "die":
                os._exit(9)
            if mishap.kind == "hang":
                time.sleep(600)
            raise RuntimeError("the world broke")
        return super().step(action)
