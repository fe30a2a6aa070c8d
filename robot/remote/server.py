"""The policy server: one policy, fixed at the start, for one client at a time, over websocket and msgpack.

Clients need the token, only the strict codec reads what they send, and errors do not tell them about the server's
internals: a failure is logged here, and the client gets one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HandshakeRequest
from websockets.http11 import Response

from ...errors import InputError, WorldError
from . import protocol
from .codec import CodecError, decode, encode
from .server_settings import ServerSettings
from .worker_thread import WorkerThread

if TYPE_CHECKING:
    from ..chunk_policy import ChunkPolicy

GRACE_SECONDS = 5.0
HANDSHAKE_SECONDS = 5.0
UNSUPPORTED_DATA, INVALID_PAYLOAD, POLICY_VIOLATION, INTERNAL_ERROR = 1003, 1007, 1008, 1011
"""Close codes of the websocket protocol."""

logger = logging.getLogger(__name__)


class _DeadlineExceeded(Exception):
    """The deadline passed before the answer."""


@dataclass
class _ClientSession:
    """The state of the client that is in control."""

    connection: ServerConnection
    session: str
    sequence: int = -1
    instruction: str | None = None
    decisions: int = 0
    previous_total: float | None = None


class PolicyServer:
    """Serves a policy to one client at a time; the policy decides in one thread, not in the event loop.

    Args:
        chunk_policy: The policy.
        settings: Where the server listens, and the token.
    """

    def __init__(self, chunk_policy: ChunkPolicy, settings: ServerSettings) -> None:
        self.chunk_policy, self.settings = chunk_policy, settings
        self.contract = chunk_policy.contract
        self._busy = False

    async def serve(self, ready: Callable[[int], object], stop: asyncio.Event) -> None:
        """Listen until `stop` is set.

        Args:
            ready: Called with the port once clients may connect.
            stop: Ends the server.

        Raises:
            InputError: The server cannot listen on the address, or the certificate is invalid.
        """
        settings = self.settings
        # The library logs a traceback for clients of other protocols; that is no failure.
        wire = logging.getLogger(f"{__name__}.wire")
        wire.setLevel(logging.CRITICAL)
        self._worker = WorkerThread("policy")
        try:
            server = await self._listen(wire, settings.context())
            ready(server.sockets[0].getsockname()[1])
            await stop.wait()
            logger.info("stopping: no further clients")
            server.close(reason="the server is stopping")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), GRACE_SECONDS)
        finally:
            self._worker.close(GRACE_SECONDS)

    async def _listen(self, wire: logging.Logger, context: ssl.SSLContext | None) -> Server:
        settings = self.settings
        try:
            return await serve(
                self._handle,
                settings.host,
                settings.port,
                ssl=context,
                # Browsers send the origin of the page; no page may connect.
                origins=[None],
                process_request=self._check_token,
                compression=None,
                max_size=settings.limits.message,
                max_queue=2,
                open_timeout=HANDSHAKE_SECONDS,
                ping_interval=settings.ping_seconds,
                ping_timeout=settings.ping_seconds,
                close_timeout=2.0,
                server_header=None,
                logger=wire,
            )
        except OSError as error:
            raise settings.refusal(error) from None

    def _check_token(self, connection: ServerConnection, request: HandshakeRequest) -> Response | None:
        """Return a refusal, None for a client with the token."""
        if request.path == protocol.HEALTH_PATH:
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        shown = request.headers.get_all("Authorization")
        if len(shown) == 1 and protocol.is_authorized(shown[0], self.settings.token):
            return None
        logger.warning("refused %s: token %s", _peer(connection), "wrong" if shown else "missing")
        text = f"token {'wrong' if shown else 'missing'}: send the header Authorization: {protocol.SCHEME} TOKEN\n"
        return connection.respond(http.HTTPStatus.UNAUTHORIZED, text)

    async def _handle(self, connection: ServerConnection) -> None:
        if self._busy:
            logger.warning("refused %s: another client is in control", _peer(connection))
            await connection.close(protocol.BUSY_CLOSE_CODE, "another client is in control of this policy")
            return
        self._busy = True
        client = _ClientSession(connection, protocol.new_session())
        logger.info("%s is in control, session %s", _peer(connection), client.session[:8])
        try:
            await self._serve_client(client)
        except ConnectionClosed:
            pass
        except Exception:
            logger.exception("session %s ended by a fault of the server", client.session[:8])
            await connection.close(INTERNAL_ERROR, "a fault of the server, see its log")
        finally:
            self._busy = False
            logger.info("session %s has ended after %d decisions", client.session[:8], client.decisions)

    async def _serve_client(self, client: _ClientSession) -> None:
        limits, connection = self.settings.limits, client.connection
        greeting_message = protocol.greeting(self.contract, self.settings.policy, client.session, limits.message)
        await connection.send(encode(greeting_message, limits))
        while True:
            frame = await connection.recv()
            received = time.monotonic()
            if isinstance(frame, str):
                await connection.close(UNSUPPORTED_DATA, "text: expected binary frames of msgpack")
                return
            try:
                message = decode(frame, limits)
            except CodecError as error:
                await self._close_with_error(client, INVALID_PAYLOAD, error)
                return
            if not await self._handle_message(client, message, received):
                return

    async def _handle_message(self, client: _ClientSession, message: dict[str, Any], received: float) -> bool:
        """Answer one message; return whether the session goes on."""
        is_openpi, sequence = "request" not in message, message.get("sequence")
        try:
            request = protocol.read_request(message, self.contract)
        except InputError as error:
            await self._send_error(client, sequence, "input", error, is_openpi=is_openpi)
            return True
        if not is_openpi:
            if request.session != client.session or request.sequence <= client.sequence:
                await self._close_with_error(client, POLICY_VIOLATION, _sequence_error(request, client))
                return False
            client.sequence = request.sequence
        elif request.instruction == client.instruction:
            # openpi's client sends the instruction with every observation; only a new one resets the policy.
            request = replace(request, instruction=None)
        answer = await self._run_in_worker(client, request, received)
        if isinstance(answer, InputError):
            await self._send_error(client, request.sequence, "input", answer, is_openpi=is_openpi)
            return True
        if isinstance(answer, Exception):
            kind = "late" if isinstance(answer, _DeadlineExceeded) else "failed"
            await self._send_error(client, request.sequence, kind, _public_error(answer, request), is_openpi=is_openpi)
            # A policy that failed may have lost its state; a new session begins with a reset.
            await client.connection.close(
                INTERNAL_ERROR, "late" if kind == "late" else "the policy failed, see the server's log"
            )
            return False
        await self._send_reply(client, request, answer, received)
        return True

    async def _run_in_worker(
        self, client: _ClientSession, request: protocol.Request, received: float
    ) -> dict[str, Any] | Exception:
        """Run a request in the policy's thread; return its answer or error; ConnectionClosed if the client leaves."""
        expires = None if request.deadline is None else received + request.deadline
        task = self._worker.submit(lambda: self._run_request(client, request, expires))
        disconnected = asyncio.ensure_future(client.connection.wait_closed())
        try:
            await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                # The next client need not wait for an answer that this one does not take.
                raise client.connection.protocol.close_exc
            return task.result()
        finally:
            disconnected.cancel()
            task.cancel()

    def _run_request(
        self, client: _ClientSession, request: protocol.Request, expires: float | None
    ) -> dict[str, Any] | Exception:
        """Reset and decide, in the policy's thread; return the parts of the answer, or the error."""
        answer: dict[str, Any] = {}
        started = time.monotonic()
        if expires is not None and started > expires:
            return _DeadlineExceeded()
        try:
            if request.instruction is not None:
                client.instruction = None
                self.chunk_policy.reset(request.instruction)
                client.instruction = request.instruction
            if request.pixels is not None:
                if client.instruction is None:
                    return InputError(
                        "instruction", got="nothing", expected="a reset before", fix="Call reset before decide."
                    )
                answer["actions"] = self._decide(request)
                client.decisions += 1
        except InputError as error:
            return error
        # The server survives every failure of the policy, and tells the client only that it failed.
        except Exception as error:
            logger.exception("the policy failed, session %s", client.session[:8])
            return error
        answer["infer_ms"] = 1000 * (time.monotonic() - started)
        return _DeadlineExceeded() if expires is not None and time.monotonic() > expires else answer

    def _decide(self, request: protocol.Request) -> np.ndarray:
        actions = self.chunk_policy.decide(request.observation)
        try:
            return protocol.check_actions(actions, self.contract, "the policy")
        except InputError as error:
            # A fault of the policy: the client cannot fix it.
            raise WorldError(str(error)) from None

    async def _send_reply(
        self, client: _ClientSession, request: protocol.Request, answer: dict[str, Any], received: float
    ) -> None:
        timing = {"infer_ms": answer.pop("infer_ms"), "total_ms": 1000 * (time.monotonic() - received)}
        if request.is_openpi and client.previous_total is not None:
            timing["prev_total_ms"] = client.previous_total
        client.previous_total = timing["total_ms"]
        heading = {} if request.is_openpi else {"session": client.session, "sequence": request.sequence}
        await client.connection.send(encode({**heading, **answer, "server_timing": timing}, self.settings.limits))

    async def _send_error(
        self, client: _ClientSession, sequence: object, kind: str, error: InputError, *, is_openpi: bool
    ) -> None:
        """Send an error: to openpi's client in a text frame, as its own server does, to ours in a reply."""
        logger.warning("session %s: %s", client.session[:8], error)
        if is_openpi:
            await client.connection.send(str(error)[:2000])
            return
        number = sequence if type(sequence) is int and abs(sequence) < 2**63 else -1
        reply = {"session": client.session, "sequence": number, "error": protocol.error_fields(kind, error)}
        await client.connection.send(encode(reply, self.settings.limits))

    async def _close_with_error(self, client: _ClientSession, code: int, error: InputError) -> None:
        """Send an error as text, which clients of any protocol can read, and close."""
        logger.warning("session %s closed: %s", client.session[:8], error)
        await client.connection.send(str(error)[:2000])
        reason = f"{error.what}: got {error.got}".encode()[:120].decode("utf-8", "ignore")
        await client.connection.close(code, reason)


def _peer(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "a client"


def _sequence_error(request: protocol.Request, client: _ClientSession) -> InputError:
    if request.session != client.session:
        fix = "Use the session name from the greeting of this connection."
        return InputError("session", got="another one", expected="that of this connection", fix=fix)
    fix = "Send increasing request numbers, each once."
    return InputError("sequence", got=request.sequence, expected=f"above {client.sequence}", fix=fix)


def _public_error(error: Exception, request: protocol.Request) -> InputError:
    """Return the error that a client gets instead of an answer, without the server's internals."""
    if isinstance(error, _DeadlineExceeded):
        fix = "Allow more time, or serve the policy on a faster machine."
        return InputError("deadline", got="a later answer", expected=f"within {request.deadline:g} seconds", fix=fix)
    return InputError("policy", got="a failure", expected="actions", fix="Read the log of the server.")
