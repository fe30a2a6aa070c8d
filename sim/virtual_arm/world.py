"""The virtual arm as whoever starts it sees it: a port, cameras, and what a test wants to do and to know."""

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
"""How long a world may take to come up; choosing a renderer may try several."""

REQUEST_TIMEOUT_SECONDS = 60.0
CLOSE_SECONDS = 10.0


class JointTrajectory(NamedTuple):
    """What the twin's joints did: one row for each slice of its physics, 360 a second of its time.

    Steady times [n] in seconds, true joint positions [n, 6] and the goals [n, 6] that the servos followed, in the
    contract's units; a goal is NaN where the servo was limp. `late` [n]: how many seconds after its time each slice was
    done, which tells how well the machine kept up.
    """

    times: np.ndarray
    positions: np.ndarray
    goals: np.ndarray
    late: np.ndarray


class VirtualArm:
    """A virtual SO-101 in a process of its own, which ends with this one.

    Use it as a context manager, or `close` it. Methods raise WorldError when the world is gone or broke.
    """

    def __init__(
        self, process: BaseProcess, connection: Connection, settings: ArmSimulationSettings, folder: Any
    ) -> None:
        self._process, self._connection, self._settings = process, connection, settings
        self._folder: tempfile.TemporaryDirectory = folder
        self.instruction: str = ""
        """The words that tell the present episode's task."""

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
        """Start the world of a desk task and return once its port and cameras are there.

        `speed` is how fast its time passes, 1 for real time; `latency` is what every reply on the bus takes, in
        seconds; with `rendering_enabled` False there are no cameras, and it costs much less. Raises InputError for what does not
        fit, WorldError when it cannot start.
        """
        if not 0.05 <= speed <= 20.0:
            raise InputError("speed", got=speed, expected="0.05 to 20", fix="1 is real time.")
        if not (math.isfinite(latency) and 0.0 <= latency <= 1.0):
            raise InputError("latency", got=latency, expected="0 to 1 s", fix="A real bus answers within 0.001.")
        if not 1.0 <= frame_rate <= 120.0:
            raise InputError("frame_rate", got=frame_rate, expected="1 to 120", fix="The default is 30.")
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
        # Spawned, not forked: MuJoCo must not be loaded before a renderer is chosen, and threads do not survive a fork.
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
        """The serial port; a link to the pseudo-terminal that stays the same when that one is replaced."""
        return str(self._settings.folder / "port")

    @property
    def calibration(self) -> dict[str, dict[str, int]]:
        """What LeRobot's calibration file says about this arm."""
        return calibration.calibration()

    def write_calibration(self, folder: Path, identifier: str = "virtual") -> Path:
        """Write LeRobot's calibration file into `folder`, a robot's `calibration_dir`; return its path."""
        return calibration.write_calibration(Path(folder), identifier)

    @property
    def cameras(self) -> dict[str, VirtualCameraConfig]:
        """The configurations of LeRobot's cameras, by name; none when the world does not draw."""
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
        """Begin a new episode: everything in its place, the arm at its start pose, torque off; faults stay.

        What is left out stays as it was, but the instruction, which is the task's. The arm is held where it is until
        its servos have torque; their goals are still the old ones. The motion record begins anew. The episode's steps
        count from the first goal that is written to a servo with torque, or from `begin`.
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
        """Count the episode's steps from now: for tasks whose lamps show only at first, once everybody looks."""
        self._request("begin", {})

    def fault(self, fault: Fault) -> None:
        """Order a fault; its delay counts from now."""
        self._request("fault", {"fault": fault})

    def clear_faults(self) -> None:
        """End all faults; what they left behind, such as a lost torque, stays."""
        self._request("clear_faults", {})

    def outcome(self) -> dict[str, Any]:
        """Return how the episode stands.

        success (bool: achieved within the task's steps), over (bool), steps and seconds (of the desk's time, up to
        success), max_steps, picked, target, instruction, initial_state, and lost_seconds: the desk's time that
        the machine was too slow for, in all episodes.
        """
        return self._request("outcome", {})

    def joint_trajectory(self, since: float = 0.0) -> JointTrajectory:
        """Return what was recorded after the steady time `since`, at most fifteen minutes and since the last reset."""
        return JointTrajectory(*self._request("motion", {"since": since}))

    def joints(self) -> np.ndarray:
        """Return the true joint positions [6] now, in the contract's units."""
        return self._request("joints", {})

    def close(self) -> None:
        """End the world; its port and cameras vanish. May be called twice."""
        with suppress(OSError):  # It may be gone already.
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

    def _request(self, order: str, arguments: dict[str, Any]) -> Any:
        try:
            self._connection.send((order, arguments))
        except OSError as error:
            raise WorldError(f"the virtual arm is gone (exit code {self._process.exitcode}): start it anew") from error
        return self._receive(order, REQUEST_TIMEOUT_SECONDS)

    def _receive(self, order: str, seconds: float) -> Any:
        try:
            if not self._connection.poll(seconds):
                raise WorldError(f"the virtual arm did not answer to {order!r} within {seconds:g} s")
            kind, content = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(timeout=1.0)
            raise WorldError(f"the virtual arm died (exit code {self._process.exitcode}) at {order!r}") from error
        if kind == "refused":
            raise content
        if kind == "broken":
            raise WorldError(content)
        return content
