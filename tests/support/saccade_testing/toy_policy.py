"""A contract with small images and a policy without a network, shared by the tests of server and client."""

from __future__ import annotations

import threading

import numpy as np

from saccade.policy.contract import ActionSpec, CameraSpec, Contract, Normalization, StateSpec

from . import TESTS

NAMES, UNITS = ("pan.pos", "gripper.pos"), ("degrees", "percent")
TOKEN = "a-token-for-tests-only"
DATA = TESTS / "robot" / "data"


def toy_contract(chunk: int = 3) -> Contract:
    return Contract(
        cameras=(CameraSpec("front", 4, 6), CameraSpec("wrist", 4, 6)),
        state=StateSpec(NAMES, UNITS),
        action=ActionSpec(NAMES, UNITS),
        control_hz=30,
        normalization=Normalization(
            state_low=(-90, 0),
            state_high=(90, 100),
            action_low=((-1, 0),) * chunk,
            action_high=((1, 100),) * chunk,
            relative=(True, False),
        ),
        chunk=chunk,
        execute=2,
    )


class ToyPolicy:
    """Moves up from the measured state by the value of the wrist's first pixel; fails, hangs or returns `answer`."""

    def __init__(self, contract: Contract | None = None) -> None:
        self.contract = contract or toy_contract()
        self.instructions: list[str] = []
        self.threads: set[str] = set()
        self.failure: Exception | None = None
        self.answer: object = None
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def reset(self, instruction: str) -> None:
        self.instructions.append(instruction)

    def decide(self, observation: dict) -> np.ndarray:
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        self.gate.wait(20)
        if self.failure is not None:
            raise self.failure
        if self.answer is not None:
            return self.answer
        return expected_actions(observation, self.contract)


def expected_actions(observation: dict, contract: Contract) -> np.ndarray:
    step = float(observation["pixels"]["wrist"][0, 0, 0])
    steps = np.arange(contract.chunk, dtype=np.float32)[:, None]
    return np.asarray(observation["agent_pos"], dtype=np.float32)[None] + steps * np.float32(step)


def toy_observation(seed: int = 0) -> dict:
    numbers = np.random.default_rng(seed)
    pixels = {name: numbers.integers(0, 256, (4, 6, 3), dtype=np.uint8) for name in ("front", "wrist")}
    return {"pixels": pixels, "agent_pos": numbers.normal(size=2).astype(np.float32)}
