"""The codec of messages: msgpack with msgpack-numpy's arrays, as openpi's client writes them, read strictly.

Only this is accepted:

    message  one map, at most `MessageLimits.message` bytes, nothing behind it
    value    nil, bool, integer, finite float, text (valid UTF-8), list of values, map of text to values, array, scalar
    array    a map of exactly four binary keys: __ndarray__ true, dtype one of DTYPES, shape a list of 0 to 8 integers,
             each at least 1, data binary of exactly their product times the item's size; every number finite, every
             bool 0 or 1
    scalar   a map of exactly three binary keys: __npgeneric__ true, dtype one of DTYPES, data a bool, integer or float
             as the dtype is, that fits into it and is finite in it

No key is repeated in a map. Values and nesting levels are counted against the limits. There are no extension types and
no binary outside an array, hence no object arrays, structures or times. Every length is compared with the remaining
bytes before anything is allocated for it.

msgpack's own reader is not used for incoming messages: it allocates as many elements as a header declares, at each of
512 levels, and cannot limit the number of values.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgpack
import numpy as np

from ...errors import InputError

DTYPES = ("|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8")
"""Accepted dtypes, as numpy writes them; little-endian only."""

MAX_DIMENSIONS = 8
ARRAY_KEYS = frozenset({b"__ndarray__", b"dtype", b"shape", b"data"})
SCALAR_KEYS = frozenset({b"__npgeneric__", b"dtype", b"data"})

_DTYPE_BY_NAME = {name: np.dtype(name) for name in DTYPES}


class CodecError(InputError):
    """Bytes that are no valid message, or a value that cannot be encoded."""


@dataclass(frozen=True)
class MessageLimits:
    """Largest size of a message.

    Attributes:
        message: Bytes of the whole message.
        text: Bytes of a text.
        values: Number of values: every key and every element of a map or list; an array is a map of four.
        depth: Levels of nesting, at most 100, because of Python's stack.

    Raises:
        InputError: A limit is out of range.
    """

    message: int = 32 * 2**20
    text: int = 2**20
    values: int = 4096
    depth: int = 16

    def __post_init__(self) -> None:
        for name, highest in (("message", 2**31), ("text", 2**31), ("values", 2**31), ("depth", 100)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= highest:
                expected = f"a whole number from 1 to {highest}"
                raise InputError(f"Limits.{name}", got=value, expected=expected, fix=f"Set {name} within that.")


DEFAULT_MESSAGE_LIMITS = MessageLimits()


def encode(message: Mapping[str, Any], limits: MessageLimits = DEFAULT_MESSAGE_LIMITS) -> bytes:
    """Encode a message; numpy arrays and scalars are written as by msgpack-numpy.

    Args:
        message: The message.
        limits: Limits of its size.

    Raises:
        CodecError: `decode` would not accept it under the same limits.
    """
    if not isinstance(message, Mapping):
        raise _codec_error("the message", type(message).__name__, "a mapping", "Send a dictionary.")
    # msgpack's stubs say that packb may return None, which it does only for a stream.
    packed = cast(bytes, msgpack.packb(_Writer(limits).packable(message, 1), use_bin_type=True))
    if len(packed) > limits.message:
        raise _codec_error("the message", f"{len(packed)} bytes", f"at most {limits.message}", "Send smaller images.")
    return packed


def decode(message: bytes, limits: MessageLimits = DEFAULT_MESSAGE_LIMITS) -> dict[str, Any]:
    """Decode a message; arrays are writable copies.

    Args:
        message: The bytes.
        limits: Limits of its size.

    Raises:
        CodecError: The bytes are no message as the module defines it. Nothing else is raised.
    """
    if not isinstance(message, bytes):
        raise _codec_error("the message", type(message).__name__, "bytes", "Send a binary frame.")
    if len(message) > limits.message:
        raise _codec_error("the message", f"{len(message)} bytes", f"at most {limits.message}", "Send smaller images.")
    reader = _Reader(message, limits)
    value = reader.value(0)
    if type(value) is not dict:
        raise _codec_error("the message", type(value).__name__, "a map", "Send a dictionary.")
    if reader.position != len(message):
        raise _codec_error("the message", f"{len(message) - reader.position} bytes behind its end", "none", _FIX_SENDER)
    return value


_FIX_SENDER = "The sender's codec is broken, or this is another protocol."
_FIX_SMALLER = "Send a flatter, smaller message."


def _codec_error(what: str, got: object, expected: str, fix: str) -> CodecError:
    return CodecError(what, got=got, expected=expected, fix=fix)


def _short_repr(value: object) -> str:
    """Return a value as a short text for an error."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


class _Writer:
    """Converts a value to what msgpack packs, and refuses what `decode` would not accept."""

    def __init__(self, limits: MessageLimits) -> None:
        self.limits = limits
        self.values = 0

    def packable(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, np.ndarray):
            return self._array(value, depth)
        if isinstance(value, np.generic):
            self._count_container(3, depth)
            name = _dtype_name(value.dtype)
            return {
                b"__npgeneric__": True,
                b"data": _require_finite_number(value.item(), f"a scalar {name}"),
                b"dtype": name,
            }
        if isinstance(value, int):
            if not -(2**63) <= value < 2**64:
                raise _codec_error("an integer", "more than 64 bits", "at most 64 bits", "Send it as text.")
            return value
        if isinstance(value, float):
            return _require_finite_number(value, "a number")
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            self._count_container(len(value), depth)
            return {self._key(key): self.packable(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            self._count_container(len(value), depth, each=1)
            return [self.packable(item, depth + 1) for item in value]
        raise _codec_error(
            "a value", type(value).__name__, "a number, text, list, mapping or array", "Leave this value out."
        )

    def _count_container(self, length: int, depth: int, each: int = 2) -> None:
        self.values += length * each
        if self.values > self.limits.values or depth > self.limits.depth:
            expected = f"at most {self.limits.values} values, {self.limits.depth} levels deep"
            raise _codec_error("the message", "more", expected, _FIX_SMALLER)

    def _key(self, key: Any) -> str:
        if not isinstance(key, str):
            raise _codec_error("a key", type(key).__name__, "text", "Use texts as keys.")
        return self._text(key)

    def _text(self, text: str) -> str:
        try:
            length = len(text.encode())
        except UnicodeEncodeError:
            raise _codec_error(
                "a text", _short_repr(text), "text that UTF-8 can hold", "Remove lone surrogates."
            ) from None
        if length > self.limits.text:
            raise _codec_error("a text", f"{length} bytes", f"at most {self.limits.text}", "Shorten the text.")
        return str(text)

    def _array(self, array: np.ndarray, depth: int) -> dict[bytes, Any]:
        self._count_container(4, depth)
        self._count_container(array.ndim, depth + 1, each=1)
        name = _dtype_name(array.dtype)
        if array.ndim > MAX_DIMENSIONS or 0 in array.shape:
            expected = f"at most {MAX_DIMENSIONS} dimensions of at least 1"
            raise _codec_error("an array's shape", _short_repr(array.shape), expected, "Leave empty arrays out.")
        if array.nbytes > self.limits.message:
            raise _codec_error(
                "an array", f"{array.nbytes} bytes", f"at most {self.limits.message}", "Send a smaller array."
            )
        _require_finite(array)
        return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": name, b"shape": list(array.shape)}


def _dtype_name(dtype: np.dtype) -> str:
    if dtype.str not in _DTYPE_BY_NAME:
        raise _codec_error(
            "an array's dtype", dtype, "bool, int, uint or float of at most 64 bits", "Convert it first."
        )
    return dtype.str


def _require_finite_number(number: Any, what: str) -> Any:
    if type(number) is float and not math.isfinite(number):
        raise _codec_error(
            what, number, "a finite number", "Find the source of this number; do not send it to a motor."
        )
    return number


def _require_finite(array: np.ndarray) -> None:
    # A sum would be faster, but infinities of opposite sign and overflows would make it wrong.
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        fix = "Find the source of these numbers; do not send them to a motor."
        raise _codec_error("an array", "numbers that are not finite", "finite numbers", fix)


class _Reader:
    """Reads one value after the other, within the bytes that are there and within the limits."""

    def __init__(self, message: bytes, limits: MessageLimits) -> None:
        self.message, self.limits = message, limits
        self.view = memoryview(message)
        self.position = self.values = 0

    def value(self, depth: int) -> Any:
        """Return the next value, which is nested in `depth` maps and lists."""
        type_byte = self._byte()
        if type_byte <= 0x7F:
            return type_byte
        if type_byte >= 0xE0:
            return type_byte - 0x100
        if type_byte <= 0x8F:
            return self._map(type_byte & 0x0F, depth + 1)
        if type_byte <= 0x9F:
            return self._list(type_byte & 0x0F, depth + 1)
        if type_byte <= 0xBF:
            return self._text(type_byte & 0x1F)
        if type_byte in _CONSTANTS:
            return _CONSTANTS[type_byte]
        if type_byte in _NUMBERS:
            return self._number(_NUMBERS[type_byte])
        if type_byte in _TEXTS:
            return self._text(self._number(_TEXTS[type_byte]))
        if type_byte in _LISTS:
            return self._list(self._number(_LISTS[type_byte]), depth + 1)
        if type_byte in _MAPS:
            return self._map(self._number(_MAPS[type_byte]), depth + 1)
        raise _codec_error("a value", f"the type 0x{type_byte:02x}", "a number, text, list, map or array", _FIX_SENDER)

    def _byte(self) -> int:
        if self.position >= len(self.message):
            raise self._truncated()
        type_byte = self.message[self.position]
        self.position += 1
        return type_byte

    def _truncated(self) -> CodecError:
        return _codec_error("the message", f"only {len(self.message)} bytes", "all that it declares", _FIX_SENDER)

    def _number(self, form: struct.Struct) -> Any:
        if len(self.message) - self.position < form.size:
            raise self._truncated()
        (number,) = form.unpack_from(self.message, self.position)
        self.position += form.size
        return _require_finite_number(number, "a number")

    def _bytes(self, length: int) -> memoryview:
        if len(self.message) - self.position < length:
            raise self._truncated()
        self.position += length
        return self.view[self.position - length : self.position]

    def _text(self, length: int) -> str:
        if length > self.limits.text:
            raise _codec_error("a text", f"{length} bytes", f"at most {self.limits.text}", "Shorten the text.")
        try:
            return str(self._bytes(length), "utf-8")
        except UnicodeDecodeError:
            raise _codec_error("a text", "bytes that are no UTF-8", "UTF-8", _FIX_SENDER) from None

    def _count_container(self, values: int, depth: int) -> None:
        self.values += values
        if self.values > self.limits.values:
            raise _codec_error("the message", "more values", f"at most {self.limits.values} in all", _FIX_SMALLER)
        if depth > self.limits.depth:
            raise _codec_error("the message", "deeper", f"at most {self.limits.depth} levels", _FIX_SMALLER)
        # A value takes at least one byte, so a header that declares more values than bytes are left is wrong.
        if len(self.message) - self.position < values:
            raise self._truncated()

    def _list(self, length: int, depth: int) -> list[Any]:
        self._count_container(length, depth)
        return [self.value(depth) for _ in range(length)]

    def _map(self, length: int, depth: int) -> Any:
        self._count_container(2 * length, depth)
        if length in (3, 4) and self._is_binary():
            return self._array_or_scalar(length, depth)
        found: dict[str, Any] = {}
        for _ in range(length):
            key = self._key()
            if key in found:
                raise _codec_error("a map", f"the key {_short_repr(key)} twice", "every key once", _FIX_SENDER)
            found[key] = self.value(depth)
        return found

    def _key(self) -> str:
        type_byte = self._byte()
        if 0xA0 <= type_byte <= 0xBF:
            return self._text(type_byte & 0x1F)
        if type_byte in _TEXTS:
            return self._text(self._number(_TEXTS[type_byte]))
        raise _codec_error("a key", f"the type 0x{type_byte:02x}", "text", _FIX_SENDER)

    def _is_binary(self) -> bool:
        return self.position < len(self.message) and self.message[self.position] in _BINARIES

    def _binary(self, what: str) -> memoryview:
        type_byte = self._byte()
        if type_byte not in _BINARIES:
            raise _codec_error(what, f"the type 0x{type_byte:02x}", "binary", _FIX_SENDER)
        return self._bytes(self._number(_BINARIES[type_byte]))

    def _array_or_scalar(self, length: int, depth: int) -> Any:
        """Return the array (a map of 4 binary keys) or scalar (3 keys) that begins here, keys in any order."""
        keys = ARRAY_KEYS if length == 4 else SCALAR_KEYS
        found: dict[bytes, Any] = {}
        for _ in range(length):
            view = self._binary("an array's key")
            key = bytes(view) if len(view) <= 16 else b""
            if key not in keys or key in found:
                expected = f"{', '.join(sorted(each.decode() for each in keys))}, each once"
                raise _codec_error("an array's key", _short_repr(key), expected, _FIX_SENDER)
            found[key] = self._binary("an array's data") if key == b"data" and length == 4 else self.value(depth)
        if found[b"__ndarray__" if length == 4 else b"__npgeneric__"] is not True:
            raise _codec_error("an array's mark", "another value", "true", _FIX_SENDER)
        name = found[b"dtype"]
        if type(name) is not str or name not in _DTYPE_BY_NAME:
            raise _codec_error(
                "an array's dtype", _short_repr(name), f"one of {', '.join(DTYPES)}", "Convert it first."
            )
        dtype = _DTYPE_BY_NAME[name]
        return _array(found, dtype) if length == 4 else _scalar(found[b"data"], dtype)


def _array(found: dict[bytes, Any], dtype: np.dtype) -> np.ndarray:
    shape, data = found[b"shape"], found[b"data"]
    whole = (
        type(shape) is list and len(shape) <= MAX_DIMENSIONS and all(type(side) is int and side >= 1 for side in shape)
    )
    if not whole:
        expected = f"at most {MAX_DIMENSIONS} whole numbers of at least 1"
        raise _codec_error("an array's shape", _short_repr(shape), expected, "Leave empty arrays out.")
    # Python's integers do not overflow, so a product of huge sides is never small.
    size = math.prod(shape) * dtype.itemsize
    if size != len(data):
        got, expected = f"{len(data)} bytes", f"those of {dtype.str} {_short_repr(shape)}"
        raise _codec_error("an array's data", got, expected, _FIX_SENDER)
    if dtype.kind == "b" and np.frombuffer(data, dtype=np.uint8).max() > 1:
        raise _codec_error("an array of bools", "a byte above 1", "0 or 1", _FIX_SENDER)
    array = np.frombuffer(data, dtype=dtype).reshape(shape).copy()
    _require_finite(array)
    return array


def _scalar(data: Any, dtype: np.dtype) -> np.generic:
    kind = {"b": bool, "i": int, "u": int, "f": float}[dtype.kind]
    fits = type(data) is kind
    if fits and kind is int:
        bounds = np.iinfo(dtype)
        fits = int(bounds.min) <= data <= int(bounds.max)
    if fits and kind is float:
        with np.errstate(over="ignore"):
            fits = bool(np.isfinite(dtype.type(data)))
    if not fits:
        raise _codec_error("a scalar", _short_repr(data), f"a number that {dtype.str} can hold", _FIX_SENDER)
    return dtype.type(data)


_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    type_byte: struct.Struct(f">{form}")
    for type_byte, form in zip(range(0xCA, 0xD4), ("f", "d", *"BHIQ", *"bhiq"), strict=True)
}
_TEXTS = {type_byte: struct.Struct(f">{form}") for type_byte, form in zip((0xD9, 0xDA, 0xDB), "BHI", strict=True)}
_BINARIES = {type_byte: struct.Struct(f">{form}") for type_byte, form in zip((0xC4, 0xC5, 0xC6), "BHI", strict=True)}
_LISTS = {type_byte: struct.Struct(f">{form}") for type_byte, form in zip((0xDC, 0xDD), "HI", strict=True)}
_MAPS = {type_byte: struct.Struct(f">{form}") for type_byte, form in zip((0xDE, 0xDF), "HI", strict=True)}
