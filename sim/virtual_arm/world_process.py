"""The process of the virtual arm: servos, twin and cameras, and the requests of its parent."""

from __future__ import annotations

import os
import shutil
import signal
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError, SaccadeError, WorldError
from ..processes import exit_with_parent
from .calibration import encoders
from .faults import FaultInjector
from .registers import FULL_TORQUE

if TYPE_CHECKING:
    from .bus import Bus
    from .camera_renderer import CameraRenderer
    from .twin import Twin

TORQUE_LIMITS = {"gripper": 500}
"""LeRobot limits the gripper's servo to half its torque; this arm has the limit before it is first connected."""

READY_SECONDS = 60.0
"""Time limit for the first images: a renderer without a GPU first compiles its shaders."""

MAX_PRIORITY_SPEED = 1.5
"""Highest speed at which the process gets real-time priority: at speed 1 it uses a fifth of a core, at high speeds
a whole one."""


@dataclass(frozen=True)
class ArmSimulationSettings:
    """Settings of a virtual arm, see `VirtualArm.start`; `folder` holds its port and its frames."""

    suite: str
    task: str
    initial_state: int
    seed: int
    instruction: str | None
    image_size: int
    speed: float
    latency: float
    frame_rate: float
    rendering_enabled: bool
    folder: Path


class ArmSimulation:
    """Bus, servos, twin and cameras of one virtual arm."""

    def __init__(self, settings: ArmSimulationSettings) -> None:
        from .bus import Bus
        from .camera_renderer import CameraRenderer
        from .servo import Servo
        from .twin import EpisodeSetup, Twin

        self.settings = settings
        self.faults = FaultInjector(time.monotonic, settings.seed)
        self._episode = EpisodeSetup(
            settings.suite, settings.task, settings.initial_state, settings.seed, settings.instruction
        )
        self.twin: Twin = Twin(self._episode, settings.image_size, self.faults, settings.speed)
        servos = [
            Servo(joint, encoder, self.faults, float(position), TORQUE_LIMITS.get(joint, FULL_TORQUE))
            for (joint, encoder), position in zip(encoders().items(), self.twin.start_pose, strict=True)
        ]
        self.bus: Bus = Bus(servos, self.faults, settings.folder, latency=settings.latency)
        self.twin.attach(self.bus)
        self.camera_renderer: CameraRenderer | None = None
        if settings.rendering_enabled:
            self.camera_renderer = CameraRenderer(
                self.twin, settings.folder, settings.image_size, settings.frame_rate, self.faults
            )
            self.camera_renderer.wait_for_new_frames(READY_SECONDS)
        # Start the clock last: creating a renderer blocks all threads for a while.
        self.twin.run()

    def handle_request(self, request: str, arguments: dict[str, Any]) -> Any:
        """Execute one request of the parent and return its answer."""
        self._check_health()
        match request:
            case "reset":
                return self._reset(**arguments)
            case "begin":
                return self.twin.begin()
            case "fault":
                return self.faults.schedule(arguments["fault"])
            case "clear_faults":
                return self.faults.clear()
            case "outcome":
                return self.twin.outcome()
            case "motion":
                return self.twin.joint_trajectory(arguments["since"])
            case "joints":
                return self.twin.joints()
        raise WorldError(f"the virtual arm got an unknown request: {request}")

    def close(self) -> None:
        """Stop all threads and remove the port."""
        if self.camera_renderer:
            self.camera_renderer.close()
        self.bus.close()
        self.twin.close()

    def _check_health(self) -> None:
        failure = self.twin.failure or (self.camera_renderer.failure if self.camera_renderer else "")
        if not self.bus.alive:
            failure = "its bus no longer answers"
        if failure:
            raise WorldError(f"the virtual arm broke: {failure}")

    def _reset(
        self, initial_state: int | None, seed: int | None, task: str | None, suite: str | None, instruction: str | None
    ) -> dict[str, Any]:
        from .twin import EpisodeSetup

        now = self._episode
        episode = EpisodeSetup(
            suite or now.suite,
            task or now.task,
            now.initial_state if initial_state is None else initial_state,
            now.seed if seed is None else seed,
            instruction,
        )
        self.twin.prepare(episode)
        self._episode = episode
        if self.camera_renderer:
            self.camera_renderer.wait_for_new_frames(READY_SECONDS)
        return self.twin.outcome()


def serve_arm_simulation(connection: Connection, settings: ArmSimulationSettings) -> None:
    """Run a virtual arm and execute requests, (request, arguments), until the connection closes or sends "close".

    Answers ("done", answer), ("refused", InputError) or ("broken", text). The first answer is sent when the arm is
    ready.

    Args:
        connection: This process's end of the pipe to `VirtualArm`.
        settings: Settings of the arm.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Only the parent handles Ctrl-C.
    exit_with_parent(lambda: shutil.rmtree(settings.folder, ignore_errors=True))
    world = None
    try:
        from ..rendering import choose_backend

        choose_backend()
        _raise_priority(settings.speed)
        world = ArmSimulation(settings)
        connection.send(("done", world.twin.outcome()))
        while True:
            request, arguments = connection.recv()
            if request == "close":
                break
            try:
                connection.send(("done", world.handle_request(request, arguments)))
            except InputError as error:
                connection.send(("refused", error))
    except InputError as error:
        connection.send(("refused", error))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # The parent has ended.
    except SaccadeError as error:
        connection.send(("broken", str(error)))
    except Exception:
        connection.send(("broken", traceback.format_exc()))
    if world is not None:
        world.close()


def _raise_priority(speed: float) -> None:
    """Request real-time priority: real hardware also answers in time when the machine is busy."""
    if speed <= MAX_PRIORITY_SPEED and hasattr(os, "sched_setscheduler"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
