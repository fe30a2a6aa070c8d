"""A session with a fake arm, a camera of noise and a policy that climbs: what tests of sessions play on."""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from saccade.robot.control.loop import LoopSettings
from saccade.robot.session.cameras import CameraReader, FrameCheckSettings
from saccade.robot.session.operator_commands import OperatorCommands
from saccade.robot.session.session import run_session
from saccade.robot.session.settings import EpisodePlan, SessionSettings

from .fake_arm import FakeArm, goals, recorded_lines
from .stand_in import make_contract

# Generous to a busy machine: what is asserted is what the arm was told.
LOOP = LoopSettings(heartbeat_seconds=2.0, raise_priority=False)


class NoiseCamera:
    """Shows noise at 60 a second, of 16 x 16 pixels; `mode` as a test wants it."""

    height = width = 16

    def __init__(self) -> None:
        self.mode, self.reads = "live", 0

    def connect(self, warmup: bool = True) -> None:
        pass

    def async_read(self, timeout_ms: float = 200) -> np.ndarray:
        time.sleep(1 / 60)
        if self.mode == "dropped":
            raise TimeoutError("no frame")
        self.reads += self.mode == "live"
        return np.random.default_rng(self.reads).integers(0, 256, (16, 16, 3), dtype=np.uint8)

    def disconnect(self) -> None:
        pass


class Climber:
    """Goes up from the measured joints by `speed` a step; `script` maps numbers of decisions to what happens then."""

    def __init__(self, speed: float = 0.5, takes: float = 0.01, **contract: object) -> None:
        self.contract = make_contract(**contract)
        self.speed, self.takes, self.script = speed, takes, {}
        self.instructions, self.count = [], 0
        self.ceiling = np.array([60.0, 60.0, 80.0])

    def reset(self, instruction: str) -> None:
        self.instructions.append(instruction)

    def decide(self, observation) -> np.ndarray:
        self.count += 1
        time.sleep(self.takes)
        assert observation["pixels"]["front"].shape == (16, 16, 3)
        pose = observation["agent_pos"]
        steps = np.outer(np.arange(1, self.contract.chunk + 1), np.full(3, self.speed))
        actions = np.minimum(pose + steps, self.ceiling).astype(np.float32)
        return self.script.get(self.count, lambda given: given)(actions)


class Stage:
    """Everything that a session needs, and `run`."""

    def __init__(self, folder) -> None:
        self.folder, self.camera, self.chunk_policy = folder, NoiseCamera(), Climber()
        self.watch = FrameCheckSettings(age_limit=0.5)
        self.refusal = ""
        self.operator_commands = OperatorCommands()

    def run(self, *plans: EpisodePlan, loop: LoopSettings = LOOP, **given):
        names = ("start", "aggregation", "rearm_wait_seconds", "decision_seconds", "rearm_between_episodes")
        chosen = {name: given.pop(name) for name in [*names, "release_between_episodes"] if name in given}
        return run_session(
            chunk_policy=self.chunk_policy,
            make_arm=partial(FakeArm, self.folder, self.refusal),
            cameras=CameraReader({"front": self.camera}, self.chunk_policy.contract.cameras, self.watch),
            episodes=plans or (EpisodePlan("go up", 1.5),),
            settings=SessionSettings(loop=loop, overrun_share=1.0, **chosen),
            record=self.folder / "flight.jsonl",
            operator_commands=self.operator_commands,
            **given,
        )

    def is_held(self) -> None:
        """The arm was told the same pose, again and again, at the end."""
        last = goals(self.folder)[-3:]
        assert np.all(last == last[0])
        assert [line["torque"] for line in recorded_lines(self.folder, "torque")][-1] is True
