"""A session with a swing policy in its own process, which fault tests kill, stop and starve."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np

from ....errors import SaccadeError
from ....policy.contract import Contract
from ....robot.arm import Arm, ArmDescription
from ....robot.chunk_policy import ChunkPolicy
from ....robot.control.loop import LoopSettings
from ....robot.limits import JointLimits
from ....robot.session.cameras import CameraReader
from ....robot.session.operator_commands import OperatorCommands
from ....robot.session.session import run_session
from ....robot.session.settings import EpisodePlan, SessionSettings
from ....robot.session.summary import EpisodeSummary, SessionObserver
from ....sim.virtual_arm.world import VirtualArm
from .rig import arm_maker
from .swing_policy import ChunkFaultInjector, SwingPolicy, small_contract

START_SECONDS = 180.0

StartMethod = Literal["spawn", "forkserver"]
"""How session processes start; a fork server imports LeRobot once for all of them, but shares its memory with them."""

PRELOADED = [__name__, "saccade.sim.virtual_arm.camera"]
"""Modules that the fork server imports."""


@dataclasses.dataclass(frozen=True)
class SwingSessionSettings:
    """How the session runs.

    Attributes:
        record: File of the flight record.
        seed: Seed of the chunk faults.
        fault_probability: Probability that a chunk is a broken policy's, see `ChunkFaultInjector`.
        fails_after: Number of decisions after which the policy raises an exception; None: never.
        hangs_after: Number of decisions after which it hangs; None: never.
        episodes: Number of episodes.
        seconds: Length of an episode.
        rearm_wait_seconds: See `SessionSettings`, as for `start`, `overrun_share` and `decision_seconds`.
        server: Address, token and timeout of a policy server that decides instead of the swing policy.
    """

    record: Path
    seed: int = 0
    fault_probability: float = 0.0
    fails_after: int | None = None
    hangs_after: int | None = None
    episodes: int = 1
    seconds: float = 60.0
    rearm_wait_seconds: float = 0.0
    start: str = "ramp"
    overrun_share: float = 1.0
    decision_seconds: float = 1.0
    server: tuple[str, str, float] | None = None


class FailingSwingPolicy(SwingPolicy):
    """A swing policy that breaks chunks, and fails or hangs, as the settings say."""

    def __init__(self, settings: SwingSessionSettings) -> None:
        self.fault_injector = ChunkFaultInjector(settings.fault_probability, settings.seed)
        super().__init__(small_contract(), self.fault_injector)
        self._settings, self._count = settings, 0

    def decide(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return a chunk, unless it is time to fail or hang."""
        self._count += 1
        if self._settings.fails_after is not None and self._count > self._settings.fails_after:
            raise ZeroDivisionError("a fault of the policy")
        if self._settings.hangs_after is not None and self._count > self._settings.hangs_after:
            time.sleep(3600.0)
        return super().decide(observation)


class _Reporter(SessionObserver):
    """Reports the session's events to the parent."""

    def __init__(self, connection: Connection, contract: Contract) -> None:
        self._connection, self._contract = connection, contract

    def on_session_start(self, arm: ArmDescription) -> None:
        self._connection.send(("limits", JointLimits.derive(self._contract, arm.joints)))

    def on_episode_start(self, episode: int, instruction: str) -> None:
        self._connection.send(("began", episode))

    def on_episode_end(self, summary: EpisodeSummary) -> None:
        self._connection.send(("ended", summary.ended_by))


def run_swing_session(
    connection: Connection, make_arm: Callable[[], Arm], cameras: Any, settings: SwingSessionSettings
) -> None:
    """Run episodes in the session process, obey commands that come through `connection`, and report events."""
    # A process that a shell starts in the background ignores SIGINT otherwise.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    operator_commands, contract = OperatorCommands(), small_contract()
    chunk_policy: ChunkPolicy = FailingSwingPolicy(settings)
    if settings.server is not None:
        from ....robot.remote.client import RemotePolicy

        chunk_policy = RemotePolicy(*settings.server)

    def listen() -> None:
        try:
            while True:
                order, *arguments = connection.recv()
                getattr(operator_commands, order)(*arguments)
        except (EOFError, OSError):
            return

    threading.Thread(target=listen, name="orders", daemon=True).start()
    chosen = SessionSettings(
        loop=LoopSettings(),
        start=settings.start,
        rearm_wait_seconds=settings.rearm_wait_seconds,
        rearm_between_episodes=True,
        overrun_share=settings.overrun_share,
        decision_seconds=settings.decision_seconds,
    )
    try:
        summary = run_session(
            chunk_policy=chunk_policy,
            make_arm=make_arm,
            cameras=CameraReader.from_configs(cameras, contract.cameras),
            episodes=[EpisodePlan("wander", settings.seconds)] * settings.episodes,
            settings=chosen,
            record=settings.record,
            observer=_Reporter(connection, contract),
            operator_commands=operator_commands,
        )
        fault_counts = chunk_policy.fault_injector.counts if isinstance(chunk_policy, FailingSwingPolicy) else {}
        connection.send(("over", summary.metrics, fault_counts))
    except SaccadeError as error:
        connection.send(("failed", f"{type(error).__name__}: {error}"))
    except KeyboardInterrupt:
        connection.send(("failed", "interrupted"))


class SwingSession:
    """The parent's handle on such a session.

    Attributes:
        process: The session process.
        settings: How it runs.
        limits: The governor's joint limits; None until the session reports them.
        messages: Its reports, each a tuple that begins with its kind: limits, began, ended, over or failed.
    """

    def __init__(self, process: BaseProcess, connection: Connection, settings: SwingSessionSettings) -> None:
        self.process, self.settings = process, settings
        self._connection = connection
        self.limits: JointLimits | None = None
        self.messages: list[tuple[Any, ...]] = []

    @classmethod
    def start(
        cls, world: VirtualArm, folder: Path, settings: SwingSessionSettings, method: StartMethod = "spawn"
    ) -> Self:
        """Start a session, and return once its first episode has begun or the session has ended.

        Args:
            world: The virtual arm.
            folder: Folder of the calibration.
            settings: How the session runs.
            method: How its process starts.
        """
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(PRELOADED)
        ours, theirs = context.Pipe()
        arguments = (theirs, arm_maker(world, folder), world.cameras, settings)
        # The two kinds of context share no base class with `Process` in typeshed.
        process = cast(Any, context).Process(target=run_swing_session, args=arguments, name="swing session")
        process.start()
        theirs.close()
        session = cls(process, ours, settings)
        ends = time.monotonic() + START_SECONDS
        while session.is_running and not session.has_message("began") and time.monotonic() < ends:
            session.listen(0.1)
        return session

    @property
    def is_running(self) -> bool:
        """Whether the process is alive."""
        return self.process.is_alive()

    def has_message(self, what: str) -> bool:
        """Return whether the session has sent a message of a kind."""
        return any(kind == what for kind, *_ in self.messages)

    def listen(self, seconds: float = 0.0) -> None:
        """Receive messages; wait at most `seconds` for the first."""
        try:
            while self._connection.poll(seconds):
                self.messages.append(self._connection.recv())
                if self.messages[-1][0] == "limits":
                    self.limits = self.messages[-1][1]
                seconds = 0.0
        except (EOFError, OSError):
            self.process.join(timeout=1.0)

    def order(self, name: str, *arguments: Any) -> None:
        """Call a method of the session's `OperatorCommands`."""
        self._connection.send((name, *arguments))

    def control_process(self) -> int | None:
        """Return the id of the control process, None if there is none; needs Linux."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
        return None

    def close(self) -> None:
        """End the process, with SIGKILL if it does not end by itself."""
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(timeout=10.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.listen()
        self._connection.close()
