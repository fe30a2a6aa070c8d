"""A session with a fake arm, a camera that shows noise, and a policy that moves the arm up."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from functools import partial

import numpy as np

from saccade.robot.control.loop import LoopSettings
from saccade.robot.session.cameras import CameraReader, FrameCheckSettings, ObservationRefused
from saccade.robot.session.operator_commands import OperatorCommands
from saccade.robot.session.session import run_session
from saccade.robot.session.settings import EpisodePlan, SessionSettings

from .fake_arm import FakeArm, goals, recorded_lines
from .stand_in import make_contract

# A long heartbeat, as test machines are busy: the tests check what is commanded, not when.
LOOP = LoopSettings(heartbeat_seconds=2.0, raise_priority=False)
WARM_UP = 2
"""Decisions before the first episode."""


class NoiseCamera:
    """Shows 60 images of noise a second, 16 x 16 pixels; `mode` is "live", "frozen" or "dropped"."""

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


class ClimbingPolicy:
    """Moves up from the measured joints by `speed` a step; a decision takes `decision_seconds`.

    `script` maps the number of a decision, the warm-up's included, to a function of its actions that replaces them.
    """

    def __init__(self, speed: float = 0.5, decision_seconds: float = 0.01, **contract: object) -> None:
        self.contract = make_contract(**contract)
        self.speed, self.decision_seconds, self.script = speed, decision_seconds, {}
        self.instructions, self.count = [], 0
        self.ceiling = np.array([60.0, 60.0, 80.0])

    def reset(self, instruction: str) -> None:
        self.instructions.append(instruction)

    def decide(self, observation) -> np.ndarray:
        self.count += 1
        time.sleep(self.decision_seconds)
        assert observation["pixels"]["front"].shape == (16, 16, 3)
        pose = observation["agent_pos"]
        steps = np.outer(np.arange(1, self.contract.chunk + 1), np.full(3, self.speed))
        actions = np.minimum(pose + steps, self.ceiling).astype(np.float32)
        return self.script.get(self.count, lambda unchanged: unchanged)(actions)


class CountingReader(CameraReader):
    """A camera reader that counts what it refused, by reason."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.refused = Counter()

    def latest(self, *arguments, **named):
        try:
            return super().latest(*arguments, **named)
        except ObservationRefused as refusal:
            self.refused[refusal.reason] += 1
            raise


class SessionRig:
    """A session's arm, camera and policy, and `run`.

    Attributes:
        cameras: The camera reader of the last run, which counts what it refused.
    """

    def __init__(self, folder) -> None:
        self.folder, self.camera, self.chunk_policy = folder, NoiseCamera(), ClimbingPolicy()
        self.watch = FrameCheckSettings(age_limit=0.5)
        self.refusal = ""
        self.operator_commands = OperatorCommands()
        self.cameras: CountingReader | None = None

    def run(self, *plans: EpisodePlan, loop: LoopSettings = LOOP, **options):
        """Run a session; `options` are fields of SessionSettings and arguments of `run_session`."""
        names = {field.name for field in dataclasses.fields(SessionSettings)} & options.keys()
        chosen = {"warm_up_decisions": WARM_UP, **{name: options.pop(name) for name in names}}
        self.cameras = CountingReader({"front": self.camera}, self.chunk_policy.contract.cameras, self.watch)
        return run_session(
            chunk_policy=self.chunk_policy,
            make_arm=partial(FakeArm, self.folder, self.refusal),
            cameras=self.cameras,
            episodes=plans or (EpisodePlan("go up", 1.0),),
            settings=SessionSettings(loop=loop, overrun_share=1.0, **chosen),
            record=self.folder / "flight.jsonl",
            operator_commands=self.operator_commands,
            **options,
        )

    def assert_held(self) -> None:
        """Assert that the last goals are one pose, and that torque is on."""
        last = goals(self.folder)[-3:]
        assert np.all(last == last[0])
        assert [line["torque"] for line in recorded_lines(self.folder, "torque")][-1] is True
