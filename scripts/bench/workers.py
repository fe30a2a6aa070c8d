"""Worker processes in which a benchmark simulates and renders."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from ...errors import WorldError


@contextmanager
def simulator_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Start worker processes that have one thread each and can render.

    Args:
        workers: Number of processes.

    Raises:
        WorldError: Nothing can be rendered here, or a worker process died.
    """
    from ...sim.evaluation.pool import single_thread_environment
    from ...sim.rendering import choose_backend

    choose_backend()
    spawn = multiprocessing.get_context("spawn")  # a renderer's context does not survive a fork
    try:
        with single_thread_environment(), ProcessPoolExecutor(workers, spawn, end_at_interrupt) as pool:
            yield pool
    except BrokenProcessPool as error:
        raise WorldError("a worker process died (out of memory, or killed): try again with fewer --workers") from error


def end_at_interrupt() -> None:
    """Let Ctrl-C end a worker process at once and without a traceback; runs in it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
