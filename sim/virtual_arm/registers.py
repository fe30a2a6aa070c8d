"""The register table of a Feetech STS3215 servo: addresses, number formats and factory values.

Two-byte numbers are little-endian. Some are stored as magnitude and a sign bit.
"""

from __future__ import annotations

FIRMWARE = (3, 10)
MODEL_NUMBER = 777

FIRMWARE_MAJOR, FIRMWARE_MINOR, MODEL, IDENTIFIER, BAUD_RATE = 0, 1, 3, 5, 6
RETURN_DELAY, STATUS_LEVEL, MIN_POSITION, MAX_POSITION = 7, 8, 9, 11
MAX_TEMPERATURE, MAX_VOLTAGE, MIN_VOLTAGE, MAX_TORQUE = 13, 14, 15, 16
PHASE, UNLOADING, LED_ALARM, P_GAIN, D_GAIN, I_GAIN, STARTUP_FORCE = 18, 19, 20, 21, 22, 23, 24
DEAD_ZONES, PROTECTION_CURRENT, RESOLUTION, HOMING_OFFSET, OPERATING_MODE = 26, 28, 30, 31, 33
PROTECTIVE_TORQUE, PROTECTION_TIME, OVERLOAD_TORQUE = 34, 35, 36
TORQUE_ENABLE, ACCELERATION, GOAL_POSITION, GOAL_TIME, GOAL_VELOCITY, TORQUE_LIMIT, LOCK = 40, 41, 42, 44, 46, 48, 55
POSITION, VELOCITY, LOAD, VOLTAGE, TEMPERATURE, STATUS, MOVING, CURRENT = 56, 58, 60, 62, 63, 65, 66, 69
MOVING_THRESHOLD, MAX_ACCELERATION = 80, 85

EPROM = range(5, 40)
"""Registers that keep their values without power, if they are written while LOCK is 0."""

READ_ONLY = (range(5), range(56, 71))

VOLTAGE_ERROR, SENSOR_ERROR, OVERHEAT_ERROR, CURRENT_ERROR, OVERLOAD_ERROR = 1, 2, 4, 8, 32
"""The bits of a status packet's error byte and of the register `STATUS`."""

POSITION_MODE = 0

RETURN_DELAY_UNIT = 2e-6
VOLTAGE_UNIT = 0.1
CURRENT_UNIT = 6.5
"""Seconds, volts and milliamperes for one unit of the register."""

FULL_TORQUE = 1000
"""Value of `TORQUE_LIMIT`, `MAX_TORQUE` and `LOAD` at stall torque."""


def factory_registers() -> bytearray:
    """Return the table [256] of a servo after the arm's setup, without id, range and position."""
    table = bytearray(256)
    table[FIRMWARE_MAJOR], table[FIRMWARE_MINOR] = FIRMWARE
    store_word(table, MODEL, MODEL_NUMBER)
    table[STATUS_LEVEL] = 1
    table[MAX_TEMPERATURE], table[MAX_VOLTAGE], table[MIN_VOLTAGE] = 70, 80, 40
    store_word(table, MAX_TORQUE, FULL_TORQUE)
    table[PHASE] = 12
    table[UNLOADING], table[LED_ALARM] = 44, 47
    table[P_GAIN], table[D_GAIN], table[I_GAIN] = 16, 32, 0
    store_word(table, STARTUP_FORCE, 16)
    table[DEAD_ZONES] = table[DEAD_ZONES + 1] = 1
    store_word(table, PROTECTION_CURRENT, 500)
    table[RESOLUTION] = 1
    table[PROTECTIVE_TORQUE], table[PROTECTION_TIME], table[OVERLOAD_TORQUE] = 20, 200, 80
    table[LOCK] = 1
    table[MOVING_THRESHOLD], table[MAX_ACCELERATION] = 5, 254
    return table


def store_word(table: bytearray, address: int, value: int) -> None:
    """Write a two-byte number."""
    table[address : address + 2] = value.to_bytes(2, "little")


def load_word(table: bytearray, address: int) -> int:
    """Read a two-byte number."""
    return int.from_bytes(table[address : address + 2], "little")


def encode_sign(value: int, sign_bit: int) -> int:
    """Encode a number as magnitude and sign bit; a magnitude that is too large is clipped."""
    magnitude = min(abs(value), (1 << sign_bit) - 1)
    return magnitude | (1 << sign_bit) if value < 0 else magnitude


def decode_sign(word: int, sign_bit: int) -> int:
    """Decode a number that is stored as magnitude and sign bit."""
    magnitude = word & ((1 << sign_bit) - 1)
    return -magnitude if word & (1 << sign_bit) else magnitude


POSITION_SIGN, OFFSET_SIGN, LOAD_SIGN = 15, 11, 10
"""Sign bit of positions and velocities, of the homing offset, and of the load."""
