"""The arm's serial bus on a pseudo-terminal: it reads instruction packets of Feetech's protocol 0 and replies."""

from __future__ import annotations

import os
import select
import threading
import time
import tty
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from . import registers
from .faults import FaultInjector
from .servo import Servo

PING, READ, WRITE, REG_WRITE, ACTION, SYNC_READ, SYNC_WRITE = 1, 2, 3, 4, 5, 0x82, 0x83
BROADCAST_ID = 254
HEADER = b"\xff\xff"
MIN_PACKET_BYTES = 6

MAX_READ_BYTES = 250
"""Most registers in one reply; a servo does not answer a request for more."""

ALWAYS_ANSWERED = (PING, READ)
"""Instructions that a servo answers even if its status level is 0."""

IDLE_SECONDS = 0.05
CLOSED_SECONDS = 0.005
"""How long the bus waits for bytes before it checks its faults, and how often it checks while the port is closed."""


def packet(identifier: int, instruction_or_error: int, parameters: bytes = b"") -> bytes:
    """Return an instruction packet, or a status packet with an error byte.

    Args:
        identifier: Id of the servo.
        instruction_or_error: The instruction, or the error byte of a status packet.
        parameters: Content of the packet.
    """
    body = bytes([identifier, len(parameters) + 2, instruction_or_error, *parameters])
    return HEADER + body + bytes([~sum(body) & 0xFF])


def pop_packet(pending: bytearray) -> tuple[int, int, bytes] | None:
    """Remove the first complete packet from the received bytes.

    Bytes that belong to no packet, and packets with a wrong checksum, are skipped.

    Returns:
        (servo id, instruction or error byte, parameters), or None if no packet is complete.
    """
    while len(pending) >= MIN_PACKET_BYTES:
        length = pending[3] + 4
        if pending[:2] != HEADER or pending[2] == 0xFF or length < MIN_PACKET_BYTES:
            del pending[0]
            continue
        if len(pending) < length:
            return None
        body, checksum = bytes(pending[2 : length - 1]), pending[length - 1]
        if ~sum(body) & 0xFF != checksum:
            del pending[0]
            continue
        del pending[:length]
        return body[0], body[2], body[3:]
    return None


class Bus:
    """Answers for the servos on a serial port, from its own thread.

    Args:
        servos: The servos; `lock` is held while they are read or changed.
        faults: Faults to apply.
        folder: Folder of the port's name, a symbolic link that stays valid when the port is lost and opened again.
        latency: Delay of every reply in seconds, added to the servos' return delay.
    """

    def __init__(self, servos: Sequence[Servo], faults: FaultInjector, folder: Path, *, latency: float = 0.0) -> None:
        self.servos = tuple(servos)
        self.lock = threading.Lock()
        self.port = folder / "port"
        self.instructions = 0
        self.goal_written = False
        """Whether a goal was written to a servo with torque; reset it to False after reading."""
        self._faults, self._latency = faults, latency
        self._master = self._slave = -1
        self._pending = bytearray()
        self._outgoing: list[tuple[float, bytes]] = []
        self._powered = True
        self._stopping = False
        self._open_port()
        self._thread = threading.Thread(target=self._run, name="bus", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the bus still answers."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the thread and remove the port."""
        self._stopping = True
        self._thread.join(timeout=2.0)
        self._close_port()

    def _open_port(self) -> None:
        self._master, self._slave = os.openpty()
        # Keeping the slave end open keeps the port alive while no driver has it open.
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.port.unlink(missing_ok=True)
        self.port.symlink_to(os.ttyname(self._slave))

    def _close_port(self) -> None:
        if self._master < 0:
            return
        self.port.unlink(missing_ok=True)
        for descriptor in (self._master, self._slave):
            with suppress(OSError):
                os.close(descriptor)
        self._master = self._slave = -1
        self._pending.clear()
        self._outgoing.clear()

    def _run(self) -> None:
        while not self._stopping:
            self._update_faults()
            if self._master < 0:
                time.sleep(CLOSED_SECONDS)
                continue
            readable, _, _ = select.select([self._master], [], [], self._select_timeout())
            if readable:
                with suppress(OSError):
                    self._pending += os.read(self._master, 4096)
                while (found := pop_packet(self._pending)) is not None:
                    self._handle(*found)
            self._send_due()

    def _update_faults(self) -> None:
        port_lost = self._faults.active("port") is not None
        if port_lost and self._master >= 0:
            self._close_port()
        elif not port_lost and self._master < 0:
            self._open_port()
        powered = self._faults.active("power") is None
        if powered and not self._powered:
            with self.lock:
                for servo in self.servos:
                    servo.power_on()
        self._powered = powered

    def _select_timeout(self) -> float:
        if not self._outgoing:
            return IDLE_SECONDS
        return min(max(self._outgoing[0][0] - time.monotonic(), 0.0), IDLE_SECONDS)

    def _handle(self, identifier: int, instruction: int, parameters: bytes) -> None:
        self.instructions += 1
        with self.lock:
            if instruction == SYNC_READ:
                if len(parameters) < 3 or parameters[1] > MAX_READ_BYTES:
                    return
                address, length = parameters[:2]
                addressed_servos = [servo for number in parameters[2:] for servo in self._responding_servos(number)]
                for servo in addressed_servos:
                    self._send_reply(servo, READ, servo.read(address, length))
            elif instruction == SYNC_WRITE:
                if len(parameters) > 2:
                    self._sync_write(parameters[0], parameters[1], parameters[2:])
            else:
                for servo in self._responding_servos(identifier):
                    self._execute_instruction(
                        servo, instruction, parameters, quiet=identifier == BROADCAST_ID and instruction != PING
                    )

    def _responding_servos(self, identifier: int) -> list[Servo]:
        named = (servo for servo in self.servos if identifier in (servo.identifier, BROADCAST_ID))
        return [servo for servo in named if servo.is_responding]

    def _execute_instruction(self, servo: Servo, instruction: int, parameters: bytes, *, quiet: bool) -> None:
        content = b""
        if instruction == READ and len(parameters) == 2 and parameters[1] <= MAX_READ_BYTES:
            content = servo.read(parameters[0], parameters[1])
        elif instruction == WRITE and len(parameters) > 1:
            self._write(servo, parameters[0], parameters[1:])
        elif instruction == REG_WRITE and len(parameters) > 1:
            servo.reg_write(parameters[0], parameters[1:])
        elif instruction == ACTION:
            servo.execute_reg_writes()
            self._note_goal_write(servo)
        elif instruction != PING:
            return
        if not quiet:
            self._send_reply(servo, instruction, content)

    def _sync_write(self, address: int, length: int, blocks: bytes) -> None:
        for start in range(0, len(blocks) - length, length + 1):
            for servo in self._responding_servos(blocks[start]):
                self._write(servo, address, blocks[start + 1 : start + 1 + length])

    def _write(self, servo: Servo, address: int, content: bytes) -> None:
        servo.write(address, content)
        if address <= registers.GOAL_POSITION < address + len(content):
            self._note_goal_write(servo)

    def _note_goal_write(self, servo: Servo) -> None:
        if servo.table[registers.TORQUE_ENABLE]:
            self.goal_written = True

    def _send_reply(self, servo: Servo, instruction: int, content: bytes) -> None:
        if not servo.table[registers.STATUS_LEVEL] and instruction not in ALWAYS_ANSWERED:
            return
        if self._faults.trigger("drop", servo.joint):
            return
        reply = bytearray(packet(servo.identifier, servo.errors(), content))
        if self._faults.trigger("corrupt", servo.joint):
            # After the header: the bit may be in the length, the content or the checksum.
            bit = self._faults.flipped_bit(8 * (len(reply) - 2))
            reply[2 + bit // 8] ^= 1 << bit % 8
        if self._faults.trigger("truncate", servo.joint):
            del reply[len(reply) // 2 :]
        wait = self._latency + servo.table[registers.RETURN_DELAY] * registers.RETURN_DELAY_UNIT
        late = self._faults.trigger("delay", servo.joint)
        if late:
            wait += late.value or 0.0
        # Replies are sent in the order of their time: a late one follows replies to later requests.
        self._outgoing.append((time.monotonic() + wait, bytes(reply)))
        self._outgoing.sort(key=lambda each: each[0])

    def _send_due(self) -> None:
        now = time.monotonic()
        while self._outgoing and self._outgoing[0][0] <= now:
            _, reply = self._outgoing.pop(0)
            # If no driver reads, the bytes are lost, as on a wire.
            with suppress(OSError):
                os.write(self._master, reply)
