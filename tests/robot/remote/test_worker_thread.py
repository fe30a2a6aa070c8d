"""The worker thread: calls run in order, and errors reach the caller."""

import asyncio
import threading

import pytest

from saccade.robot.remote.worker_thread import WorkerThread

WAIT = 20.0


def test_worker_runs_calls_in_order_and_passes_errors_on():
    async def main():
        worker, done = WorkerThread("one"), []
        first = worker.submit(lambda: done.append(1))
        broken = worker.submit(lambda: 1 / 0)
        dropped = worker.submit(lambda: done.append(2))
        dropped.cancel()
        last = worker.submit(lambda: threading.current_thread().name)
        await first
        with pytest.raises(ZeroDivisionError):
            await broken
        assert await last == "one"
        worker.close(WAIT)
        return done

    assert asyncio.run(main())[:1] == [1]
