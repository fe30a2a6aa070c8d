"""Human demonstrations acted again in today's simulator: what they did is kept, what they saw is drawn anew.

As OpenVLA's data were made: from the recorded start, once the scene has settled, every action that does something is
executed; a demonstration that no longer succeeds is left out. So pictures can have any size, nothing in them is older
than the simulator that a policy is judged in, and states and actions belong together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import InputError
from ..assets import Assets
from ..conventions import Conventions
from ..environment import LiberoEnv
from ..visuals import Visuals
from .recordings import RecordedDemonstration, drop_no_ops, read_recording, recorded_task


class RecordedEnv(LiberoEnv):
    """One task from the starts of a file's demonstrations: initial state k is where demonstration k began."""

    def __init__(
        self,
        suite: str,
        task: str,
        path: Path,
        *,
        conventions: Conventions | None = None,
        visuals: Visuals = "stock",
        assets: Assets | str | Path | None = None,
    ) -> None:
        super().__init__(suite, task, conventions=conventions, visuals=visuals, assets=assets)
        self._path = path
        self.recording: RecordedDemonstration | None = None

    def _start_episode(self, initial_state: int) -> None:
        self.recording = read_recording(self._path, initial_state)
        # As many steps as the human took: who has not succeeded by then does not in this simulator.
        self._max_episode_steps = max(1, len(drop_no_ops(self.recording.actions)))
        self.simulation.restore(self.recording.start, self.recording.bodies)


class ReplayDemonstrator:
    """Acts what a demonstration did, after `RecordedEnv.reset`."""

    def __init__(self, environment: RecordedEnv) -> None:
        if environment.recording is None:
            raise InputError("replay", got="an environment that was not reset", expected="reset first", fix="Reset it.")
        self._actions = iter(drop_no_ops(environment.recording.actions))
        self._conventions = environment.conventions

    def decide(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the next action twice, float32 [7]: to record and to execute."""
        # Beyond the controller's range an action is cut; what is recorded is what is executed.
        action = self._conventions.from_robosuite_action(np.clip(next(self._actions), -1.0, 1.0))
        return action, action


@dataclass(frozen=True)
class RecordedWorld:
    """Recorded demonstrations as a world to collect in; `files` holds one file for each (suite, task)."""

    files: tuple[tuple[str, str, str], ...]
    conventions: Conventions
    visuals: Visuals = "stock"
    assets: str | None = None
    robot_type: str = "panda_libero"

    @classmethod
    def from_files(
        cls, paths: tuple[Path, ...], conventions: Conventions, visuals: Visuals, assets: str | None
    ) -> RecordedWorld:
        """Return the world of some files; InputError for files of one task, and whatever `recorded_task` raises."""
        files: dict[tuple[str, str], Path] = {}
        for path in paths:
            task, _ = recorded_task(path)
            key = (task.suite, task.name)
            if key in files:
                raise InputError(
                    "recordings",
                    got=f"{files[key]} and {path}, both of {task.name}",
                    expected="one file for a task",
                    fix="Leave one out.",
                )
            files[key] = path.absolute()
        return cls(tuple((*key, str(path)) for key, path in files.items()), conventions, visuals, assets)

    def offer(self) -> Any:
        return self.conventions.offer()

    def environment(self, suite: str, task: str) -> RecordedEnv:
        path = next(Path(file) for owner, name, file in self.files if (owner, name) == (suite, task))
        return RecordedEnv(suite, task, path, conventions=self.conventions, visuals=self.visuals, assets=self.assets)

    def demonstrator(self, environment: RecordedEnv, generator: np.random.Generator) -> ReplayDemonstrator:
        return ReplayDemonstrator(environment)
