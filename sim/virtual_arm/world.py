"""The virtual arm as its user sees it: a serial port, cameras, and methods for tests."""

from __future__ import annotations

import math
import multiprocessing
import tempfile
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ...errors import InputError, WorldError
from ..desk.scene import CAMERAS
from . import calibration
from .faults import Fault
from .frames import frame_path
from .world_process import ArmSimulationSettings, serve_arm_simulation

if TYPE_CHECKING:
    import numpy as np

    from .config_camera import VirtualCameraConfig

START_SECONDS = 180.0
"""Time limit for the start: choosing a renderer may try several backends."""

REQUEST_TIMEOUT_SECONDS = 60.0
CLOSE_SECONDS = 10.0


class JointTrajectory(NamedTuple):
    """The true trajectory of the twin's joints, one row for each physics step, 360 per second of its time.

    Attributes:
        times: When each step was due [n], in seconds of time.monotonic.
        positions: True joint positions [n, 6], in the contract's units.
        goals: Goals [n, 6] that the servos followed, in the contract's units; NaN for a servo without torque.
        late: How many seconds after its time each step was done [n].
    """

    times: np.ndarray
    positions: np.ndarray
    goals: np.ndarray
    late: np.ndarray


class VirtualArm:
    """A virtual SO-101 in a separate process, which ends with this one; create it with `start`.

    Use it as a context manager, or call `close`. Methods raise WorldError if the process failed or has ended.

    Example:
        with VirtualArm.start("desk_object", "red_cube") as arm:
            arm.inject_fault(Fault("drop", joint="gripper", count=1))
    """

    def __init__(
        self, process: BaseProcess, connection: Connection, settings: ArmSimulationSettings, folder: Any
    ) -> None:
        self._process, self._connection, self._settings = process, connection, settings
        self._folder: tempfile.TemporaryDirectory = folder
        self.instruction: str = ""
        """Instruction of the present episode."""

    @classmethod
    def start(
        cls,
        suite: str = "desk_object",
        task: str = "red_cube",
        *,
        initial_state: int = 0,
        seed: int = 0,
        instruction: str | None = None,
        image_size: int = 128,
        speed: float = 1.0,
        latency: float = 0.0,
        frame_rate: float = 30.0,
        rendering_enabled: bool = True,
    ) -> Self:
        """Start a virtual arm and return once its port and cameras are ready.

        Args:
            suite: Name of the desk's suite.
            task: Name of the task.
            initial_state: Number of the initial state.
            seed: Seed of the episode and of random faults.
            instruction: Replaces the task's instruction; None keeps it.
            image_size: Height and width of the cameras' images in pixels.
            speed: Speed relative to real time, 0.05 to 20.
            latency: Additional delay of every reply on the bus in seconds, 0 to 1.
            frame_rate: Frames per second of the desk's time, 1 to 120.
            rendering_enabled: False for an arm without cameras, which costs much less.

        Raises:
            InputError: An argument is out of range, or the suite or task is unknown.
            WorldError: The process cannot start.
        """
        if not 0.05 <= speed <= 20.0:
            raise InputError("speed", got=speed, expected="0.05 to 20", fix="Use 1 for real time.")
        if not (math.isfinite(latency) and 0.0 <= latency <= 1.0):
            raise InputError("latency", got=latency, expected="0 to 1 s", fix="Use 0.001, as a real bus.")
        if not 1.0 <= frame_rate <= 120.0:
            raise InputError("frame_rate", got=frame_rate, expected="1 to 120", fix="Use 30.")
        folder = tempfile.TemporaryDirectory(prefix="saccade-arm-", ignore_cleanup_errors=True)
        settings = ArmSimulationSettings(
            suite=suite,
            task=task,
            initial_state=initial_state,
            seed=seed,
            instruction=instruction,
            image_size=image_size,
            speed=speed,
            latency=latency,
            frame_rate=frame_rate,
            rendering_enabled=rendering_enabled,
            folder=Path(folder.name),
        )
        # Spawn, do not fork: MuJoCo must not be loaded before a backend is chosen, and threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        parent_connection, child_connection = context.Pipe()
        process = context.Process(
            target=serve_arm_simulation, args=(child_connection, settings), name="virtual-arm", daemon=True
        )
        process.start()
        child_connection.close()
        world = cls(process, parent_connection, settings, folder)
        try:
            world._update_instruction(world._receive("start", START_SECONDS))
        except BaseException:
            world.close()
            raise
        return world

    @property
    def port(self) -> str:
        """Path of the serial port: a link that stays valid when the pseudo-terminal is replaced."""
        return str(self._settings.folder / "port")

    @property
    def calibration(self) -> dict[str, dict[str, int]]:
        """Content of LeRobot's calibration file."""
        return calibration.calibration()

    def write_calibration(self, folder: Path, identifier: str = "virtual") -> Path:
        """Write LeRobot's calibration file into a robot's `calibration_dir`; see `calibration.write_calibration`."""
        return calibration.write_calibration(Path(folder), identifier)

    @property
    def cameras(self) -> dict[str, VirtualCameraConfig]:
        """Configurations of LeRobot's cameras, by name; empty without rendering."""
        if not self._settings.rendering_enabled:
            return {}
        from .config_camera import VirtualCameraConfig

        size, rate = self._settings.image_size, round(self._settings.frame_rate * self._settings.speed)
        return {
            camera: VirtualCameraConfig(
                fps=max(rate, 1), width=size, height=size, source=str(frame_path(self._settings.folder, camera))
            )
            for camera in CAMERAS
        }

    def reset(
        self,
        *,
        initial_state: int | None = None,
        seed: int | None = None,
        task: str | None = None,
        suite: str | None = None,
        instruction: str | None = None,
    ) -> None:
        """Start a new episode: objects and arm at their initial state, torque off. Faults stay active.

        The arm is held at its start pose until its servos have torque; they keep their old goals. The joint trajectory
        starts again. The episode's steps count from the first goal that is written to a servo with torque, or from
        `begin`.

        Args:
            initial_state: Number of the initial state; None keeps the last one.
            seed: Seed of the episode; None keeps the last one.
            task: Name of the task; None keeps the last one.
            suite: Name of the suite; None keeps the last one.
            instruction: Replaces the task's instruction; None uses the task's.

        Raises:
            InputError: Unknown suite or task.
        """
        arguments = {
            "initial_state": initial_state,
            "seed": seed,
            "task": task,
            "suite": suite,
            "instruction": instruction,
        }
        self._update_instruction(self._request("reset", arguments))

    def begin(self) -> None:
        """Count the episode's steps from now; lamps that are lit in the first steps are lit again."""
        self._request("begin", {})

    def inject_fault(self, fault: Fault) -> None:
        """Inject a fault; its delay counts from now."""
        self._request("fault", {"fault": fault})

    def clear_faults(self) -> None:
        """End all faults; their effects, such as lost torque, remain."""
        self._request("clear_faults", {})

    def outcome(self) -> dict[str, Any]:
        """Return the state of the episode.

        Returns:
            success (within the task's steps), over, steps and seconds (of the desk's time, up to success), max_steps,
            picked, target, instruction, initial_state, and lost_seconds: time of the desk that was skipped in all
            episodes because the machine was too slow.
        """
        return self._request("outcome", {})

    def joint_trajectory(self, since: float = 0.0) -> JointTrajectory:
        """Return the episode's trajectory after the time `since` (time.monotonic), at most fifteen minutes."""
        return JointTrajectory(*self._request("motion", {"since": since}))

    def joints(self) -> np.ndarray:
        """Return the present true joint positions [6], in the contract's units."""
        return self._request("joints", {})

    def close(self) -> None:
        """End the process; its port and cameras disappear. May be called twice."""
        with suppress(OSError):  # The process may have ended already.
            self._connection.send(("close", {}))
        self._process.join(timeout=CLOSE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _update_instruction(self, outcome: dict[str, Any]) -> None:
        self.instruction = outcome["instruction"]

    def _request(self, request: str, arguments: dict[str, Any]) -> Any:
        try:
            self._connection.send((request, arguments))
        except OSError as error:
            raise WorldError(f"the virtual arm is gone (exit code {self._process.exitcode}): start it again") from error
        return self._receive(request, REQUEST_TIMEOUT_SECONDS)

    def _receive(self, request: str, seconds: float) -> Any:
        try:
            if not self._connection.poll(seconds):
                raise WorldError(f"the virtual arm did not answer {request!r} within {seconds:g} s")
            kind, content = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(timeout=1.0)
            raise WorldError(f"the virtual arm died (exit code {self._process.exitcode}) at {request!r}") from error
        if kind == "refused":
            raise content
        if kind == "broken":
            raise WorldError(content)
        return content
