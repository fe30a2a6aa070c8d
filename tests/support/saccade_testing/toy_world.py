"""A world without physics for tests of collection: a bright square moves to a mark; some starts cannot succeed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np

from saccade.policy.contract import ActionSpec, CameraSpec, GripperSpec, Offer, StateSpec
from saccade.sim.demonstrations.collection import CollectedTask, CollectionRequest

NAMES = ("shoulder_pan.pos", "gripper.pos")
UNITS = ("degrees", "percent")
REQUEST = CollectionRequest(
    tasks=(CollectedTask("toy", "near", ("go", "walk there")), CollectedTask("toy", "far", ("run", "hurry up"))),
    episodes=6,
    seed=3,
)


class ToyEnv:
    _max_episode_steps = 30

    def __init__(self, size: int, delay: float) -> None:
        self.size, self.delay = size, delay

    def reset(self, *, seed: int, options: dict):
        if options["initial_state"] == 6666:
            raise ZeroDivisionError("the toy broke")
        if options["initial_state"] == 7777:
            os._exit(1)
        generator = np.random.default_rng([options["initial_state"], len(options["instruction"])])
        self.position, self.mark = 0.0, generator.uniform(8, 20)
        self.solvable = options["initial_state"] % 5 != 3
        self.steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray):
        time.sleep(self.delay)
        self.position, self.steps = float(action[0]), self.steps + 1
        success = self.solvable and self.position >= self.mark
        return self._observation(), 0.0, success, self.steps >= self._max_episode_steps, {"is_success": success}

    def grounding(self) -> np.ndarray:
        return np.array([self.mark, *range(13)], dtype=np.float32)

    def close(self) -> None:
        pass

    def _observation(self):
        image = np.full((self.size, self.size, 3), 40, dtype=np.uint8)
        left = int(self.position)
        image[4:12, left : left + 8] = (230, 30, 30)
        state = np.array([self.position, 50.0], dtype=np.float32)
        return {"pixels": {"front": image, "wrist": image[::-1].copy()}, "agent_pos": state}


class ToyDemonstrator:
    def __init__(self, environment: ToyEnv, generator: np.random.Generator) -> None:
        self.environment, self.generator = environment, generator

    def decide(self) -> tuple[np.ndarray, np.ndarray]:
        action = np.array([self.environment.position + 1.0, 50.0], dtype=np.float32)
        return action, action + self.generator.uniform(0, 0.2, 2).astype(np.float32)


@dataclass(frozen=True)
class ToyWorld:
    size: int = 32
    delay: float = 0.0
    robot_type: str = "toy"

    def __repr__(self) -> str:
        return f"ToyWorld({self.size})"

    def offer(self) -> Offer:
        return Offer(
            cameras=tuple(CameraSpec(name=name, height=self.size, width=self.size) for name in ("front", "wrist")),
            state=StateSpec(names=NAMES, units=UNITS),
            action=ActionSpec(
                names=NAMES,
                units=UNITS,
                kind="absolute",
                frame="joint",
                gripper=GripperSpec(name=NAMES[1], closed=0.0, open=100.0),
            ),
            control_hz=30.0,
        )

    def environment(self, suite: str, task: str) -> ToyEnv:
        return ToyEnv(self.size, self.delay)

    def demonstrator(self, environment: ToyEnv, generator: np.random.Generator) -> ToyDemonstrator:
        return ToyDemonstrator(environment, generator)
