"""A policy server in its own process, for faults of the network."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from ....errors import WorldError
from ....policy.contract import Contract
from .swing_policy import SwingPolicy, small_contract

START_SECONDS = 30.0
DECISION_TIMEOUT = 0.4
"""Seconds that a remote decision may take in these tests."""


@dataclass(frozen=True)
class SwingServer:
    """A policy server in its own process.

    Attributes:
        process: The process.
        url: Its address.
        token: The token that it accepts.
    """

    process: BaseProcess
    url: str
    token: str


class SlowSwingPolicy(SwingPolicy):
    """A swing policy whose decisions exceed the timeout after `slow_after` of them; None: never."""

    def __init__(self, contract: Contract, slow_after: int | None) -> None:
        super().__init__(contract)
        self._slow_after, self._count = slow_after, 0

    def decide(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return a chunk float32 [T, A], too late from decision `slow_after` on."""
        self._count += 1
        if self._slow_after is not None and self._count > self._slow_after:
            time.sleep(2.0 * DECISION_TIMEOUT)
        return super().decide(observation)


def serve_swing_policy(connection: Connection, contract: Contract, slow_after: int | None) -> None:
    """Run a policy server until the parent closes `connection`; see `SlowSwingPolicy`."""
    from ....robot.remote.protocol import new_token
    from ....robot.remote.server_settings import ServerSettings
    from ....robot.remote.serving import serve_in_background

    token = new_token()
    with serve_in_background(SlowSwingPolicy(contract, slow_after), ServerSettings(token=token, port=0)) as url:
        connection.send((url, token))
        with contextlib.suppress(EOFError):
            connection.recv()


@contextlib.contextmanager
def swing_server(slow_after: int | None = None) -> Iterator[SwingServer]:
    """Serve a swing policy from its own process as long as the context lasts.

    Raises:
        WorldError: The server did not start in time.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, small_contract(), slow_after)
    process = context.Process(target=serve_swing_policy, args=arguments, name="policy server", daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(START_SECONDS):
            raise WorldError(f"the policy server did not start within {START_SECONDS:g} s")
        yield SwingServer(process, *ours.recv())
    finally:
        process.kill()
        process.join()
