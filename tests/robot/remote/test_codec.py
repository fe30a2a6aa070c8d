"""The codec of the policy server: exact round trips, and refusals of invalid messages."""

import math
import struct

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from saccade.errors import InputError
from saccade.robot.remote.codec import DTYPES, CodecError, MessageLimits, decode, encode

NUMBERS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False).filter(math.isfinite)
)
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda name: hnp.arrays(
        np.dtype(name),
        hnp.array_shapes(min_dims=0, max_dims=4, max_side=4),
        elements={"allow_nan": False, "allow_infinity": False} if np.dtype(name).kind == "f" else None,
    )
)
SCALARS = ARRAYS.map(lambda array: array.reshape(-1)[0])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.one_of(NUMBERS, TEXTS, ARRAYS, SCALARS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)
MESSAGES = st.dictionaries(TEXTS, VALUES, max_size=5)


def is_equal(one, other):
    if isinstance(one, np.ndarray | np.generic):
        return (
            type(one) is type(other) and one.dtype == other.dtype and one.shape == other.shape and (one == other).all()
        )
    if isinstance(one, dict):
        return type(other) is dict and list(one) == list(other) and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return type(other) is list and len(one) == len(other) and all(map(is_equal, one, other))
    return type(one) is type(other) and one == other


def array_map(**changes):
    """Return the bytes of {"x": array}, written as msgpack-numpy does, with parts of the array's map replaced."""
    parts = {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": [2]} | changes
    return msgpack.packb({"x": {key.encode(): value for key, value in parts.items() if value is not ...}})


def scalar_map(data, dtype, mark=True):
    return msgpack.packb({"x": {b"__npgeneric__": mark, b"data": data, b"dtype": dtype}})


@settings(max_examples=150, deadline=None)
@given(MESSAGES)
def test_values_survive_the_round_trip(message):
    assert is_equal(message, decode(encode(message)))


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=80), st.tuples(MESSAGES.map(encode), st.integers(0, 400), st.binary(max_size=4))))
def test_random_bytes_are_decoded_or_raise_codec_error(data):
    if isinstance(data, tuple):
        message, place, patch = data
        data = message[:place] + patch + message[place + len(patch) :]
    try:
        value = decode(data)
    except CodecError as error:
        assert len(str(error)) < 400
    else:
        # An accepted message can be encoded again.
        assert is_equal(value, decode(encode(value)))


def test_decoded_arrays_are_writable_copies():
    message = encode({"x": np.arange(6, dtype=np.float32).reshape(2, 3)})
    first = decode(message)["x"]
    first[:] = 7
    assert first.base is None and decode(message)["x"][1, 2] == 5


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (array_map(dtype="|O"), "dtype"),
        (array_map(dtype="|V8", shape=[1]), "dtype"),
        (array_map(dtype="<M8[s]", shape=[1]), "dtype"),
        (array_map(dtype=">f4"), "dtype"),
        (array_map(dtype="<c8", shape=[1]), "dtype"),
        (array_map(dtype=[["a", "<f4"]]), "dtype"),
        (array_map(shape=[3]), "data"),
        (array_map(shape=[2, 2**62, 4]), "data"),
        (array_map(shape=[-1]), "shape"),
        (array_map(shape=[0]), "shape"),
        (array_map(shape=[True, 2]), "shape"),
        (array_map(shape=[2.0]), "shape"),
        (array_map(shape=2), "shape"),
        (array_map(shape=[1] * 8 + [2]), "shape"),
        (array_map(data="text of 8"), "data"),
        (array_map(data=struct.pack("<2f", 1, math.nan)), "not finite"),
        (array_map(data=struct.pack("<2f", math.inf, 0)), "not finite"),
        (array_map(dtype="|b1", data=b"\x01\x02"), "bools"),
        (array_map(__ndarray__=False), "mark"),
        (array_map(__ndarray__=1), "mark"),
        (array_map(shape=...), "key"),
        (scalar_map(math.nan, "<f8"), "finite"),
        (scalar_map(1e300, "<f4"), "scalar"),
        (scalar_map(256, "|u1"), "scalar"),
        (scalar_map(-1, "<u8"), "scalar"),
        (scalar_map(True, "<i4"), "scalar"),
        (scalar_map(1, "|b1"), "scalar"),
        (scalar_map("1", "<U1"), "dtype"),
        (scalar_map(1, "<i4", mark=False), "mark"),
        (msgpack.packb({"x": b"raw"}), "value"),
        (msgpack.packb({"x": math.inf}), "number"),
        (msgpack.packb({"x": msgpack.ExtType(5, b"abc")}), "value"),
        (msgpack.packb({"x": msgpack.Timestamp(1)}), "value"),
        (msgpack.packb({1: 2}), "key"),
        (msgpack.packb({b"x": 2}), "key"),
        (msgpack.packb([1, 2]), "the message"),
        (msgpack.packb({}) + b"\xc0", "behind its end"),
        (b"\x82\xa1a\x01\xa1a\x02", "twice"),
        (b"\x81\xa1\xff\x01", "UTF-8"),
        (b"\x81\xa1a\xc1", "0xc1"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "more values"),
        (b"\x81\xa1a\x9f", "all that it declares"),
        (b"\x81\xa1a\xdb\x7f\xff\xff\xff", "a text"),
        (b"\x81\xa1a" + b"\x91" * 5000 + b"\xc0", "deeper"),
        (b"\x81\xa1a" + b"\x81\xa1a" * 100 + b"\xc0", "deeper"),
        (b"", "all that it declares"),
    ],
)
def test_invalid_messages_are_refused_with_the_field_named(message, named):
    with pytest.raises(CodecError, match=named):
        decode(message)


def test_array_keys_may_have_any_order():
    message = msgpack.packb({"x": {b"shape": [2], b"dtype": "<f4", b"data": bytes(8), b"__ndarray__": True}})
    assert (decode(message)["x"] == np.zeros(2, np.float32)).all()


@pytest.mark.parametrize(
    ("limits", "within", "beyond"),
    [
        (MessageLimits(message=8), {"x": "abc"}, {"x": "abcdef"}),
        (MessageLimits(text=4), {"x": "éé"}, {"x": "ééé"}),
        (MessageLimits(values=6), {"x": [1, 2, 3, 4]}, {"x": [1, 2, 3, 4, 5]}),
        (MessageLimits(depth=3), {"x": [[1]]}, {"x": [[[1]]]}),
        (MessageLimits(depth=3), {"x": np.ones(2)}, {"x": [np.ones(2)]}),
        (MessageLimits(values=11), {"x": np.ones(1)}, {"x": np.ones((1, 1))}),
    ],
)
def test_limits_are_exact_for_encode_and_decode(limits, within, beyond):
    assert is_equal(decode(encode(within, limits), limits), within)
    with pytest.raises(CodecError):
        encode(beyond, limits)
    with pytest.raises(CodecError):
        decode(encode(beyond), limits)


@pytest.mark.parametrize(
    "value",
    [
        np.array([None]),
        np.array(["text"]),
        np.zeros(2, dtype=">f4"),
        np.zeros(2, dtype=np.complex64),
        np.zeros(0),
        np.array([1.0, math.nan]),
        np.float32(math.inf),
        np.zeros((1,) * 9),
        math.nan,
        2**64,
        b"raw",
        {1: 2},
        {"\ud800": 1},
        object(),
    ],
)
def test_values_that_cannot_be_decoded_are_not_encoded(value):
    with pytest.raises(CodecError):
        encode({"x": value})


@pytest.mark.parametrize("message", ["text", bytearray(b"\x80"), None])
def test_only_bytes_are_decoded(message):
    with pytest.raises(CodecError, match="binary frame"):
        decode(message)


def test_invalid_limits_are_refused():
    with pytest.raises(InputError, match="Limits.depth"):
        MessageLimits(depth=500)
