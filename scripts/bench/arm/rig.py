"""A virtual arm under the real stack: LeRobot's driver, control process and governor, with a swing policy."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import WorldError
from ....robot.arm import Arm
from ....robot.control.link import ControlLink
from ....robot.control.loop import LoopSettings
from ....robot.governor.chunk import ActionChunk
from ....robot.governor.rules import Rules
from ....robot.limits import JointLimits
from ....sim.virtual_arm.world import VirtualArm
from .swing_policy import ChunkFault, SwingPolicy, small_contract

SESSION = "faults"
BEGIN_ATTEMPTS = 3


def make_virtual_arm(port: str, folder: Path) -> Arm:
    """Return LeRobot's SO-101 follower at the virtual arm's port, calibrated by the file in `folder`.

    LeRobot, and torch with it, is imported here: only the control process needs them.
    """
    from lerobot.robots.so_follower import SO101FollowerConfig

    from ....robot.drivers.lerobot_arm import LeRobotArm

    return LeRobotArm(SO101FollowerConfig(port=port, id="virtual", calibration_dir=folder))


def arm_maker(world: VirtualArm, folder: Path) -> Callable[[], Arm]:
    """Return a function that builds the arm in the control process; writes its calibration into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    world.write_calibration(folder, "virtual")
    return partial(make_virtual_arm, world.port, folder)


def send_signal(process: int | None, number: signal.Signals) -> None:
    """Send a signal to a process of the test.

    Raises:
        WorldError: There is no such process; a signal to process 0 would reach the whole process group.
    """
    if not process:
        raise WorldError("the process to signal is gone: start the case again")
    os.kill(process, number)


class LinkRig:
    """A control process on a virtual arm, to which a test sends the chunks of a swing policy by hand.

    Call `begin`, then `feed`, and `close` at the end.

    Attributes:
        limits: The governor's joint limits.
        rules: The governor's rules.
        sends_heartbeat: Whether `feed` sends heartbeats.
    """

    def __init__(self, world: VirtualArm, folder: Path, **rules: Any) -> None:
        """Start the control process.

        Args:
            world: The virtual arm.
            folder: Folder of calibration and flight record.
            rules: Fields of `Rules` that differ from these runs' usual ones.
        """
        self.world, self.record = world, folder / "flight.jsonl"
        self.contract = small_contract()
        self.swing_policy = SwingPolicy(self.contract)
        settings = LoopSettings()
        self.link = ControlLink.start(arm_maker(world, folder), settings)
        self.limits = JointLimits.derive(self.contract, self.link.description.joints)
        period = 1.0 / self.contract.control_hz
        # Late ticks of a busy machine must not stop the arm, unless the case is about them.
        fields = {"overrun_share": 1.0, "chunk": self.contract.chunk, "period": period, "tick": settings.tick, **rules}
        self.rules = Rules(session=SESSION, limits=self.limits, **fields)
        self.link.start_governor(self.rules, self.record)
        self.episode, self.sequence = -1, -1
        self.sends_heartbeat = True

    def begin(self) -> None:
        """Re-arm and begin an episode from the arm's present pose.

        Raises:
            WorldError: The governor refuses three times.
        """
        detail = ""
        for _ in range(BEGIN_ATTEMPTS):
            self.link.rearm()
            self.episode += 1
            self.sequence = -1
            self.swing_policy.began = time.monotonic()
            verdict = self.link.begin_episode(self.episode)
            if verdict.accepted:
                return
            detail = verdict.detail
            # An earlier fault of the arm may show only now.
            time.sleep(0.1)
        raise WorldError(f"the episode could not begin: {detail}")

    def feed(
        self,
        seconds: float,
        corrupt: ChunkFault | None = None,
        *,
        every: float = 0.12,
        chunks: int | None = None,
        until: Callable[[], bool] | None = None,
        **changes: Any,
    ) -> None:
        """Send chunks for a time.

        Args:
            seconds: How long.
            corrupt: Changes the actions [T, A] of every chunk.
            every: Seconds between two chunks.
            chunks: How many chunks at most.
            until: Ends the sending early once it returns True.
            changes: Values for fields of the chunks; a callable gets the right value and returns the one to send.
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

    def send(self, pose: np.ndarray, measured: float, corrupt: ChunkFault | None, **changes: Any) -> None:
        """Send one chunk for a pose [A] that was measured at a steady time; see `feed` for the other arguments."""
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
        """Hold the arm and end the control process."""
        self.link.close()
