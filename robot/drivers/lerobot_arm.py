"""Any robot of LeRobot as an arm: a thin adapter that asks no questions and checks everything before torque is on.

The robot is built without cameras, because the session process reads them. LeRobot is imported inside functions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError, SaccadeError, WorldError
from ..arm import ArmDescription, BusError
from ..limits import JointRange
from .serial_bus import call_with_retries, clear_input_buffers, keep_torque_off, open_port

UNIT_BY_NORM_MODE = {"degrees": "degrees", "range_0_100": "percent", "range_m100_100": "unitless"}
"""The unit of a contract for each of LeRobot's modes to normalise a motor's position."""

SLOW_REGISTER_SECONDS = 0.5
"""Timeout of a register before anything moves; some are in slow memory."""

PROTECTION_STATUS_BITS = 4 | 8
"""Status bits with which a Feetech servo switches off its torque by itself: overheating, overcurrent."""

MISREAD_MARGIN = 0.5
"""Fraction of its range by which a joint may be read outside of it; a position further out is a misread."""


@dataclass(frozen=True)
class _MotorBus:
    """One bus of a robot, with the prefix of its joints in the robot's names, and the robot that owns it."""

    prefix: str
    owner: Any
    bus: Any


class LeRobotArm:
    """An arm that LeRobot drives.

    Args:
        config: LeRobot's `RobotConfig`.
        ranges: The joints' ranges of a robot without a serial bus, whose calibration has no known form. Such a robot
            switches its torque itself.

    Attributes:
        retries: Number of reads that succeeded only at a later try.
    """

    def __init__(self, config: Any, ranges: Sequence[JointRange] = ()) -> None:
        self._config, self._given_ranges = _without_cameras(config), tuple(ranges)
        self._robot: Any = None
        self._motor_buses: list[_MotorBus] = []
        self._names: tuple[str, ...] = ()
        self._low = self._high = np.zeros(0)
        self.retries = 0

    def connect(self) -> ArmDescription:
        """Open the bus, check servos and calibration, and configure the servos; the torque is off afterwards.

        Returns:
            The arm, with its joints in the driver's order.

        Raises:
            InputError: The port does not exist or is in use, a servo is missing or of another model, or the calibration
                is absent or of another arm.
            WorldError: The driver fails otherwise.
        """
        with _without_stdin(self._config):
            try:
                description = self._connect()
            except (SaccadeError, EOFError):
                self.close()
                raise
            except Exception as error:
                self.close()
                kind = type(error).__name__
                raise WorldError(f"the driver of {self._config.type} failed: {kind}: {error}") from error
        low, high = (np.array([getattr(joint, side) for joint in description.joints]) for side in ("low", "high"))
        slack = MISREAD_MARGIN * (high - low)
        self._names, self._low, self._high = description.names, low - slack, high + slack
        return description

    def measure(self) -> np.ndarray:
        observation = self._call_with_retries(self._robot.get_observation, "reading the joints")
        pose = np.array([observation[name] for name in self._names], dtype=np.float64)
        if not np.isfinite(pose).all() or np.any((pose < self._low) | (pose > self._high)):
            raise BusError(f"reading the joints: {np.round(pose, 1).tolist()} is impossible")
        return pose

    def command(self, target: np.ndarray) -> None:
        if not np.isfinite(target).all():
            raise WorldError(f"a goal that is not finite was about to be written: {target}")
        action = {name: float(value) for name, value in zip(self._names, target, strict=True)}
        self._call_with_retries(lambda: self._robot.send_action(action), "writing the goal")

    def hold(self) -> np.ndarray:
        pose = self.measure()
        if not self._motor_buses:
            self.command(pose)
            return pose
        for motor_bus in self._motor_buses:
            # In encoder ticks, because a conversion to units and back could move a joint by one tick.
            present = self._call_with_retries(
                lambda motor_bus=motor_bus: motor_bus.bus.sync_read("Present_Position", normalize=False), "reading"
            )
            self._call_with_retries(
                lambda motor_bus=motor_bus, present=present: motor_bus.bus.sync_write(
                    "Goal_Position", present, normalize=False
                ),
                "writing the goal",
            )
            written = self._call_with_retries(
                lambda motor_bus=motor_bus: motor_bus.bus.sync_read("Goal_Position", normalize=False), "reading"
            )
            if written != present:
                raise BusError(f"the present pose was written as goal, and {written} read back instead of {present}")
        return pose

    def set_torque(self, *, on: bool) -> None:
        for motor_bus in self._motor_buses:
            switch = motor_bus.bus.enable_torque if on else motor_bus.bus.disable_torque
            self._call_with_retries(
                lambda switch=switch: switch(num_retry=2), "switching the torque", budget=SLOW_REGISTER_SECONDS
            )

    def has_torque(self) -> bool:
        """Return whether all motors have torque; a servo that lost its power for a moment has none."""
        return all(all(self._registers(motor_bus, "Torque_Enable").values()) for motor_bus in self._motor_buses)

    def motors_in_protection(self) -> str:
        """Return which motors give no torque because of overheating or overcurrent; empty if none."""
        return ", ".join(
            motor_bus.prefix + name
            for motor_bus in self._motor_buses
            # Feetech servos only; their torque register does not change.
            if "Status" in _control_table(motor_bus)
            for name, status in self._registers(motor_bus, "Status").items()
            if status & PROTECTION_STATUS_BITS
        )

    def _registers(self, motor_bus: _MotorBus, name: str) -> dict[str, int]:
        return self._call_with_retries(lambda: motor_bus.bus.sync_read(name, normalize=False), f"reading {name}")

    def close(self) -> None:
        for motor_bus in self._motor_buses:
            with contextlib.suppress(Exception):
                # A port that vanished cannot be closed either.
                motor_bus.bus.disconnect(disable_torque=False)
        if not self._motor_buses and self._robot is not None and self._robot.is_connected:
            with contextlib.suppress(Exception):
                self._robot.disconnect()

    def _call_with_retries(self, call: Any, what: str, budget: float | None = None) -> Any:
        buses = [motor_bus.bus for motor_bus in self._motor_buses]
        if not buses:
            try:
                return call()
            except Exception as error:
                raise BusError(f"{what}: {type(error).__name__}: {error}") from None
        result, number = (
            call_with_retries(buses, call, what)
            if budget is None
            else call_with_retries(buses, call, what, budget=budget)
        )
        self.retries += number > 1
        return result

    # Connection, before anything moves.

    def _connect(self) -> ArmDescription:
        from lerobot.robots.utils import make_robot_from_config

        self._robot = make_robot_from_config(self._config)
        names = tuple(self._robot.action_features)
        others = [name for name in names if not name.endswith(".pos")]
        if others or not names:
            raise InputError(
                f"actions of {self._config.type}",
                got=", ".join(others) or "none",
                expected="joint positions, named *.pos, alone",
                fix="Control the other parts with another program.",
            )
        self._motor_buses = _motor_buses(self._robot)
        ranges = {joint.name: joint for joint in self._given_ranges}
        for motor_bus in self._motor_buses:
            what = f"{self._config.type} {motor_bus.owner.id or ''}".strip()
            _check_calibration_file(motor_bus, what, self._config)
            open_port(motor_bus.bus, what)
            _check_servos(motor_bus, what)
            _check_calibration(motor_bus, what, self._config)
            with keep_torque_off(motor_bus.bus):
                call_with_retries(
                    [motor_bus.bus],
                    motor_bus.owner.configure,
                    "configuring the servos",
                    budget=4 * SLOW_REGISTER_SECONDS,
                )
            clear_input_buffers([motor_bus.bus])
            ranges |= {joint.name: joint for joint in _ranges(motor_bus)}
        if not self._motor_buses:
            self._robot.connect(calibrate=False)
            if not self._robot.is_calibrated:
                raise _missing_calibration_error(self._robot, self._config.type, self._config)
        missing = [name for name in names if name not in ranges]
        if missing:
            raise InputError(
                f"range of {', '.join(missing)}",
                got=f"none, as {self._config.type} has no bus that we can ask",
                expected="a range for each joint",
                fix="Give LeRobotArm the `ranges` of its joints.",
            )
        return ArmDescription(self._config.type, tuple(ranges[name] for name in names))


def _control_table(motor_bus: _MotorBus) -> Mapping[str, Any]:
    """Return the registers that all motors of a bus have, by name."""
    motor = next(iter(motor_bus.bus.motors.values()))
    return motor_bus.bus.model_ctrl_table[motor.model]


def _without_cameras(config: Any) -> Any:
    """Return a robot's configuration for the control process: no cameras, no retries, torque unchanged at the end."""
    wanted = {
        "cameras": {},
        # LeRobot's own retry would take the answer to the first try for that to the second, and lag from then on.
        "num_read_retries": 0,
        "disable_torque_on_disconnect": False,
        "max_relative_target": None,
    }
    fields = {field.name for field in dataclasses.fields(config)}
    changes: dict[str, Any] = {name: value for name, value in wanted.items() if name in fields}
    for name in ("left_arm_config", "right_arm_config"):
        if name in fields:
            changes[name] = _without_cameras(getattr(config, name))
    return dataclasses.replace(config, **changes)


def _motor_buses(robot: Any) -> list[_MotorBus]:
    """Return the serial buses of a robot: one, or one for each of two arms."""
    owners = [("", robot), ("left_", getattr(robot, "left_arm", None)), ("right_", getattr(robot, "right_arm", None))]
    found = [_MotorBus(prefix, owner, owner.bus) for prefix, owner in owners if getattr(owner, "bus", None) is not None]
    return [motor_bus for motor_bus in found if hasattr(motor_bus.bus, "port_handler")]


@contextlib.contextmanager
def _without_stdin(config: Any) -> Iterator[None]:
    """Make a driver that asks the user a question fail instead of waiting for an answer."""
    before, sys.stdin = sys.stdin, io.StringIO("")
    try:
        yield
    except EOFError:
        raise InputError(
            f"driver of {config.type}",
            got="a question to the user at the keyboard",
            expected="an arm that is set up",
            fix="Set it up with LeRobot's own commands first (lerobot-calibrate).",
        ) from None
    finally:
        sys.stdin = before


def _missing_calibration_error(owner: Any, what: str, config: Any) -> InputError:
    return InputError(
        f"calibration of {what}",
        got=f"none at {owner.calibration_fpath}",
        expected="LeRobot's calibration of this arm",
        fix=f"Run `lerobot-calibrate --robot.type={config.type} --robot.id={owner.id}`, or name the arm's own id.",
    )


def _check_calibration_file(motor_bus: _MotorBus, what: str, config: Any) -> None:
    calibration = motor_bus.owner.calibration
    if not calibration:
        raise _missing_calibration_error(motor_bus.owner, what, config)
    wanted = {name: motor.id for name, motor in motor_bus.bus.motors.items()}
    got = {name: each.id for name, each in calibration.items()}
    if got != wanted:
        raise InputError(
            f"calibration of {what}",
            got=f"one with the motors {got}",
            expected=str(wanted),
            fix=f"{motor_bus.owner.calibration_fpath} is another arm's: name the arm's own id, or calibrate it.",
        )


def _check_servos(motor_bus: _MotorBus, what: str) -> None:
    missing, others = [], []
    for name, motor in motor_bus.bus.motors.items():
        try:
            model, _ = call_with_retries(
                [motor_bus.bus], lambda name=name: _ping(motor_bus.bus, name), "ping", budget=SLOW_REGISTER_SECONDS
            )
        except BusError:
            missing.append(f"{name} (id {motor.id})")
            continue
        wanted = motor_bus.bus.model_number_table[motor.model]
        if model != wanted:
            others.append(f"{name} (id {motor.id}) of model {model} instead of {motor.model} ({wanted})")
    if missing or others:
        silent = [f"no answer from {', '.join(missing)}"] if missing else []
        raise InputError(
            f"servos of {what}",
            got="; ".join([*silent, *others]),
            expected=f"{len(motor_bus.bus.motors)} servos of the arm",
            fix="Check power and cables, and that this is the port of the arm.",
        )


def _ping(bus: Any, name: str) -> int:
    model = bus.ping(name)
    if model is None:
        raise ConnectionError("no answer")
    return model


def _check_calibration(motor_bus: _MotorBus, what: str, config: Any) -> None:
    """Compare the calibration file with the calibration that the servos store."""
    found, _ = call_with_retries(
        [motor_bus.bus], motor_bus.bus.read_calibration, "reading the calibration", budget=2 * SLOW_REGISTER_SECONDS
    )
    differences = []
    for name, stored in found.items():
        wanted = motor_bus.owner.calibration[name]
        differences += [
            f"{name} {field} {getattr(stored, field)} (file: {getattr(wanted, field)})"
            for field in ("homing_offset", "range_min", "range_max")
            if getattr(stored, field) != getattr(wanted, field)
        ]
    if differences:
        raise InputError(
            f"calibration in the servos of {what}",
            got=", ".join(differences),
            expected=f"the values of {motor_bus.owner.calibration_fpath}",
            fix="Give this arm's own id, or run lerobot-calibrate: this is another arm, or it was calibrated again.",
        )


def _ranges(motor_bus: _MotorBus) -> list[JointRange]:
    joints = []
    for name, motor in motor_bus.bus.motors.items():
        stored = motor_bus.owner.calibration[name]
        degrees = (
            (stored.range_max - stored.range_min) * 360.0 / (motor_bus.bus.model_resolution_table[motor.model] - 1)
        )
        unit = UNIT_BY_NORM_MODE.get(str(motor.norm_mode.value))
        if unit is None or not math.isfinite(degrees) or degrees <= 0:
            raise InputError(
                f"calibration of {name}",
                got=f"{stored}",
                expected="a range of its positions",
                fix="Run lerobot-calibrate.",
            )
        low, high = {"degrees": (-degrees / 2, degrees / 2), "percent": (0.0, 100.0), "unitless": (-100.0, 100.0)}[unit]
        gripper = name.endswith("gripper")
        joints.append(JointRange(f"{motor_bus.prefix}{name}.pos", unit, low, high, degrees, gripper=gripper))
    return joints
