"""Properties of the governor for random calls: commands stay within limits and speeds, and none moves after a stop."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.robot.governor.governor import Governor
from saccade_testing.stand_in import TICK, make_chunk, make_rules

NUMBERS = st.one_of(
    st.floats(-120, 120), st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([1e300, -1e300, 0.0])
)
POSES = st.lists(st.floats(-90, 90), min_size=3, max_size=3).map(np.array)
TARGETS = st.one_of(
    st.lists(NUMBERS, min_size=3, max_size=3).map(np.array),
    st.tuples(POSES, st.lists(st.floats(-20, 20), min_size=3, max_size=3)).map(
        lambda pair: pair[0] + np.outer(np.arange(16), pair[1])
    ),
)
ACTIONS = st.one_of(
    st.tuples(st.just("chunk"), TARGETS, st.floats(-0.2, 0.8)),
    st.tuples(st.just("tick"), st.integers(1, 12), st.floats(0.2, 3.0)),
    st.tuples(st.just("blind"), st.integers(1, 5), st.just(1.0)),
    st.tuples(st.just("late"), st.integers(1, 5), st.just(1.0)),
    st.tuples(st.sampled_from(["stop", "rearm", "drop", "hold", "end", "begin"]), st.just(0), st.just(0.0)),
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["refuse", "ramp"]),
    st.sampled_from(["latest", "average", "weighted", "keep"]),
    POSES,
    st.lists(ACTIONS, max_size=40),
    st.floats(0.0, 1.0),
)
def test_commands_stay_within_the_limits_for_random_calls(start, aggregation, pose, actions, follows):
    rules = make_rules(start=start, aggregation=aggregation)
    governor = Governor(rules)
    low, high, speed = (np.array(getattr(rules.limits, name)) for name in ("low", "high", "speed"))
    now, sequence, pose = 100.0, 0, np.clip(pose, low, high)
    last: np.ndarray | None = None
    poses = [pose]
    governor.begin(0, pose, now)
    for kind, value, number in actions:
        if kind == "chunk":
            sequence += 1
            governor.submit(make_chunk(value, observed=now - number, sequence=sequence), now)
        elif kind in ("tick", "blind", "late"):
            for _ in range(value):
                now += TICK * number
                measured = None if kind == "blind" else pose
                command = governor.tick(now, measured, measured_at=now, overran=kind == "late")
                target = command.target
                if measured is not None:
                    poses.append(pose)
                assert np.isfinite(target).all()
                assert np.all((low <= target) & (target <= high))
                if last is not None and not np.array_equal(target, last):
                    moved = np.abs(target - last) <= speed * TICK * (1 + 1e-9)
                    # A hold jumps to a measured pose: that ends motion and begins none.
                    held = any(np.array_equal(target, np.clip(each, low, high)) for each in poses[-8:])
                    assert np.all(moved) or held
                    if command.state in ("stopped", "holding", "idle", "ready"):
                        assert held
                last = target
                pose = pose + follows * (target - pose)
        elif kind == "begin":
            governor.begin(0, pose, now)
        elif kind == "stop":
            governor.stop("stop requested", now)
        elif kind == "hold":
            governor.hold("camera", "frozen", now)
        else:
            getattr(governor, kind)(now)


@settings(max_examples=100, deadline=None)
@given(POSES, st.lists(st.tuples(TARGETS, st.integers(0, 6)), max_size=20))
def test_only_the_held_pose_is_commanded_after_a_stop(pose, chunks):
    rules = make_rules(start="ramp")
    governor = Governor(rules)
    pose = np.clip(pose, rules.limits.low, rules.limits.high)
    governor.begin(0, pose, 100.0)
    governor.submit(make_chunk(pose, observed=100.0, sequence=1), 100.0)
    now = 100.0 + TICK
    governor.tick(now, pose, measured_at=now)
    governor.stop("stop requested", now)
    held = None
    for sequence, (target, ticks) in enumerate(chunks, start=2):
        governor.submit(make_chunk(target, observed=now, sequence=sequence), now)
        for _ in range(ticks):
            now += TICK
            command = governor.tick(now, pose + 1.0, measured_at=now)
            assert command.state == "stopped"
            assert held is None or np.array_equal(command.target, held)
            held = command.target
