"""The channel: messages arrive complete or not at all, sending never blocks, and malformed bytes close it."""

import json
from pathlib import Path

import numpy as np
import pytest

from saccade.robot.arm import ArmDescription
from saccade.robot.control import messages
from saccade.robot.control.channel import (
    MAX_UNSENT_BYTES,
    Channel,
    ChannelClosed,
    decode_message,
    encode_message,
)
from saccade.robot.control.loop_metrics import LoopMetrics
from saccade.robot.governor.outputs import Event, GovernorVerdict
from saccade_testing.stand_in import RANGES, make_chunk, make_rules

VERDICT = GovernorVerdict(False, "age", "0.600 s old")
EVENTS = (Event("holding", "starved: nothing is left", 100.5), Event("moving", "", 101.0))
METRICS = LoopMetrics(50.0, 9, 1, 0.1, 20.0, None, 0.5, 1.0, None, 3.0, *range(7), {"bus": 2}, {})
MESSAGES = [
    messages.StartGovernor(make_rules(), Path("flight.jsonl")),
    messages.StartGovernor(make_rules(start="ramp"), None),
    messages.BeginEpisode(3),
    messages.EndEpisode(True),
    messages.ReportFault("dtype", "actions of type object"),
    messages.Heartbeat(),
    messages.StopArm("stop button"),
    messages.HoldArm("camera_age", "ä"),
    messages.DropQueue(),
    messages.RearmArm(),
    messages.CloseSession(False),
    messages.ArmConnected(ArmDescription("fake", RANGES)),
    messages.GovernorStarted(),
    messages.EpisodeBegun(VERDICT),
    messages.EpisodeEnded(),
    messages.ArmRearmed(GovernorVerdict(True)),
    messages.ChunkChecked(7, VERDICT),
    messages.EventsReported(EVENTS),
    messages.LoopEnded(METRICS),
    messages.InputRefused("servo 3", "no answer", "an sts3215", "Check its cable."),
    messages.ControlFailed("the bus is gone"),
]


@pytest.fixture
def channels():
    sender, receiver = (Channel(end) for end in Channel.pair())
    yield sender, receiver
    sender.close()
    receiver.close()


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_survive_the_round_trip(channels, message):
    sender, receiver = channels
    sender.send(message)
    assert receiver.receive() == [message]


@pytest.mark.parametrize("joints", [np.array([0.1, -2.5e-17, 3.0]), None])
def test_measurement_arrives_bit_for_bit(channels, joints):
    sender, receiver = channels
    sender.send(messages.Measurement(100.1, joints, HOME := np.arange(3.0), "moving", "", 4, 2, EVENTS))
    (got,) = receiver.receive()
    assert isinstance(got, messages.Measurement)
    assert (got.time, got.state, got.remaining, got.sequence, got.events) == (100.1, "moving", 4, 2, EVENTS)
    assert np.array_equal(got.target, HOME) and got.target.dtype == np.float64
    assert got.joints is None if joints is None else np.array_equal(got.joints, joints)


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i8", "|u1", "|b1"])
def test_chunk_keeps_its_dtype_and_shape(channels, dtype):
    sender, receiver = channels
    chunk = make_chunk(np.arange(6).reshape(2, 3), observed=0.1, sequence=5)
    sent = type(chunk)(**chunk.header(), actions=chunk.actions.astype(dtype))
    sender.send(messages.SubmitChunk(sent))
    sender.send(messages.Heartbeat())
    first, second = receiver.receive()
    assert isinstance(first, messages.SubmitChunk) and second == messages.Heartbeat()
    assert first.chunk.header() == sent.header()
    assert first.chunk.actions.dtype == np.dtype(dtype)
    assert np.array_equal(first.chunk.actions, sent.actions)
    first.chunk.actions[:] = 0  # the array is a writable copy
    assert receiver.receive() == []
    assert receiver.close_reason is None


def test_every_message_type_is_tested():
    tested = {type(message) for message in MESSAGES} | {messages.Measurement, messages.SubmitChunk}
    assert tested == set(messages.Message.__args__)


def test_incomplete_message_is_not_delivered():
    ours, theirs = Channel.pair()
    channel = Channel(ours)
    theirs.send((1000).to_bytes(4, "little") + b'["SubmitCh')
    assert channel.receive() == []
    assert channel.close_reason is None
    theirs.close()
    assert channel.receive() == []
    assert channel.close_reason == "closed"


def test_slow_reader_does_not_block_the_sender(channels):
    sender, receiver = channels
    line = messages.HoldArm("padding", "x" * 10_000)
    for _ in range(1000):
        sender.send(line, may_drop=True)
    assert len(sender._unsent) <= MAX_UNSENT_BYTES + 20_000
    assert len(receiver.receive()) > 1


def test_closed_end_is_reported(channels):
    sender, receiver = channels
    sender.send(messages.ControlFailed("the last message"))
    sender.close()
    assert receiver.receive() == [messages.ControlFailed("the last message")]
    assert receiver.close_reason is not None
    with pytest.raises(ChannelClosed):
        for _ in range(3):
            receiver.send(messages.Heartbeat())


def framed(encoded: bytes) -> bytes:
    return len(encoded).to_bytes(4, "little") + encoded


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff\xff\xff" + b"GET / HTTP/1.1",
        framed(b"no JSON\n"),
        framed(b"[" * 100_000),
        framed(b'{"kind": "beat"}\n'),
        framed(b'["Unknown", {}]\n'),
        framed(b'["BeginEpisode", {}]\n'),
        framed(b'["BeginEpisode", {"episode": "0"}]\n'),
        framed(b'["BeginEpisode", {"episode": true}]\n'),
        framed(b'["BeginEpisode", {"episode": 0, "more": 1}]\n'),
        framed(b'["StopArm", {"reason": null}]\n'),
        framed(b'["StartGovernor", {"rules": {}, "record": null}]\n'),
    ],
)
def test_malformed_message_closes_the_channel_after_the_valid_ones(sent):
    ours, theirs = Channel.pair()
    channel = Channel(ours)
    theirs.send(framed(encode_message(messages.Heartbeat())) + sent)
    theirs.send(framed(encode_message(messages.DropQueue())))
    assert channel.receive() == [messages.Heartbeat()]
    assert channel.close_reason == "it does not speak our messages"
    assert channel.receive() == []


@pytest.mark.parametrize(
    "change",
    [{"dtype": "|O"}, {"dtype": "<c16"}, {"dtype": "none"}, {"shape": [2, 4]}, {"period": "0.1"}, {"sequence": 0.5}],
)
def test_malformed_chunk_is_refused(change):
    encoded = encode_message(messages.SubmitChunk(make_chunk(np.zeros((2, 3)), observed=0.1)))
    header, _, payload = encoded.partition(b"\n")
    name, fields = json.loads(header)
    with pytest.raises(ValueError, match="no message"):
        decode_message(json.dumps([name, {**fields, **change}]).encode() + b"\n" + payload)


def test_object_arrays_are_not_sent(channels):
    chunk = make_chunk(np.zeros((2, 3)), observed=0.1)
    with pytest.raises(TypeError, match="object"):
        channels[0].send(messages.SubmitChunk(type(chunk)(**chunk.header(), actions=np.array([None]))))
