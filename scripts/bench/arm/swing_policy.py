"""A session with a wandering policy in a process of its own: what is killed, starved and lied to in fault tests."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import random
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

import numpy as np

from ....errors import SaccadeError
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
from .rig import SwingPolicy, arm_maker, small_contract

START_SECONDS = 180.0
FAULT_FREE_DECISIONS = 10
"""Decisions that go undisturbed: those before the session begins to move."""


@dataclasses.dataclass(frozen=True)
class SwingSessionSettings:
    """How the session runs. `server` (address, token, timeout) decides instead of a wanderer where it is given.

    `fault_probability`: the chance that a decision is one of a broken policy. `fails_after`, `hangs_after`: so many
    decisions go well.
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


class ChunkFaultInjector:
    """What a broken policy does to a chunk, drawn anew each time; `counts` says how often what was done."""

    def __init__(self, fault_probability: float, seed: int) -> None:
        self._fault_probability, self._rng, self._given = fault_probability, random.Random(seed), 0
        self.counts: dict[str, int] = {}

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        self._given += 1
        if self._given <= FAULT_FREE_DECISIONS or self._rng.random() >= self._fault_probability:
            return actions
        kind = self._rng.choice(sorted(CHUNK_FAULTS))
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind == "slow decision":
            time.sleep(self._rng.uniform(0.2, 0.9))
        return CHUNK_FAULTS[kind](actions)


def not_finite(actions: np.ndarray, value: float = np.nan) -> np.ndarray:
    """Spoil one number."""
    changed = actions.copy()
    changed[len(actions) // 2, 0] = value
    return changed


def jump(actions: np.ndarray, units: float = 60.0) -> np.ndarray:
    """Let the second half of a chunk jump away."""
    changed = actions.copy()
    changed[len(actions) // 2 :, 0] += units
    return changed


def outside(actions: np.ndarray, units: float = 500.0, begin: int = 0, steps: int | None = None) -> np.ndarray:
    """Let the first joint's targets lie so far beyond, from step `begin` on."""
    changed = actions.copy()
    changed[begin : None if steps is None else begin + steps, 0] = units
    return changed


CHUNK_FAULTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "not a number": not_finite,
    "infinity": lambda actions: not_finite(actions, np.inf),
    "wrong shape": lambda actions: actions[:, :-1],
    "wrong length": lambda actions: actions[:-1],
    "wrong type": lambda actions: actions.astype(np.int32),
    "objects": lambda actions: actions.astype(object),
    "jump": jump,
    "out of range": outside,
    "slightly out of range": lambda actions: outside(actions, 113.0),
    "shivering": lambda actions: actions + 25.0 * (np.arange(len(actions)) % 2)[:, None].astype(np.float32),
    "slow decision": lambda actions: actions,
    "huge": lambda actions: actions * np.float32(1e30),
}


class FailingSwingPolicy(SwingPolicy):
    """A wanderer that fails or hangs after so many decisions."""

    def __init__(self, settings: SwingSessionSettings) -> None:
        self.fault_injector = ChunkFaultInjector(settings.fault_probability, settings.seed)
        super().__init__(small_contract(), self.fault_injector)
        self._settings, self._count = settings, 0

    def decide(self, observation: Any) -> np.ndarray:
        self._count += 1
        if self._settings.fails_after is not None and self._count > self._settings.fails_after:
            raise ZeroDivisionError("a fault of the policy")
        if self._settings.hangs_after is not None and self._count > self._settings.hangs_after:
            time.sleep(3600.0)
        return super().decide(observation)


class _Reporter(SessionObserver):
    """Tells the parent what happens."""

    def __init__(self, connection: Connection, contract: Any) -> None:
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
    """Be the session process: run episodes, obey orders that come through `connection`, and tell of all."""
    # What was started in the background ignores it otherwise.
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
    """The parent's end of such a session: `process`, `limits`, orders, and what it has told."""

    def __init__(self, process: BaseProcess, connection: Connection, settings: SwingSessionSettings) -> None:
        self.process, self.settings = process, settings
        self._connection = connection
        self.limits: JointLimits | None = None
        self.messages: list[tuple] = []

    @classmethod
    def start(cls, world: VirtualArm, folder: Path, settings: SwingSessionSettings) -> Self:
        """Start it and return once its first episode has begun, or once it is over already."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, arm_maker(world, folder), world.cameras, settings)
        process = context.Process(target=run_swing_session, args=arguments, name="wandering session")
        process.start()
        theirs.close()
        session = cls(process, ours, settings)
        ends = time.monotonic() + START_SECONDS
        while session.is_running and not session.has_message("began") and time.monotonic() < ends:
            session.listen(0.1)
        return session

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self.process.is_alive()

    def has_message(self, what: str) -> bool:
        """Return whether it has told of something of that kind."""
        return any(kind == what for kind, *_ in self.messages)

    def listen(self, seconds: float = 0.0) -> None:
        """Take in what it tells, for so long at most."""
        try:
            while self._connection.poll(seconds):
                self.messages.append(self._connection.recv())
                if self.messages[-1][0] == "limits":
                    self.limits = self.messages[-1][1]
                seconds = 0.0
        except (EOFError, OSError):
            self.process.join(timeout=1.0)

    def order(self, name: str, *arguments: Any) -> None:
        """Ask something of the session; see `OperatorCommands`."""
        self._connection.send((name, *arguments))

    def control_process(self) -> int | None:
        """Return the id of its control process, None where there is none; needs Linux."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
        return None

    def close(self) -> None:
        """End the process, by force where it does not end by itself."""
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(timeout=10.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.listen()
        self._connection.close()
