"""The frames of a step, and the thread that loads them."""

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.training.batches import frame_order, prefetch
from saccade.training.configuration import LoopConfig


def order(frames, ranks=1, rank=0, start=0, **options):
    config = LoopConfig(**{"steps": 12, "batch_size": 3} | options)
    return [step.tolist() for step in frame_order(np.arange(frames), config, start, rank, ranks)]


@settings(max_examples=30, deadline=None)
@given(frames=st.integers(12, 60), ranks=st.integers(1, 4), seed=st.integers(0, 9))
def test_ranks_see_disjoint_frames_and_an_epoch_no_frame_twice(frames, ranks, seed):
    by_rank = [order(frames, ranks, rank, seed=seed) for rank in range(ranks)]
    per_epoch = frames // (3 * ranks)
    assert all(len(steps) == 12 and all(len(step) == 3 for step in steps) for steps in by_rank)
    for first in range(0, 12, per_epoch):
        seen = [frame for steps in by_rank for step in steps[first : first + per_epoch] for frame in step]
        assert len(set(seen)) == len(seen)
        assert set(seen) <= set(range(frames))


@given(start=st.integers(0, 12))
def test_a_resumed_run_continues_with_the_same_frames(start):
    assert order(20, start=start) == order(20)[start:]


def test_epochs_and_seeds_differ():
    steps = order(12, seed=1)
    assert steps[:4] != steps[4:8]
    for epoch in (steps[:4], steps[4:8]):
        assert sorted(frame for step in epoch for frame in step) == list(range(12))
    assert steps != order(12, seed=2)


def test_epochs_leave_out_different_frames():
    steps = order(4, steps=40)
    assert {frame for step in steps for frame in step} == {0, 1, 2, 3}


def test_fewer_frames_than_a_step_are_repeated():
    for step in order(2, batch_size=5):
        assert len(step) == 5 and set(step) == {0, 1}


class Dataset:
    """Counts its batches."""

    def __init__(self, breaks_at=None):
        self.made, self.breaks_at = 0, breaks_at

    def batch(self, indices):
        if self.made == self.breaks_at:
            raise OSError("the disk is gone")
        self.made += 1
        return {"index": torch.as_tensor(indices)}


def threads():
    return set(threading.enumerate())


def test_batches_come_in_order_and_the_thread_ends():
    before = threads()
    steps = [np.arange(3) + step for step in range(7)]
    found = [batch["index"].tolist() for batch in prefetch(Dataset(), iter(steps), depth=2)]
    assert found == [step.tolist() for step in steps]
    assert threads() == before


def test_it_prefetches_only_a_few_batches_and_stops_when_closed():
    before, dataset = threads(), Dataset()
    batches = prefetch(dataset, iter([np.arange(3)] * 100), depth=2)
    next(batches)
    deadline = time.monotonic() + 5
    while dataset.made < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert dataset.made == 4  # one was taken, two are in the queue, one waits for a place
    batches.close()
    assert threads() == before


def test_an_error_of_the_thread_is_raised_after_the_batches_before_it():
    batches = prefetch(Dataset(breaks_at=2), iter([np.arange(3)] * 5))
    assert len([next(batches), next(batches)]) == 2
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
