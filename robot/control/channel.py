"""Messages between the session process and the control process: framed, bounded, and never waited for.

A message is a small JSON object, with the bytes of one array behind it where it carries one. Reading half a message
never blocks: whoever was to send the rest may have been killed, and the arm must be held then. POSIX only.
"""

from __future__ import annotations

import json
import select
import socket
import time
from typing import Any

import numpy as np

from ...errors import WorldError

MAX_MESSAGE_BYTES = 1 << 24
"""Bytes of a message; a larger one means that both ends do not speak the same."""

MAX_UNSENT_BYTES = 1 << 20
"""Bytes that may wait for a reader that does not read; what cannot be put off is dropped then."""

DTYPE_KINDS = "fiub"
"""Kinds of numbers that a message carries."""


class ChannelClosed(Exception):
    """The other end is gone."""


class Channel:
    """One end of a pair; neither `send`, which raises Closed once the other end is gone, nor `receive` ever blocks.

    `close_reason` says why nothing more will come, None while something may.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket, self.close_reason = end, None
        self._socket.setblocking(False)
        self._read, self._unsent = bytearray(), bytearray()

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Return two connected sockets, one for each process."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def send(self, message: dict[str, Any], array: np.ndarray | None = None, *, may_drop: bool = False) -> None:
        """Send a message, its `array` with it; `may_drop` messages are dropped while the other end does not read."""
        payload = b""
        if array is not None:
            if array.dtype.kind not in DTYPE_KINDS:
                raise TypeError(f"an array of {array.dtype} cannot be sent")
            message = {**message, "dtype": array.dtype.str, "shape": list(array.shape)}
            payload = np.ascontiguousarray(array).tobytes()
        header = json.dumps(message).encode()
        size = len(header) + 1 + len(payload)
        if size > MAX_MESSAGE_BYTES:
            raise WorldError(f"a message of {size} bytes to the other process: more than {MAX_MESSAGE_BYTES}")
        if may_drop and len(self._unsent) > MAX_UNSENT_BYTES:
            self.flush()
            return
        self._unsent += size.to_bytes(4, "little") + header + b"\n" + payload
        self.flush()

    def flush(self) -> None:
        """Send as much of what waits as goes without blocking."""
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return
            except OSError as error:
                raise ChannelClosed(str(error)) from None
            del self._unsent[:sent]

    def receive(self) -> list[tuple[dict[str, Any], np.ndarray | None]]:
        """Return every whole message that has arrived, in order; see `close_reason` for whether it was the last."""
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
        messages = []
        while len(self._read) >= 4:
            size = int.from_bytes(self._read[:4], "little")
            if size > MAX_MESSAGE_BYTES:
                self.close_reason = "it does not speak our messages"
                break
            if len(self._read) < 4 + size:
                break
            messages.append(_decode_message(bytes(self._read[4 : 4 + size])))
            del self._read[: 4 + size]
        return messages

    def wait(self, seconds: float) -> None:
        """Wait until something arrives, but not longer than that."""
        if self.close_reason is None:
            select.select([self._socket], [], [], max(seconds, 0.0))

    def drain(self, seconds: float) -> None:
        """Send what waits, but try no longer than that; what is left then is lost."""
        ends = time.monotonic() + seconds
        try:
            self.flush()
            while self._unsent and time.monotonic() < ends:
                select.select([], [self._socket], [], 0.05)
                self.flush()
        except ChannelClosed:
            return

    def close(self) -> None:
        """Close this end; the other one is told so by the system."""
        self._socket.close()


def _decode_message(frame: bytes) -> tuple[dict[str, Any], np.ndarray | None]:
    header, _, payload = frame.partition(b"\n")
    message = json.loads(header)
    if "dtype" not in message:
        return message, None
    array = np.frombuffer(payload, dtype=np.dtype(message.pop("dtype"))).reshape(message.pop("shape"))
    return message, array.copy()
