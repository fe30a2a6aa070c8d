"""A thread that runs functions for an event loop, which meanwhile keeps answering."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any


class WorkerThread:
    """Runs functions in order in one thread.

    It is always the same thread, because a policy's state may be bound to the thread that created it. It never keeps
    the process alive: a function that hangs is abandoned when the process ends.
    """

    def __init__(self, name: str) -> None:
        self._tasks: queue.SimpleQueue[tuple[asyncio.Future, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], Any]) -> asyncio.Future:
        """Queue a function; return a future of the running event loop for its result."""
        future = asyncio.get_running_loop().create_future()
        self._tasks.put((future, function))
        return future

    def close(self, seconds: float) -> None:
        """End the thread after the queued functions, but wait for it no longer than `seconds`."""
        self._tasks.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, function = task
            # The caller does not wait for it any more.
            if future.cancelled():
                continue
            try:
                outcome, failure = function(), None
            except BaseException as error:
                outcome, failure = None, error
            # An event loop that has ended accepts no results.
            with contextlib.suppress(RuntimeError):
                future.get_loop().call_soon_threadsafe(_set_outcome, future, outcome, failure)


def _set_outcome(future: asyncio.Future, outcome: Any, failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(outcome)
    else:
        future.set_exception(failure)
