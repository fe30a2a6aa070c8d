"""Fuzz the wire codec with malformed messages, against an independent reference decoder.

The reference parses a message with msgpack's C decoder and checks the tree against the definition in
`robot/remote/codec.py`, with `struct` and `math` where the codec uses numpy. A message is wrongly accepted if the codec
accepts what the definition does not allow, or reads another value from it, and wrongly refused if it rejects a valid
message.
"""

from __future__ import annotations

import math
import random
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np

from ....errors import InputError
from ....robot.remote.codec import MAX_DIMENSIONS, CodecError, MessageLimits, decode, encode

STRUCT_FORMATS = {
    "|b1": "?",
    "|i1": "b",
    "<i2": "h",
    "<i4": "i",
    "<i8": "q",
    "|u1": "B",
    "<u2": "H",
    "<u4": "I",
    "<u8": "Q",
    "<f2": "e",
    "<f4": "f",
    "<f8": "d",
}
"""The `struct` format of each dtype that a message may contain."""

SMALL_LIMITS = MessageLimits(message=1024, text=64, values=96, depth=6)
"""Limits that a mutation can reach, so that they are fuzzed as well."""

MAX_EXAMPLES = 5
PROGRESS_EVERY = 10_000


@dataclass
class FuzzMetrics:
    """Results of fuzzing; `examples` holds the first inputs with a wrong result, in hexadecimal."""

    inputs: int = 0
    accepted: int = 0
    crashes: int = 0
    wrongly_accepted: int = 0
    wrongly_refused: int = 0
    seconds: float = 0.0
    examples: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether codec and reference agreed on every input, and nothing crashed."""
        return self.crashes == self.wrongly_accepted == self.wrongly_refused == 0


def fuzz_codec(inputs: int = 1_000_000, seed: int = 0, progress: Callable[[int], object] | None = None) -> FuzzMetrics:
    """Decode malformed messages and count wrong results.

    A crash is any exception other than the codec's own error.

    Args:
        inputs: Number of messages.
        seed: Seed of the messages.
        progress: Called with the number of further messages done.

    Raises:
        InputError: Less than one input.
    """
    if inputs < 1:
        raise InputError("inputs", got=inputs, expected="1 or more", fix="Raise inputs; a million take a few minutes.")
    figures, started = FuzzMetrics(), time.monotonic()
    for message, limits in broken_messages(inputs, seed):
        check_message(message, limits, figures)
        if progress is not None and figures.inputs % PROGRESS_EVERY == 0:
            progress(PROGRESS_EVERY)
    figures.seconds = time.monotonic() - started
    return figures


def check_message(message: bytes, limits: MessageLimits, figures: FuzzMetrics) -> None:
    """Decode one message, compare with the reference, and count."""
    figures.inputs += 1
    expected = reference_decode(message, limits)
    problem = ""
    try:
        value = decode(message, limits)
    except CodecError:
        if expected is not None:
            problem = "wrongly_refused"
    # Any other exception is a crash, which fuzzing looks for.
    except Exception:
        problem = "crashes"
    else:
        figures.accepted += 1
        if expected is None or not _is_equal(value, expected):
            problem = "wrongly_accepted"
    if problem:
        setattr(figures, problem, getattr(figures, problem) + 1)
        if len(figures.examples) < MAX_EXAMPLES:
            figures.examples.append(f"{problem}: {message[:200].hex()}")


class _Pairs(list):
    """A map as msgpack reads it: its pairs in order, with repeated keys."""


def reference_decode(message: bytes, limits: MessageLimits) -> _Pairs | None:
    """Return the tree of a valid message, None for an invalid one."""
    if len(message) > limits.message:
        return None
    try:
        tree = msgpack.unpackb(message, raw=False, strict_map_key=True, use_list=True, object_pairs_hook=_Pairs)
    # msgpack's own errors are of these two families; it reports text that is no UTF-8 as a ValueError.
    except (msgpack.UnpackException, ValueError):
        return None
    if type(tree) is not _Pairs or _kind(tree) != "map":
        return None
    if _count(tree) > limits.values or _depth(tree) > limits.depth or not _is_allowed(tree, limits):
        return None
    return tree


def _kind(pairs: _Pairs) -> str:
    keys = [key for key, _ in pairs]
    if len(keys) == 4 and set(keys) == {b"__ndarray__", b"dtype", b"shape", b"data"}:
        return "array"
    if len(keys) == 3 and set(keys) == {b"__npgeneric__", b"dtype", b"data"}:
        return "scalar"
    return "map" if len(set(keys)) == len(keys) and all(type(key) is str for key in keys) else "wrong"


def _count(tree: Any) -> int:
    if type(tree) is _Pairs:
        return sum(2 + _count(key) + _count(value) for key, value in tree)
    return sum(1 + _count(item) for item in tree) if type(tree) is list else 0


def _depth(tree: Any) -> int:
    if type(tree) is _Pairs:
        return 1 + max((_depth(value) for _, value in tree), default=0)
    return 1 + max(map(_depth, tree), default=0) if type(tree) is list else 0


def _is_allowed(value: Any, limits: MessageLimits) -> bool:
    if value is None or type(value) in (bool, int):
        return True
    if type(value) is float:
        return math.isfinite(value)
    if type(value) is str:
        return len(value.encode()) <= limits.text
    if type(value) is list:
        return all(_is_allowed(item, limits) for item in value)
    if type(value) is not _Pairs:
        return False
    kind = _kind(value)
    if kind == "map":
        return all(_is_allowed(key, limits) and _is_allowed(item, limits) for key, item in value)
    if kind == "wrong":
        return False
    found = dict(value)
    form = STRUCT_FORMATS.get(found[b"dtype"]) if type(found[b"dtype"]) is str else None
    if form is None or len(found[b"dtype"]) > limits.text:
        return False
    return _array_allowed(found, form) if kind == "array" else _scalar_allowed(found, form)


def _array_allowed(found: dict[bytes, Any], form: str) -> bool:
    shape, data = found[b"shape"], found[b"data"]
    if found[b"__ndarray__"] is not True or type(data) is not bytes or type(shape) is not list:
        return False
    if len(shape) > MAX_DIMENSIONS or not all(type(side) is int and side > 0 for side in shape):
        return False
    count, left = divmod(len(data), struct.calcsize(f"<{form}"))
    if left or math.prod(shape) != count:
        return False
    if form == "?":
        return set(data) <= {0, 1}
    return form not in "efd" or all(map(math.isfinite, struct.unpack(f"<{count}{form}", data)))


def _scalar_allowed(found: dict[bytes, Any], form: str) -> bool:
    data = found[b"data"]
    kind = bool if form == "?" else float if form in "efd" else int
    if found[b"__npgeneric__"] is not True or type(data) is not kind:
        return False
    try:
        packed = struct.pack(f"<{form}", data)
    except (struct.error, OverflowError):
        return False
    return kind is not float or math.isfinite(struct.unpack(f"<{form}", packed)[0])


def _is_equal(value: Any, tree: Any) -> bool:
    """Return whether the codec's value equals the tree; arrays must own their memory."""
    if type(tree) is not _Pairs:
        if type(tree) is list:
            return type(value) is list and len(value) == len(tree) and all(map(_is_equal, value, tree))
        return type(value) is type(tree) and value == tree
    kind = _kind(tree)
    if kind == "map":
        return (
            type(value) is dict
            and list(value) == [key for key, _ in tree]
            and all(_is_equal(value[key], item) for key, item in tree)
        )
    found = dict(tree)
    if kind == "scalar":
        packed = struct.pack(f"<{STRUCT_FORMATS[found[b'dtype']]}", found[b"data"])
        return isinstance(value, np.generic) and value.dtype.str == found[b"dtype"] and value.tobytes() == packed
    return (
        type(value) is np.ndarray
        and value.base is None
        and value.dtype.str == found[b"dtype"]
        and list(value.shape) == found[b"shape"]
        and value.tobytes() == found[b"data"]
    )


def broken_messages(inputs: int, seed: int) -> Iterator[tuple[bytes, MessageLimits]]:
    """Yield messages, most of them malformed, each with the limits to decode it under; the seed determines all.

    Some are noise; the others are valid messages with one to five changes of bytes, or of parts before packing.
    """
    rng = random.Random(seed)
    trees = valid_trees()
    valid = [_pack(tree) for tree in trees]
    ordinary = MessageLimits()
    for _ in range(inputs):
        way = rng.random()
        if way < 0.05:
            message = rng.randbytes(rng.randrange(64))
        elif way < 0.55:
            message = rng.choice(valid)
            for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
                message = _change_bytes(message, valid, rng)
        else:
            tree = rng.choice(trees)
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                tree = _change_tree(tree, rng)
            message = _pack(tree)
            if way > 0.9:
                message = _change_bytes(message, valid, rng)
        yield message, SMALL_LIMITS if rng.random() < 0.3 else ordinary


def valid_trees() -> list[Any]:
    """Return the trees of messages as they are really sent: observations of both clients, replies, greetings."""
    numbers = np.random.default_rng(0)
    image = numbers.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    state, actions = (numbers.normal(size=size).astype(np.float32) for size in (6, (2, 6)))
    heading = {"session": "0123456789abcdef", "sequence": 7}
    every = {name: np.ones(2, dtype=name) for name in STRUCT_FORMATS}
    scalars = {name: np.dtype(name).type(1) for name in STRUCT_FORMATS}
    messages = [
        {"observation/front": image, "observation/state": state.astype(np.float64), "prompt": "pick it up"},
        {**heading, "request": "decide", "deadline": 0.25, "pixels": {"front": image}, "agent_pos": state},
        {**heading, "request": "reset", "deadline": 1.0, "instruction": "put the red cube in the bin"},
        {**heading, "actions": actions, "server_timing": {"infer_ms": 11.5, "total_ms": 12.5}},
        {
            **heading,
            "error": {"kind": "input", "what": "prompt", "got": "nothing", "expected": "text", "fix": "Add it."},
        },
        {"protocol": "saccade/1", "contract": "{}", "flags": [True, None, -3, 70000, 2**40], "ready": False},
        every,
        scalars,
    ]
    return [msgpack.unpackb(encode(message), raw=False, object_pairs_hook=_Pairs) for message in messages]


def _pack(tree: Any) -> bytes:
    return b"".join(_packed(tree))


def _packed(tree: Any) -> Iterator[bytes]:
    """Yield a tree's bytes; unlike a dictionary, pairs keep repeated keys and keys of any type."""
    if type(tree) is _Pairs:
        yield _PACKER.pack_map_header(len(tree))
        for key, value in tree:
            yield from _packed(key)
            yield from _packed(value)
    elif type(tree) is list:
        yield _PACKER.pack_array_header(len(tree))
        for item in tree:
            yield from _packed(item)
    else:
        yield _PACKER.pack(tree)


_PACKER = msgpack.Packer(use_bin_type=True)

_HEADS = bytes([*range(0xC0, 0xE0), 0x00, 0x7F, 0x80, 0x81, 0x83, 0x84, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xE0, 0xFF])
_LENGTHS = (0, 1, 2, 7, 8, 31, 32, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
_DTYPES = (
    *("|O", "|O8", "O", "|V8", "|S4", "<U4", "<M8[s]", "<m8[ns]", ">f4", ">i8", "<c8", "<c16", "<f16", "=f4", "f4"),
    *("float32", "i4,f4", "[('a','<f4')]", "", "|b1 ", "<f4\x00", "|i1", "|b1", "<f2", "<u8", b"<f4", 7, None),
)
_SIDES = (0, 1, 2, 3, -1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 1.0, True, None, "2", b"2", [1])
_VALUES = (
    *(None, True, False, 0, -1, 255, 256, -(2**63), 2**64 - 1, 1.5, 1e300, math.nan, math.inf, -math.inf, 65520.0),
    *("", "x", "é" * 20, "x" * 70, b"", b"raw", b"\x00" * 8, msgpack.ExtType(5, b"abc"), msgpack.Timestamp(1, 2)),
    *([], [[]], [0] * 40, _Pairs(), _Pairs([("a", 1), ("a", 2)]), _Pairs([(b"a", 1)]), _Pairs([(1, 2)])),
)
_KEYS = ("", "session", "error", b"data", b"dtype", b"__ndarray__", b"__npgeneric__", "__ndarray__", "k" * 70, 3, None)


def _change_bytes(message: bytes, valid: list[bytes], rng: random.Random) -> bytes:
    """Return a message with one change of its bytes, blind to its structure except for header bytes."""
    if not message:
        return rng.randbytes(3)
    place = rng.randrange(len(message))
    way = rng.randrange(8)
    if way == 0:
        return message[:place] + bytes([message[place] ^ (1 << rng.randrange(8))]) + message[place + 1 :]
    if way == 1:
        return message[:place] + bytes([rng.choice(_HEADS)]) + message[place + 1 :]
    if way == 2:
        return message[:place]
    if way == 3:
        return message[:place] + message[place + rng.randrange(1, 9) :]
    if way == 4:
        return message[:place] + rng.randbytes(rng.randrange(1, 9)) + message[place:]
    if way == 5:
        size = rng.choice((1, 2, 4))
        length = rng.choice(_LENGTHS) % (1 << 8 * size)
        return message[:place] + length.to_bytes(size, "big") + message[place + size :]
    if way == 6:
        other = rng.choice(valid)
        return message[:place] + other[rng.randrange(len(other)) :]
    return message + rng.choice((b"\xc0", b"\x00", b"\xc1", message[:4]))


def _change_tree(tree: Any, rng: random.Random) -> Any:
    """Return a copy of a tree with one change at a random place."""
    if type(tree) is _Pairs and tree:
        place = rng.randrange(len(tree))
        key, value = tree[place]
        changed = _Pairs(tree)
        # Descend often, so that arrays inside images inside observations are reached.
        if type(value) in (_Pairs, list) and rng.random() < 0.6:
            changed[place] = (key, _change_tree(value, rng))
        elif _kind(tree) == "array" and rng.random() < 0.7:
            changed[place] = (key, _change_array_part(key, value, rng))
        else:
            _change_pairs(changed, place, rng)
        return changed
    if type(tree) is list and tree:
        place = rng.randrange(len(tree))
        return [*tree[:place], rng.choice(_SIDES), *tree[place + rng.randrange(2) :]]
    return rng.choice(_VALUES)


def _change_array_part(key: bytes, value: Any, rng: random.Random) -> Any:
    if key == b"dtype":
        return rng.choice((*_DTYPES, *STRUCT_FORMATS))
    if key == b"shape" and type(value) is list:
        return rng.choice(
            ([], value[::-1], [*value, 1], [1, *value], [*value, rng.choice(_SIDES)], [1] * 9, [2**32] * 2)
        )
    if key == b"data" and type(value) is bytes:
        zeros, ones = bytes(len(value)), b"\xff" * len(value)
        return rng.choice((value[:-1], value + b"\x00", b"", zeros, ones, value * 2, value.hex(), [value]))
    return rng.choice((True, False, 1, *_VALUES))


def _change_pairs(pairs: _Pairs, place: int, rng: random.Random) -> None:
    """Change a map in place: another value or key, a pair removed, added or repeated, another order, more depth."""
    key, value = pairs[place]
    way = rng.randrange(8)
    if way in (0, 1):
        pairs[place] = (key, rng.choice(_VALUES))
    elif way == 2:
        pairs[place] = (rng.choice(_KEYS), value)
    elif way == 3:
        del pairs[place]
    elif way == 4:
        pairs.insert(place, (rng.choice(_KEYS), rng.choice(_VALUES)))
    elif way == 5:
        pairs.append(pairs[place])
    elif way == 6:
        rng.shuffle(pairs)
    else:
        for _ in range(rng.choice((1, 2, 5, 20, 120))):
            value = [value] if rng.random() < 0.5 else _Pairs([("k", value)])
        pairs[place] = (key, value)
