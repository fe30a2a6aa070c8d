"""Factories for the nodes of a test cluster; the nodes import them by the PYTHONPATH that they inherit."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from .fake_world import FakeActor, FakeEnv


@dataclass(frozen=True)
class Actors:
    """Reads its checkpoint, a folder with the file `deep/weights`, and builds a FakeActor."""

    folder: Path

    def __call__(self) -> FakeActor:
        assert (self.folder / "deep" / "weights").read_text() == "weights"
        return FakeActor()

    def with_folder(self, folder: Path) -> Actors:
        return replace(self, folder=folder)


@dataclass(frozen=True)
class SlowWorlds:
    """Fake worlds with slow steps; initial state 3 kills its process once, initial state 5 hangs."""

    marker: Path | None = None

    def __call__(self, suite: str, task: str) -> FakeEnv:
        return _Slow(task, self.marker)


class _Slow(FakeEnv):
    def __init__(self, task: str, marker: Path | None) -> None:
        super().__init__(task)
        self.marker = marker

    def step(self, action):
        time.sleep(0.02)
        if self.marker is not None and self.initial_state == 3 and not self.marker.exists():
            self.marker.touch()
            os._exit(9)
        if self.marker is not None and self.initial_state == 5:
            time.sleep(600)
        return super().step(action)


@dataclass(frozen=True)
class Fingerprint:
    """A node's fingerprint; with `elsewhere` it differs in every process except the one that created it."""

    elsewhere: str | None = None
    made_in: int = 0

    def __call__(self) -> dict:
        here = "3.3.2" if self.elsewhere is None or os.getpid() == self.made_in else self.elsewhere
        return {"packages": {"mujoco": here}, "processor": str(os.getpid())}
