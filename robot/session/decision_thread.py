"""The thread in which the policy decides, so that a policy that is slow, hangs or fails does not block the session."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class DecisionResult:
    """The result of one call.

    Attributes:
        label: The label that the call was submitted with.
        actions: What it returned, None for a reset.
        error: What it raised, None if it returned.
        seconds: How long it took.
    """

    label: Any
    actions: np.ndarray | None
    error: BaseException | None
    seconds: float


class DecisionThread:
    """Makes calls in order, one at a time, in its own thread; no method waits for them."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Any, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._decisions: queue.SimpleQueue[DecisionResult] = queue.SimpleQueue()
        self._pending_calls, self._busy_since = 0, 0.0
        # A daemon: a call that never returns must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="decisions", daemon=True)
        self._thread.start()

    @property
    def busy_seconds(self) -> float:
        """How long the present call has been running, 0 if there is none."""
        return time.monotonic() - self._busy_since if self._pending_calls else 0.0

    @property
    def is_busy(self) -> bool:
        """Whether a call is running or waits, or its result has not been taken."""
        return self._pending_calls > 0

    def submit(self, label: Any, call: Callable[[], Any]) -> None:
        """Queue a call; `take_result` returns its result under this label."""
        if self._pending_calls == 0:
            self._busy_since = time.monotonic()
        self._pending_calls += 1
        self._calls.put((label, call))

    def take_result(self) -> DecisionResult | None:
        """Return the result of the oldest call; None while it runs or if there is none."""
        try:
            decision = self._decisions.get_nowait()
        except queue.Empty:
            return None
        self._pending_calls -= 1
        self._busy_since = time.monotonic()
        return decision

    def close(self) -> None:
        """End the thread after the calls that were submitted."""
        self._calls.put(None)

    def _run(self) -> None:
        while (request := self._calls.get()) is not None:
            label, call = request
            started, actions, error = time.monotonic(), None, None
            try:
                actions = call()
            except BaseException as raised:
                # The session raises it again, after it has held the arm.
                error = raised
            self._decisions.put(DecisionResult(label, actions, error, time.monotonic() - started))
