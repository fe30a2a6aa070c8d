"""One policy for all workers, in a separate process that decides for several episodes in one batch.

A worker's actor sends its observation through the worker's connection. The parent, which holds all connections,
gathers the observations into batches and forwards them. So a GPU holds one policy for any number of workers.
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
    """A policy that decides for several episodes at once. Each episode has a slot: the number of its worker.

    Attributes:
        max_batch_size: Most observations in one batch.
    """

    max_batch_size: int

    def begin(self, slot: int, instruction: str, seed: int) -> None:
        """Start an episode: forget the slot's last one."""

    def decide(self, observations: Mapping[int, Mapping[str, Any]]) -> tuple[dict[int, np.ndarray], float]:
        """Return each slot's next actions [T, A], and how many seconds the decision took."""
        ...

    def overlay(self, slot: int) -> Overlay | None:
        """Return the visual tokens of the slot's last decision."""
        ...


@dataclass(frozen=True)
class SharedPolicyFactory:
    """Replaces an actor factory: all workers share the policy that `make_policy` builds in its own process."""

    make_policy: Callable[[], BatchedPolicy]


class RemoteActor:
    """An actor whose decisions are made by the process at the other end of a connection."""

    def __init__(self, connection: Connection) -> None:
        self.decision_seconds: list[float] = []
        self._connection = connection
        self._queue: list[np.ndarray] = []
        self._overlay: Overlay | None = None
        self._overlay_fetched = True

    @property
    def pending(self) -> int:
        """Number of actions that are decided already."""
        return len(self._queue)

    def reset(self, instruction: str, seed: int) -> None:
        """Start an episode."""
        self._queue, self.decision_seconds, self._overlay, self._overlay_fetched = [], [], None, True
        self._connection.send(("ask", "begin", (instruction, seed)))

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the next action [A]; asks the policy's process when the last chunk is used up."""
        if not self._queue:
            actions, seconds = self._request("decide", observation)
            self._queue, self._overlay_fetched = list(actions), False
            self.decision_seconds.append(seconds)
        return self._queue.pop(0)

    def overlay(self) -> Overlay | None:
        """Return the visual tokens of the last decision."""
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
    """Answer requests from a connection with a policy, until the connection closes.

    Sends ("ready", max_batch_size), then lists of (slot, answer), and `refused_message` or ("broken", traceback) before
    it ends. It ends at the first error, because the policy's memory of the episodes may then be wrong.

    Args:
        connection: This process's end of the pipe to `LocalPool`.
        make_policy: Builds the policy.
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
        pass  # The parent has ended.
    except Exception:
        with suppress(OSError):
            connection.send(("broken", traceback.format_exc()))


@dataclass
class PolicyProcess:
    """The parent's view of the policy's process: which slots wait for an answer, and until when.

    Attributes:
        process: The process.
        connection: The parent's end of the pipe.
        deadline: Time by which the process must have answered.
        max_batch_size: Most observations in one batch; None until the process is ready.
        pending_observations: Observations that are not sent yet, by slot.
        awaiting_slots: Slots that wait for an answer.
        started_slots: Slots whose episode started in this process.
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
        """Accept a slot's request; return False if its episode started in an earlier process."""
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
        """Return in how many seconds the pending observations should be sent: 0 for now, None to wait for messages.

        They are gathered for no longer than a decision takes: after that, two decisions are no slower than waiting.

        Args:
            busy_workers: Number of workers that run an episode.
        """
        if not self.pending_observations or self.max_batch_size is None or self.awaiting_slots:
            return None
        if len(self.pending_observations) >= min(self.max_batch_size, busy_workers):
            return 0.0
        return max(0.0, self._oldest_pending_at + self._inference_seconds - time.monotonic())

    def send_batch(self, episode_seconds: float) -> None:
        """Send up to `max_batch_size` pending observations, the oldest first."""
        slots = list(self.pending_observations)[: self.max_batch_size]
        self._sent_at = time.monotonic()
        self.deadline = self._sent_at + episode_seconds
        self.awaiting_slots.update(slots)
        self._send(("decide", {slot: self.pending_observations.pop(slot) for slot in slots}))
        self._oldest_pending_at = self._sent_at

    def record_answers(self, answers: list[tuple[int, Any]]) -> None:
        """Record that the process answered."""
        self.awaiting_slots.difference_update(slot for slot, _ in answers)
        if not self.awaiting_slots:
            self.deadline = float("inf")
        self._inference_seconds = time.monotonic() - self._sent_at

    def drop_slot(self, slot: int) -> None:
        """Drop a slot whose worker has ended; a later answer for it is ignored."""
        self.pending_observations.pop(slot, None)
        self.started_slots.discard(slot)

    def _send(self, message: tuple[str, Any]) -> None:
        with suppress(OSError):  # It died: the next poll sees the closed connection.
            self.connection.send(message)
