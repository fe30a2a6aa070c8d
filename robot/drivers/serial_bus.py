"""LeRobot's serial motor buses, made fit for a control loop: bounded, on a steady clock, and without stale bytes.

A bus is LeRobot's `SerialMotorsBus` with the vendor's port handler in it. LeRobot is not imported here.
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
"""Seconds that all tries of a read may take together; 50 ms with what comes around them."""

TRY_SECONDS = 0.02
"""How long one try waits for an answer; a servo answers within 2 ms, a slow USB adapter within 16."""

WRITE_SECONDS = 0.02


def open_port(bus: Any, what: str) -> None:
    """Open a bus's port for this process alone; InputError where it is not there or taken."""
    port = str(bus.port)
    if not Path(port).exists():
        raise InputError(f"port of {what}", got=f"no such device: {port}", expected="a serial port", fix=FIND_PORT)
    try:
        bus.connect(handshake=False)
        # Two programs on one bus would mix their bytes, and the servos would do what neither said.
        fcntl.flock(bus.port_handler.ser.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"port of {what}", got=f"{port}, in use by another program", expected="a free port", fix="End the other."
        ) from None
    except Exception as error:
        # The driver raises whatever its libraries do; all of it means that this is no port to talk through.
        got = f"{port}, which does not open ({_root_cause_text(error)})"
        raise InputError(f"port of {what}", got=got, expected="a serial port", fix=FIND_PORT) from None
    _bound_port_waits(bus.port_handler)
    if type(bus.packet_handler).__module__.startswith("scservo_sdk"):
        _reject_late_answers(bus.sync_reader, bus.packet_handler)


FIND_PORT = "Plug the arm in and name its port; `lerobot-find-port` finds it."


def _bound_port_waits(handler: Any) -> None:
    """Give a port handler a steady clock, a bound on every wait, and a read that sleeps until there is something.

    The vendor's handler times its answers by the wall clock, which may jump, and asks the port again and again while
    it waits, which takes a processor from whoever is to answer.
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
    """Let no late answer pass for the answer to a later question.

    Feetech's protocol numbers nothing, so that an adapter which lags by more than a try lets every read return the
    joints of a while ago, for good. Here each read asks for some more registers than are needed, one more each time,
    and takes no answer of another length; the vendor's reader does not look at it.
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
        # Asked for more than fits into a packet, it gives all of it, the checksum last.
        content, result, error = answer(port, identifier, 256)
        if result == 0 and len(content) != length + 1:
            return [], WRONG_ANSWER, error
        return content[:length], result, error

    reader.txRxPacket, packets.readRx = ask_for_more, take_exact


LAST_REGISTER = 70
"""Of an STS3215: the present current."""

ANSWER_LENGTHS = 14
"""How many lengths of answers there are: one that is late by fewer questions is noticed."""

WRONG_ANSWER = -7
"""What the vendor's SDK returns for a corrupt answer."""


@contextlib.contextmanager
def answer_timeout(buses: list[Any], seconds: float) -> Iterator[None]:
    """Bound every wait for an answer; outside of this the driver's own 50 ms and more hold."""
    for bus in buses:
        bus.port_handler.saccade_limit = seconds
    try:
        yield
    finally:
        for bus in buses:
            bus.port_handler.saccade_limit = None


def clear_input_buffers(buses: list[Any]) -> None:
    """Throw away what came in late: the vendor's own clearing leaves it there, to be taken for the next answer."""
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
    """Return what a call on the buses returns, and at which try; BusError after at most so many, within the budget.

    Every try begins with empty input buffers.
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
            # A driver asked somebody at the keyboard; trying again would ask again.
            raise
        except Exception as error:
            # Driver, SDK, pyserial and termios raise their own kinds; to an arm in motion they are all one.
            failure = _root_cause_text(error)
    raise BusError(f"{what}: no whole answer within {tries} tries and {1000 * budget:.0f} ms ({failure})")


@contextlib.contextmanager
def keep_torque_off(bus: Any) -> Iterator[None]:
    """Let a driver configure its motors without the torque that it switches on in the end.

    It does so without setting the goal to where the arm is, and whoever moved the arm by hand would see it jump.
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
