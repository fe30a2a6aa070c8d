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
from ....robot.control.loop import LoopSettings
from ....robot.decider import Decider
from ....robot.limits import Limits
from ....robot.session.cameras import CameraWatch
from ....robot.session.orders import Orders
from ....robot.session.session import run_session
from ....robot.session.settings import EpisodePlan, SessionSettings
from ....robot.session.summary import EpisodeSummary, Observer
from ....sim.virtual_arm.world import VirtualArm
from .rig import Wanderer, arm_maker, small_contract

START_SECONDS = 180.0
MISCHIEF_WARM_UP = 10
"""Decisions that go undisturbed: those before the session begins to move."""


@dataclasses.dataclass(frozen=True)
class WandererSettings:
    """How the session runs. `server` (address, token, timeout) decides instead of a wanderer where it is given.

    `mischief`: the chance of each decision to be one that a broken policy makes. `fails_after`, `hangs_after`: so many
    decisions go well.
    """

    record: Path
    seed: int = 0
    mischief: float = 0.0
    fails_after: int | None = None
    hangs_after: int | None = None
    episodes: int = 1
    seconds: float = 60.0
    stopped_seconds: float = 0.0
    start: str = "ramp"
    overrun_share: float = 1.0
    decision_seconds: float = 1.0
    server: tuple[str, str, float] | None = None


class Mischief:
    """What a broken policy does to a chunk, drawn anew each time; `counts` says how often what was done."""

    def __init__(self, chance: float, seed: int) -> None:
        self._chance, self._draw, self._given = chance, random.Random(seed), 0
        self.counts: dict[str, int] = {}

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        self._given += 1
        if self._given <= MISCHIEF_WARM_UP or self._draw.random() >= self._chance:
            return actions
        kind = self._draw.choice(sorted(TWISTS))
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind == "slow decision":
            time.sleep(self._draw.uniform(0.2, 0.9))
        return TWISTS[kind](actions)


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


TWISTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
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


class Trouble(Wanderer):
    """A wanderer that fails or hangs after so many decisions."""

    def __init__(self, settings: WandererSettings) -> None:
        self.mischief = Mischief(settings.mischief, settings.seed)
        super().__init__(small_contract(), self.mischief)
        self._settings, self._count = settings, 0

    def decide(self, observation: Any) -> np.ndarray:
        self._count += 1
        if self._settings.fails_after is not None and self._count > self._settings.fails_after:
            raise ZeroDivisionError("a fault of the policy")
        if self._settings.hangs_after is not None and self._count > self._settings.hangs_after:
            time.sleep(3600.0)
        return super().decide(observation)


class _Reporter(Observer):
    """Tells the parent what happens."""

    def __init__(self, connection: Connection, contract: Any) -> None:
        self._connection, self._contract = connection, contract

    def started(self, arm: ArmDescription) -> None:
        self._connection.send(("limits", Limits.derive(self._contract, arm.joints)))

    def episode_began(self, episode: int, instruction: str) -> None:
        self._connection.send(("began", episode))

    def episode_ended(self, summary: EpisodeSummary) -> None:
        self._connection.send(("ended", summary.ended_by))


def wander(connection: Connection, make_arm: Callable[[], Arm], cameras: Any, settings: WandererSettings) -> None:
    """Be the session process: run episodes, obey orders that come through `connection`, and tell of all."""
    # What was started in the background ignores it otherwise.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    orders, contract = Orders(), small_contract()
    decider: Decider = Trouble(settings)
    if settings.server is not None:
        from ....robot.remote.client import RemotePolicy

        decider = RemotePolicy(*settings.server)

    def listen() -> None:
        try:
            while True:
                order, *arguments = connection.recv()
                getattr(orders, order)(*arguments)
        except (EOFError, OSError):
            return

    threading.Thread(target=listen, name="orders", daemon=True).start()
    chosen = SessionSettings(
        loop=LoopSettings(),
        start=settings.start,
        stopped_seconds=settings.stopped_seconds,
        rearm_between=True,
        overrun_share=settings.overrun_share,
        decision_seconds=settings.decision_seconds,
    )
    try:
        summary = run_session(
            decider=decider,
            make_arm=make_arm,
            cameras=CameraWatch.from_configs(cameras, contract.cameras),
            episodes=[EpisodePlan("wander", settings.seconds)] * settings.episodes,
            settings=chosen,
            record=settings.record,
            observer=_Reporter(connection, contract),
            orders=orders,
        )
        mischief = decider.mischief.counts if isinstance(decider, Trouble) else {}
        connection.send(("over", summary.figures, mischief))
    except SaccadeError as error:
        connection.send(("failed", f"{type(error).__name__}: {error}"))
    except KeyboardInterrupt:
        connection.send(("failed", "interrupted"))


class WanderingSession:
    """The parent's end of such a session: `process`, `limits`, orders, and what it has told."""

    def __init__(self, process: BaseProcess, connection: Connection, settings: WandererSettings) -> None:
        self.process, self.settings = process, settings
        self._connection = connection
        self.limits: Limits | None = None
        self.told: list[tuple] = []

    @classmethod
    def start(cls, world: VirtualArm, folder: Path, settings: WandererSettings) -> Self:
        """Start it and return once its first episode has begun, or once it is over already."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, arm_maker(world, folder), world.cameras, settings)
        process = context.Process(target=wander, args=arguments, name="wandering session")
        process.start()
        theirs.close()
        session = cls(process, ours, settings)
        ends = time.monotonic() + START_SECONDS
        while session.runs and not session.has_told("began") and time.monotonic() < ends:
            session.listen(0.1)
        return session

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return self.process.is_alive()

    def has_told(self, what: str) -> bool:
        """Return whether it has told of something of that kind."""
        return any(kind == what for kind, *_ in self.told)

    def listen(self, seconds: float = 0.0) -> None:
        """Take in what it tells, for so long at most."""
        try:
            while self._connection.poll(seconds):
                self.told.append(self._connection.recv())
                if self.told[-1][0] == "limits":
                    self.limits = self.told[-1][1]
                seconds = 0.0
        except (EOFError, OSError):
            self.process.join(timeout=1.0)

    def order(self, name: str, *arguments: Any) -> None:
        """Ask something of the session; see `Orders`."""
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
