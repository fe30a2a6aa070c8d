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
from ..processes import refused_message
from .episode import Overlay


class BatchedPolicy(Protocol):
    """A policy that decides for several episodes at once; each has a slot, a number that stays with its worker."""

    max_batch_size: int

    def begin(self, slot: int, instruction: str, seed: int) -> None:
        """Start an episode: forget the slot's last one."""

    def decide(self, observations: Mapping[int, Mapping[str, Any]]) -> tuple[dict[int, np.ndarray], float]:
        """Return each slot's next actions [steps, A], and the seconds that a decision took."""
        ...

    def overlay(self, slot: int) -> Overlay | None:
        """Return where the slot's last decision looked."""
        ...


@dataclass(frozen=True)
class SharedPolicyFactory:
    """Stands for an actor factory where all workers are to share what `make_policy` builds, in a process of its own."""

    make_policy: Callable[[], BatchedPolicy]


class RemoteActor:
    """An actor whose decisions are made elsewhere, by whoever answers its questions at the other end."""

    def __init__(self, connection: Connection) -> None:
        self.decision_seconds: list[float] = []
        self._connection = connection
        self._queue: list[np.ndarray] = []
        self._overlay: Overlay | None = None
        self._overlay_fetched = True

    @property
    def pending(self) -> int:
        return len(self._queue)

    def reset(self, instruction: str, seed: int) -> None:
        self._queue, self.decision_seconds, self._overlay, self._overlay_fetched = [], [], None, True
        self._connection.send(("ask", "begin", (instruction, seed)))

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        if not self._queue:
            actions, seconds = self._request("decide", observation)
            self._queue, self._overlay_fetched = list(actions), False
            self.decision_seconds.append(seconds)
        return self._queue.pop(0)

    def overlay(self) -> Overlay | None:
        if not self._overlay_fetched:
            self._overlay, self._overlay_fetched = self._request("overlay", None), True
        return self._overlay

    def _request(self, what: str, content: Any) -> Any:
        self._connection.send(("ask", what, content))
        answered, content = self._connection.recv()
        if not answered:
            raise WorldError(f"the policy's process gave no answer: {content}")
        return content


def serve_policy(connection: Connection, make_policy: Callable[[], BatchedPolicy]) -> None:
    """Answer questions from `connection` with a policy, until it closes.

    Sends ("ready", rows), then lists of (slot, answer), and ("refused", four strings) or ("broken", traceback) before
    it ends. After an error nothing that the policy remembers may be trusted: the next process begins anew.
    """
    try:
        policy = make_policy()
        connection.send(("ready", policy.max_batch_size))
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
        connection.send(refused_message(error))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # Whoever asked is gone; there is nobody left to answer.
    except Exception:
        with suppress(OSError):
            connection.send(("broken", traceback.format_exc()))


@dataclass
class PolicyProcess:
    """What the parent knows of the policy's process: who waits for an answer, and when it is due.

    `pending_observations`: slots that wait to be gathered, with their observations; `awaiting_slots`: slots that wait for an answer.
    """

    process: Any
    connection: Connection
    deadline: float
    max_batch_size: int | None = None
    pending_observations: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    awaiting_slots: set[int] = field(default_factory=set)
    started_slots: set[int] = field(default_factory=set)
    _oldest_pending_at: float = 0.0
    _inference_seconds: float = 0.0
    _sent_at: float = 0.0

    def submit_request(self, slot: int, what: str, content: Any) -> bool:
        """Take a slot's question; returns False when it belongs to an episode that this process knows nothing of."""
        if what == "begin":
            self.started_slots.add(slot)
            self._send(("begin", (slot, *content)))
            return True
        if slot not in self.started_slots:
            return False
        if what == "overlay":
            self.awaiting_slots.add(slot)
            self._send(("overlay", slot))
        else:
            self._oldest_pending_at = self._oldest_pending_at if self.pending_observations else time.monotonic()
            self.pending_observations[slot] = content
        return True

    def seconds_until_batch(self, busy_workers: int) -> float | None:
        """Return in how many seconds the open questions should be sent, 0 for now, None for not before news.

        `busy_workers`: how many workers are in an episode. They are gathered for no longer than a decision takes: then
        deciding twice is no slower than waiting.
        """
        if not self.pending_observations or self.max_batch_size is None or self.awaiting_slots:
            return None
        if len(self.pending_observations) >= min(self.max_batch_size, busy_workers):
            return 0.0
        return max(0.0, self._oldest_pending_at + self._inference_seconds - time.monotonic())

    def send_batch(self, episode_seconds: float) -> None:
        """Send as many open questions as are decided at once, the oldest first."""
        slots = list(self.pending_observations)[: self.max_batch_size]
        self._sent_at = time.monotonic()
        self.deadline = self._sent_at + episode_seconds
        self.awaiting_slots.update(slots)
        self._send(("decide", {slot: self.pending_observations.pop(slot) for slot in slots}))
        self._oldest_pending_at = self._sent_at

    def answered(self, answers: list[tuple[int, Any]]) -> None:
        """Note that answers have come."""
        self.awaiting_slots.difference_update(slot for slot, _ in answers)
        if not self.awaiting_slots:
            self.deadline = float("inf")
        self._inference_seconds = time.monotonic() - self._sent_at

    def drop_slot(self, slot: int) -> None:
        """Drop a slot whose worker is gone; what is still being decided for it will be of no use to anybody."""
        self.pending_observations.pop(slot, None)
        self.started_slots.discard(slot)

    def _send(self, message: tuple[str, Any]) -> None:
        with suppress(OSError):  # It died: its closed connection is heard next.
            self.connection.send(message)
