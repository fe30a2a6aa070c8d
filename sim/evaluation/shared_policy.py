"""One policy for all workers: it lives in a process of its own, and decides for the episodes that wait together.

A worker's actor asks through the worker's own connection; the parent, which holds all connections, gathers the
questions and hands them on. So a GPU holds one policy, however many worlds it plays in.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np

from ...errors import InputError, WorldError
from .episode import Overlay


class BatchedPolicy(Protocol):
    """A policy that decides for several episodes at once; each has a slot, a number that stays with its worker."""

    rows: int

    def begin(self, slot: int, instruction: str, seed: int) -> None:
        """Start an episode: forget the slot's last one."""

    def decide(self, observations: Mapping[int, Mapping[str, Any]]) -> tuple[dict[int, np.ndarray], float]:
        """Return each slot's next actions [steps, A], and the seconds that a decision took."""
        ...

    def overlay(self, slot: int) -> Overlay | None:
        """Return where the slot's last decision looked."""
        ...


@dataclass(frozen=True)
class SharedPolicy:
    """Stands for an actor factory where all workers are to share what `make_policy` builds, in a process of its own."""

    make_policy: Callable[[], BatchedPolicy]


class RemoteActor:
    """An actor whose decisions are made elsewhere, by whoever answers its questions at the other end."""

    def __init__(self, connection: Connection) -> None:
        self.decision_seconds: list[float] = []
        self._connection = connection
        self._queue: list[np.ndarray] = []
        self._overlay: Overlay | None = None
        self._looked = True

    @property
    def pending(self) -> int:
        return len(self._queue)

    def reset(self, instruction: str, seed: int) -> None:
        self._queue, self.decision_seconds, self._overlay, self._looked = [], [], None, True
        self._connection.send(("ask", "begin", (instruction, seed)))

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        if not self._queue:
            actions, seconds = self._ask("decide", observation)
            self._queue, self._looked = list(actions), False
            self.decision_seconds.append(seconds)
        return self._queue.pop(0)

    def overlay(self) -> Overlay | None:
        if not self._looked:
            self._overlay, self._looked = self._ask("overlay", None), True
        return self._overlay

    def _ask(self, what: str, content: Any) -> Any:
        self._connection.send(("ask", what, content))
        answered, content = self._connection.recv()
        if not answered:
            raise WorldError(f"the policy's process gave no answer: {content}")
        return content


def serve(connection: Connection, make_policy: Callable[[], BatchedPolicy]) -> None:
    """Answer questions from `connection` with a policy, until it closes.

    Sends ("ready", rows), then lists of (slot, answer), and ("refused", four strings) or ("broken", traceback) before
    it ends. After an error nothing that the policy remembers may be trusted: the next process begins anew.
    """
    try:
        policy = make_policy()
        connection.send(("ready", policy.rows))
        while True:
            what, content = connection.recv()
            if what == "begin":
                policy.begin(*content)
            elif what == "overlay":
                connection.send(("answers", [(content, policy.overlay(content))]))
            else:
                actions, seconds = policy.decide(content)
                connection.send(("answers", [(slot, (each, seconds)) for slot, each in actions.items()]))
    except InputError as error:
        connection.send(("refused", error.what, str(error.got), str(error.expected), error.fix))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # Whoever asked is gone; there is nobody left to answer.
    except Exception:
        with suppress(OSError):
            connection.send(("broken", traceback.format_exc()))


@dataclass
class Questions:
    """What the parent knows of the policy's process: who waits for an answer, and when it is due.

    `open`: slots that wait to be gathered, with their observations; `asked`: slots that wait for an answer.
    """

    process: Any
    connection: Connection
    deadline: float
    rows: int | None = None
    open: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)
    begun: set[int] = field(default_factory=set)
    _since: float = 0.0
    _pass_seconds: float = 0.0
    _sent: float = 0.0

    def ask(self, slot: int, what: str, content: Any) -> bool:
        """Take a slot's question; returns False when it belongs to an episode that this process knows nothing of."""
        if what == "begin":
            self.begun.add(slot)
            self._send(("begin", (slot, *content)))
            return True
        if slot not in self.begun:
            return False
        if what == "overlay":
            self.asked.add(slot)
            self._send(("overlay", slot))
        else:
            self._since = self._since if self.open else time.monotonic()
            self.open[slot] = content
        return True

    def patience(self, playing: int) -> float | None:
        """Return in how many seconds the open questions should be sent, 0 for now, None for not before news.

        `playing`: how many workers are in an episode. They are gathered for no longer than a decision takes: then
        deciding twice is no slower than waiting.
        """
        if not self.open or self.rows is None or self.asked:
            return None
        if len(self.open) >= min(self.rows, playing):
            return 0.0
        return max(0.0, self._since + self._pass_seconds - time.monotonic())

    def send_open(self, episode_seconds: float) -> None:
        """Send as many open questions as are decided at once, the oldest first."""
        slots = list(self.open)[: self.rows]
        self._sent = time.monotonic()
        self.deadline = self._sent + episode_seconds
        self.asked.update(slots)
        self._send(("decide", {slot: self.open.pop(slot) for slot in slots}))
        self._since = self._sent

    def answered(self, answers: list[tuple[int, Any]]) -> None:
        """Note that answers have come."""
        self.asked.difference_update(slot for slot, _ in answers)
        if not self.asked:
            self.deadline = float("inf")
        self._pass_seconds = time.monotonic() - self._sent

    def forget(self, slot: int) -> None:
        """Drop a slot whose worker is gone; what is still being decided for it will be of no use to anybody."""
        self.open.pop(slot, None)
        self.begun.discard(slot)

    def _send(self, message: tuple[str, Any]) -> None:
        with suppress(OSError):  # It died: its closed connection is heard next.
            self.connection.send(message)
