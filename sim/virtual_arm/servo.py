"""One emulated Feetech STS3215 servo: its registers, how it drives its joint, and its readings and errors.

It models what a driver uses: position mode, gain, torque enable and limit, position limits, goal velocity, readings and
the errors that follow from them. It does not model the acceleration profile, the other operating modes (the servo has
no torque in them) and overload after a long strain: the desk's servos hold what they grasp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from . import registers
from .calibration import RESOLUTION, Encoder
from .faults import FaultInjector

NOMINAL_GAIN = 16
"""Value of `P_GAIN` that gives the stiffness of the desk's servos; LeRobot writes it."""

STALL_CURRENT = 2700.0
"""Current at stall torque, in milliamperes."""

AMBIENT_CELSIUS, SUPPLY_VOLTS = 28.0, 7.4
"""Room temperature in degrees Celsius, and the supply's voltage."""

STALL_HEATING, THERMAL_TIME_CONSTANT = 25.0, 240.0
"""Temperature rise at constant stall torque, in degrees, and its time constant in seconds."""

VOLTAGE_SAG = 0.4
"""Drop of the supply voltage at stall torque, in volts."""


@dataclass(frozen=True)
class JointDrive:
    """How a servo drives its joint now.

    Attributes:
        goal: Angle that it drives to, in radians; None without torque.
        stiffness: Stiffness relative to the desk's servo.
        torque: Torque limit as a fraction of stall torque.
    """

    goal: float | None
    stiffness: float = 0.0
    torque: float = 0.0


TORQUE_OFF = JointDrive(None)


class Servo:
    """A servo with its register table. It is not thread-safe: the bus holds the lock.

    Args:
        joint: Name of the joint.
        encoder: Converts between angle and ticks.
        faults: Faults to apply.
        position: Angle of the joint in radians.
        torque_limit: Torque limit in thousandths of stall torque.
    """

    def __init__(self, joint: str, encoder: Encoder, faults: FaultInjector, position: float, torque_limit: int) -> None:
        self.joint = joint
        self._encoder, self._faults = encoder, faults
        self._position, self._velocity, self._effort = position, 0.0, 0.0
        self._temperature = AMBIENT_CELSIUS + 2.0
        self._profiled_goal: float | None = None
        self._pending_reg_writes: list[tuple[int, bytes]] = []
        self._original_registers: dict[str, bytes] = {}
        self._drive = TORQUE_OFF
        table = registers.factory_registers()
        table[registers.IDENTIFIER] = encoder.identifier
        registers.store_word(table, registers.MIN_POSITION, encoder.range_min)
        registers.store_word(table, registers.MAX_POSITION, encoder.range_max)
        registers.store_word(table, registers.MAX_TORQUE, torque_limit)
        offset = registers.encode_sign(encoder.homing_offset, registers.OFFSET_SIGN)
        registers.store_word(table, registers.HOMING_OFFSET, offset)
        self.table = table
        self.had_torque = False
        """Whether it had torque at any time since `disable_torque`."""
        self._eprom = bytes(table)
        self.power_on()

    @property
    def identifier(self) -> int:
        """Id of the servo on the bus."""
        return self.table[registers.IDENTIFIER]

    @property
    def is_responding(self) -> bool:
        """Whether it receives and answers packets."""
        return not any(self._faults.active(kind, self.joint) for kind in ("silent", "missing", "power"))

    def power_on(self) -> None:
        """Start as after power-on: registers from the EPROM, torque off, goal at the joint's position."""
        self._powered = True
        self.table[:] = self._eprom
        self._pending_reg_writes.clear()
        self._original_registers.clear()
        self._profiled_goal = None
        limit = registers.load_word(self.table, registers.MAX_TORQUE)
        registers.store_word(self.table, registers.TORQUE_LIMIT, limit)
        registers.store_word(self.table, registers.GOAL_POSITION, self._reported_ticks())

    def disable_torque(self) -> None:
        """Switch torque off, as a write to the register does, and reset `had_torque`."""
        self.table[registers.TORQUE_ENABLE] = 0
        self.had_torque = False

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes of the registers from `address` on; beyond the table they are 0."""
        if address + length > registers.POSITION and address <= registers.CURRENT + 1:
            self._refresh()
        self._apply_eprom_faults()
        found = bytes(self.table[address : address + length])
        return found + bytes(length - len(found))

    def write(self, address: int, content: bytes) -> None:
        """Write registers from `address` on; read-only registers keep their values."""
        for place, value in enumerate(content, start=address):
            if place < len(self.table) and not any(place in span for span in registers.READ_ONLY):
                self.table[place] = value
        self.had_torque |= bool(self.table[registers.TORQUE_ENABLE])
        if not self.table[registers.LOCK]:
            kept = bytearray(self._eprom)
            first, last = registers.EPROM.start, registers.EPROM.stop
            kept[first:last] = self.table[first:last]
            self._eprom = bytes(kept)

    def reg_write(self, address: int, content: bytes) -> None:
        """Store a write until `execute_reg_writes`."""
        self._pending_reg_writes.append((address, content))

    def execute_reg_writes(self) -> None:
        """Execute the writes that `reg_write` stored."""
        for address, content in self._pending_reg_writes:
            self.write(address, content)
        self._pending_reg_writes.clear()

    def update_joint_state(self, position: float, velocity: float, effort: float, seconds: float) -> None:
        """Update the joint's state.

        Args:
            position: Angle in radians.
            velocity: Angular velocity in radians per second.
            effort: Torque as a signed fraction of stall torque.
            seconds: Time since the last update.
        """
        self._position, self._velocity, self._effort = position, velocity, effort
        rest = AMBIENT_CELSIUS + STALL_HEATING * effort * effort
        self._temperature += (rest - self._temperature) * min(1.0, seconds / THERMAL_TIME_CONSTANT)

    def errors(self) -> int:
        """Return the error byte."""
        bits = 0
        forced = self._faults.active("status", self.joint)
        if forced:
            bits |= int(forced.value or 0)
        volts = self._volts() / registers.VOLTAGE_UNIT
        if not self.table[registers.MIN_VOLTAGE] <= round(volts) <= self.table[registers.MAX_VOLTAGE]:
            bits |= registers.VOLTAGE_ERROR
        if round(self._degrees()) > self.table[registers.MAX_TEMPERATURE]:
            bits |= registers.OVERHEAT_ERROR
        return bits

    def drive(self, seconds: float) -> JointDrive:
        """Return how it drives its joint, `seconds` after the last call."""
        if self._faults.active("missing", self.joint) or self._faults.active("power"):
            self._powered = False
            self._profiled_goal = None
            return TORQUE_OFF
        if not self._powered:
            # Restart first: it must not continue with its old state.
            self.power_on()
        table = self.table
        if not table[registers.TORQUE_ENABLE] or table[registers.OPERATING_MODE] != registers.POSITION_MODE:
            self._profiled_goal = None
            return TORQUE_OFF
        limit = min(
            registers.load_word(table, registers.TORQUE_LIMIT), registers.load_word(table, registers.MAX_TORQUE)
        )
        unloading = self.errors() & table[registers.UNLOADING]
        if unloading & ~registers.OVERLOAD_ERROR:
            return TORQUE_OFF
        if unloading:
            limit = min(limit, table[registers.PROTECTIVE_TORQUE] * registers.FULL_TORQUE // 100)
        goal = self._apply_goal_velocity(self.goal_ticks(), seconds)
        drive = self._drive
        angle = self._encoder.radians(goal + self._homing_offset_error())
        stiffness, torque = table[registers.P_GAIN] / NOMINAL_GAIN, min(limit / registers.FULL_TORQUE, 1.0)
        if (drive.goal, drive.stiffness, drive.torque) != (angle, stiffness, torque):
            self._drive = drive = JointDrive(angle, stiffness, torque)
        return drive

    def goal_ticks(self) -> int:
        """Return the written goal position, clipped to the position limits."""
        goal = registers.decode_sign(registers.load_word(self.table, registers.GOAL_POSITION), registers.POSITION_SIGN)
        low, high = self._limits()
        return goal if low == high == 0 else min(max(goal, low), high)

    def _limits(self) -> tuple[int, int]:
        self._apply_eprom_faults()
        minimum = registers.load_word(self.table, registers.MIN_POSITION)
        maximum = registers.load_word(self.table, registers.MAX_POSITION)
        return minimum, maximum

    def _apply_goal_velocity(self, goal: int, seconds: float) -> float:
        """Return the goal that the goal velocity allows now; a goal velocity of 0 means no limit."""
        speed = registers.load_word(self.table, registers.GOAL_VELOCITY) & 0x7FFF
        if not speed:
            self._profiled_goal = None
            return goal
        here = self._profiled_goal
        if here is None:
            here = self._encoder.ticks(self._position) - self._homing_offset_error()
        step = speed * seconds
        self._profiled_goal = goal if abs(goal - here) <= step else here + math.copysign(step, goal - here)
        return self._profiled_goal

    def _homing_offset_error(self) -> int:
        """Return the difference between the homing offset in the registers and that of the calibration."""
        word = registers.load_word(self.table, registers.HOMING_OFFSET)
        return registers.decode_sign(word, registers.OFFSET_SIGN) - self._encoder.homing_offset

    def _reported_ticks(self) -> int:
        """Return the reported position in ticks, 0 to RESOLUTION - 1 (single-turn angle feedback)."""
        ticks = round(self._encoder.ticks(self._position)) - self._homing_offset_error()
        return ticks % RESOLUTION

    def _refresh(self) -> None:
        table, velocity_sign = self.table, registers.POSITION_SIGN
        velocity = round(self._velocity * self._encoder.ticks_per_radian)
        registers.store_word(
            table, registers.POSITION, registers.encode_sign(self._reported_ticks(), registers.POSITION_SIGN)
        )
        registers.store_word(table, registers.VELOCITY, registers.encode_sign(velocity, velocity_sign))
        load = round(self._effort * registers.FULL_TORQUE)
        registers.store_word(table, registers.LOAD, registers.encode_sign(load, registers.LOAD_SIGN))
        table[registers.VOLTAGE] = min(round(self._volts() / registers.VOLTAGE_UNIT), 255)
        table[registers.TEMPERATURE] = min(round(self._degrees()), 255)
        table[registers.STATUS] = self.errors()
        table[registers.MOVING] = int(abs(velocity) > table[registers.MOVING_THRESHOLD])
        current = round(abs(self._effort) * STALL_CURRENT / registers.CURRENT_UNIT)
        registers.store_word(table, registers.CURRENT, current)

    def _volts(self) -> float:
        forced = self._faults.active("voltage", self.joint)
        return float(forced.value or 0) if forced else SUPPLY_VOLTS - VOLTAGE_SAG * abs(self._effort)

    def _degrees(self) -> float:
        forced = self._faults.active("temperature", self.joint)
        return float(forced.value or 0) if forced else self._temperature

    def _apply_eprom_faults(self) -> None:
        """Override registers while a fault is active, and restore them afterwards."""
        for kind, address, length in _OVERRIDABLE_REGISTERS:
            fault = self._faults.active(kind, self.joint)
            if fault and kind not in self._original_registers:
                self._original_registers[kind] = bytes(self.table[address : address + length])
                self._override_register(kind, int(fault.value or 0))
            elif not fault and kind in self._original_registers:
                self.table[address : address + length] = self._original_registers.pop(kind)

    def _override_register(self, kind: str, value: int) -> None:
        table = self.table
        if kind == "model":
            registers.store_word(table, registers.MODEL, value)
        elif kind == "limits":
            registers.store_word(
                table, registers.MIN_POSITION, registers.load_word(table, registers.MIN_POSITION) + value
            )
            registers.store_word(
                table, registers.MAX_POSITION, registers.load_word(table, registers.MAX_POSITION) - value
            )
        else:
            word = registers.load_word(table, registers.HOMING_OFFSET)
            offset = registers.decode_sign(word, registers.OFFSET_SIGN) + value
            word = registers.encode_sign(offset, registers.OFFSET_SIGN)
            registers.store_word(table, registers.HOMING_OFFSET, word)


_OVERRIDABLE_REGISTERS = (
    ("model", registers.MODEL, 2),
    ("limits", registers.MIN_POSITION, 4),
    ("homing", registers.HOMING_OFFSET, 2),
)
