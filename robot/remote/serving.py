"""Runs a policy server: in the main thread until a signal, or in a background thread."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ...errors import WorldError
from .server import GRACE_SECONDS, PolicyServer
from .server_settings import ServerSettings

if TYPE_CHECKING:
    from ..chunk_policy import ChunkPolicy

START_SECONDS = 30.0


def serve_until_signal(chunk_policy: ChunkPolicy, settings: ServerSettings, ready: Callable[[int], object]) -> None:
    """Serve in the main thread until SIGTERM or SIGINT; a running request gets GRACE_SECONDS to end.

    Args:
        chunk_policy: The policy.
        settings: Where the server listens.
        ready: Called with the port once clients may connect.

    Raises:
        InputError: As `PolicyServer.serve`.
    """

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await PolicyServer(chunk_policy, settings).serve(ready, stop)

    asyncio.run(main())


@contextlib.contextmanager
def serve_in_background(chunk_policy: ChunkPolicy, settings: ServerSettings) -> Iterator[str]:
    """Serve in a background thread while the context lasts.

    Args:
        chunk_policy: The policy.
        settings: Where the server listens.

    Yields:
        The address, ws://HOST:PORT or wss://HOST:PORT.

    Raises:
        InputError: As `PolicyServer.serve`.
        WorldError: The server does not start.
    """
    server_thread = _ServerThread(chunk_policy, settings)
    server_thread.start()
    try:
        yield settings.url(server_thread.port)
    finally:
        server_thread.stop()


class _ServerThread:
    """Runs the event loop of a server in a thread."""

    def __init__(self, chunk_policy: ChunkPolicy, settings: ServerSettings) -> None:
        self.port = 0
        self._server = PolicyServer(chunk_policy, settings)
        self._ready_event = threading.Event()
        self._error: Exception | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="policy server", daemon=True)

    def start(self) -> None:
        self._thread.start()
        if not self._ready_event.wait(START_SECONDS):
            raise WorldError(f"the policy server did not start within {START_SECONDS:g} seconds")
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        if self._loop is not None:
            # An event loop that has ended accepts no calls.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(3 * GRACE_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        # `start` raises it again in the caller's thread.
        except Exception as error:
            self._error = error
        finally:
            self._ready_event.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve(self._ready, self._stop)

    def _ready(self, port: int) -> None:
        self.port = port
        self._ready_event.set()
