"""The policy server: one policy, fixed at the start, for one client at a time, over websocket and msgpack.

Nobody gets in without the token, nothing but the strict codec reads what comes in, and nothing about the inside goes
out: a failure is logged here and told in one line there.
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
from .worker_thread import Worker

if TYPE_CHECKING:
    from ..decider import Decider

GRACE_SECONDS = 5.0
HANDSHAKE_SECONDS = 5.0
TEXT, BROKEN, OUT_OF_TURN, INTERNAL = 1003, 1007, 1008, 1011
"""Codes of the websocket protocol with which a connection is closed."""

logger = logging.getLogger(__name__)


class _Late(Exception):
    """The deadline passed before there was an answer."""


@dataclass
class _Conversation:
    """What the server remembers of the client that is in control."""

    connection: ServerConnection
    session: str
    sequence: int = -1
    instruction: str | None = None
    decisions: int = 0
    previous_total: float | None = None


class PolicyServer:
    """Serves a decider to one client at a time; decisions are made in one thread, off the event loop."""

    def __init__(self, decider: Decider, settings: ServerSettings) -> None:
        self.decider, self.settings = decider, settings
        self.contract = decider.contract
        self._busy = False

    async def serve(self, ready: Callable[[int], object], stop: asyncio.Event) -> None:
        """Listen until `stop` is set; `ready` is told the port once clients may come.

        Raises InputError for an address that cannot be listened at and for a certificate that does not fit.
        """
        settings = self.settings
        # The library reports with a traceback whoever knocks with something else; that is no failure.
        wire = logging.getLogger(f"{__name__}.wire")
        wire.setLevel(logging.CRITICAL)
        self._worker = Worker("policy")
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
                # A browser names the page that asks; no page has any business here.
                origins=[None],
                process_request=self._admit,
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

    def _admit(self, connection: ServerConnection, request: HandshakeRequest) -> Response | None:
        """Return a refusal, or nothing for a client that shows the token."""
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
            await connection.close(protocol.BUSY, "another client is in control of this policy")
            return
        self._busy = True
        talk = _Conversation(connection, protocol.new_session())
        logger.info("%s is in control, session %s", _peer(connection), talk.session[:8])
        try:
            await self._converse(talk)
        except ConnectionClosed:
            pass
        except Exception:
            logger.exception("session %s ended by a fault of the server", talk.session[:8])
            await connection.close(INTERNAL, "a fault of the server, see its log")
        finally:
            self._busy = False
            logger.info("session %s has ended after %d decisions", talk.session[:8], talk.decisions)

    async def _converse(self, talk: _Conversation) -> None:
        limits, connection = self.settings.limits, talk.connection
        hello = protocol.greeting(self.contract, self.settings.policy, talk.session, limits.message)
        await connection.send(encode(hello, limits))
        while True:
            frame = await connection.recv()
            received = time.monotonic()
            if isinstance(frame, str):
                await connection.close(TEXT, "text: expected binary frames of msgpack")
                return
            try:
                message = decode(frame, limits)
            except CodecError as error:
                await self._leave(talk, BROKEN, error)
                return
            if not await self._answer(talk, message, received):
                return

    async def _answer(self, talk: _Conversation, message: dict[str, Any], received: float) -> bool:
        """Answer one message; return whether the conversation goes on."""
        plain, sequence = "request" not in message, message.get("sequence")
        try:
            request = protocol.read_request(message, self.contract)
        except InputError as error:
            await self._report(talk, plain, sequence, "input", error)
            return True
        if not plain:
            if request.session != talk.session or request.sequence <= talk.sequence:
                await self._leave(talk, OUT_OF_TURN, _out_of_turn(request, talk))
                return False
            talk.sequence = request.sequence
        elif request.instruction == talk.instruction:
            # openpi's client says what is to be done with every observation; only a change begins anew.
            request = replace(request, instruction=None)
        answer = await self._alone(talk, request, received)
        if isinstance(answer, InputError):
            await self._report(talk, plain, request.sequence, "input", answer)
            return True
        if isinstance(answer, Exception):
            kind = "late" if isinstance(answer, _Late) else "failed"
            await self._report(talk, plain, request.sequence, kind, _failure(answer, request))
            # A policy that failed once may have lost its thread; a new session begins with a reset.
            await talk.connection.close(
                INTERNAL, "late" if kind == "late" else "the policy failed, see the server's log"
            )
            return False
        await self._reply(talk, request, answer, received)
        return True

    async def _alone(
        self, talk: _Conversation, request: protocol.Request, received: float
    ) -> dict[str, Any] | Exception:
        """Return what the decider's thread makes of a request, or why not; raise ConnectionClosed once nobody waits."""
        expires = None if request.deadline is None else received + request.deadline
        task = self._worker.submit(lambda: self._work(talk, request, expires))
        gone = asyncio.ensure_future(talk.connection.wait_closed())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                # The next client need not wait for what this one no longer does.
                raise talk.connection.protocol.close_exc
            return task.result()
        finally:
            gone.cancel()
            task.cancel()

    def _work(
        self, talk: _Conversation, request: protocol.Request, expires: float | None
    ) -> dict[str, Any] | Exception:
        """Reset and decide as asked, in the decider's thread; return the answer's parts, or what went wrong."""
        answer: dict[str, Any] = {}
        started = time.monotonic()
        if expires is not None and started > expires:
            return _Late()
        try:
            if request.instruction is not None:
                talk.instruction = None
                self.decider.reset(request.instruction)
                talk.instruction = request.instruction
            if request.pixels is not None:
                if talk.instruction is None:
                    return InputError("instruction", got="nothing", expected="a reset before", fix="Call reset first.")
                answer["actions"] = self._decide(request)
                talk.decisions += 1
        except InputError as error:
            return error
        # Whatever the policy fails at, the server goes on, and the client learns no more than that.
        except Exception as error:
            logger.exception("the policy failed, session %s", talk.session[:8])
            return error
        answer["infer_ms"] = 1000 * (time.monotonic() - started)
        return _Late() if expires is not None and time.monotonic() > expires else answer

    def _decide(self, request: protocol.Request) -> np.ndarray:
        actions = self.decider.decide(request.observation)
        try:
            return protocol.check_actions(actions, self.contract, "the policy")
        except InputError as error:
            # It is the policy's fault, and the client can mend nothing.
            raise WorldError(str(error)) from None

    async def _reply(
        self, talk: _Conversation, request: protocol.Request, answer: dict[str, Any], received: float
    ) -> None:
        timing = {"infer_ms": answer.pop("infer_ms"), "total_ms": 1000 * (time.monotonic() - received)}
        if request.plain and talk.previous_total is not None:
            timing["prev_total_ms"] = talk.previous_total
        talk.previous_total = timing["total_ms"]
        heading = {} if request.plain else {"session": talk.session, "sequence": request.sequence}
        await talk.connection.send(encode({**heading, **answer, "server_timing": timing}, self.settings.limits))

    async def _report(self, talk: _Conversation, plain: bool, sequence: object, kind: str, error: InputError) -> None:
        """Tell the client of an error: openpi's in a text frame, as its own server does, ours in a reply."""
        logger.warning("session %s: %s", talk.session[:8], error)
        if plain:
            await talk.connection.send(str(error)[:2000])
            return
        number = sequence if type(sequence) is int and abs(sequence) < 2**63 else -1
        reply = {"session": talk.session, "sequence": number, "error": protocol.error_fields(kind, error)}
        await talk.connection.send(encode(reply, self.settings.limits))

    async def _leave(self, talk: _Conversation, code: int, error: InputError) -> None:
        """Tell the client in text what is wrong with what it sent, whatever it speaks, and close."""
        logger.warning("session %s closed: %s", talk.session[:8], error)
        await talk.connection.send(str(error)[:2000])
        reason = f"{error.what}: got {error.got}".encode()[:120].decode("utf-8", "ignore")
        await talk.connection.close(code, reason)


def _peer(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "a client"


def _out_of_turn(request: protocol.Request, talk: _Conversation) -> InputError:
    if request.session != talk.session:
        fix = "A new connection is a new session: take its name from the greeting."
        return InputError("session", got="another one", expected="that of this connection", fix=fix)
    fix = "Count the requests of a session upwards, and send none twice."
    return InputError("sequence", got=request.sequence, expected=f"above {talk.sequence}", fix=fix)


def _failure(error: Exception, request: protocol.Request) -> InputError:
    """Return what a client is told of an answer that it does not get: nothing about the inside."""
    if isinstance(error, _Late):
        fix = "Allow more time, or serve the policy on a faster machine."
        return InputError("deadline", got="a later answer", expected=f"within {request.deadline:g} seconds", fix=fix)
    return InputError("policy", got="a failure", expected="actions", fix="The server's log says what happened.")
