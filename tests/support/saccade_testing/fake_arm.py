"""A simulated arm for any process: it follows its goal at a servo's speed, and logs every call to a folder.

`events.jsonl` in the folder has a line for each goal and each switch of the torque, flushed at once. A test injects
faults by files with certain names there, see `FakeArm`.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np

from saccade.errors import InputError
from saccade.robot.arm import ArmDescription, BusError

from .stand_in import RANGES

HOME = np.array([10.0, 20.0, 30.0])
SPEED = np.array([275.0, 275.0, 250.0])


class FakeArm:
    """An arm with faults: `bus` (no answer), `crash` (an error of the driver), `interrupt` and `terminate` (a signal to
    the process), `slow` (50 ms a read) and `limp` (the torque is lost).

    Joints are in the driver's order, which is the reverse of the contract's.
    """

    def __init__(self, folder: Path, refusal: str = "") -> None:
        self._folder, self._refusal = Path(folder), refusal
        self.retries = 0
        self._pose = HOME[::-1].copy()
        self._goal, self._torque, self._since = self._pose.copy(), False, time.monotonic()

    def connect(self) -> ArmDescription:
        if self._refusal:
            raise InputError("servo 3", got="no answer", expected="an sts3215", fix=self._refusal)
        self._log({"connected": os.getpid()})
        return ArmDescription("fake", RANGES[::-1])

    def measure(self) -> np.ndarray:
        self._inject_faults()
        now = time.monotonic()
        if self._torque:
            reach = SPEED[::-1] * (now - self._since)
            self._pose = self._pose + np.clip(self._goal - self._pose, -reach, reach)
        self._since = now
        return self._pose.copy()

    def command(self, target: np.ndarray) -> None:
        self._inject_faults()
        self._goal = np.array(target)
        self._log({"goal": target[::-1].tolist(), "pose": self._pose[::-1].tolist()})

    def hold(self) -> np.ndarray:
        pose = self.measure()
        self.command(pose)
        return pose

    def set_torque(self, *, on: bool) -> None:
        self.measure()
        self._torque = on
        self._log({"torque": on})

    def has_torque(self) -> bool:
        if (self._folder / "limp").exists():
            self._torque = False
        return self._torque

    def motors_in_protection(self) -> str:
        return ""

    def close(self) -> None:
        self._log({"closed": True})

    def _inject_faults(self) -> None:
        if (self._folder / "bus").exists():
            raise BusError("no answer within 3 tries")
        if (self._folder / "crash").exists():
            (self._folder / "crash").unlink()
            raise ZeroDivisionError("a fault of the driver")
        if (self._folder / "slow").exists():
            time.sleep(0.05)
        for name, number in (("interrupt", signal.SIGINT), ("terminate", signal.SIGTERM)):
            if (self._folder / name).exists():
                (self._folder / name).unlink()
                os.kill(os.getpid(), number)

    def _log(self, line: dict) -> None:
        with (self._folder / "events.jsonl").open("a") as file:
            file.write(json.dumps({"time": time.monotonic(), **line}) + "\n")


def recorded_lines(folder: Path, key: str = "goal") -> list[dict]:
    """Return the lines of a fake arm's log that have a key."""
    text = (folder / "events.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if key in line]


def goals(folder: Path, since: float = 0.0) -> np.ndarray:
    """Return the goals [n, 3] written to a fake arm, in the joint order of the contract."""
    return np.array([line["goal"] for line in recorded_lines(folder) if line["time"] >= since]).reshape(-1, 3)
