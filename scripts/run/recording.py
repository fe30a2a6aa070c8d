"""Records the episodes of a `saccade run` as a LeRobotDataset, at the contract's rate.

While an episode runs, raw images go to a file. Another thread encodes them, one episode after the other, so that the
control of the arm never waits for it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np

from ...disk import write_atomically
from ...errors import InputError
from ...policy.contract import Contract, Offer
from ...robot.session.summary import EpisodeSummary, SessionObserver, StepSnapshot
from ...sim.demonstrations.staging import RecordedEpisode, frame_rate, stage_episode


@dataclass
class _EpisodeBuffer:
    """The episode that is being recorded: its instruction, the files of its raw images, and one row for each step."""

    instruction: str
    image_files: Mapping[str, BufferedWriter]
    states: list[np.ndarray] = field(default_factory=list)
    targets: list[np.ndarray] = field(default_factory=list)


class RunRecorder(SessionObserver):
    """Records a session's episodes; `finish` builds the dataset.

    A step has the images, the measured joints and the motors' goal. Steps without usable images, or before the first
    goal, are left out.

    Args:
        folder: The new dataset.
        contract: Gives cameras, state, action and rate.
        robot_type: LeRobot's name of the robot.
        only_successes: Drop episodes without success.

    Raises:
        InputError: The folder exists, or cannot be created.
    """

    def __init__(self, folder: Path, contract: Contract, robot_type: str, *, only_successes: bool = False) -> None:
        self.folder, self._only_successes, self._robot_type = folder.absolute(), only_successes, robot_type
        self._offer = Offer(contract.cameras, contract.state, contract.action, contract.control_hz)
        frame_rate(self._offer)
        self._staging = self.folder.with_name(f"{self.folder.name}.partial")
        for path in (self.folder, self._staging):
            if path.exists():
                fix = "Choose another folder." if path == self.folder else "Remove it: an earlier run was aborted."
                raise InputError(f"record {path}", got="something there already", expected="a new folder", fix=fix)
        try:
            self._staging.mkdir(parents=True)
        except OSError as error:
            fix = "Choose a folder that you may write to."
            raise InputError(f"record {folder}", got=error.strerror, expected="a new folder", fix=fix) from None
        self._buffer: _EpisodeBuffer | None = None
        self._count = 0
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="recording")
        self._staged: list[tuple[Path, Future[None]]] = []

    def on_episode_start(self, episode: int, instruction: str) -> None:
        image_files = {
            camera.name: (self._staging / f"{self._count:06d}.{camera.name}.rgb").open("wb")
            for camera in self._offer.cameras
        }
        self._buffer = _EpisodeBuffer(instruction, image_files)

    def on_step(self, view: StepSnapshot) -> None:
        buffer = self._buffer
        if buffer is None or view.target is None:
            return
        for name, image_file in buffer.image_files.items():
            image_file.write(np.ascontiguousarray(view.frames[name].image).data)
        buffer.states.append(np.array(view.joints, dtype=np.float32))
        buffer.targets.append(np.array(view.target, dtype=np.float32))
        buffer.instruction = view.instruction

    def on_episode_end(self, summary: EpisodeSummary) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is None:
            return
        for image_file in buffer.image_files.values():
            image_file.close()
        failed = self._only_successes and not (summary.outcome or {}).get("success")
        number, self._count = self._count, self._count + 1
        if failed or not buffer.states:
            _remove(buffer)
            return
        path = self._staging / f"{number:06d}.npz"
        self._staged.append((path, self._encoder.submit(self._stage, path, buffer)))

    def finish(self, run_facts: Mapping[str, Any]) -> tuple[int, int]:
        """Build the dataset of the episodes that ended; without an episode there is none.

        Args:
            run_facts: The content of `meta/run.json`.

        Returns:
            The number of episodes, and of their frames.

        Raises:
            WorldError: An episode does not have the promised form.
        """
        self.close()
        for _, future in self._staged:
            future.result()
        paths = [path for path, _ in self._staged]
        frames = self._build(paths, run_facts) if paths else 0
        shutil.rmtree(self._staging)
        return len(paths), frames

    def close(self) -> None:
        """Drop an episode that did not end, and wait until the others are encoded."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            for image_file in buffer.image_files.values():
                image_file.close()
            _remove(buffer)
        self._encoder.shutdown(wait=True)

    def discard(self) -> None:
        """Remove all files but a finished dataset."""
        self.close()
        shutil.rmtree(self._staging, ignore_errors=True)

    def _build(self, paths: list[Path], run_facts: Mapping[str, Any]) -> int:
        import json

        from ...sim.demonstrations.dataset_writer import write_dataset
        from ...training.statistics import write_exact_statistics

        building = self.folder.with_name(f"{self.folder.name}.building")
        shutil.rmtree(building, ignore_errors=True)
        frames = write_dataset(building, self._offer, paths, robot_type=self._robot_type, grounding=False)
        write_exact_statistics(building)
        write_atomically(building / "meta" / "run.json", json.dumps(run_facts, indent=2))
        building.rename(self.folder)
        return frames

    def _stage(self, path: Path, buffer: _EpisodeBuffer) -> None:
        shapes = {camera.name: (-1, camera.height, camera.width, 3) for camera in self._offer.cameras}
        images = {
            name: np.memmap(image_file.name, dtype=np.uint8, mode="r").reshape(shapes[name])
            for name, image_file in buffer.image_files.items()
        }
        state, action = np.stack(buffer.states), np.stack(buffer.targets)
        stage_episode(path, RecordedEpisode(images, state, action, None, buffer.instruction), self._offer)
        del images
        _remove(buffer)


def _remove(buffer: _EpisodeBuffer) -> None:
    for image_file in buffer.image_files.values():
        Path(image_file.name).unlink(missing_ok=True)
