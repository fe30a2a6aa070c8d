"""The frames of every step, and a thread that loads their batches ahead of time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch

from .configuration import LoopConfig
from .dataset import DemonstrationDataset


def frame_order(frames: np.ndarray, config: LoopConfig, start: int, rank: int, ranks: int) -> Iterator[np.ndarray]:
    """Yield the frames of every step, from step `start` on, for one of several ranks.

    Every epoch is a new permutation of `frames`, cut into steps, and each step into ranks. A tail that is too short for
    a step is left out of its epoch; other epochs leave out other frames. If `frames` has fewer frames than one step of
    all ranks needs, they are repeated: only then do two ranks get the same frame.

    Args:
        frames: Indices of the frames to train on, int64 [n].
        config: Batch size, run length, number of steps and seed.
        start: First step; more than 0 when a training is resumed.
        rank: Number of this process.
        ranks: Number of processes.

    Yields:
        int64 [batch_size / run]: with runs, the first frame of each run.
    """
    size = config.batch_size // config.run
    per_step = size * ranks
    per_epoch = max(1, len(frames) // per_step)
    epoch, order = -1, frames
    for step in range(start, config.steps):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = np.random.default_rng([config.seed, epoch]).permutation(frames)
            if len(order) < per_step:
                order = np.resize(order, per_step)
        first = (step % per_epoch) * per_step + rank * size
        yield order[first : first + size]


def prefetch(
    dataset: DemonstrationDataset, order: Iterator[np.ndarray], depth: int = 3
) -> Generator[dict[str, torch.Tensor]]:
    """Yield the batches of `order`, loaded by a thread that is up to `depth` batches ahead.

    Raises:
        BaseException: Whatever the thread raised while it loaded a batch.
    """
    batch_queue: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                batch_queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def produce_batches() -> None:
        try:
            for indices in order:
                if not put(dataset.batch(indices)):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=produce_batches, daemon=True)
    thread.start()
    try:
        while (item := batch_queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
