"""A virtual arm with the real stack on it: LeRobot's driver, control process, governor, and a policy that wanders."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import WorldError
from ....policy.contract import CameraSpec, Contract
from ....robot.arm import Arm
from ....robot.control.loop import LoopSettings
from ....robot.control.link import ControlLink
from ....robot.governor.chunk import ActionChunk
from ....robot.governor.rules import Rules
from ....robot.limits import JointLimits
from ....sim.virtual_arm.world import VirtualArm

IMAGE_SIZE = 32
"""Pixels of the pictures where nobody looks at what they show."""

SWING_CENTER = np.array([0.0, -62.0, 50.0, 65.0, 5.0, 35.0])
SWING_AMPLITUDE = np.array([30.0, 12.0, 14.0, 14.0, 25.0, 15.0])
SWING_PERIODS = np.array([2.7, 2.3, 2.0, 1.9, 2.5, 2.2])
"""Where each joint swings about, how far, and how many seconds a swing takes: at no time do all of them turn round."""

TRACKING_TOLERANCE = 9.0
"""Units: from further away the arm is led back at `APPROACH_SPEED` units a second."""

APPROACH_SPEED = 60.0
LATENCY = 0.05
"""Seconds that have passed since an observation, as a rule, when it is decided from."""

SESSION = "faults"


class SwingPolicy:
    """Decides for a swing of all joints that goes on and on; from elsewhere it leads there slowly.

    It begins anew with every episode, so that a fault finds the arm on the same way each time.

    `corrupt` may change what it decided, an array [T, A], before it is given away.
    """

    def __init__(self, contract: Contract, corrupt: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        self.contract, self.corrupt, self.tracking_tolerance = contract, corrupt, TRACKING_TOLERANCE
        self.began = time.monotonic()
        self.instructions: list[str] = []

    def reset(self, instruction: str) -> None:
        """Begin an episode, and the swing with it."""
        self.instructions.append(instruction)
        self.began = time.monotonic()

    def decide(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return a chunk float32 [T, A]."""
        observed = time.monotonic() - LATENCY
        actions = self.plan(np.asarray(observation["agent_pos"], dtype=np.float64), observed)
        return actions if self.corrupt is None else self.corrupt(actions)

    def plan(self, pose: np.ndarray, observed: float) -> np.ndarray:
        """Return the chunk for a pose [A] seen at a steady time."""
        period = 1.0 / self.contract.control_hz
        path = self._path(observed + period * np.arange(self.contract.chunk))
        if not self.is_near_path(pose, observed):
            reach = APPROACH_SPEED * period * np.arange(1, self.contract.chunk + 1)[:, None]
            path = pose + np.clip(path - pose, -reach, reach)
        return path.astype(np.float32)

    def is_near_path(self, pose: np.ndarray, observed: float) -> bool:
        """Tell whether a pose [A] seen at a steady time is near enough to the swing to be told of it as it is."""
        return bool(np.abs(self._path(np.array([observed]))[0] - pose).max() <= self.tracking_tolerance)

    def _path(self, times: np.ndarray) -> np.ndarray:
        """Return where the swing is [T, A] at steady times [T]."""
        return SWING_CENTER + SWING_AMPLITUDE * np.sin(2.0 * math.pi * (times[:, None] - self.began) / SWING_PERIODS)


def small_contract(size: int = IMAGE_SIZE) -> Contract:
    """Return the starter's contract with cameras of `size` pixels."""
    from ....policy.checkpoint.folder import read_contract

    contract = read_contract("starter")
    cameras = tuple(CameraSpec(each.name, size, size) for each in contract.cameras)
    return dataclasses.replace(contract, cameras=cameras)


def arm_maker(world: VirtualArm, folder: Path) -> Callable[[], Arm]:
    """Return what builds the arm in the control process; its calibration is written into `folder`."""
    from lerobot.robots.so_follower import SO101FollowerConfig

    from ....robot.drivers.lerobot_arm import LeRobotArm

    folder.mkdir(parents=True, exist_ok=True)
    world.write_calibration(folder, "virtual")
    return partial(LeRobotArm, SO101FollowerConfig(port=world.port, id="virtual", calibration_dir=folder))


class LinkRig:
    """A control process with a virtual arm, and chunks of a wanderer for it, sent by hand.

    `limits` and `rules` are the governor's. Use `begin`, then `feed`; `close` in the end.
    """

    def __init__(self, world: VirtualArm, folder: Path, **rules: Any) -> None:
        self.world, self.record = world, folder / "flight.jsonl"
        self.contract = small_contract()
        self.swing_policy = SwingPolicy(self.contract)
        settings = LoopSettings()
        self.link = ControlLink.start(arm_maker(world, folder), settings)
        self.limits = JointLimits.derive(self.contract, self.link.description.joints)
        period = 1.0 / self.contract.control_hz
        # Other work of the machine must not decide what these runs show, unless late ticks are what is looked at.
        fields = {"overrun_share": 1.0, "chunk": self.contract.chunk, "period": period, "tick": settings.tick, **rules}
        self.rules = Rules(session=SESSION, limits=self.limits, **fields)
        self.link.start_governor(self.rules, self.record)
        self.episode, self.sequence = -1, -1
        self.sends_heartbeat = True

    def begin(self) -> None:
        """Begin an episode, wherever the arm stands, and end whatever stopped it before; WorldError where it cannot."""
        for _ in range(3):
            self.link.rearm()
            self.episode += 1
            self.sequence = -1
            self.swing_policy.began = time.monotonic()
            verdict = self.link.begin_episode(self.episode)
            if verdict.accepted:
                return
            # What was done to the arm between may show only now.
            time.sleep(0.1)
        raise WorldError(f"the episode could not begin: {verdict.detail}")

    def feed(
        self,
        seconds: float,
        corrupt: Callable[[np.ndarray], np.ndarray] | None = None,
        *,
        every: float = 0.12,
        chunks: int | None = None,
        until: Callable[[], bool] | None = None,
        **changes: Any,
    ) -> None:
        """Send chunks for so long; `corrupt` changes their actions, `changes` their fields, `chunks` is how many at most.

        A callable among the changes is given what it is to change.
        """
        ends = time.monotonic() + seconds
        due, sent = 0.0, 0
        while (now := time.monotonic()) < ends and not (until is not None and until()):
            if self.sends_heartbeat:
                self.link.send_heartbeat()
            found = self.link.joints()
            if now >= due and found is not None and (chunks is None or sent < chunks):
                due = now + every
                sent += 1
                self.send(found[0], found[1], corrupt, **changes)
            self.link.wait(0.01)

    def send(
        self, pose: np.ndarray, measured: float, corrupt: Callable[[np.ndarray], np.ndarray] | None, **changes: Any
    ) -> None:
        """Send one chunk, decided for a pose [A] that was measured at a steady time."""
        self.sequence += 1
        actions = self.swing_policy.plan(pose, measured)
        fields = {
            "session": SESSION,
            "episode": self.episode,
            "sequence": self.sequence,
            "observed": measured,
            "period": self.rules.period,
        }
        fields |= {name: change(fields[name]) if callable(change) else change for name, change in changes.items()}
        self.link.send(ActionChunk(**fields, actions=actions if corrupt is None else corrupt(actions)))

    def close(self) -> None:
        """Hold, and end the control process."""
        self.link.close()
