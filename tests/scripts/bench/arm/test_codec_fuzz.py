"""Fuzzing of the codec: it agrees with a reference decoder, and finds faults of a naive one."""

import msgpack
import numpy as np
import pytest

from saccade.errors import InputError
from saccade.robot.remote.codec import CodecError, MessageLimits
from saccade.scripts.bench.arm import codec_fuzz
from saccade.scripts.bench.arm.codec_fuzz import broken_messages, reference_decode, valid_trees


def naive_array(fields):
    """Decode an array as msgpack-numpy does; raise an error where it would crash the process."""
    if fields.get(b"dtype") == "|O":
        raise RuntimeError("a crash")
    if b"__ndarray__" in fields:
        return np.frombuffer(fields[b"data"], dtype=fields[b"dtype"]).reshape(fields[b"shape"])
    return fields


def naive_decode(message, limits):
    try:
        return msgpack.unpackb(message, object_hook=naive_array, strict_map_key=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise CodecError("message", got=error, expected="another", fix="") from None


def test_codec_agrees_with_the_reference_decoder():
    done = []
    figures = codec_fuzz.fuzz_codec(20_000, seed=1, progress=done.append)
    assert figures.passed, figures.examples
    assert figures.inputs == 20_000 == sum(done)
    # Both verdicts occur: some messages are accepted, some refused.
    assert 1_000 < figures.accepted < 10_000


def test_fuzzing_finds_codec_faults(monkeypatch):
    monkeypatch.setattr(codec_fuzz, "decode", naive_decode)
    figures = codec_fuzz.fuzz_codec(3_000)
    assert figures.crashes > 10 and figures.wrongly_accepted > 100 and not figures.passed
    assert len(figures.examples) == codec_fuzz.MAX_EXAMPLES

    def refuse(message, limits):
        raise CodecError("message", got="a message", expected="another", fix="")

    monkeypatch.setattr(codec_fuzz, "decode", refuse)
    assert codec_fuzz.fuzz_codec(1_000).wrongly_refused > 50


def test_inputs_are_seeded_and_derive_from_valid_messages():
    assert list(broken_messages(200, 3)) == list(broken_messages(200, 3)) != list(broken_messages(200, 4))
    assert all(reference_decode(codec_fuzz._pack(tree), MessageLimits()) == tree for tree in valid_trees())


def test_zero_inputs_are_refused():
    with pytest.raises(InputError, match="inputs"):
        codec_fuzz.fuzz_codec(0)
