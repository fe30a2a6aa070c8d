"""One thread that does one thing after the other for an event loop, which goes on answering meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any


class WorkerThread:
    """Runs functions in a thread of its own, in the order in which they were given.

    Always the same thread, for what a policy holds may belong to the thread that made it. It never keeps the process
    alive: a function that hangs is left behind when the process ends.
    """

    def __init__(self, name: str) -> None:
        self._tasks: queue.SimpleQueue[tuple[asyncio.Future, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], Any]) -> asyncio.Future:
        """Return a future of the running event loop with what the function returns or raises."""
        future = asyncio.get_running_loop().create_future()
        self._tasks.put((future, function))
        return future

    def close(self, seconds: float) -> None:
        """End the thread after what it was given, but wait no longer than this for it."""
        self._tasks.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, function = task
            # Nobody waits for it any more.
            if future.cancelled():
                continue
            try:
                outcome, failure = function(), None
            except BaseException as error:
                outcome, failure = None, error
            # A loop that has ended takes no results.
            with contextlib.suppress(RuntimeError):
                future.get_loop().call_soon_threadsafe(_set_outcome, future, outcome, failure)


def _set_outcome(future: asyncio.Future, outcome: Any, failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(outcome)
    else:
        future.set_exception(failure)
