"""Decisions in a thread of their own, so that a decider that is slow, hangs or fails stops nothing but itself."""

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
    """What came of one call: `actions`, None for a reset, or the `error` that it raised; `label` is the asker's."""

    label: Any
    actions: np.ndarray | None
    error: BaseException | None
    seconds: float


class DecisionThread:
    """Make calls one after the other; at most one is under way, and nobody waits for it but by choice."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Any, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._decisions: queue.SimpleQueue[DecisionResult] = queue.SimpleQueue()
        self._pending_calls, self._busy_since = 0, 0.0
        # A daemon: a call that never returns must not keep the process.
        self._thread = threading.Thread(target=self._run, name="decisions", daemon=True)
        self._thread.start()

    @property
    def busy_seconds(self) -> float:
        """For how long the present call has been under way, 0 where there is none."""
        return time.monotonic() - self._busy_since if self._pending_calls else 0.0

    @property
    def is_busy(self) -> bool:
        return self._pending_calls > 0

    def submit(self, label: Any, call: Callable[[], Any]) -> None:
        """Let a call be made, after those that were asked for before; `take` gives what comes of each."""
        if self._pending_calls == 0:
            self._busy_since = time.monotonic()
        self._pending_calls += 1
        self._calls.put((label, call))

    def take(self) -> DecisionResult | None:
        """Return what came of the oldest call, None while it is under way or where there was none."""
        try:
            decision = self._decisions.get_nowait()
        except queue.Empty:
            return None
        self._pending_calls -= 1
        self._busy_since = time.monotonic()
        return decision

    def close(self) -> None:
        """Let the thread end after the present call."""
        self._calls.put(None)

    def _run(self) -> None:
        while (request := self._calls.get()) is not None:
            label, call = request
            started, actions, error = time.monotonic(), None, None
            try:
                actions = call()
            except BaseException as raised:
                # It is raised again where the session can hold the arm.
                error = raised
            self._decisions.put(DecisionResult(label, actions, error, time.monotonic() - started))
