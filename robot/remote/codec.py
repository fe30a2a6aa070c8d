"""The codec of the wire: msgpack with msgpack-numpy's arrays, as openpi's client writes them, read strictly.

What is acceptable, and nothing else is:

    message  one map, at most `Limits.message` bytes, nothing behind it
    value    nil, bool, integer, finite float, text (valid UTF-8), list of values, map of text to values, array, scalar
    array    a map of exactly four binary keys: __ndarray__ true, dtype one of DTYPES, shape a list of 0 to 8 integers,
             each at least 1, data binary of exactly their product times the item's size; every number finite, every
             bool 0 or 1
    scalar   a map of exactly three binary keys: __npgeneric__ true, dtype one of DTYPES, data a bool, integer or float
             as the dtype is, that fits into it and is finite in it

No key stands twice in a map. Values, and maps and lists within each other, are counted against the limits. No extension
types, no binary outside an array, so no object arrays, no structures, no times. Every length is compared with what is
really there before anything is allocated for it.

Python's own msgpack reader is not used for what comes from outside: it makes room for as many elements as a header
declares, at every level of 512, and cannot count what it reads.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from ...errors import InputError

DTYPES = ("|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8")
"""The kinds of numbers that may travel, as numpy writes them; little-endian alone."""

DIMENSIONS = 8
ARRAY_KEYS = frozenset({b"__ndarray__", b"dtype", b"shape", b"data"})
SCALAR_KEYS = frozenset({b"__npgeneric__", b"dtype", b"data"})

_KNOWN = {name: np.dtype(name) for name in DTYPES}


class CodecError(InputError):
    """Bytes that are no acceptable message, or a value that cannot become one."""


@dataclass(frozen=True)
class Limits:
    """How much a message may hold: `message` bytes in all, `text` bytes in a text, `values` in all, `depth` levels.

    Every key and every element of a map or list is a value; an array is a map of four. Raises InputError for a limit
    below 1 and for a depth that Python's stack would not bear.
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


LIMITS = Limits()


def encode(message: Mapping[str, Any], limits: Limits = LIMITS) -> bytes:
    """Return a message's bytes; numpy arrays and scalars travel as msgpack-numpy writes them.

    Raises CodecError for whatever `decode` would not accept under the same limits: what leaves here arrives.
    """
    if not isinstance(message, Mapping):
        raise _refused("the message", type(message).__name__, "a mapping", "Send a dictionary.")
    packed = msgpack.packb(_Writer(limits).plain(message, 1), use_bin_type=True)
    if len(packed) > limits.message:
        raise _refused("the message", f"{len(packed)} bytes", f"at most {limits.message}", "Send smaller pictures.")
    return packed


def decode(message: bytes, limits: Limits = LIMITS) -> dict[str, Any]:
    """Return what a message says; arrays are copies of their own that may be written to.

    Raises CodecError for anything that the module's definition does not allow; nothing else is raised.
    """
    if not isinstance(message, bytes):
        raise _refused("the message", type(message).__name__, "bytes", "Send a binary frame.")
    if len(message) > limits.message:
        raise _refused("the message", f"{len(message)} bytes", f"at most {limits.message}", "Send smaller pictures.")
    reader = _Reader(message, limits)
    value = reader.value(0)
    if type(value) is not dict:
        raise _refused("the message", type(value).__name__, "a map", "Send a dictionary.")
    if reader.position != len(message):
        raise _refused("the message", f"{len(message) - reader.position} bytes behind its end", "none", _BROKEN)
    return value


_BROKEN = "The sender's codec is broken, or this is another protocol."
_ENTANGLED = "Send a flatter, smaller message."


def _refused(what: str, got: object, expected: str, fix: str) -> CodecError:
    return CodecError(what, got=got, expected=expected, fix=fix)


def _shown(value: object) -> str:
    """Return a value for an error, short whatever a sender makes of it."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


class _Writer:
    """Turns a value into what msgpack packs, and refuses what no reader would accept."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.values = 0

    def plain(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, np.ndarray):
            return self._array(value, depth)
        if isinstance(value, np.generic):
            self._open(3, depth)
            name = _dtype_name(value.dtype)
            return {b"__npgeneric__": True, b"data": _finite(value.item(), f"a scalar {name}"), b"dtype": name}
        if isinstance(value, int):
            if not -(2**63) <= value < 2**64:
                raise _refused("an integer", "more than 64 bits", "at most 64 bits", "Send it as text.")
            return value
        if isinstance(value, float):
            return _finite(value, "a number")
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            self._open(len(value), depth)
            return {self._key(key): self.plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            self._open(len(value), depth, each=1)
            return [self.plain(item, depth + 1) for item in value]
        raise _refused("a value", type(value).__name__, "a number, text, list, mapping or array", "Leave it out.")

    def _open(self, length: int, depth: int, each: int = 2) -> None:
        self.values += length * each
        if self.values > self.limits.values or depth > self.limits.depth:
            expected = f"at most {self.limits.values} values, {self.limits.depth} levels deep"
            raise _refused("the message", "more", expected, _ENTANGLED)

    def _key(self, key: Any) -> str:
        if not isinstance(key, str):
            raise _refused("a key", type(key).__name__, "text", "Name it.")
        return self._text(key)

    def _text(self, text: str) -> str:
        try:
            length = len(text.encode())
        except UnicodeEncodeError:
            raise _refused("a text", _shown(text), "text that UTF-8 can hold", "Remove lone surrogates.") from None
        if length > self.limits.text:
            raise _refused("a text", f"{length} bytes", f"at most {self.limits.text}", "Shorten it.")
        return str(text)

    def _array(self, array: np.ndarray, depth: int) -> dict[bytes, Any]:
        self._open(4, depth)
        self._open(array.ndim, depth + 1, each=1)
        name = _dtype_name(array.dtype)
        if array.ndim > DIMENSIONS or 0 in array.shape:
            expected = f"at most {DIMENSIONS} dimensions of at least 1"
            raise _refused("an array's shape", _shown(array.shape), expected, "Leave empty arrays out.")
        if array.nbytes > self.limits.message:
            raise _refused("an array", f"{array.nbytes} bytes", f"at most {self.limits.message}", "Make it smaller.")
        _require_finite(array)
        return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": name, b"shape": list(array.shape)}


def _dtype_name(dtype: np.dtype) -> str:
    if dtype.str not in _KNOWN:
        raise _refused("an array's dtype", dtype, "bool, int, uint or float of at most 64 bits", "Convert it first.")
    return dtype.str


def _finite(number: Any, what: str) -> Any:
    if type(number) is float and not math.isfinite(number):
        raise _refused(what, number, "a finite number", "Find out what made it: it must reach no motor.")
    return number


def _require_finite(array: np.ndarray) -> None:
    # A sum would be quicker, but two infinities of opposite sign, or an overflow, must not decide.
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        fix = "Find out what made them: they must reach no motor."
        raise _refused("an array", "numbers that are not finite", "finite numbers", fix)


class _Reader:
    """Reads one value after the other, never more than is there and never more than the limits allow."""

    def __init__(self, message: bytes, limits: Limits) -> None:
        self.message, self.limits = message, limits
        self.view = memoryview(message)
        self.position = self.values = 0

    def value(self, depth: int) -> Any:
        """Return the next value; `depth` maps and lists are open around it."""
        head = self._byte()
        if head <= 0x7F:
            return head
        if head >= 0xE0:
            return head - 0x100
        if head <= 0x8F:
            return self._map(head & 0x0F, depth + 1)
        if head <= 0x9F:
            return self._list(head & 0x0F, depth + 1)
        if head <= 0xBF:
            return self._text(head & 0x1F)
        if head in _CONSTANTS:
            return _CONSTANTS[head]
        if head in _NUMBERS:
            return self._number(_NUMBERS[head])
        if head in _TEXTS:
            return self._text(self._number(_TEXTS[head]))
        if head in _LISTS:
            return self._list(self._number(_LISTS[head]), depth + 1)
        if head in _MAPS:
            return self._map(self._number(_MAPS[head]), depth + 1)
        raise _refused("a value", f"the type 0x{head:02x}", "a number, text, list, map or array", _BROKEN)

    def _byte(self) -> int:
        if self.position >= len(self.message):
            raise self._truncated()
        head = self.message[self.position]
        self.position += 1
        return head

    def _truncated(self) -> CodecError:
        return _refused("the message", f"only {len(self.message)} bytes", "all that it declares", _BROKEN)

    def _number(self, form: struct.Struct) -> Any:
        if len(self.message) - self.position < form.size:
            raise self._truncated()
        (number,) = form.unpack_from(self.message, self.position)
        self.position += form.size
        return _finite(number, "a number")

    def _bytes(self, length: int) -> memoryview:
        if len(self.message) - self.position < length:
            raise self._truncated()
        self.position += length
        return self.view[self.position - length : self.position]

    def _text(self, length: int) -> str:
        if length > self.limits.text:
            raise _refused("a text", f"{length} bytes", f"at most {self.limits.text}", "Shorten it.")
        try:
            return str(self._bytes(length), "utf-8")
        except UnicodeDecodeError:
            raise _refused("a text", "bytes that are no UTF-8", "UTF-8", _BROKEN) from None

    def _open(self, values: int, depth: int) -> None:
        self.values += values
        if self.values > self.limits.values:
            raise _refused("the message", "more values", f"at most {self.limits.values} in all", _ENTANGLED)
        if depth > self.limits.depth:
            raise _refused("the message", "deeper", f"at most {self.limits.depth} levels", _ENTANGLED)
        # A value takes a byte at least, so a header that promises more than is left lies.
        if len(self.message) - self.position < values:
            raise self._truncated()

    def _list(self, length: int, depth: int) -> list[Any]:
        self._open(length, depth)
        return [self.value(depth) for _ in range(length)]

    def _map(self, length: int, depth: int) -> Any:
        self._open(2 * length, depth)
        if length in (3, 4) and self._is_binary():
            return self._numbers(length, depth)
        found: dict[str, Any] = {}
        for _ in range(length):
            key = self._key()
            if key in found:
                raise _refused("a map", f"the key {_shown(key)} twice", "every key once", _BROKEN)
            found[key] = self.value(depth)
        return found

    def _key(self) -> str:
        head = self._byte()
        if 0xA0 <= head <= 0xBF:
            return self._text(head & 0x1F)
        if head in _TEXTS:
            return self._text(self._number(_TEXTS[head]))
        raise _refused("a key", f"the type 0x{head:02x}", "text", _BROKEN)

    def _is_binary(self) -> bool:
        return self.position < len(self.message) and self.message[self.position] in _BINARIES

    def _binary(self, what: str) -> memoryview:
        head = self._byte()
        if head not in _BINARIES:
            raise _refused(what, f"the type 0x{head:02x}", "binary", _BROKEN)
        return self._bytes(self._number(_BINARIES[head]))

    def _numbers(self, length: int, depth: int) -> Any:
        """Return the array (a map of 4 binary keys) or the scalar (3) that begins here, keys in any order."""
        keys = ARRAY_KEYS if length == 4 else SCALAR_KEYS
        found: dict[bytes, Any] = {}
        for _ in range(length):
            view = self._binary("an array's key")
            key = bytes(view) if len(view) <= 16 else b""
            if key not in keys or key in found:
                expected = f"{', '.join(sorted(each.decode() for each in keys))}, each once"
                raise _refused("an array's key", _shown(key), expected, _BROKEN)
            found[key] = self._binary("an array's data") if key == b"data" and length == 4 else self.value(depth)
        if found[b"__ndarray__" if length == 4 else b"__npgeneric__"] is not True:
            raise _refused("an array's mark", "another value", "true", _BROKEN)
        name = found[b"dtype"]
        if type(name) is not str or name not in _KNOWN:
            raise _refused("an array's dtype", _shown(name), f"one of {', '.join(DTYPES)}", "Convert it first.")
        dtype = _KNOWN[name]
        return _array(found, dtype) if length == 4 else _scalar(found[b"data"], dtype)


def _array(found: dict[bytes, Any], dtype: np.dtype) -> np.ndarray:
    shape, data = found[b"shape"], found[b"data"]
    whole = type(shape) is list and len(shape) <= DIMENSIONS and all(type(side) is int and side >= 1 for side in shape)
    if not whole:
        expected = f"at most {DIMENSIONS} whole numbers of at least 1"
        raise _refused("an array's shape", _shown(shape), expected, "Leave empty arrays out.")
    # Python's integers do not overflow, so no product of huge sides can pass for a small one.
    size = math.prod(shape) * dtype.itemsize
    if size != len(data):
        got, expected = f"{len(data)} bytes", f"those of {dtype.str} {_shown(shape)}"
        raise _refused("an array's data", got, expected, _BROKEN)
    if dtype.kind == "b" and np.frombuffer(data, dtype=np.uint8).max() > 1:
        raise _refused("an array of bools", "a byte above 1", "0 or 1", _BROKEN)
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
        raise _refused("a scalar", _shown(data), f"a number that {dtype.str} can hold", _BROKEN)
    return dtype.type(data)


_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    head: struct.Struct(f">{form}") for head, form in zip(range(0xCA, 0xD4), ("f", "d", *"BHIQ", *"bhiq"), strict=True)
}
_TEXTS = {head: struct.Struct(f">{form}") for head, form in zip((0xD9, 0xDA, 0xDB), "BHI", strict=True)}
_BINARIES = {head: struct.Struct(f">{form}") for head, form in zip((0xC4, 0xC5, 0xC6), "BHI", strict=True)}
_LISTS = {head: struct.Struct(f">{form}") for head, form in zip((0xDC, 0xDD), "HI", strict=True)}
_MAPS = {head: struct.Struct(f">{form}") for head, form in zip((0xDE, 0xDF), "HI", strict=True)}
