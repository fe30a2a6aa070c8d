"""What the nodes of a test's cluster are given; importable there, for the path travels in PYTHONPATH."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from .fake_world import FakeActor, FakeEnv


@dataclass(frozen=True)
class Actors:
    """Reads its checkpoint, a folder with the file `words`, and acts as FakeActor does."""

    folder: Path

    def __call__(self) -> FakeActor:
        assert (self.folder / "deep" / "words").read_text() == "weights"
        return FakeActor()

    def with_folder(self, folder: Path) -> Actors:
        return replace(self, folder=folder)


@dataclass(frozen=True)
class SlowWorlds:
    """Fake worlds whose steps take a while; state 3 ends its process once, state 5 hangs for as long as it is asked."""

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
    """The environment of a node; another one, where `elsewhere` is set, in every process but the one that made it."""

    elsewhere: str | None = None
    made_in: int = 0

    def __call__(self) -> dict:
        here = "3.3.2" if self.elsewhere is None or os.getpid() == self.made_in else self.elsewhere
        return {"packages": {"mujoco": here}, "processor": str(os.getpid())}
