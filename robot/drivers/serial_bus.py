"""Adapts LeRobot's serial motor buses to a control loop: bounded waits, a monotonic clock, and no stale bytes.

A bus is LeRobot's `SerialMotorsBus` with the vendor's port handler. LeRobot is not imported here.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..arm import BusError

MAX_TRIES = 3
RETRY_BUDGET_SECONDS = 0.045
"""Seconds that all tries of a read may take together; 50 ms with their overhead."""

TRY_SECONDS = 0.02
"""Timeout of one try: a servo answers within 2 ms, a slow USB adapter within 16 ms."""

WRITE_SECONDS = 0.02


def open_port(bus: Any, what: str) -> None:
    """Open the port of a bus for this process alone.

    Args:
        bus: The bus.
        what: The arm, for errors.

    Raises:
        InputError: The port does not exist, does not open, or is in use.
    """
    port = str(bus.port)
    if not Path(port).exists():
        raise InputError(f"port of {what}", got=f"no such device: {port}", expected="a serial port", fix=FIND_PORT)
    try:
        bus.connect(handshake=False)
        # The bytes of two programs on one bus would mix, and the servos would do what neither asked for.
        fcntl.flock(bus.port_handler.ser.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"port of {what}",
            got=f"{port}, in use by another program",
            expected="a free port",
            fix="Close the other program.",
        ) from None
    except Exception as error:
        # The driver raises the errors of several libraries; each means that the port cannot be used.
        got = f"{port}, which does not open ({_root_cause_text(error)})"
        raise InputError(f"port of {what}", got=got, expected="a serial port", fix=FIND_PORT) from None
    _bound_port_waits(bus.port_handler)
    if type(bus.packet_handler).__module__.startswith("scservo_sdk"):
        _reject_late_answers(bus.sync_reader, bus.packet_handler)


FIND_PORT = "Plug the arm in and name its port; `lerobot-find-port` finds it."


def _bound_port_waits(handler: Any) -> None:
    """Give a port handler a monotonic clock, a bound on every wait, and a read that sleeps until bytes arrive.

    The vendor's handler measures timeouts by the wall clock, which may jump, and polls the port while it waits, which
    takes a CPU core from the process that answers.
    """
    vendor_set_timeout = handler.setPacketTimeout

    def read_port(length: int) -> bytes:
        serial = handler.ser
        if not serial.in_waiting:
            left = handler.packet_timeout - handler.getTimeSinceStart()
            select.select([serial.fileno()], [], [], min(max(left / 1000.0, 0.0), 0.1))
        return serial.read(length)

    def set_packet_timeout(length: int) -> None:
        vendor_set_timeout(length)
        limit = getattr(handler, "saccade_limit", None)
        if limit is not None:
            handler.packet_timeout = min(handler.packet_timeout, 1000.0 * limit)

    handler.getCurrentTime = lambda: 1000.0 * time.monotonic()
    handler.readPort, handler.setPacketTimeout = read_port, set_packet_timeout
    handler.ser.write_timeout = WRITE_SECONDS


def _reject_late_answers(reader: Any, packets: Any) -> None:
    """Reject late answers, so that none passes for the answer to a later request.

    Feetech's protocol does not number its packets. With an adapter that lags by more than one try, every read would
    return old joints from then on. Here each read requests some more registers than needed, a different number each
    time, and accepts only an answer of that length, which the vendor's reader does not check.
    """
    ask, answer, number = reader.txRxPacket, packets.readRx, itertools.count()

    def ask_for_more() -> int:
        wanted = reader.data_length
        room = LAST_REGISTER + 1 - reader.start_address - wanted
        reader.data_length = wanted + next(number) % (1 + min(max(room, 0), ANSWER_LENGTHS - 1))
        try:
            return ask()
        finally:
            reader.data_length = wanted

    def take_exact(port: Any, identifier: int, length: int) -> tuple[list[int], int, int]:
        # If more is requested than fits into a packet, it returns the whole packet, the checksum last.
        content, result, error = answer(port, identifier, 256)
        if result == 0 and len(content) != length + 1:
            return [], WRONG_ANSWER, error
        return content[:length], result, error

    reader.txRxPacket, packets.readRx = ask_for_more, take_exact


LAST_REGISTER = 70
"""The last register of an STS3215: the present current."""

ANSWER_LENGTHS = 14
"""Number of different lengths of answers: one that is late by fewer requests is noticed."""

WRONG_ANSWER = -7
"""The result of the vendor's SDK for a corrupt answer."""


@contextlib.contextmanager
def answer_timeout(buses: list[Any], seconds: float) -> Iterator[None]:
    """Bound every wait for an answer while the context lasts; the driver's own timeout is 50 ms or more."""
    for bus in buses:
        bus.port_handler.saccade_limit = seconds
    try:
        yield
    finally:
        for bus in buses:
            bus.port_handler.saccade_limit = None


def clear_input_buffers(buses: list[Any]) -> None:
    """Discard bytes that came late: the vendor's own clearing leaves them, and they would pass for the next answer."""
    for bus in buses:
        bus.port_handler.is_using = False
        bus.port_handler.ser.reset_input_buffer()


def call_with_retries[Result](
    buses: list[Any],
    call: Callable[[], Result],
    what: str,
    *,
    budget: float = RETRY_BUDGET_SECONDS,
    tries: int = MAX_TRIES,
) -> tuple[Result, int]:
    """Make a call on the buses, and repeat it if it fails; every try begins with empty input buffers.

    Args:
        buses: The buses that the call uses.
        call: What to call.
        what: What it does, for the error.
        budget: Seconds that all tries may take together.
        tries: Largest number of tries.

    Returns:
        The result of the call, and the number of the try that succeeded, from 1.

    Raises:
        BusError: No try succeeded.
        EOFError: The driver asked the user a question.
    """
    ends = time.monotonic() + budget
    failure = ""
    for number in range(1, tries + 1):
        left = ends - time.monotonic()
        if left <= 0.0:
            break
        try:
            clear_input_buffers(buses)
            with answer_timeout(buses, min(TRY_SECONDS, left)):
                return call(), number
        except EOFError:
            # The driver asked the user a question; another try would ask it again.
            raise
        except Exception as error:
            # Driver, SDK, pyserial and termios raise errors of different types; all mean that this try failed.
            failure = _root_cause_text(error)
    raise BusError(f"{what}: no whole answer within {tries} tries and {1000 * budget:.0f} ms ({failure})")


@contextlib.contextmanager
def keep_torque_off(bus: Any) -> Iterator[None]:
    """Let a driver configure its motors without switching on their torque at the end.

    It would do so without setting the goal to the present pose, and an arm that was moved by hand would jump.
    """
    bus.enable_torque = lambda *_, **__: None
    try:
        yield
    finally:
        del bus.enable_torque


def _root_cause_text(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
