"""The channel between the session process and the control process: framed, bounded, and never blocking.

A frame is its length in 4 bytes, a JSON header, and behind a newline the bytes of a chunk's actions. Half a frame never
blocks the reader: the sender may have been killed, and the arm must be held then. POSIX only.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import select
import socket
import time
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import WorldError
from ...policy.contract import Specification
from ..governor.chunk import ActionChunk
from .messages import Message, SubmitChunk

MAX_MESSAGE_BYTES = 1 << 24
"""Largest message in bytes; a longer one means that the two ends do not speak the same format."""

MAX_UNSENT_BYTES = 1 << 20
"""Bytes that may wait for a reader that does not read; messages that may be dropped are dropped then."""

DTYPE_KINDS = "fiub"
"""Kinds of dtypes (numpy's letters) that the actions of a chunk may have on the way."""

_MESSAGE_TYPES: dict[str, type] = {each.__name__: each for each in typing.get_args(Message)}


class ChannelClosed(Exception):
    """The other end is closed."""


class Channel:
    """One end of a connected pair of sockets. Neither `send` nor `receive` ever blocks.

    Attributes:
        close_reason: Why nothing more will come; None while something may.
    """

    def __init__(self, end: socket.socket) -> None:
        self.close_reason: str | None = None
        self._socket = end
        self._socket.setblocking(False)
        self._read, self._unsent = bytearray(), bytearray()

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Return two connected sockets, one for each process."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def send(self, message: Message, *, may_drop: bool = False) -> None:
        """Send a message, or queue what the socket does not take at once.

        Args:
            message: The message.
            may_drop: Drop the message if more than MAX_UNSENT_BYTES wait for the other end.

        Raises:
            ChannelClosed: The other end is closed.
            TypeError: The actions of a chunk have a dtype that is not in DTYPE_KINDS.
            WorldError: The message is longer than MAX_MESSAGE_BYTES.
        """
        encoded = encode_message(message)
        if len(encoded) > MAX_MESSAGE_BYTES:
            raise WorldError(f"a message of {len(encoded)} bytes to the other process: more than {MAX_MESSAGE_BYTES}")
        if may_drop and len(self._unsent) > MAX_UNSENT_BYTES:
            self.flush()
            return
        self._unsent += len(encoded).to_bytes(4, "little") + encoded
        self.flush()

    def flush(self) -> None:
        """Send as many of the waiting bytes as possible without blocking; ChannelClosed if the other end is closed."""
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return
            except OSError as error:
                raise ChannelClosed(str(error)) from None
            del self._unsent[:sent]

    def receive(self) -> list[Message]:
        """Return every whole message that has arrived, in order; `close_reason` tells whether more may come.

        Bytes that are no message end the channel: the messages before them are returned, none after them.
        """
        while self.close_reason is None:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                self.close_reason = str(error)
                break
            if not data:
                self.close_reason = "closed"
            self._read += data
        messages: list[Message] = []
        while len(self._read) >= 4:
            size = int.from_bytes(self._read[:4], "little")
            if size <= MAX_MESSAGE_BYTES and len(self._read) < 4 + size:
                break
            try:
                messages.append(_decode_frame(self._read, size))
            except ValueError:
                self.close_reason = "it does not speak our messages"
                self._read.clear()
                break
            del self._read[: 4 + size]
        return messages

    def wait(self, seconds: float) -> None:
        """Wait until something arrives, at most this long."""
        if self.close_reason is None:
            select.select([self._socket], [], [], max(seconds, 0.0))

    def drain(self, seconds: float) -> None:
        """Send what waits, for at most this long; what is left then is lost."""
        ends = time.monotonic() + seconds
        try:
            self.flush()
            while self._unsent and time.monotonic() < ends:
                select.select([], [self._socket], [], 0.05)
                self.flush()
        except ChannelClosed:
            return

    def close(self) -> None:
        """Close this end; the system tells the other one."""
        self._socket.close()


def _decode_frame(read: bytearray, size: int) -> Message:
    if size > MAX_MESSAGE_BYTES:
        raise ValueError(f"a frame of {size} bytes")
    return decode_message(bytes(read[4 : 4 + size]))


def encode_message(message: Message) -> bytes:
    """Return a message as bytes: a JSON header, and behind a newline the actions of a chunk.

    Raises:
        TypeError: The actions of a chunk have a dtype that is not in DTYPE_KINDS.
    """
    fields, payload = vars(message), b""
    if isinstance(message, SubmitChunk):
        actions = message.chunk.actions
        if actions.dtype.kind not in DTYPE_KINDS:
            raise TypeError(f"an array of {actions.dtype} cannot be sent")
        fields = {**message.chunk.header(), "dtype": actions.dtype.str, "shape": list(actions.shape)}
        payload = np.ascontiguousarray(actions).tobytes()
    header = json.dumps([type(message).__name__, fields], default=_to_json_value).encode()
    return header + b"\n" + payload


def decode_message(encoded: bytes) -> Message:
    """Return the message that `encode_message` encoded.

    Raises:
        ValueError: This is no message: of an unknown type, or with fields that are missing, unknown or of another type.
    """
    header, _, payload = encoded.partition(b"\n")
    try:
        name, fields = json.loads(header)
        kind = _MESSAGE_TYPES[name]
        return _decode_chunk(fields, payload) if kind is SubmitChunk else _reader(kind)(fields)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"no message: {error!r}") from None


def _decode_chunk(fields: dict[str, Any], payload: bytes) -> SubmitChunk:
    dtype = np.dtype(fields.pop("dtype"))
    if dtype.kind not in DTYPE_KINDS:
        raise ValueError(f"an array of {dtype}")
    actions = np.frombuffer(payload, dtype=dtype).reshape(fields.pop("shape")).copy()
    readers = {name: _reader(hint) for name, hint in _type_hints(ActionChunk).items() if name != "actions"}
    return SubmitChunk(ActionChunk(**_read_fields(fields, readers), actions=actions))


def _to_json_value(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if dataclasses.is_dataclass(value):
        return vars(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be sent")


@functools.cache
def _type_hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


@functools.cache
def _reader(hint: Any) -> Callable[[Any], Any]:
    """Return the function that reads a value of this type from JSON; it raises TypeError or ValueError for others."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (bool, int, float, str):
        return functools.partial(_read_plain, hint)
    if hint is Path:
        return lambda value: Path(_read_plain(str, value))
    if hint is np.ndarray:
        return lambda value: np.array(value, dtype=np.float64)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (_reader(each) for each in arguments if each is not types.NoneType)
        return lambda value: None if value is None else inner(value)
    if origin is tuple:
        item = _reader(arguments[0])
        return lambda value: tuple(item(each) for each in _read_plain(list, value))
    if origin is Mapping:
        key, item = map(_reader, arguments)
        return lambda value: {key(name): item(each) for name, each in _read_plain(dict, value).items()}
    if issubclass(hint, Specification):
        return lambda value: hint.from_json(json.dumps(value))
    readers = {name: _reader(each) for name, each in _type_hints(hint).items()}
    return lambda value: hint(**_read_fields(value, readers))


def _read_plain(kind: type, value: Any) -> Any:
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise TypeError(f"got a {type(value).__name__}, expected a {kind.__name__}")
    return value


def _read_fields(fields: Any, readers: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    if not isinstance(fields, dict) or fields.keys() != readers.keys():
        raise TypeError(f"got {fields!r}, expected the fields {', '.join(readers)}")
    return {name: read(fields[name]) for name, read in readers.items()}
