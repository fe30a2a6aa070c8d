"""Messages between processes: whole or not at all, and never waited for."""

import numpy as np
import pytest

from saccade.robot.control.channel import MAX_UNSENT_BYTES, Channel, ChannelClosed


@pytest.fixture
def ends():
    one, other = (Channel(end) for end in Channel.pair())
    yield one, other
    one.close()
    other.close()


def test_messages_and_arrays_arrive_whole_and_in_order(ends):
    one, other = ends
    actions = np.arange(6, dtype=np.float32).reshape(2, 3)
    one.send({"kind": "chunk", "observed": 0.1}, actions)
    one.send({"kind": "beat"})
    (first, array), (second, nothing) = other.receive()
    assert first == {"kind": "chunk", "observed": 0.1}
    assert array.dtype == np.float32
    assert np.array_equal(array, actions)
    assert (second, nothing) == ({"kind": "beat"}, None)
    assert other.receive() == []
    assert other.close_reason is None


def test_half_a_message_is_no_message_even_if_the_other_half_never_comes():
    ours, theirs = Channel.pair()
    channel = Channel(ours)
    theirs.send((1000).to_bytes(4, "little") + b'{"kind": "chu')
    assert channel.receive() == []
    assert channel.close_reason is None
    theirs.close()
    assert channel.receive() == []
    assert channel.close_reason == "closed"


def test_a_reader_that_does_not_read_blocks_nobody(ends):
    one, other = ends
    line = {"kind": "measurement", "padding": "x" * 10_000}
    for _ in range(1000):
        one.send(line, may_drop=True)
    assert len(one._unsent) <= MAX_UNSENT_BYTES + 20_000
    assert len(other.receive()) > 1


def test_a_closed_end_is_told(ends):
    one, other = ends
    one.send({"kind": "last words"})
    one.close()
    assert [message["kind"] for message, _ in other.receive()] == ["last words"]
    assert other.close_reason is not None
    with pytest.raises(ChannelClosed):
        for _ in range(3):
            other.send({"kind": "beat"})


def test_what_does_not_speak_our_messages_is_taken_for_gone():
    ours, theirs = Channel.pair()
    channel = Channel(ours)
    theirs.send(b"\xff\xff\xff\xff" + b"GET / HTTP/1.1")
    assert channel.receive() == []
    assert channel.close_reason == "it does not speak our messages"


def test_objects_are_not_sent(ends):
    with pytest.raises(TypeError, match="object"):
        ends[0].send({"kind": "chunk"}, np.array([None]))
