"""The client of a policy server: a remote policy that decides as a local one. Needs numpy, msgpack and websockets."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from ...errors import InputError, WorldError
from ...policy.contract import Contract
from . import protocol
from .codec import DEFAULT_MESSAGE_LIMITS, CodecError, MessageLimits, decode, encode

CLOSE_SECONDS = 0.5


class ConnectionLost(WorldError):
    """The session with the policy server is over, and its policy's state is lost: `reconnect` begins a new session."""


class DeadlineMissed(ConnectionLost):
    """The server gave no answer in time. The session is over, so that a late answer cannot pass for a later one."""


@dataclass(frozen=True)
class InferenceTiming:
    """How long the last answer took in seconds: the round trip, and the policy's share of it."""

    round_trip: float
    inference: float


class RemotePolicy:
    """A policy of a `saccade serve`, used as a local one: `contract`, `reset` and `decide`; for one thread at a time.

    Args:
        url: ws://HOST:PORT on this machine, or wss://HOST:PORT on any.
        token: The server's token.
        timeout: Seconds that a decision may take, both ways.
        reset_timeout: The same for a reset, which may take longer.
        connect_timeout: The same for the connection.
        certificate: The server's certificate, if no known authority has signed it.
        limits: Limits of messages.

    Attributes:
        timing: How long the last answer took, None before the first.

    Raises:
        InputError: The address is invalid, the token is wrong, or the server is of another kind.
        ConnectionLost: The server does not answer, or another client is in control.

    Example:
        >>> with RemotePolicy("ws://127.0.0.1:8000", token) as policy:
        ...     policy.reset("put the red cube in the bin")
        ...     actions = policy.decide({"pixels": images, "agent_pos": joints})  # float32 [T, A]
    """

    def __init__(
        self,
        url: str,
        token: str,
        timeout: float = 1.0,
        *,
        reset_timeout: float = 30.0,
        connect_timeout: float = 10.0,
        certificate: Path | None = None,
        limits: MessageLimits = DEFAULT_MESSAGE_LIMITS,
    ) -> None:
        self.url = _check_url(url, certificate)
        self.timeout, self.reset_timeout, self.connect_timeout = (
            _check_seconds(name, value)
            for name, value in (
                ("timeout", timeout),
                ("reset_timeout", reset_timeout),
                ("connect_timeout", connect_timeout),
            )
        )
        self._token, self._certificate, self._limits = protocol.check_token(token, "the client"), certificate, limits
        self.timing: InferenceTiming | None = None
        self._connection: ClientConnection | None = None
        self._start_session()

    @property
    def contract(self) -> Contract:
        """The contract of the server's policy."""
        return self._contract

    @property
    def is_connected(self) -> bool:
        """Whether the session goes on; if not, `reconnect` begins a new one."""
        return self._connection is not None

    def reset(self, instruction: str) -> None:
        """Begin an episode; InputError for an instruction that is no text, ConnectionLost if no server answers."""
        instruction = protocol.check_instruction(instruction)
        self._is_reset = False
        self._send_request({"request": "reset", "instruction": instruction}, self.reset_timeout)
        self._is_reset = True

    def decide(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return a chunk of actions.

        Args:
            observation: `pixels`, camera name to uint8 [H, W, 3], and `agent_pos`, [S]. Cameras that the contract does
                not name are not sent.

        Returns:
            Actions float32 [T, A].

        Raises:
            InputError: The observation does not fit the contract; the session goes on.
            DeadlineMissed: The server gave no answer within `timeout`.
            ConnectionLost: Anything else failed, or the chunk does not fit the contract.
        """
        if not self._is_reset and self.is_connected:
            raise InputError("instruction", got="nothing", expected="a reset before", fix="Call reset before decide.")
        needed = protocol.check_observation(observation, self.contract)
        reply = self._send_request({"request": "decide", **needed}, self.timeout)
        try:
            return protocol.check_actions(reply.get("actions"), self.contract, self.url)
        except InputError as error:
            self._drop_connection()
            raise ConnectionLost(str(error)) from None

    def reconnect(self) -> None:
        """Begin a new session; call `reset` before `decide`.

        Raises:
            InputError: As the constructor, and if the server's policy has another contract now.
            ConnectionLost: As the constructor.
        """
        self.close()
        before = self._contract
        self._start_session()
        if self._contract != before:
            self._contract = before
            self._drop_connection()
            fix = "Start the run again: the contract must be checked against the arm."
            raise InputError(f"contract of {self.url}", got="another one", expected="the one from before", fix=fix)

    def close(self) -> None:
        """End the session; closing twice does nothing."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_session(self) -> None:
        self._is_reset, self._sequence = False, 0
        deadline = time.monotonic() + self.connect_timeout
        self._connection = self._connect()
        try:
            greeting = self._receive(deadline)
            self.session, self._contract, self.policy = protocol.read_greeting(greeting, self.url)
        except CodecError as error:
            self._drop_connection()
            fix = "Give the address of a `saccade serve`."
            raise InputError(f"protocol of {self.url}", got=error, expected=protocol.PROTOCOL, fix=fix) from None
        except BaseException:
            self._drop_connection()
            raise

    def _connect(self) -> ClientConnection:
        """Return an open connection; the token has been sent, and no message yet."""
        logger = logging.getLogger(f"{__name__}.wire")
        try:
            return connect(
                self.url,
                ssl=_tls_context(self._certificate) if self.url.startswith("wss:") else None,
                additional_headers=protocol.authorization(self._token),
                # No proxy from the environment: it would see the token and slow every decision.
                proxy=None,
                compression=None,
                max_size=self._limits.message,
                open_timeout=self.connect_timeout,
                close_timeout=CLOSE_SECONDS,
                ping_interval=5.0,
                ping_timeout=5.0,
                logger=logger,
            )
        except InvalidStatus as error:
            raise self._handshake_error(error.response.status_code) from None
        except (InvalidHandshake, InvalidURI, EOFError) as error:
            raise self._protocol_error(f"no websocket ({error})") from None
        except ssl.SSLCertVerificationError as error:
            fix = "Give --certificate the file of the server's certificate, or the address it was made for."
            got = f"one that cannot be trusted ({error.verify_message})"
            raise InputError(f"certificate of {self.url}", got=got, expected="one that can", fix=fix) from None
        except ssl.SSLError as error:
            raise self._protocol_error(f"no TLS ({error.reason})") from None
        except TimeoutError:
            raise DeadlineMissed(f"{self.url} gave no answer within {self.connect_timeout:g} seconds") from None
        except OSError as error:
            reason = error.strerror or error
            raise ConnectionLost(f"no policy server at {self.url} ({reason}): start `saccade serve`") from None

    def _handshake_error(self, status: int) -> InputError:
        if status != 401:
            return self._protocol_error(f"the HTTP status {status}")
        fix = f"Use the token that the server was started with or printed: {protocol.TOKEN_VARIABLE}=..."
        return InputError(f"token for {self.url}", got="a wrong one", expected="the server's token", fix=fix)

    def _protocol_error(self, got: str) -> InputError:
        fix = "Give the address of a `saccade serve`."
        return InputError(f"protocol of {self.url}", got=got, expected=protocol.PROTOCOL, fix=fix)

    def _send_request(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Return the reply to a request within `seconds`; every failure but an InputError ends the session."""
        connection = self._connection
        if connection is None:
            raise ConnectionLost(f"the session with {self.url} is over: reconnect, and start the episode again")
        sequence, started = self._sequence, time.monotonic()
        heading = {"session": self.session, "sequence": sequence, "deadline": seconds}
        message = encode({**heading, **request}, self._limits)
        self._sequence += 1
        try:
            self._send(connection, message, seconds)
            reply = self._receive(started + seconds)
            refused = self._check_reply(reply, sequence)
            if refused is None:
                self.timing = InferenceTiming(time.monotonic() - started, _inference_seconds(reply))
        # An interrupt also leaves a reply behind, which must not pass for the next one.
        except BaseException as error:
            self._drop_connection()
            if isinstance(error, InputError):
                raise ConnectionLost(f"{self.url} answered wrongly: {error}") from None
            raise
        if refused is not None:
            raise refused
        return reply

    def _send(self, connection: ClientConnection, message: bytes, seconds: float) -> None:
        # A peer that stops reading fills the buffers, and sending then blocks: shut the socket down from a timer.
        began = time.monotonic()
        watchdog = threading.Timer(seconds, _shutdown_socket, (connection,))
        watchdog.daemon = True
        watchdog.start()
        try:
            connection.send(message)
        except ConnectionClosed as error:
            if time.monotonic() - began >= seconds:
                raise DeadlineMissed(f"{self.url} took no message for {seconds:g} seconds") from None
            raise self._connection_lost_error(error) from None
        finally:
            watchdog.cancel()

    def _receive(self, deadline: float) -> dict[str, Any]:
        """Return the next message; DeadlineMissed, ConnectionLost, or CodecError for bytes that are no message."""
        if self._connection is None:
            raise ConnectionLost(f"the session with {self.url} is over")
        try:
            frame = self._connection.recv(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise DeadlineMissed(f"{self.url} gave no answer in time: the session is over") from None
        except ConnectionClosed as error:
            raise self._connection_lost_error(error) from None
        if isinstance(frame, str):
            raise ConnectionLost(f"{self.url} says: {frame[:500]}")
        return decode(frame, self._limits)

    def _check_reply(self, reply: dict[str, Any], sequence: int) -> InputError | None:
        """Return the reply's error about the input, if any; raise for every other reply that is no answer."""
        for name, expected in (("session", self.session), ("sequence", sequence)):
            if type(reply.get(name)) is not type(expected) or reply[name] != expected:
                raise ConnectionLost(f"{self.url} answered another request ({name}): the session is over")
        if "error" not in reply:
            return None
        kind, error = protocol.read_error(reply["error"])
        if kind == "input":
            return error
        raise (DeadlineMissed if kind == "late" else ConnectionLost)(f"{self.url}: {error}")

    def _connection_lost_error(self, error: ConnectionClosed) -> ConnectionLost:
        reason = error.rcvd.reason or error.rcvd.code if error.rcvd is not None else "the connection broke"
        return ConnectionLost(f"{self.url} is gone: {reason}")

    def _drop_connection(self) -> None:
        """End the session at once, without a close handshake: the server may not listen any more."""
        connection, self._connection = self._connection, None
        if connection is not None:
            _shutdown_socket(connection)
            connection.close()


def _shutdown_socket(connection: ClientConnection) -> None:
    with contextlib.suppress(OSError):
        connection.socket.shutdown(socket.SHUT_RDWR)


def _inference_seconds(reply: dict[str, Any]) -> float:
    timing = reply.get("server_timing")
    milliseconds = timing.get("infer_ms") if isinstance(timing, dict) else None
    if type(milliseconds) is not float or milliseconds < 0:
        raise InputError(
            "server_timing.infer_ms", got="none", expected="milliseconds", fix="Use a server of this version."
        )
    return milliseconds / 1000


def _check_url(url: str, certificate: Path | None) -> str:
    fix = "Give ws://127.0.0.1:PORT as `saccade serve` prints it, or wss://HOST:PORT."
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in ("ws", "wss") and parts.port is not None and parts.username is None
        host = parts.hostname if valid else None
    except ValueError:
        host = None
    if not host:
        raise InputError(
            "address of the policy", got=repr(url[:200]), expected="ws://HOST:PORT or wss://HOST:PORT", fix=fix
        )
    if parts.scheme == "ws" and not protocol.is_loopback(host):
        fix = "Serve with a certificate and use wss://, or go through an SSH tunnel to 127.0.0.1."
        got = f"{url}, which would show token and images to the network"
        raise InputError("address of the policy", got=got, expected="wss:// to another machine", fix=fix)
    if parts.scheme == "ws" and certificate is not None:
        raise InputError("certificate", got=f"one for {url}", expected="wss://", fix="Leave it out, or use wss://.")
    return url


def _check_seconds(name: str, seconds: float) -> float:
    if not isinstance(seconds, int | float) or not 0 < seconds <= protocol.MAX_DEADLINE_SECONDS:
        expected = f"seconds above 0 and at most {protocol.MAX_DEADLINE_SECONDS:g}"
        raise InputError(name, got=seconds, expected=expected, fix=f"Set {name} within that.")
    return float(seconds)


def _tls_context(certificate: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=certificate)
    except (OSError, ValueError) as error:
        fix = "Give the PEM file of the server's certificate."
        got = f"{certificate} ({error.strerror or error})" if isinstance(error, OSError) else error
        raise InputError("certificate", got=got, expected="a PEM file", fix=fix) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
