"""The process that the virtual arm lives in: servos, twin and cameras, and the orders of whoever started it."""

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
"""LeRobot limits the gripper's servo to half its torque; so is this arm's, from before it is first connected."""

READY_SECONDS = 60.0
"""How long the first pictures may take; a renderer without a GPU compiles what it draws with."""

MAX_PRIORITY_SPEED = 1.5
"""Up to which speed the world may go before others: at real time it takes a fifth of a processor, far beyond all."""


@dataclass(frozen=True)
class ArmSimulationSettings:
    """How a virtual arm is started; `folder` is where its port and its frames appear."""

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
    """Everything of one virtual arm."""

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
        # Only now may time begin: a renderer that is being made stops all threads for a while.
        self.twin.run()

    def handle_request(self, order: str, arguments: dict[str, Any]) -> Any:
        """Carry out one order of the handle and return its answer."""
        self._check_health()
        match order:
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
        raise WorldError(f"the virtual arm got an order that it does not know: {order}")

    def close(self) -> None:
        """Stop everything and remove what stood in the folder."""
        if self.camera_renderer:
            self.camera_renderer.close()
        self.bus.close()
        self.twin.close()

    def _check_health(self) -> None:
        failure = self.twin.failure or (self.camera_renderer.failure if self.camera_renderer else "")
        if not self.bus.alive:
            failure = "its bus does not answer any more"
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
    """Run a world and obey orders from `connection`, (order, arguments), until it closes or says "close".

    Answers ("done", answer), ("refused", InputError) or ("broken", text); the first answer tells that all is up.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started the arm: an arm does not die of it
    exit_with_parent(lambda: shutil.rmtree(settings.folder, ignore_errors=True))
    world = None
    try:
        from ..rendering import choose_backend

        choose_backend()
        _raise_priority(settings.speed)
        world = ArmSimulation(settings)
        connection.send(("done", world.twin.outcome()))
        while True:
            order, arguments = connection.recv()
            if order == "close":
                break
            try:
                connection.send(("done", world.handle_request(order, arguments)))
            except InputError as error:
                connection.send(("refused", error))
    except InputError as error:
        connection.send(("refused", error))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # Whoever started the arm is gone; there is nobody left to tell.
    except SaccadeError as error:
        connection.send(("broken", str(error)))
    except Exception:
        connection.send(("broken", traceback.format_exc()))
    if world is not None:
        world.close()


def _raise_priority(speed: float) -> None:
    """Let all threads from here on go before other processes, where that is allowed.

    They stand for hardware, which answers in time however busy the computer is.
    """
    if speed <= MAX_PRIORITY_SPEED and hasattr(os, "sched_setscheduler"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
