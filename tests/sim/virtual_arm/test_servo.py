"""The servo model: registers, limits, drive, errors and power loss."""

import itertools

import pytest

from saccade.sim.desk.arm import HOME
from saccade.sim.virtual_arm import registers
from saccade.sim.virtual_arm.calibration import encoders
from saccade.sim.virtual_arm.faults import Fault
from saccade.sim.virtual_arm.servo import TORQUE_OFF

PAN = encoders()["shoulder_pan"]
SLICE = 1 / 360


@pytest.fixture
def servo(servos):
    return servos[0]


def write2(servo, address, value):
    servo.write(address, value.to_bytes(2, "little"))


def read2(servo, address):
    return int.from_bytes(servo.read(address, 2), "little")


def torque(servo, on=True):
    servo.write(registers.TORQUE_ENABLE, bytes([on]))


def test_sign_bit_round_trip():
    for value in (0, 1, -1, 2047, -2047):
        assert registers.decode_sign(registers.encode_sign(value, 15), 15) == value
    assert registers.encode_sign(-5, 15) == 0x8005
    assert registers.encode_sign(9999, 10) == 1023


def test_servo_is_limp_without_torque_and_holds_its_position_with_torque(servo):
    assert servo.drive(SLICE) is TORQUE_OFF
    torque(servo)
    drive = servo.drive(SLICE)
    assert drive.goal == pytest.approx(HOME[0], abs=1 / PAN.ticks_per_radian)
    assert (drive.stiffness, drive.torque) == (1.0, 1.0)
    torque(servo, on=False)
    assert servo.drive(SLICE) is TORQUE_OFF


def test_goal_is_clamped_to_the_position_limits(servo):
    torque(servo)
    write2(servo, registers.GOAL_POSITION, 4000)
    assert servo.drive(SLICE).goal == pytest.approx(PAN.radians(PAN.range_max))
    assert read2(servo, registers.GOAL_POSITION) == 4000
    write2(servo, registers.GOAL_POSITION, registers.encode_sign(-300, 15))
    assert servo.drive(SLICE).goal == pytest.approx(PAN.radians(PAN.range_min))


def test_gain_and_torque_limit_scale_the_drive(servo):
    torque(servo)
    servo.write(registers.P_GAIN, bytes([32]))
    write2(servo, registers.TORQUE_LIMIT, 300)
    drive = servo.drive(SLICE)
    assert (drive.stiffness, drive.torque) == (2.0, 0.3)


def test_goal_velocity_limits_the_speed(servo):
    torque(servo)
    servo.update_joint_state(0.0, 0.0, 0.0, SLICE)
    write2(servo, registers.GOAL_VELOCITY, 360)
    write2(servo, registers.GOAL_POSITION, 2148)
    goals = [servo.drive(SLICE).goal for _ in range(150)]
    ticks = [PAN.ticks(goal) for goal in goals]
    assert ticks[0] == pytest.approx(2048.5, abs=0.6)
    assert max(second - first for first, second in itertools.pairwise(ticks)) <= 1.0001
    assert ticks[-1] == pytest.approx(2148)


def test_other_operating_modes_give_no_torque(servo):
    torque(servo)
    servo.write(registers.OPERATING_MODE, b"\1")
    assert servo.drive(SLICE) is TORQUE_OFF


def test_registers_show_the_joint_state(servo):
    servo.update_joint_state(0.5, -1.0, -0.25, SLICE)
    assert read2(servo, registers.POSITION) == round(PAN.ticks(0.5))
    assert registers.decode_sign(read2(servo, registers.VELOCITY), 15) == -round(PAN.ticks_per_radian)
    assert registers.decode_sign(read2(servo, registers.LOAD), 10) == -250
    assert servo.read(registers.MOVING, 1) == b"\1"
    assert servo.read(registers.VOLTAGE, 1)[0] == 73
    assert 20 < servo.read(registers.TEMPERATURE, 1)[0] < 40
    assert read2(servo, registers.CURRENT) > 0
    assert servo.read(registers.STATUS, 1) == b"\0"


def test_long_load_raises_the_temperature(servo):
    before = servo.read(registers.TEMPERATURE, 1)[0]
    for _ in range(600):
        servo.update_joint_state(0.0, 0.0, 1.0, 1.0)
    assert servo.read(registers.TEMPERATURE, 1)[0] > before + 10


def test_measurements_are_read_only_and_addresses_beyond_the_table_read_zero(servo):
    before = servo.read(registers.POSITION, 2)
    servo.write(registers.POSITION, b"\0\0")
    servo.write(registers.MODEL, b"\0\0")
    assert servo.read(registers.POSITION, 2) == before
    assert read2(servo, registers.MODEL) == 777
    assert servo.read(250, 12)[6:] == bytes(6)
    servo.write(254, b"\1\2\3\4")


def test_only_writes_with_the_lock_open_survive_a_power_cycle(servo):
    write2(servo, registers.MAX_POSITION, 3000)
    servo.write(registers.LOCK, b"\0")
    write2(servo, registers.MIN_POSITION, 1200)
    servo.write(registers.LOCK, b"\1")
    write2(servo, registers.MIN_POSITION, 1300)
    torque(servo)
    servo.power_on()
    assert (read2(servo, registers.MIN_POSITION), servo.table[registers.TORQUE_ENABLE]) == (1200, 0)


def test_homing_offset_shifts_positions_and_goals(servo):
    before = read2(servo, registers.POSITION)
    write2(servo, registers.HOMING_OFFSET, registers.encode_sign(PAN.homing_offset + 50, 11))
    assert read2(servo, registers.POSITION) == before - 50
    torque(servo)
    write2(servo, registers.GOAL_POSITION, 2000)
    assert servo.drive(SLICE).goal == pytest.approx(PAN.radians(2050))


def test_negative_position_wraps_around(servo):
    servo.update_joint_state(PAN.radians(-10), 0.0, 0.0, SLICE)
    assert read2(servo, registers.POSITION) == 4086


@pytest.mark.parametrize(
    ("fault", "error", "limp"),
    [
        (Fault("temperature"), registers.OVERHEAT_ERROR, True),
        (Fault("voltage"), registers.VOLTAGE_ERROR, False),
        (Fault("status", value=registers.CURRENT_ERROR), registers.CURRENT_ERROR, True),
    ],
)
def test_errors_cut_the_torque_as_configured(servo, faults, fault, error, limp):
    torque(servo)
    faults.schedule(fault)
    assert servo.errors() == error == servo.read(registers.STATUS, 1)[0]
    assert (servo.drive(SLICE) is TORQUE_OFF) == limp
    faults.clear()
    assert servo.errors() == 0 and servo.drive(SLICE).torque == 1.0


def test_overload_leaves_the_protective_torque(servo, faults):
    torque(servo)
    faults.schedule(Fault("status", value=registers.OVERLOAD_ERROR))
    assert servo.drive(SLICE).torque == 0.2


def test_eprom_faults_begin_and_end(servo, faults):
    faults.schedule(Fault("limits", value=100))
    faults.schedule(Fault("model", value=2825))
    faults.schedule(Fault("homing", value=-40))
    assert read2(servo, registers.MIN_POSITION) == PAN.range_min + 100
    assert read2(servo, registers.MAX_POSITION) == PAN.range_max - 100
    assert read2(servo, registers.MODEL) == 2825
    offset = registers.decode_sign(read2(servo, registers.HOMING_OFFSET), 11)
    assert offset == PAN.homing_offset - 40
    faults.clear()
    assert read2(servo, registers.MIN_POSITION) == PAN.range_min
    assert read2(servo, registers.MODEL) == 777
    assert registers.decode_sign(read2(servo, registers.HOMING_OFFSET), 11) == PAN.homing_offset


@pytest.mark.parametrize("kind", ["missing", "power"])
def test_servo_has_no_torque_after_a_power_loss(servo, faults, kind):
    torque(servo)
    assert servo.drive(SLICE).goal is not None
    faults.schedule(Fault(kind))
    assert servo.drive(SLICE) is TORQUE_OFF
    faults.clear()
    assert servo.drive(SLICE) is TORQUE_OFF
    assert servo.read(registers.TORQUE_ENABLE, 1) == b"\x00"
