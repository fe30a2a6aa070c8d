"""Which frames make up each step, and a thread that has their batches ready."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .configuration import LoopConfig
from .dataset import DemonstrationDataset


def frame_order(frames: np.ndarray, config: LoopConfig, start: int, rank: int, ranks: int) -> Iterator[np.ndarray]:
    """Yield the frames of every step from `start` on, int64 [batch_size / run], for one rank of several.

    With runs these are the first of each. An epoch is a permutation of `frames` of its own, cut into steps and each
    step into ranks. The tail that is too
    short for a step is left out of that epoch; another epoch leaves out others. Fewer frames than one step of all ranks
    takes are repeated until they fill it: only then do ranks meet the same frame.
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
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the batches of an order, made by a thread that stays a little ahead; its errors are raised here."""
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
