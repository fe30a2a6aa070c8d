"""The action queue: which step is due at which time, and how overlapping chunks are combined."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import InputError
from saccade.robot.governor.action_queue import ActionQueue
from saccade.robot.governor.chunk import ActionChunk

PERIOD = 0.1


def chunk_of(first: float, *, observed: float, length: int = 4, sequence: int = 0) -> ActionChunk:
    actions = first + np.arange(length, dtype=np.float64)[:, None]
    return ActionChunk("here", 0, sequence, observed, PERIOD, actions)


def due(queue: ActionQueue, now: float) -> float | None:
    """Return the first joint's action that is due; None if there is none."""
    step = queue.step(now)
    return None if step is None else float(step.action[0])


def test_a_step_is_due_only_within_its_time_window():
    queue = ActionQueue()
    assert queue.put(chunk_of(0, observed=10.0), now=10.0) == 4
    assert due(queue, 9.99) is None
    assert [due(queue, 10.05 + 0.1 * step) for step in range(4)] == [0, 1, 2, 3]
    assert due(queue, 10.41) is None
    assert queue.remaining(10.25) == 2


def test_steps_already_past_on_arrival_are_dropped():
    queue = ActionQueue()
    assert queue.put(chunk_of(0, observed=10.0), now=10.25) == 2
    assert due(queue, 10.25) == 2
    assert queue.put(chunk_of(0, observed=9.0), now=10.25) == 0


def test_steps_from_an_old_observation_are_not_due():
    queue = ActionQueue(age_limit=0.25)
    queue.put(chunk_of(0, observed=10.0), now=10.0)
    assert due(queue, 10.24) == 2
    assert due(queue, 10.26) is None
    assert queue.remaining(10.0) == 3


@pytest.mark.parametrize(
    ("aggregation", "expected", "added"),
    [
        ("latest", [100, 101, 102, 103, None], 4),
        ("average", [51, 52, 102, 103, None], 4),
        ("weighted", [70.6, 71.6, 102, 103, None], 4),
        ("keep", [2, 3, 102, 103, None], 2),
    ],
)
def test_each_aggregation_combines_overlapping_chunks(aggregation, expected, added):
    queue = ActionQueue(aggregation)
    queue.put(chunk_of(0, observed=10.0), now=10.0)
    assert queue.put(chunk_of(100, observed=10.2, sequence=1), now=10.21) == added
    found = [due(queue, 10.25 + 0.1 * step) for step in range(5)]
    assert found == [None if each is None else pytest.approx(each) for each in expected]


def test_keep_leaves_no_gap_before_the_new_chunk():
    queue = ActionQueue("keep", age_limit=10.0)
    queue.put(chunk_of(0, observed=10.0), now=10.0)
    queue.put(chunk_of(100, observed=10.25, sequence=1), now=10.26)
    moments = np.arange(10.26, 10.549, 0.01)
    assert all(due(queue, moment) is not None for moment in moments)
    assert due(queue, 10.41) == 101


def test_drop_empties_the_queue():
    queue = ActionQueue()
    queue.put(chunk_of(0, observed=10.0), now=10.0)
    assert [due(queue, 10.15 + 0.1 * step) for step in range(3)] == [1, 2, 3]
    queue.drop()
    assert due(queue, 10.05) is None
    assert queue.remaining(10.0) == 0


def test_invalid_aggregation_and_age_limit_are_refused():
    with pytest.raises(InputError, match="Did you mean 'weighted'"):
        ActionQueue("weigthed")
    with pytest.raises(InputError, match="age_limit"):
        ActionQueue(age_limit=0.0)


@given(
    st.sampled_from(["latest", "average", "weighted", "keep"]),
    st.lists(st.tuples(st.floats(0, 2), st.floats(0, 0.5)), max_size=8),
)
def test_queue_holds_at_most_one_chunk_and_gives_no_old_step(aggregation, arrivals):
    queue, now = ActionQueue(aggregation, age_limit=0.3), 10.0
    for sequence, (wait, age) in enumerate(arrivals):
        now += wait
        queue.put(chunk_of(0, observed=now - age, sequence=sequence), now)
        assert queue.remaining(now) <= 4
        step = queue.step(now)
        if step is not None:
            assert step.start <= now < step.end
            assert now - step.observed <= 0.3
