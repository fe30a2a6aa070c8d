"""Replay LIBERO's human demonstrations in the present simulator: keep their actions, render their images again.

The procedure of OpenVLA's data: after the recorded start has settled, every action except no-ops is executed; a
demonstration that fails in the replay is left out. So images can have any size, come from the simulator that policies
are evaluated in, and match the states and actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....errors import InputError
from ....policy.contract import Offer
from ..assets import Assets
from ..conventions import Conventions
from ..environment import LiberoEnv
from ..visuals import Visuals
from .recordings import RecordedDemonstration, drop_no_ops, read_recording, recorded_task


class RecordedEnv(LiberoEnv):
    """One task with the starts of recorded demonstrations: initial state k is the start of demonstration k."""

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
        # As many steps as the human took: a replay without success by then fails.
        self._max_episode_steps = max(1, len(drop_no_ops(self.recording.actions)))
        self.simulation.restore(self.recording.start, self.recording.bodies)


class ReplayDemonstrator:
    """Replays the actions of one demonstration.

    Args:
        environment: The environment, after `reset`.

    Raises:
        InputError: The environment was not reset.
    """

    def __init__(self, environment: RecordedEnv) -> None:
        if environment.recording is None:
            raise InputError(
                "replay",
                got="an environment that was not reset",
                expected="reset first",
                fix="Call reset before the replay.",
            )
        self._actions = iter(drop_no_ops(environment.recording.actions))
        self._conventions = environment.conventions

    def decide(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the next action float32 [7] twice: to record and to execute."""
        # Clip to the range of the controller: the recorded action is the executed one.
        action = self._conventions.from_robosuite_action(np.clip(next(self._actions), -1.0, 1.0))
        return action, action


@dataclass(frozen=True)
class RecordedWorld:
    """Recorded demonstrations as a world to collect a dataset in.

    Attributes:
        files: Suite, task and file; one file for each task.
        conventions: Conventions of images, states and actions.
        visuals: `stock` or `fast`.
        assets: Folder of LIBERO's assets; None for `SACCADE_LIBERO_ASSETS` or the hub's.
        robot_type: Robot type of the dataset.
    """

    files: tuple[tuple[str, str, str], ...]
    conventions: Conventions
    visuals: Visuals = "stock"
    assets: str | None = None
    robot_type: str = "panda_libero"

    @classmethod
    def from_files(
        cls, paths: tuple[Path, ...], conventions: Conventions, visuals: Visuals, assets: str | None
    ) -> RecordedWorld:
        """Return the world of recorded files.

        Raises:
            InputError: Two files have the same task, or a file is not as `recorded_task` expects.
        """
        files: dict[tuple[str, str], Path] = {}
        for path in paths:
            task, _ = recorded_task(path)
            key = (task.suite, task.name)
            if key in files:
                raise InputError(
                    "recordings",
                    got=f"{files[key]} and {path}, both of {task.name}",
                    expected="one file for a task",
                    fix="Leave one of the two files out.",
                )
            files[key] = path.absolute()
        return cls(tuple((*key, str(path)) for key, path in files.items()), conventions, visuals, assets)

    def offer(self) -> Offer:
        """Return the observations and actions of the dataset."""
        return self.conventions.offer()

    def environment(self, suite: str, task: str) -> RecordedEnv:
        """Build the environment of a task."""
        path = next(Path(file) for file_suite, name, file in self.files if (file_suite, name) == (suite, task))
        return RecordedEnv(suite, task, path, conventions=self.conventions, visuals=self.visuals, assets=self.assets)

    def demonstrator(self, environment: RecordedEnv, generator: np.random.Generator) -> ReplayDemonstrator:
        """Return the replay of the episode that `environment.reset` began; it needs no random numbers."""
        return ReplayDemonstrator(environment)
